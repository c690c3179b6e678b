"""SmolLM2 pushed into Spanish or French: how much of it follows, and is it still fluent?

The direction is the difference of means of sentences in the language and in English, after layer
15. Its strength is chosen on some prompts and judged on others, by stop words that only one of the
three languages has; fluency is repetition, and how surprising the text is by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from worthit.decode.generate import generate
from worthit.interp.directions import difference_in_means, random_like
from worthit.interp.hooks import intervene
from worthit.interp.run import continuation_perplexity
from worthit.interp.steering import add
from worthit.lab.claims import Metric, no_worse, superior
from worthit.lab.context import Context
from worthit.lab.experiment import (
    Arm,
    Budget,
    Curve,
    Custom,
    Expectation,
    Experiment,
    Matched,
    Measures,
)
from worthit.lab.experiments import _concepts as concepts
from worthit.lab.predict import unseen
from worthit.lab.tasks.concepts import examples, halves
from worthit.techniques.interpretability.activation_addition import TURNER_2023

SHARE = Metric(id="share", name="share of stop words in the language", better="higher", margin=0.1)
SURPRISE = Metric(id="surprise", name="surprise of the text by itself", unit="nats", margin=0.3)
REPEATED = Metric(id="repeated", name="share of words in repeated threes", margin=0.15)
# Of each language, words that the two others do not have.
STOP_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "english": "the and of to is that it was with for are this you have from be",
        "spanish": "el los las y una con por del para está muy su como pero más lo es hay",
        "french": "et des du est dans qui il elle avec sur ce pas sont au ils aux nous leur mais",
    }.items()
}
PROMPTS = (
    "Tell me about the sea.",
    "Describe a good breakfast.",
    "What is a library for?",
    "Write about a walk in the forest.",
    "Tell me about winter.",
    "Describe your favourite animal.",
    "What do bakers do?",
)
N_TUNING = 3
# In lengths of the difference of means.
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
# Text that is this much more surprising, or so repetitive, is no text any more.
MOST_SURPRISE, MOST_REPEATED = 1.0, 0.5


@dataclass(frozen=True)
class Said:
    """What a set of answers is like, on average."""

    share: float
    surprise: float
    repeated: float


def share_in(text: str, language: str) -> float:
    """Of the stop words of a text, the share that is of `language`; 0 without any."""
    words = re.findall(r"\w+", text.casefold())
    counts = {name: sum(w in known for w in words) for name, known in STOP_WORDS.items()}
    return counts[language] / max(sum(counts.values()), 1)


def repeated(ids: Sequence[int]) -> float:
    """The share of threes of tokens that came before."""
    threes = list(zip(ids, ids[1:], ids[2:], strict=False))
    return 1 - len(set(threes)) / len(threes) if threes else 0.0


def say(
    subject: concepts.Subject,
    prompts: Sequence[str],
    v: Tensor,
    strength: float,
    language: str,
    n_tokens: int,
) -> Said:
    """Answer all prompts greedily while the stream is pushed by `strength * v`."""
    chats = [subject.tokenizer.encode_chat([{"role": "user", "content": p}]) for p in prompts]
    with intervene(subject.model, {concepts.point_of(concepts.MIDDLE): add(v, strength)}):
        found = generate(subject.model, chats, max_tokens=n_tokens, tokenizer=subject.tokenizer)
    answers = [f.ids for f in found if len(f.ids) > 3]
    nats = [math.log(continuation_perplexity(subject.model, a[:1], a[1:])) for a in answers]
    return Said(
        concepts.mean(share_in(f.text or "", language) for f in found),
        concepts.mean(nats or [math.inf]),
        concepts.mean(repeated(f.ids) for f in found),
    )


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Each seed fits its direction to another half of the sentences."""
    subject: concepts.Subject = context.shared
    n_tokens, n_judged = context.budget.sizes["tokens"], context.budget.sizes["judged"]
    tuning, judged = PROMPTS[:N_TUNING], PROMPTS[N_TUNING : N_TUNING + n_judged]
    language = arm.options["language"]
    rows = halves(examples("language", language), seed)[0]
    x, z = subject.of("language", rows)[concepts.MIDDLE], concepts.labels(rows)
    v = difference_in_means(x[z == 1], x[z == 0])
    strength, curve = 0.0, list[tuple[float, float]]()
    if arm.id != "plain":
        v = random_like(v, seed) if arm.options.get("is_random") else v
        plain = say(subject, tuning, v, 0.0, language, n_tokens)
        tried = {
            s: say(subject, tuning, v, s, language, n_tokens)
            for s in context.budget.sizes["strengths"]
        }
        fluent = {
            s: said.share
            for s, said in tried.items()
            if said.surprise <= plain.surprise + MOST_SURPRISE and said.repeated <= MOST_REPEATED
        }
        strength = max(fluent or {min(tried): 0.0}, key=lambda s: (fluent.get(s, 0.0), -s))
        curve = [(s, said.share) for s, said in tried.items()]
        nats: Curve = tuple((s, said.surprise) for s, said in tried.items())
    said = say(subject, judged, v, strength, language, n_tokens)
    found: dict[str, float | Curve] = {
        "share": said.share,
        "surprise": said.surprise,
        "repeated": said.repeated,
        "strength": strength,
    }
    if curve:
        found |= {"share by strength": tuple(curve), "surprise by strength": nats}
    return found


