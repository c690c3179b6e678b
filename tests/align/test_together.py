"""Two completions behind one prompt score as each does in a row of its own, gradients included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from worthit.align.scores import score, token_logps
from worthit.align.sequences import Completions, Pair, pair_rows, rows_of
from worthit.align.together import together
from worthit.lab import models
from worthit.nn import Decoder
from worthit.spec.model import Attention, ModelSpec, Position
from worthit.train import seeded
from worthit.train.batch import IGNORE

SPEC = models.decoder(32, n_layers=2, vocab_size=16, context_len=64)
# Prompts of three lengths; completions of one token and of several, either one the longer.
PAIRS = [
    Pair(prompt=tuple(range(2, 14)), chosen=(5, 6, 7, 1), rejected=(1,)),
    Pair(prompt=(3, 4, 5, 6, 7, 8, 9), chosen=(1,), rejected=(9, 9, 1)),
    Pair(prompt=tuple(range(13, 2, -1)), chosen=(2, 3, 1), rejected=(2, 4, 1)),
]


def positioned(kind: str) -> ModelSpec:
    attention = {} if kind == "rope" else {"rotary_dim": 0}
    layers = tuple(
        replace(
            layer,
            mixers=tuple(replace(m, **attention) for m in layer.mixers if isinstance(m, Attention)),
        )
        for layer in SPEC.layers
    )
    return replace(SPEC, position=Position(kind=kind), layers=layers)  # type: ignore[arg-type]


def rows_in(batch: Completions) -> Tensor:
    return (batch.targets.flatten() != IGNORE).nonzero().squeeze(1)


def one_by_one(model: Decoder, pairs: list[Pair]) -> Tensor:
    """A plain loop: log-probabilities of all chosen completions, then of the rejected."""
    found = []
    for pair, said in [(p, p.chosen) for p in pairs] + [(p, p.rejected) for p in pairs]:
        logps = model(torch.tensor([[*pair.prompt, *said]]))[0].log_softmax(dim=-1)
        start = len(pair.prompt) - 1
        found.append(sum(logps[start + i, token] for i, token in enumerate(said)))
    return torch.stack(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["rope", "learned", "sinusoidal", "nope"])
def test_scores_and_gradients_are_those_of_rows_of_their_own(kind: str) -> None:
    model = seeded(positioned(kind))(0)
    batch = pair_rows(PAIRS)
    shared = together(model, batch, rows_in(batch))
    assert shared is not None
    assert shared.input_ids.numel() < 0.75 * batch.input_ids.numel()

    def gradients(logps: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        # Every completion weighs differently, so that none can stand in for another.
        (logps * torch.arange(1.0, len(logps) + 1)).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    wanted = one_by_one(model, PAIRS)
    found = score(model, batch)
    torch.testing.assert_close(found.logps, wanted, rtol=1e-5, atol=1e-5)
    assert found.lengths.tolist() == [4, 1, 3, 1, 3, 3]
    ours, theirs = gradients(found.logps), gradients(wanted)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_what_is_rejected_changes_nothing_of_what_is_chosen() -> None:
    model = seeded(SPEC)(0)
    other = [replace(p, rejected=tuple((t + 1) % 16 for t in p.rejected)) for p in PAIRS]
    one, two = (score(model, pair_rows(p)).logps for p in (PAIRS, other))
    torch.testing.assert_close(one[:3], two[:3], rtol=0, atol=0)
    assert (one[3:] != two[3:]).all()


def test_in_bf16_products_too() -> None:
    model = seeded(SPEC)(0)
    batch = pair_rows(PAIRS)
    with torch.autocast("cpu", torch.bfloat16):
        found = score(model, batch).logps
    found.sum().backward()
    torch.testing.assert_close(found, one_by_one(model, PAIRS), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["alibi", "relative-bias"])
def test_biases_by_distance_keep_rows_of_their_own(kind: str) -> None:
    model = seeded(positioned(kind))(0)
    batch = pair_rows(PAIRS)
    assert together(model, batch, rows_in(batch)) is None
    torch.testing.assert_close(score(model, batch).logps, one_by_one(model, PAIRS))


def test_so_do_windows() -> None:
    layers = tuple(
        replace(
            layer,
            mixers=tuple(replace(m, window=4) for m in layer.mixers),  # type: ignore[type-var]
        )
        for layer in SPEC.layers
    )
    model = seeded(replace(SPEC, layers=layers))(0)
    batch = pair_rows(PAIRS)
    assert together(model, batch, rows_in(batch)) is None


def test_other_prompts_short_prompts_and_odd_batches_keep_rows_of_their_own() -> None:
    model = seeded(SPEC)(0)
    long = tuple(range(2, 14))
    for rows in (
        [(long, (3, 1)), (long[::-1], (3, 1))],
        [((2,), (3, 4, 5, 6, 7, 1)), ((2,), (4, 4, 5, 6, 7, 1))],
        [(long, (3, 1))] * 3,
    ):
        batch = rows_of(rows)
        assert together(model, batch, rows_in(batch)) is None
        logps, places = token_logps(model, batch)
        assert len(logps) == len(places) == int((batch.targets != IGNORE).sum())


def test_whoever_watches_the_model_sees_rows_as_they_are() -> None:
    model = seeded(SPEC)(0)
    batch = pair_rows(PAIRS)
    model.logits_at = lambda ids, rows: model(ids).flatten(0, 1).index_select(0, rows)
    assert together(model, batch, rows_in(batch)) is None
