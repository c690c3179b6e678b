"""What the experiments on weights in few bits share: decoding alone, and the loss of text.

Decoding one sequence reads every matrix once a token: that is the bottleneck. SmolLM2-135M in bf16,
laid out for inference, is the baseline, so that what differs is the format of the matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from worthit.decode.cache.make import CacheConfig
from worthit.decode.corpus import sequences
from worthit.decode.generate import tokens_of
from worthit.decode.tokenizer import Tokenizer
from worthit.lab.claims import Metric
from worthit.lab.context import Context, Setting
from worthit.lab.experiment import Arm, Prediction
from worthit.lab.experiments._smollm2 import foretold, load, loss, read, row, served
from worthit.lab.metrics import SECONDS
from worthit.lab.predict import unseen
from worthit.nn import Decoder
from worthit.nn.inference import optimize
from worthit.nn.quant.quantize import quantize
from worthit.spec.case import Case
from worthit.techniques import technique

TOKEN_TIME = replace(SECONDS, name="decoded token", unit="s/token")
LOSS = Metric(id="loss", name="loss of held-out text", unit="nats", margin=0.05)
BYTES = Metric(
    id="weight_bytes", name="weights", unit="bytes", scale="ratio", margin=0.03, is_exact=True
)
# Tokens of a pass over held-out text.
CHUNK = 128


@dataclass(frozen=True)
class Shared:
    """A model for each arm."""

    models: dict[str, Decoder]
    nbytes: dict[str, int]
    tokenizer: Tokenizer


def setup(context: Context) -> Shared:
    """The published weights, rounded as each arm says, in memory; calibrated where it says so."""
    models, nbytes = {}, {}
    sizes = context.budget.sizes
    for i, arm in enumerate(context.setting.experiment.arms):
        context.tick(i / len(context.setting.experiment.arms), f"making {arm.label}")
        one = load("bf16")
        options: dict[str, Any] = dict(arm.options)
        if options:
            if options.get("method", "rtn") != "rtn":
                options["calibration"] = sequences(
                    one.tokenizer, sizes["calibration"], 256, part="calibration"
                )
            quantize(one.model, **options)
        nbytes[arm.id] = stored(one.model)
        models[arm.id] = optimize(one.model)
        tokenizer = one.tokenizer
    return Shared(models, nbytes, tokenizer)


def stored(model: Decoder) -> int:
    """Bytes of the weights, each storage once."""
    found = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(found.values())


def prepare(context: Context, arm: Arm, seed: int) -> Callable[[], dict[str, float]]:
    """The call that is timed: a prompt, and tokens one by one; its loss is measured before."""
    shared, sizes = context.shared, context.budget.sizes
    model = shared.models[arm.id]
    ids = row(shared.tokenizer, seed, sizes["tokens"])
    found, _ = read(model, ids, CacheConfig(), CHUNK)
    measured = {"loss": loss(found, ids), "weight_bytes": float(shared.nbytes[arm.id])}
    prompt = ids[0, :16].tolist()

    def once() -> dict[str, float]:
        with torch.inference_mode():
            n = sum(1 for _ in tokens_of(model, [prompt], max_tokens=sizes["output"]))
        return {"n": float(n), **measured}

    return once


def predicted(setting: Setting, name: str, formats: dict[str, str]) -> Iterator[Prediction]:
    """What cost says of a decoded token, and of the bytes."""
    output = setting.budget.sizes["output"]
    before = _in_bf16(served(prompt=16, output=output))
    change = technique(name).apply
    after = {arm: change(before, format=form) for arm, form in formats.items()}
    yield from foretold("seconds", "tpot_s", before, after)
    yield from foretold("weight_bytes", "weights_bytes", before, after)
    yield from unseen(setting, "loss")


def _in_bf16(case: Case) -> Case:
    wide = dict.fromkeys(("weights", "embeddings", "activations", "cache", "state"), "bf16")
    model = replace(case.model, precision=replace(case.model.precision, **wide))
    return replace(case, model=model)