def prepared(context: Context) -> concepts.Subject:
    """The sentences of both languages and their English, read once."""
    subject = concepts.loaded()
    for language in ("spanish", "french"):
        texts = [row.text for row in examples("language", language)]
        subject.states(texts, concepts.POSITIONS["language"])
    return subject


QUICK = Budget(
    n_seeds=4,
    sizes={"tokens": 24, "judged": 4, "strengths": STRENGTHS},
    seconds=12.0,
    setup_seconds=20.0,
)
EXPERIMENT = Experiment(
    id="language-steering",
    technique="activation-addition",
    question="Does a push turn SmolLM2's answers to Spanish or French while they stay fluent?",
    expectation=Expectation(
        statement="Adding the difference of contrasting activations controls a high-level property "
        "of the text, and leaves it fluent.",
        source=TURNER_2023,
        refuted_if="fewer than three in ten stop words become Spanish, or no more than by a random "
        "push; or the text repeats itself or is more surprising by a nat a token",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="one model, the same prompts; the random push is as long and its strength is "
        "chosen by the same rule",
    ),
    arms=(
        Arm(id="plain", label="as it is", options={"language": "spanish"}),
        Arm(id="random", label="random push", options={"language": "spanish", "is_random": True}),
        Arm(id="spanish", label="pushed to Spanish", options={"language": "spanish"}),
        Arm(id="french", label="pushed to French", options={"language": "french"}),
    ),
    metrics=(SHARE, SURPRISE, REPEATED),
    claims=(
        superior(SHARE, "spanish", by=0.3),
        superior(SHARE, "spanish", by=0.3, against="random"),
        superior(SHARE, "french", by=0.3),
        no_worse(SURPRISE, "spanish", margin=1.0),
        no_worse(REPEATED, "spanish"),
    ),
    budgets={
        "smoke": replace(
            QUICK,
            n_seeds=2,
            sizes={"tokens": 4, "judged": 1, "strengths": (1.0,)},
            seconds=1.0,
        ),
        "quick": QUICK,
        "full": replace(QUICK, n_seeds=10, sizes={**QUICK.sizes, "tokens": 60}, seconds=30.0),
    },
    predicted=lambda setting: unseen(setting, "share", "surprise", "repeated"),
    setup=prepared,
    means={
        "confirmed": "One vector from two dozen sentences turns the answers to another language, "
        "and they still read as text: at a strength that was chosen on other prompts.",
        "refuted": "At strengths at which the text stays fluent too little of it is in the other "
        "language, or what is there repeats itself: ask for the language in the prompt.",
    },
)
