"""Which method learns from these preferences: a decision tree over facts that were read, not asked.

    wrong answers do harm                        constitutional-ai
    pairs, labels clean                          dpo, or simpo where the longer answer is chosen
    pairs, labels noisy                          ipo, or dpo in its robust kind
    pairs, noise unknown                         dpo with smoothed labels; have some judged twice
    one label an answer, both labels             kto
    demonstrations                               spin
    prompts alone                                rlaif

Every threshold stands here with where it is from; where nobody measured one, that is said. The tree
speaks of what the data can teach. Whether the model has learnt it is for an experiment to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

from worthit._record import record
from worthit.cost.bottleneck import percent
from worthit.judge.words import count
from worthit.spec.case import ADOPTIONS, Case, Data
from worthit.spec.codec import to_json
from worthit.spec.preference_facts import PreferenceFacts, Share

if TYPE_CHECKING:
    from worthit.judge.judge import Verdict

FAMILY = "alignment"
# Ten points more noise cost up to thirty points of win rate (Gao et al. 2024, arXiv:2404.09824).
NOISY = 0.10
# Published sets have so much of it, in the same paper.
USUAL_NOISE = (0.2, 0.4)
# Comparisons judged twice below which their disagreement says too little. Ours to set: the interval
# of one tenth is then a quarter wide.
LEAST_TWICE = 20
# Share of longer answers among the chosen from which length decides. DPO grows answers beyond those
# of its data (Park et al. 2024, arXiv:2403.19159); where that begins to hurt is ours to set.
LENGTH_BIASED = 0.60
# The same for lists, headings and the like (Zhang et al. 2024, arXiv:2409.11704).
FORMAT_BIASED = 0.65
# A reward model on fewer pairs is exploited by what is optimised against it; our planted reward
# turned over with 100 and 1,000 pairs, not with 10,000. One seed: an order of magnitude.
FEW = 300
# People who label summaries agree with each other in 73 to 77 % (Stiennon et al. 2020,
# arXiv:2009.01325): a judge below that is noisier than they are.
JUDGE_AGREEMENT = 0.75
# KTO's weights: n_good w_good over n_bad w_bad from 1 to this (Ethayarajh et al. 2024,
# arXiv:2402.01306, and the TRL documentation of it).
KTO_BALANCE = 4 / 3
SMOOTHING = 0.1


@record
class Step:
    """One question of the tree, with the number that answered it."""

    question: str
    answer: str
    because: str


@record
class PreferenceAdvice:
    """What to do with a set of preferences.

    Attributes:
        methods: ids that fit, the first one first.
        settings: of a method, what the facts say about its knobs.
        steps: the way through the tree.
        reasons: by method, why it fits, or why it is second or no choice here.
        others: ids worth an experiment beside them.
        cautions: what is wrong with the data, or may go wrong.
    """

    methods: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)
    steps: tuple[Step, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict, hash=False)
    others: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The advice's part of the record of `worthit judge`."""
        return {
            "methods": list(self.methods),
            "settings": dict(self.settings),
            "steps": [to_json(step) for step in self.steps],
            "reasons": dict(self.reasons),
            "others": list(self.others),
            "cautions": list(self.cautions),
        }


def advise(data: Data) -> PreferenceAdvice | None:
    """Walk the tree with the facts of `data`; None where it has no preferences."""
    facts = data.preferences
    if facts is None:
        return None
    below = _by_shape(data, facts)
    found = replace(below, cautions=(*below.cautions, *_cautions(facts)))
    if not data.is_safety_critical:
        return found
    harm = Step(
        question="do wrong answers do harm?",
        answer="yes",
        because="the case says so (data.is_safety_critical)",
    )
    why = "Harm needs rules that can be read, and answers revised by them, before preferences."
    return replace(
        found,
        methods=("constitutional-ai",),
        steps=(harm, *found.steps),
        reasons={**found.reasons, "constitutional-ai": why},
        others=(*found.methods, *found.others),
    )


def _by_shape(data: Data, facts: PreferenceFacts) -> PreferenceAdvice:
    if facts.shape == "pair":
        return _pairs(data, facts)
    if facts.shape == "binary":
        return _binary(facts)
    if facts.shape == "demonstration":
        step = Step(
            question="what is said about answers?",
            answer="nothing: demonstrations",
            because=f"{count(facts.n)} prompts with an answer each",
        )
        return PreferenceAdvice(
            methods=("spin",),
            steps=(step,),
            reasons={
                "spin": "There are good answers and no worse ones: the model's own stand for them, "
                "once it is fine-tuned on the demonstrations.",
                "rlaif": _judge_reason(),
            },
            others=("rlaif",),
            cautions=(
                "Fine-tune on the demonstrations first; what they lack, self-play cannot add.",
            ),
        )
    step = Step(
        question="what is said about answers?",
        answer="nothing: prompts alone",
        because=f"{count(facts.n)} prompts without an answer",
    )
    return PreferenceAdvice(
        methods=("rlaif",),
        steps=(step,),
        reasons={"rlaif": _judge_reason()},
        cautions=(
            "Without a judge that good, collect labels, or a checker that verifies answers (GRPO).",
        ),
    )


