"""Early exit against a loop over tokens, and its limits."""

from __future__ import annotations

import pytest
import torch
from nn.depth.models import (
    KV_ELEMENTS,
    LAYER,
    VOCAB,
    built,
    in_pieces,
    left_padded,
    some_ids,
    spec_of,
)
from nn.tolerances import assert_near
from torch import Tensor
from torch.nn import functional

from worthit.cost.params import count_params
from worthit.nn.decoder import Decoder, build
from worthit.nn.depth.early_exit import EarlyExitDecoder, Measure, exit_loss
from worthit.nn.tokens import tokens_of
from worthit.spec.model import EarlyExit

EXITS = EarlyExit(layers=(1, 2, 3), mean_depth=0.7, low=0.3, high=1.0)
SPEC = spec_of(*[LAYER] * 5, early_exit=EXITS)
PLAIN = spec_of(*[LAYER] * 5)
# Each lets some, not all, of the tokens below leave.
THRESHOLDS: dict[Measure, float] = {"margin": 0.5, "entropy": 0.3, "similarity": 0.07}


def exiting(measure: Measure = "margin", threshold: float | None = None) -> EarlyExitDecoder:
    model = built(SPEC)
    assert isinstance(model, EarlyExitDecoder)
    assert model.head is not None
    # Fresh heads are sure of nothing.
    with torch.no_grad():
        model.head.weight.mul_(5)
    model.measure = measure
    model.threshold = THRESHOLDS[measure] if threshold is None else threshold
    return model


def uncertainty(measure: Measure, p: Tensor, x: Tensor, before: Tensor) -> float:
    """The measures by their formulas, for one token."""
    if measure == "margin":
        first, second = sorted(p.tolist(), reverse=True)[:2]
        return 1 - first + second
    if measure == "entropy":
        return float(-(p * p.log()).sum() / torch.log(torch.tensor(float(VOCAB))))
    return float(1 - x @ before / x.norm() / before.norm()) / 2


def slowly(model: EarlyExitDecoder, ids: Tensor) -> tuple[Tensor, list[int]]:
    """One row, layer by layer: a token that left stands still, for itself and for the others."""
    tokens = tokens_of(ids, past=0, attention_mask=None)
    x = model.embed(ids, tokens)
    depths = [0] * ids.shape[1]
    for i, block in enumerate(model.layers):
        y = block(x, tokens)
        y = torch.stack([x[0, t] if depths[t] else y[0, t] for t in range(ids.shape[1])], dim=0)[
            None
        ]
        for t in range(ids.shape[1]):
            if depths[t] == 0 and i + 1 in EXITS.layers:
                p = model.logits(y[0, t]).softmax(dim=-1)
                if uncertainty(model.measure, p, y[0, t], x[0, t]) < model.threshold:
                    depths[t] = i + 1
        x = y
    return model.logits(x), [d or len(model.layers) for d in depths]


@torch.no_grad()
@pytest.mark.parametrize("measure", THRESHOLDS)
def test_equals_the_loop(measure: Measure) -> None:
    model, ids = exiting(measure), some_ids(40, batch=1)
    got = model(ids)
    assert model.depths is not None
    want, depths = slowly(model, ids)
    assert model.depths[0].tolist() == depths
    assert len(set(depths)) > 1, "some must leave and some stay to be a test"
    assert_near(got, want)


@pytest.mark.parametrize("measure", THRESHOLDS)
def test_threshold_zero_is_the_full_model(measure: Measure) -> None:
    model, plain, ids = exiting(measure, 0.0), build(PLAIN).eval(), some_ids(40)
    plain.load_state_dict(model.state_dict())
    assert_near(model(ids), plain(ids))
    assert type(plain) is Decoder


@torch.no_grad()
def test_threshold_over_one_is_the_model_cut_at_the_first_exit() -> None:
    model, ids = exiting(threshold=1.1), some_ids(40)
    short = build(spec_of(LAYER)).eval()
    short.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k.split(".")[1] in ("0", "weight")}
    )
    assert_near(model(ids), short(ids))


@torch.no_grad()
def test_more_leave_earlier_as_the_threshold_rises() -> None:
    ids, means = some_ids(60), []
    for threshold in (0.0, 0.2, 0.4, 0.6, 0.8, 1.1):
        model = exiting(threshold=threshold)
        model(ids)
        assert model.depths is not None
        means.append(float(model.depths.float().mean()))
    assert means == sorted(means, reverse=True)
    assert means[0] == 5
    assert means[-1] == 1


@torch.no_grad()
@pytest.mark.parametrize("measure", THRESHOLDS)
@pytest.mark.parametrize("lengths", [(), (20,), (7, 13)])
def test_decoding_equals_one_pass(measure: Measure, lengths: tuple[int, ...]) -> None:
    model, ids = exiting(measure), some_ids(33)
    assert_near(in_pieces(model, ids, *lengths), model(ids))
    padded, mask = left_padded(ids, 5)
    assert_near(in_pieces(model, padded, 10, mask=mask)[1, 5:], model(ids[1:, :-5])[0])


@torch.no_grad()
def test_keys_of_tokens_that_left_are_filled_in() -> None:
    model, ids = exiting(threshold=1.1), some_ids(20, batch=1)
    cache = model.new_cache()
    model(ids, cache=cache)
    assert cache.nbytes == 5 * 20 * KV_ELEMENTS * 4
    # Deeper keys are those of the state with which the tokens left.
    tokens = tokens_of(ids, past=0, attention_mask=None)
    x = model.layers[0](model.embed(ids, tokens), tokens)
    fresh = model.layers[3].new_caches()
    model.layers[3](x, tokens, fresh)
    assert_near(cache.layers[3][0].keys.value, fresh[0].keys.value)


def test_parameters_are_as_counted() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(SPEC).parameters()) == count_params(PLAIN).total


def test_every_exit_can_be_trained() -> None:
    model, ids, targets = exiting(), some_ids(12), some_ids(12, seed=7)
    logits = model.train().exit_logits(ids)
    assert_near(logits[-1], model(ids))
    loss = exit_loss(logits, targets, [1, 2, 3, 5])
    want = sum(
        d * functional.cross_entropy(y.reshape(-1, VOCAB), targets.reshape(-1))
        for d, y in zip((1, 2, 3, 5), logits, strict=True)
    )
    assert_near(loss, torch.as_tensor(want / 11))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
