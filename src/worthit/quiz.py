"""A short quiz about real cases: every answer is computed, none is written down.

A question takes a published model, a device and a workload, and asks what `worthit.cost` or
`worthit.judge` answers about them. The wrong choices are the usual mistakes (all experts for the
active ones, the bottleneck of another batch size), not noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from worthit._record import record
from worthit.cost.bottleneck import TITLES, percent
from worthit.cost.record import cost
from worthit.errors import InputError
from worthit.judge.judge import judge_case
from worthit.judge.words import count, duration, size
from worthit.report.words import effect, flip_text, goal_metric, workload_text
from worthit.spec.case import Case
from worthit.spec.load import find_case

N_CHOICES = 4
MAX_QUESTIONS = 50
# Many draws repeat a question or decide nothing.
MAX_DRAWS = 100 * MAX_QUESTIONS

# Model, devices, prompt, output, concurrency: situations that differ in what binds.
SITUATIONS: tuple[tuple[str, str, int, int, int], ...] = (
    ("grammar-tutor", "laptop-cpu:1", 16, 16, 1),
    ("llama-3.1-8b", "l4:1", 500, 200, 1),
    ("llama-3.1-8b", "h100:1", 2000, 300, 32),
    ("llama-3.1-70b", "h100:8", 4000, 500, 64),
    ("llama-3.1-70b", "h100:8", 30_000, 500, 16),
    ("mixtral-8x7b", "h100:2", 1000, 300, 8),
    ("deepseek-v3", "h200:8", 8000, 1000, 32),
    ("deepseek-v3", "h200:8", 100_000, 1000, 16),
    ("llama-2-7b", "a100-80:1", 3000, 300, 8),
)
ASKED = (
    "gqa",
    "mla",
    "mamba2",
    "topk-moe",
    "speculative-decoding",
    "medusa",
    "kv-quantization",
    "int4-weights",
    "continuous-batching",
    "prefix-caching",
    "flash-attention",
)


@record
class Question:
    """One question with its choices, the index of the right one, and why it is right.

    `check` is the command that shows the numbers behind the answer.
    """

    text: str
    choices: tuple[str, ...]
    answer: int
    because: str
    check: str

    def to_json(self) -> dict[str, Any]:
        """The record that `worthit quiz --json` prints."""
        return asdict(self)


def quiz(n: int = 5, *, seed: int | None = None) -> list[Question]:
    """`n` questions, none asked twice; the same `seed` asks the same.

    Raises:
        InputError: fewer than one question, or more than there are.
    """
    if not 1 <= n <= MAX_QUESTIONS:
        raise InputError(f"--n: must be between 1 and {MAX_QUESTIONS} questions, got {n}")
    draw = random.Random(seed)
    asked: dict[str, Question] = {}
    # Kinds take turns, so that a short quiz has some of each.
    kinds = list(KINDS)
    draw.shuffle(kinds)
    for _ in range(MAX_DRAWS):
        if len(asked) == n:
            break
        question = kinds[0](draw)
        kinds.append(kinds.pop(0))
        if question is not None:
            asked.setdefault(question.text, question)
    return list(asked.values())


# --- the kinds: each draws a situation and returns a question, or None where it decides nothing ---


def what_binds(draw: random.Random) -> Question | None:
    """Which resource takes the largest share of the time."""
    case, flags = _situation(draw)
    shares = {
        b["id"]: b["share"] for b in cost(case)["bottlenecks"] if TITLES[b["id"]][0] == "time"
    }
    ranked = sorted(shares, key=lambda name: -shares[name])
    # Two that are nearly equal make no fair question.
    if len(ranked) < 3 or shares[ranked[1]] > 0.8 * shares[ranked[0]]:
        return None
    best = ranked[0]
    first = {name: _topic(name) for name in ranked[:N_CHOICES]}
    told = "; ".join(f"{_topic(n)} {percent(shares[n])}" for n in ranked[:3])
    return _question(
        draw,
        f"{_who(case)}. What takes most of the time?",
        first[best],
        [topic for name, topic in first.items() if name != best],
        f"Of the time of the service: {told}.",
        f"worthit cost {flags}",
    )


def what_is_the_verdict(draw: random.Random) -> Question | None:
    """Whether a technique is worth it."""
    case, flags = _situation(draw)
    name = draw.choice(ASKED)
    judgement = judge_case(case, only=[name])
    v = judgement.verdicts[0]
    if v.predicted is None:
        return None
    asked = f"Is keeping {name} worth it" if v.is_present else f"Is {name} worth it"
    stage = "trained already" if case.stage == "deployed" else "still to be trained"
    return Question(
        text=f"{_who(case)}, {stage}. {asked}?",
        choices=("apply", "defer", "never"),
        answer=("apply", "defer", "never").index(v.decision),
        because=f"{effect(v, goal_metric(judgement))}. {v.reason}",
        check=f"worthit explain {name} --for {flags}",
    )


def what_flips_it(draw: random.Random) -> Question | None:
    """The nearest change of the case that would change a verdict."""
    case, flags = _situation(draw)
    name = draw.choice(ASKED)
    v = judge_case(case, only=[name]).verdicts[0]
    if not v.flips or v.flips[0].axis in ("stage", "max_adoption"):
        return None
    right = flip_text(v.flips[0])
    others = [flip_text(f) for f in v.flips[1:]]
    # What does not flip it: the same move on an axis that was evaluated and stays as it is.
    still = {"prompt", "output", "concurrency"} - {f.axis for f in v.flips}
    becomes = v.flips[0].becomes
    for axis in sorted(still):
        now = getattr(case.workload, axis)
        others += [
            f"{becomes} at {axis} >= {now * 8}",
            f"{becomes} at {axis} <= {max(now // 8, 1)}",
        ]
    # A flip further away is a wrong answer only to "nearest".
    if right in others:
        return None
    return _question(
        draw,
        f"{_who(case)}. The verdict on {name} is {v.decision!r}. Which nearest change flips it?",
        right,
        others,
        f"{right}: {v.flips[0].factor:.3g}x from here. {v.reason}",
        f"worthit explain {name} --for {flags}",
    )


def how_large_is_the_cache(draw: random.Random) -> Question | None:
    """What one more token of one sequence adds to the cache."""
    case, flags = _situation(draw)
    n_bytes = cost(case)["cache"]["bytes_per_token"]
    if n_bytes <= 0:
        return None
    return _question(
        draw,
        f"{case.model.name}, cache in {case.model.precision.cache}. "
        "How much does one more token of one sequence add to the cache?",
        size(n_bytes),
        [size(n_bytes * factor) for factor in (0.125, 0.5, 2, 8)],
        f"{n_bytes:.0f} bytes: what each of {case.model.n_layers} layer(s) keeps, added up.",
        f"worthit cost {flags}",
    )


def how_fast_at_best(draw: random.Random) -> Question | None:
    """The bound that bandwidth sets on one decode step: every active weight is read once."""
    case, flags = _situation(draw)
    found = cost(case)
    is_dense = found["params"]["active"] > 0.9 * found["params"]["total"]
    if case.hardware.n_devices > 1 or not is_dense:
        return None
    device = case.hardware.device
    n_bytes = found["memory"]["weights_bytes"]
    seconds = n_bytes / device.mem_bytes_per_s
    return _question(
        draw,
        f"{case.model.name} in {case.model.precision.weights} on one {device.id} "
        f"({device.mem_bytes_per_s / 1e9:.0f} GB/s), one sequence. "
        "What is the least time that a decode step can take?",
        duration(seconds),
        [duration(seconds * factor) for factor in (0.1, 0.5, 3, 10)],
        f"Each step reads the weights once: {size(n_bytes)} at {device.mem_bytes_per_s / 1e9:.0f} "
        "GB/s. Arithmetic comes on top only where it takes longer.",
        f"worthit cost {flags}",
    )


def how_many_are_active(draw: random.Random) -> Question | None:
    """Parameters that one token uses in a mixture of experts."""
    case, flags = _situation(draw)
    total, active = (cost(case)["params"][name] for name in ("total", "active"))
    if active >= 0.9 * total:
        return None
    return _question(
        draw,
        f"{case.model.name} has {count(total)} parameters. How many does one token use?",
        count(active),
        [count(total), count(active / 3), count((active + total) / 2)],
        "Attention, shared experts and embeddings always, and of the routed experts only the "
        "chosen ones. In a batch many more are read: each token chooses its own.",
        f"worthit cost {flags}",
    )


KINDS: tuple[Callable[[random.Random], Question | None], ...] = (
    what_binds,
    what_is_the_verdict,
    what_flips_it,
    how_large_is_the_cache,
    how_fast_at_best,
    how_many_are_active,
)


# --- pieces --------------------------------------------------------------------------------------


def _situation(draw: random.Random) -> tuple[Case, str]:
    """A case, and the arguments that give the same one on the command line."""
    model, device, prompt, output, concurrency = draw.choice(SITUATIONS)
    case = find_case(model, on=device, prompt=prompt, output=output, concurrency=concurrency)
    flags = f"{model} --on {device} --prompt {prompt} --output {output} --concurrency {concurrency}"
    return case, flags


def _topic(name: str) -> str:
    """The bottleneck without its share: the part of its sentence before the verb."""
    return TITLES[name][1].partition(" takes ")[0].partition(" at the arithmetic limit")[0]


def _who(case: Case) -> str:
    hardware = f"{case.hardware.n_devices}x {case.hardware.device.id}"
    return f"{case.model.name} on {hardware}, {workload_text(case)}"


def _question(
    draw: random.Random, text: str, right: str, wrong: list[str], because: str, check: str
) -> Question | None:
    """With the choices shuffled; None where fewer than three would be different."""
    others = [w for w in dict.fromkeys(wrong) if w != right]
    draw.shuffle(others)
    choices = [right, *others[: N_CHOICES - 1]]
    if len(choices) < 3:
        return None
    draw.shuffle(choices)
    return Question(
        text=text,
        choices=tuple(choices),
        answer=choices.index(right),
        because=because,
        check=check,
    )