def _judge_reason() -> str:
    return (
        "A judge model can label sampled answers if it agrees with people in "
        f"{percent(JUDGE_AGREEMENT)} of pairs, asked in both orders: have a few hundred labelled "
        "by both."
    )


# --- pairs ---------------------------------------------------------------------------------------


def _pairs(data: Data, facts: PreferenceFacts) -> PreferenceAdvice:
    shape = Step(question="are answers compared?", answer="yes", because=f"{count(facts.n)} pairs")
    noise, because = _noise(data, facts)
    is_noisy = None if noise is None else noise >= NOISY
    answer = {None: "unknown", True: "yes", False: "no"}[is_noisy]
    noisy = Step(question=f"are {percent(NOISY)} of labels wrong?", answer=answer, because=because)
    orpo = "For a model that was never fine-tuned on answers: both stages in one, no reference."
    kto = "Reads pairs taken apart, and stands noise and contradictions; a pair says more."
    if is_noisy:
        assert noise is not None
        return PreferenceAdvice(
            methods=("ipo", "dpo"),
            settings={"dpo": f"loss robust, label_smoothing {min(noise, 0.45):.2g}"},
            steps=(shape, noisy),
            reasons={
                "ipo": "Asks for a bounded margin, so that a wrong label pulls only so far.",
                "dpo": "In its robust kind, which takes the known share of flips out of the loss.",
                "simpo": "Trusts every label in full, and these are noisy.",
                "orpo": orpo,
                "kto": kto,
            },
            others=("kto",),
        )
    length = facts.longer
    is_long = length is not None and length.share >= LENGTH_BIASED and length.low > 0.5
    longer = Step(
        question=f"is the longer answer chosen in {percent(LENGTH_BIASED)}?",
        answer="yes" if is_long else "no",
        because=_share_text(length, "pairs of unequal length") if length else "no lengths",
    )
    dpo = "Paired, and nothing in the labels speaks against its sigmoid."
    settings = {}
    if is_noisy is None:
        dpo = (
            f"With labels smoothed by {SMOOTHING:g}, until 100 pairs judged twice tell the noise: "
            f"published sets have {percent(USUAL_NOISE[0])} to {percent(USUAL_NOISE[1])}."
        )
        settings["dpo"] = f"label_smoothing {SMOOTHING:g}"
    ipo = "For labels that never contradict each other: its margin stops, that of DPO does not."
    simpo = (
        "Log-probabilities a token: length earns nothing."
        if is_long
        else "Without a reference, and ranked as answers are sampled."
    )
    first = ("simpo", "dpo") if is_long else ("dpo", "simpo")
    return PreferenceAdvice(
        methods=first,
        settings=settings,
        steps=(shape, noisy, longer),
        reasons={"dpo": dpo, "simpo": simpo, "ipo": ipo, "orpo": orpo, "kto": kto},
        others=("ipo", "orpo"),
    )


def _noise(data: Data, facts: PreferenceFacts) -> tuple[float | None, str]:
    """The share of wrong labels, or None, and how it is known."""
    if data.label_noise is not None:
        return data.label_noise, f"{percent(data.label_noise)}, as the case says (data.label_noise)"
    twice, most = facts.noise, facts.noise_at_most
    if twice is not None and twice.n >= LEAST_TWICE:
        interval = f"[{percent(twice.low)}, {percent(twice.high)}]"
        text = (
            f"{percent(twice.share)} {interval}, by {twice.n:,} comparisons judged more than once"
        )
        if most is not None and most < twice.share:
            return most, f"{text}; words and length alone leave {percent(most)} at most"
        return twice.share, text
    few = (
        "no comparison was judged twice"
        if twice is None
        else f"only {twice.n} comparisons were judged twice"
    )
    if most is None:
        return None, few
    bound = f"words and length alone tell the chosen answer, so at most {percent(most)}"
    return (most, bound) if most < NOISY else (None, f"{few}; {bound}")


def _binary(facts: PreferenceFacts) -> PreferenceAdvice:
    good = facts.desirable if facts.desirable is not None else 0.5
    n_good = round(good * facts.n)
    shape = Step(
        question="are answers compared?",
        answer="no: one label an answer",
        because=f"{count(facts.n)} answers, {percent(good)} of them good",
    )
    if n_good in (0, facts.n):
        return _one_label(facts, shape, is_good=bool(n_good))
    ratio = good / (1 - good)
    low, high = 1 / ratio, KTO_BALANCE / ratio
    weights = (
        f"desirable_weight {low:.3g} to {high:.3g}"
        if ratio < 1
        else f"undesirable_weight {1 / high:.3g} to {1 / low:.3g}"
    )
    balance = (
        f"{ratio:.3g} good for each bad answer"
        if ratio >= 1
        else (f"{1 / ratio:.3g} bad for each good answer")
    )
    return PreferenceAdvice(
        methods=("kto",),
        settings={"kto": weights},
        steps=(shape,),
        reasons={"kto": f"Made for single labels; weights even out {balance}."},
        cautions=(),
    )


