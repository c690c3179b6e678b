"""What the experiments on a published model share: SmolLM2-135M-Instruct, loaded once, and text.

Seeds are pieces of text: the standard library's held-out documents, each seed its own rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worthit.decode.cache.make import CacheConfig, new_cache
from worthit.decode.corpus import sequences
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.lab import predict
from worthit.lab.claims import Metric
from worthit.lab.context import Context
from worthit.lab.experiment import Prediction
from worthit.nn import Decoder
from worthit.nn.load import load_model
from worthit.spec import load_preset
from worthit.spec.case import Case, Serving

MODEL = "smollm2-135m-instruct"
# The row that follows the one of the last seed.
MOST_SEEDS = 16
LOSS = Metric(id="loss", name="loss of held-out text", unit="nats", margin=0.02)
KL = Metric(id="kl", name="divergence from the plain model", unit="nats", margin=0.002)


@dataclass(frozen=True)
class Loaded:
    """The model and its tokenizer."""

    model: Decoder
    tokenizer: Tokenizer


def load(dtype: str = "fp32") -> Loaded:
    """The published weights in `dtype`."""
    return Loaded(load_model(MODEL, dtype=dtype).eval(), load_tokenizer(MODEL))


def loaded(context: Context) -> Loaded:
    """The `setup` of experiments in fp32."""
    return load()


def row(tokenizer: Tokenizer, seed: int, length: int) -> Tensor:
    """Held-out text, `(1, length)`, another for each seed."""
    rows = sequences(tokenizer, MOST_SEEDS, length, part="held-out")
    return rows[seed % len(rows)][None]


@torch.inference_mode()
def read(model: Decoder, ids: Tensor, config: CacheConfig, chunk: int) -> tuple[Tensor, int]:
    """Log-probabilities after each token of `ids` `(1, n)`, read in pieces, and the cache's bytes.

    Args:
        chunk: tokens a pass; what was passed before is read from the cache.
    """
    cache = new_cache(model, config)
    parts = [model(piece, cache=cache)[0].float().log_softmax(-1) for piece in ids.split(chunk, 1)]
    return torch.cat(parts), cache.nbytes


def divergence(plain: Tensor, other: Tensor) -> float:
    """Mean KL(plain || other) of log-probabilities `(n, vocabulary)`, in nats."""
    return float(functional.kl_div(other, plain, log_target=True, reduction="batchmean"))


def loss(logprobs: Tensor, ids: Tensor) -> float:
    """Mean loss of the tokens that follow; `logprobs` `(n, vocabulary)`, `ids` `(1, n)`."""
    return float(functional.nll_loss(logprobs[:-1], ids[0, 1:]))


def served(*, prompt: int, output: int, users: int = 1, **work: Any) -> Case:
    """The model as the lab runs it, serving, for `cost` to speak about."""
    workload = Serving(prompt=prompt, output=output, concurrency=users, **work)
    return predict.case_of(load_preset("smollm2-135m"), workload)


def foretold(
    metric: str, attribute: str, before: Case, after: Mapping[str, Case]
) -> Iterator[Prediction]:
    """The ratio of an attribute of cost, for each arm that `after` has a case of."""
    device = before.hardware.device
    for arm, case in after.items():
        value, low, high = predict.ratio(before, case, attribute)
        yield Prediction(
            metric=metric,
            arm=arm,
            value=value,
            low=low,
            high=high,
            basis=f"cost on {device.name}"
            + ("" if device.efficiency.is_calibrated else ", not calibrated"),
        )
