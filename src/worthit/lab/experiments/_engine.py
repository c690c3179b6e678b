"""What the experiments on serving share: requests of mixed lengths, and an engine that counts.

SmolLM2-135M-Instruct answers requests for so many tokens each, greedy, with stop tokens ignored:
what is measured is how they are served, not what they say.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from worthit.decode.engine import Completion, Engine, EngineConfig, Request
from worthit.lab.claims import Metric
from worthit.lab.context import Context
from worthit.lab.experiments._smollm2 import Loaded, load, row
from worthit.lab.metrics import SECONDS
from worthit.nn.inference import optimize

TOKEN_TIME = replace(SECONDS, name="time a token", unit="s/token")
STEPS = Metric(id="steps", name="passes through the model", scale="ratio", margin=0.03)
ALIKE = Metric(id="alike", name="answers as when served alone", better="higher", margin=0.01)


def laid_out(context: Context) -> Loaded:
    """The `setup` of those that say how fast it is: the model as `worthit serve` runs it, in fp32.

    In fp32 no answer hangs on how sums are rounded.
    """
    one = load()
    optimize(one.model)
    return one


def requests(context: Context, seed: int) -> list[Request]:
    """Prompts of held-out text; many answers are short and a few are long."""
    sizes = context.budget.sizes
    rng = random.Random(seed)
    text = row(context.shared.tokenizer, seed, sizes["prompt"] * sizes["requests"])[0].tolist()
    found = []
    for i in range(sizes["requests"]):
        start = i * sizes["prompt"]
        prompt = text[start : start + rng.randint(sizes["prompt"] // 2, sizes["prompt"])]
        longest = sizes["output"]
        n = longest if i % 4 == 0 else rng.randint(longest // 8, longest // 3)
        found.append(Request(prompt=prompt, max_tokens=n, stop_ids=()))
    return found


def engine(context: Context, **config: Any) -> Engine:
    """An engine over the model; no prefix is shared unless it is asked for."""
    settings = EngineConfig(**{"has_prefix_caching": False, **config})
    return Engine(context.shared.model, config=settings)


def said(found: Sequence[Completion]) -> list[list[int]]:
    """The ids of every answer."""
    return [completion.samples[0].ids for completion in found]


def alone(context: Context, seed: int) -> list[list[int]]:
    """What each of a seed's requests is answered by itself; asked once for all arms."""
    key = f"alone, seed {seed}"
    if key not in context.made:
        wanted = requests(context, seed)
        context.made[key] = [said(engine(context).generate([one]))[0] for one in wanted]
    found: list[list[int]] = context.made[key]
    return found


def share_alike(found: Sequence[list[int]], others: Sequence[list[int]]) -> float:
    """The share of answers that are the same, token for token."""
    return sum(a == b for a, b in zip(found, others, strict=True)) / len(found)