def _one_label(facts: PreferenceFacts, shape: Step, *, is_good: bool) -> PreferenceAdvice:
    kind = "good" if is_good else "bad"
    both = Step(
        question="are there both labels?", answer="no", because=f"all {count(facts.n)} are {kind}"
    )
    advice = (
        "All answers are good: leave the label out and they are demonstrations, for spin."
        if is_good
        else "All answers are bad: nothing says where to go instead; collect good ones."
    )
    return PreferenceAdvice(
        methods=(),
        steps=(shape, both),
        reasons={"kto": f"Needs both labels, and all {count(facts.n)} are {kind}."},
        cautions=(advice,),
    )


def _cautions(facts: PreferenceFacts) -> tuple[str, ...]:
    """What is wrong with the data whatever the method."""
    found = []
    if facts.duplicates:
        found.append(
            f"{count(facts.duplicates)} of {count(facts.n)} rows repeat an earlier one "
            f"({percent(facts.duplicates / facts.n)}): unless they are second judgements, take "
            "them out, or they count twice and leak from training to test."
        )
    if facts.contradictions:
        found.append(
            f"{count(facts.contradictions)} "
            f"{'comparisons have' if facts.shape == 'pair' else 'answers have'} labels both ways: "
            "a majority, or none, should stand for each."
        )
    if facts.shape == "pair" and facts.n < FEW:
        found.append(
            f"{count(facts.n)} pairs, below {FEW}: too few for a reward model, whose weak spots RL "
            "would find; and hold some back to see overfitting."
        )
    length = facts.longer
    if length is not None and length.share >= LENGTH_BIASED and length.differs:
        found.append(
            f"The better answer is the longer one in {_share_text(length, 'comparisons')}: watch "
            "the length of what is generated."
        )
    for entry in facts.formatting:
        bias = entry.chosen
        edge = FORMAT_BIASED - 0.5
        if bias.differs and abs(bias.share - bias.by_chance) >= edge:
            side = "good" if bias.share > bias.by_chance else "bad"
            found.append(
                f"Formatting marks the {side} ones: with {entry.trait}, "
                f"{_share_text(bias, 'answers')}, {percent(bias.by_chance)} by chance."
            )
    margin = facts.margin
    if margin is not None and margin.ranked is not None:
        found.append(
            f"Before any training the model ranks {_share_text(margin.ranked, 'comparisons')} as "
            "the labels do, by log-probability a token."
        )
    return tuple(found)


def _share_text(share: Share, what: str) -> str:
    """A share with its interval and its number of cases.

    >>> _share_text(Share(share=0.7, low=0.61, high=0.78, n=100), "pairs")
    '70 % [61 %, 78 %] of 100 pairs'
    """
    interval = f"[{percent(share.low)}, {percent(share.high)}]"
    return f"{percent(share.share)} {interval} of {share.n:,} {what}"


# --- verdicts ------------------------------------------------------------------------------------


def with_advice(v: Verdict, advice: PreferenceAdvice | None, case: Case) -> Verdict:
    """`v` as the tree has it, where it is of this family and applies to the data."""
    t = v.technique
    if advice is None or t.family != FAMILY or not v.is_applicable or v.is_present:
        return v
    why = advice.reasons.get(t.id, "")
    if t.id not in (*advice.methods, *advice.others):
        first = " or ".join(advice.methods) or "no method as they are"
        return replace(v, decision="never", reason=why or f"These data are for {first}.")
    setting = advice.settings.get(t.id)
    price = v.reason.partition(";")[0]
    if price.startswith("It costs"):
        price += " over plain fine-tuning"
    text = f"{why}{f' Here: {setting}.' if setting else ''} {price}."
    if ADOPTIONS.index(t.adoption) > ADOPTIONS.index(case.allowed_adoption):
        text += f" It takes finetuning, and the furthest step is {case.allowed_adoption!r}."
        return replace(v, decision="defer", reason=text)
    return replace(v, decision="apply" if t.id in advice.methods else "defer", reason=text)


OUTLINE = (
    "wrong answers do harm (data.is_safety_critical)? constitutional-ai",
    f"pairs, less than {percent(NOISY)} of labels wrong? dpo; simpo where the longer answer is "
    f"chosen in {percent(LENGTH_BIASED)}; orpo before any fine-tuning",
    f"pairs, {percent(NOISY)} of labels or more wrong? ipo, or dpo in its robust kind",
    "pairs, and nobody knows? dpo with smoothed labels, and have some judged twice",
    "one label an answer? kto",
    "answers without labels? spin, after fine-tuning",
    f"prompts alone? rlaif, if the judge agrees with people in {percent(JUDGE_AGREEMENT)}",
)
