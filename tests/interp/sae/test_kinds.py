"""Losses and gradients of all kinds: sae_lens', in full and at few places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interp.sae.reference import NAMES, OURS, WIDTH, D, sae_of, some_inputs, step, theirs_of
from safetensors.torch import load_file
from torch.testing import assert_close

from worthit.errors import InputError
from worthit.interp.sae import entries
from worthit.interp.sae.kinds import KINDS, make_sae

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
EXPECTED = load_file(Path(__file__).parent / "expected.safetensors")
DEAD = torch.arange(WIDTH) % 5 == 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["all", "few"])
@pytest.mark.parametrize("dead", [None, DEAD], ids=["live", "dead"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_sae_lens(kind, dead, share, monkeypatch) -> None:
    monkeypatch.setattr(entries, "FEW", share)
    sae, x = sae_of(kind), some_inputs()
    theirs = theirs_of(sae)
    want = step(theirs, x, kind, dead)
    got = sae.objective(x, dead=dead)
    assert_close(got.loss, want.loss, **CLOSE)
    assert_close(got.fired, (want.feature_acts > 0).sum(0))
    assert_close(got.reconstruction, want.sae_out.detach(), **CLOSE)
    want.loss.backward()
    got.loss.backward()
    for name, p in theirs.named_parameters():
        ours = dict(sae.named_parameters())[NAMES.get(name, name)].grad
        assert_close(ours.T if name == "W_enc" else ours, p.grad, **CLOSE)
    if kind == "batchtopk":
        assert_close(sae.level, theirs.topk_threshold)


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["all", "few"])
@pytest.mark.parametrize("case", [f"{kind}.{way}" for kind in KINDS for way in ("live", "dead")])
def test_loss_and_gradients_are_those_that_sae_lens_gave(case, share, monkeypatch) -> None:
    """Written down by `make_expected.py`: importing the library takes longer than all tests."""
    monkeypatch.setattr(entries, "FEW", share)
    want = {n.removeprefix(case + "."): t for n, t in EXPECTED.items() if n.startswith(case + ".")}
    kind, way = case.split(".")
    sae = sae_of(kind)
    got = sae.objective(some_inputs(), dead=DEAD if way == "dead" else None)
    got.loss.backward()
    assert_close(got.loss.detach(), want.pop("loss"), **CLOSE)
    assert len(want) >= 4
    for name, grad in want.items():
        assert_close(dict(sae.named_parameters())[name].grad, grad, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_in_use(kind: str) -> None:
    """Encoding and reconstruction in inference, those of their inference class."""
    from sae_lens.saes.sae import SAE

    sae, x = sae_of(kind), some_inputs()
    theirs = theirs_of(sae)
    if kind == "batchtopk":
        sae.level.fill_(0.4)
        h = (x - theirs.b_dec) @ theirs.W_enc + theirs.b_enc
        h = h * theirs.W_dec.norm(dim=-1)
        want = h * (h > 0.4)
    else:
        assert issubclass(type(theirs), SAE)
        want = theirs.encode(x)
    assert_close(sae.encode(x), want, **CLOSE)
    assert_close(sae(x), theirs.decode(want), **CLOSE)
    leading = x[:32].view(4, 8, D)
    assert_close(sae.encode(leading).flatten(0, 1), sae.encode(x[:32]))


@pytest.mark.slow
@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_normalised_inputs(normalisation: str) -> None:
    from sae_lens.saes import StandardSAE, StandardSAEConfig

    sae, x = sae_of("standard", normalisation=normalisation), 3 * some_inputs() + 1
    theirs = StandardSAE(
        StandardSAEConfig(d_in=D, d_sae=WIDTH, normalize_activations=normalisation)
    )
    theirs.load_state_dict(
        {
            "W_enc": sae.encoder.T,
            "W_dec": sae.decoder,
            "b_enc": sae.b_enc,
            "b_dec": sae.b_dec,
        }
    )
    assert_close(sae.encode(x), theirs.encode(x), **CLOSE)
    assert_close(sae(x), theirs(x), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_folding_norms_changes_no_reconstruction(kind: str) -> None:
    sae, x = sae_of(kind), some_inputs()
    if kind == "batchtopk":
        sae.level.fill_(0.4)
    want, on = sae(x), sae.encode(x) > 0
    sae.fold_norms()
    assert_close(sae.norms, torch.ones(WIDTH))
    assert_close(sae(x), want, **CLOSE)
    assert torch.equal(sae.encode(x) > 0, on)


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_inputs(kind: str) -> None:
    sae, x = sae_of(kind), some_inputs()
    if kind == "batchtopk":
        sae.level.fill_(0.4)
    want = sae(2.5 * x) / 2.5
    sae.scale_inputs(2.5)
    assert_close(sae(x), want, **CLOSE)


def test_unit_decoder() -> None:
    """The gradient does not lengthen rows, and a step leaves them at 1."""
    sae, x = make_sae("gated", d_in=D, width=WIDTH, has_unit_decoder=True), some_inputs()
    sae.objective(x).loss.backward()
    along = (sae.decoder.grad * sae.decoder).sum(-1)
    assert along.abs().max() > 1e-3
    sae.before_step()
    assert_close((sae.decoder.grad * sae.decoder).sum(-1), torch.zeros(WIDTH), atol=1e-5, rtol=0)
    with torch.no_grad():
        sae.decoder.add_(torch.randn_like(sae.decoder))
    sae.after_step()
    assert_close(sae.norms, torch.ones(WIDTH))


def test_frozen_decoder_of_the_paper() -> None:
    """Through the gates no gradient reaches the decoder, as in arXiv:2404.16014, appendix."""
    sae, x = sae_of("gated", is_frozen=True), some_inputs()
    sae.objective(x).parts["gates"].backward()
    assert sae.decoder.grad is None
    assert sae.encoder.grad.abs().max() > 0


def test_topk_has_k_and_batchtopk_on_average() -> None:
    x = some_inputs(64)
    made = sae_of("batchtopk").objective(x)
    assert made.mean_active == 3.5
    sae = sae_of("topk")
    assert ((sae.encode(x) > 0).sum(-1) <= OURS["topk"]["k"]).all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("topk", {"k": 41}, "between 1 and width, got k=41 and width=40"),
        ("standard", {"penalty": 0.0}, "penalty: must be above 0, got 0.0"),
        ("standard", {"k": 3}, "k: standard has no such option; it has d_in, width"),
        ("relu", {}, "unknown kind 'relu'"),
    ],
)
def test_options_that_cannot_be(kind: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_sae(kind, d_in=D, width=WIDTH, **options)
