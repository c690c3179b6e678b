"""Training: what was planted is found, what is constrained stays so, and runs continue exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from worthit.errors import WorthitError
from worthit.interp.sae.kinds import make_sae
from worthit.interp.sae.metrics import fit_of
from worthit.interp.sae.train import SaeRecipe, Training, train_together

D, TRUE, WIDTH = 16, 24, 32
OPTIONS = {
    "standard": {"penalty": 1.0},
    "topk": {"k": 2},
    "batchtopk": {"k": 2},
    "jumprelu": {"penalty": 1.0, "bandwidth": 0.5, "init_threshold": 0.1},
    "gated": {"penalty": 1.0, "has_unit_decoder": True},
}


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of two in 24 directions, and the directions."""
    directions = functional.normalize(
        torch.randn(TRUE, D, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    generator = torch.Generator().manual_seed(seed)
    which = torch.rand(n, TRUE, generator=generator).topk(2).indices
    sizes = 1 + torch.rand(n, 2, generator=generator)
    return (sizes[..., None] * directions[which]).sum(1), directions


def stream(batch: int = 256):
    seed = 1
    while True:
        yield {"x": planted(batch, seed)[0]}
        seed += 1


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) for k in OPTIONS])
def test_planted_directions_are_found(kind: str) -> None:
    torch.manual_seed(0)
    sae = make_sae(kind, d_in=D, width=WIDTH, **OPTIONS[kind])
    recipe = SaeRecipe(steps=600, lr=4e-3, dead_after=30, resample_every=60)
    training = Training(sae, recipe)
    train_together({kind: training}, stream())
    training.finish()
    x, directions = planted(2000, 9999)
    best = (sae.directions() @ directions.T).amax(0)
    fit = fit_of(sae, [x])
    assert (best > 0.9).float().mean() > 0.85
    assert fit.explained_variance > 0.8
    assert fit.l0 < 4
    if kind == "gated":
        assert_close(sae.norms * training.scale, sae.norms)


def test_several_at_once_are_what_they_are_alone() -> None:
    def fresh(kind: str) -> Training:
        torch.manual_seed(3)
        return Training(make_sae(kind, d_in=D, width=WIDTH, **OPTIONS[kind]), SaeRecipe(steps=20))

    together = {kind: fresh(kind) for kind in ("topk", "standard")}
    train_together(together, stream())
    alone = fresh("topk")
    train_together({"topk": alone}, stream())
    assert_close(together["topk"].sae.encoder, alone.sae.encoder, rtol=0, atol=0)


@pytest.mark.parametrize("kind", OPTIONS)
def test_continuing_is_as_if_never_stopped(kind: str) -> None:
    def fresh() -> Training:
        torch.manual_seed(3)
        sae = make_sae(kind, d_in=D, width=WIDTH, **OPTIONS[kind])
        return Training(sae, SaeRecipe(steps=30, dead_after=4, resample_every=5))

    batches = [planted(64, i)[0] for i in range(30)]
    whole = fresh()
    whole.start(batches[0])
    for x in batches:
        whole.update(x)
    first = fresh()
    first.start(batches[0])
    for x in batches[:13]:
        first.update(x)
    second = fresh()
    second.restore(first.state())
    for x in batches[13:]:
        second.update(x)
    for name, p in whole.sae.state_dict().items():
        assert_close(second.sae.state_dict()[name], p, rtol=0, atol=0, msg=name)
    assert second.n_resampled == whole.n_resampled


def test_resampling_brings_dead_latents_back() -> None:
    """Half of the latents are shut at the start; they come on again, and only then."""

    def dead_share(every: int) -> float:
        torch.manual_seed(0)
        sae = make_sae("standard", d_in=D, width=WIDTH, penalty=0.2)
        with torch.no_grad():
            sae.b_enc[: WIDTH // 2] = -100.0
        recipe = SaeRecipe(steps=200, lr=3e-3, dead_after=20, resample_every=every)
        training = Training(sae, recipe)
        train_together({"x": training}, stream(64))
        training.finish()
        return fit_of(sae, [planted(2000, 77)[0]]).dead

    assert dead_share(0) >= 0.5
    assert dead_share(40) < 0.2


def test_a_loss_that_is_no_number_stops() -> None:
    training = Training(make_sae("topk", d_in=D, width=WIDTH, k=2), SaeRecipe(steps=5))
    with pytest.raises(WorthitError, match="step 0: the loss of topk is nan; lower the learning"):
        training.update(torch.full((4, D), float("nan")))


def test_what_is_measured() -> None:
    """By hand, on two rows and an autoencoder that is written down."""
    sae = make_sae("standard", d_in=2, width=3)
    with torch.no_grad():
        sae.encoder.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        sae.decoder.copy_(torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]))
    fit = fit_of(sae, [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])])
    # Errors (1, 0) and (0, 2): 5. Around the mean (1, 2): 5 + 5 = 10. Two latents on, one a row.
    assert fit.explained_variance == pytest.approx(0.5)
    assert fit.l0 == 1.0
    assert fit.dead == pytest.approx(1 / 3)
    assert fit.shrinkage == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated"])
def test_penalties_are_turned_to_a_number_of_latents(kind: str) -> None:
    torch.manual_seed(0)
    sae = make_sae(kind, d_in=D, width=WIDTH, **OPTIONS[kind])
    recipe = SaeRecipe(steps=400, lr=4e-3, dead_after=1000, target_l0=2.5)
    training = Training(sae, recipe)
    train_together({kind: training}, stream(128))
    training.finish()
    assert fit_of(sae, [planted(1000, 88)[0]]).l0 == pytest.approx(2.5, rel=0.15)


def test_a_training_that_is_made_shorter_ends_as_one_that_was() -> None:
    """The rate comes down over the same share of the steps; it is never made longer."""
    torch.manual_seed(0)
    training = Training(make_sae("topk", d_in=D, width=WIDTH, k=2), SaeRecipe(steps=1000))
    training.shorten(2000)
    assert training.recipe.steps == 1000
    batches, rates = stream(), []
    while training.step < training.recipe.steps:
        training.update(next(batches)["x"])
        rates.append(training.optimizer.param_groups[0]["lr"])
        if training.step == 10:
            training.shorten(20)
    assert training.step == 20
    assert rates[-1] == pytest.approx(SaeRecipe(steps=20).lr_at(19))
    assert rates[-1] < rates[10] / 2
    again = Training(make_sae("topk", d_in=D, width=WIDTH, k=2), SaeRecipe(steps=1000))
    again.restore(training.state())
    assert again.recipe.steps == 20
