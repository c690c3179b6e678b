"""Facts of preferences in words, and their section of the page."""

from __future__ import annotations

from html import escape

from worthit.cost.bottleneck import percent
from worthit.judge.judge import Judgement
from worthit.judge.words import count
from worthit.report import pieces
from worthit.spec.preference_facts import PreferenceFacts, Share

SHAPES = {
    "pair": "pairs",
    "binary": "answers with a label",
    "demonstration": "demonstrations",
    "prompt": "prompts",
}


def fact_rows(facts: PreferenceFacts) -> list[tuple[str, str]]:
    """Name and text of what was read; what the shape does not give is left out."""
    prompts = "" if facts.n_prompts is None else f" of {count(facts.n_prompts)} prompts"
    kind = ", as conversations" if facts.is_chat else ""
    rows = [("Shape", f"{count(facts.n)} {SHAPES[facts.shape]}{prompts}{kind}")]
    if facts.desirable is not None:
        rows.append(("Balance", f"{percent(facts.desirable)} good"))
    rows.append(("Duplicates", f"{count(facts.duplicates)} rows"))
    if facts.shape in ("pair", "binary"):
        rows.append(("Contradictions", f"{count(facts.contradictions)} with labels both ways"))
        rows.append(("Label noise", _noise(facts)))
    if facts.longer is not None:
        rows.append(("Length", _length(facts, facts.longer)))
    if facts.formatting:
        texts = [f"{b.trait} {_interval(b.chosen)}" for b in facts.formatting]
        rows.append(("Formatting", f"chosen where one has it: {', '.join(texts)}"))
    if facts.margin is not None:
        rows += _margin(facts)
    return rows


def _interval(share: Share) -> str:
    return f"{percent(share.share)} [{percent(share.low)}, {percent(share.high)}]"


def _noise(facts: PreferenceFacts) -> str:
    parts = []
    if facts.noise is not None:
        n = f"{facts.noise.n:,} comparisons judged more than once"
        parts.append(f"{_interval(facts.noise)}, by {n}")
    else:
        parts.append("not known, nothing was judged twice")
    if facts.noise_at_most is not None:
        parts.append(f"at most {percent(facts.noise_at_most)}, by what words and length can tell")
    return "; ".join(parts)


def _length(facts: PreferenceFacts, longer: Share) -> str:
    what = "the longer one is chosen in" if facts.shape == "pair" else "a good one is longer in"
    parts = [f"{what} {_interval(longer)}"]
    if facts.length_correlation is not None:
        parts.append(f"correlation {facts.length_correlation:.2f}")
    if facts.length_ratio is not None:
        parts.append(f"{facts.length_ratio:.2f}x as long")
    return ", ".join(parts)


def _margin(facts: PreferenceFacts) -> list[tuple[str, str]]:
    m = facts.margin
    assert m is not None
    parts = [f"{m.chosen:.2f} nats a token of the better answers"]
    if m.ranked is not None:
        parts.insert(0, f"{_interval(m.ranked)} ranked as labelled, a token")
    if m.ranked_summed is not None:
        parts.insert(1, f"{_interval(m.ranked_summed)} as whole answers")
    if m.margin is not None:
        parts.append(f"margin {m.margin:+.3f}")
    return [("Under the model", f"{', '.join(parts)} ({m.n:,} examples)")]


def preference_section(judgement: Judgement, t: pieces.Words) -> str:
    """The section of the page, or nothing."""
    advice, facts = judgement.preferences, judgement.case.data.preferences
    if advice is None or facts is None:
        return ""
    read = pieces.table(
        (t["what"], t["value"]),
        [(escape(name), escape(text)) for name, text in fact_rows(facts)],
        label=t["preferences"],
    )
    steps = pieces.table(
        (t["question"], t["answer"], t["because"]),
        [
            (escape(s.question), f"<b>{escape(s.answer)}</b>", escape(s.because))
            for s in advice.steps
        ],
        label=t["tree"],
    )
    found = " / ".join(advice.methods) or "–"
    settings = "".join(f"; {name}: {text}" for name, text in advice.settings.items())
    mind = "".join(f"<li>{escape(caution)}</li>" for caution in advice.cautions)
    body = (
        f"{read}<h3>{escape(t['tree'])}</h3>{steps}"
        f"<p><b>{escape(found)}</b>{escape(settings)}</p>" + (f"<ul>{mind}</ul>" if mind else "")
    )
    return pieces.section("preferences", t["preferences"], body)
