"""Steering: what it does to the stream by hand, and baked into the weights exactly the same."""

from __future__ import annotations

import pytest
import torch
from interp.tiny import D, ids_of, model_of
from torch.testing import assert_close

import worthit
from worthit.errors import InputError
from worthit.interp.conceptor import conceptor
from worthit.interp.directions import random_like
from worthit.interp.hooks import activations, capture, intervene
from worthit.interp.steering import (
    ablate,
    add,
    apart,
    in_turn,
    interference,
    mapped,
    orthonormal,
    set_along,
    steering,
    without_direction,
    written,
)
from worthit.lab import models

POINT = "layers.0.resid_post"


def vectors(n: int, d: int = D, seed: int = 3) -> list[torch.Tensor]:
    return list(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def stream(model, ids, functions) -> torch.Tensor:
    with capture(model, POINT) as before, intervene(model, functions), capture(model, POINT) as now:
        model(ids)
    return before[POINT], now[POINT]


def test_addition_moves_every_token_but_the_first() -> None:
    model, ids, (v,) = model_of("attention", "attention"), ids_of(), vectors(1)
    before, now = stream(model, ids, {POINT: add(v, 2.5)})
    assert_close(now[:, 1:] - before[:, 1:], (2.5 * v).expand_as(now[:, 1:]))
    assert_close(now[:, 0], before[:, 0])
    _, all_of_it = stream(model, ids, {POINT: add(v, 2.5, has_first=True)})
    assert_close(all_of_it[:, 0] - before[:, 0], (2.5 * v).expand_as(now[:, 0]))


def test_left_padding_and_a_cache_see_the_same_addition() -> None:
    model, ids, (v,) = model_of("attention", "attention"), ids_of(), vectors(1)
    padded = torch.cat([torch.zeros_like(ids[:, :2]), ids], dim=1)
    mask = torch.cat([torch.zeros_like(ids[:, :2]), torch.ones_like(ids)], dim=1).bool()
    with torch.no_grad(), intervene(model, {POINT: add(v, 3.0)}):
        whole = model(ids)
        assert_close(model(padded, attention_mask=mask)[:, 2:], whole, atol=1e-4, rtol=1e-4)
        cache = model.new_cache()
        parts = [model(ids[:, i : i + 1], cache=cache) for i in range(ids.shape[1])]
        assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_ablation_leaves_nothing_in_the_span_and_the_rest_alone() -> None:
    model, ids, (v, w) = model_of("attention", "attention"), ids_of(), vectors(2)
    other = orthonormal([v, w, *vectors(1, seed=9)])
    before, now = stream(model, ids, {POINT: ablate(v, w)})
    assert_close(now @ torch.stack([v, w]).T, torch.zeros(*now.shape[:2], 2), atol=1e-4, rtol=0)
    # What is orthogonal to both does not move.
    aside = other[2] - ((other[2] @ other[:2].T) @ other[:2])
    null = torch.linalg.svd(torch.stack([v, w]))[2][2:]
    assert_close(now @ null.T, before @ null.T, atol=1e-4, rtol=1e-4)
    assert aside.shape == (D,)


def test_set_along_puts_the_component_where_it_is_told() -> None:
    model, ids, (v,) = model_of("attention", "attention"), ids_of(), vectors(1)
    before, now = stream(model, ids, {POINT: set_along(v, 1.5)})
    unit = v / v.norm()
    assert_close(now @ unit, torch.full(now.shape[:2], 1.5), atol=1e-5, rtol=1e-5)
    assert_close((now - before).norm(dim=-1), ((before - now) @ unit).abs(), atol=1e-5, rtol=1e-4)


def test_part_of_the_way_and_one_after_another() -> None:
    model, ids, (v, w) = model_of("attention", "attention"), ids_of(), vectors(2)
    c = conceptor(torch.stack(vectors(30)), aperture=0.5)
    before, now = stream(model, ids, {POINT: mapped(c, 0.5)})
    assert_close(now, (before + c(before)) / 2)
    both = in_turn(add(v), ablate(w))
    _, one = stream(model, ids, {POINT: both})
    with steering(model, [{POINT: add(v)}, {POINT: ablate(w)}]), capture(model, POINT) as two:
        model(ids)
    assert_close(one, two[POINT])


@pytest.mark.parametrize("is_tied", [True, False])
def test_baked_in_it_is_the_same_as_at_run_time(is_tied: bool) -> None:
    spec = models.decoder(24, n_layers=3, has_tied_embeddings=is_tied, vocab_size=40)
    torch.manual_seed(0)
    model = worthit.nn.build(spec).eval()
    check_baked(model, torch.randint(40, (2, 9)), vectors(2, 24))


def test_baked_into_learned_positions_and_biases_too() -> None:
    from worthit.spec.load import load_preset

    torch.manual_seed(0)
    model = worthit.nn.build(load_preset("grammar-tutor")).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    check_baked(model, torch.randint(100, (2, 12)), vectors(1, model.spec.d_model))


def check_baked(model, ids, directions) -> None:
    plain = model(ids)
    with intervene(model, dict.fromkeys(written(model), ablate(*directions))):
        wanted = model(ids)
    baked = without_direction(model, *directions)
    assert_close(baked(ids), wanted, atol=2e-4, rtol=1e-4)
    assert (wanted - plain).abs().max() > 1e-2
    assert_close(model(ids), plain)  # the original is left alone
    last = f"layers.{len(model.layers) - 1}.resid_post"
    held = activations(baked, ids, last)[last] @ torch.stack(directions).T
    assert_close(held, torch.zeros_like(held), atol=1e-3, rtol=0)


def test_a_baked_model_can_be_saved_and_loaded(tmp_path) -> None:
    model = model_of("attention", "attention")
    baked = without_direction(model, *vectors(1))
    worthit.save_model(baked, tmp_path / "m")
    ids = ids_of()
    assert_close(worthit.load_model(tmp_path / "m")(ids), baked(ids))


def test_what_cannot_be_baked_says_why() -> None:
    spec = models.decoder(16, placement="post")
    with pytest.raises(InputError, match="layer 0: a norm follows its matrices"):
        without_direction(worthit.nn.build(spec), torch.ones(16))


def test_apart_is_orthogonal_and_near() -> None:
    found = apart(vectors(3))
    grams = torch.stack([v / v.norm() for v in found])
    assert_close(grams @ grams.T, torch.eye(3), atol=1e-5, rtol=0)
    for new, old in zip(found, vectors(3), strict=True):
        assert_close(new.norm(), old.norm())
        assert torch.cosine_similarity(new, old, dim=0) > 0.9
    v = vectors(1)[0]
    with pytest.raises(InputError, match="span of the others"):
        apart([v, 2 * v])


def test_interference_of_directions_that_overlap_and_that_do_not() -> None:
    model, ids = model_of("attention", "attention"), ids_of()
    a, b = torch.eye(D)[0], torch.eye(D)[1]

    def measure(model):
        with torch.no_grad(), capture(model, POINT) as seen:
            model(ids)
        return {"a": float(seen[POINT][:, 1:, 0].mean()), "b": float(seen[POINT][:, 1:, 1].mean())}

    apart_ = interference(model, {"a": {POINT: add(a)}, "b": {POINT: add(b)}}, measure)
    assert apart_.kept("a") == pytest.approx(1, abs=1e-4)
    assert apart_.spill("a", "b") == pytest.approx(0, abs=1e-4)
    leaning = interference(model, {"a": {POINT: add(a)}, "b": {POINT: add(b - 0.5 * a)}}, measure)
    assert leaning.kept("a") == pytest.approx(0.5, abs=1e-4)
    assert leaning.spill("b", "a") == pytest.approx(-0.5, abs=1e-4)
    assert leaning.to_json()["kept"]["a"] == pytest.approx(0.5, abs=1e-4)
    assert random_like(a, 0).norm() == pytest.approx(1)
