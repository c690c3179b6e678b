"""Folders of autoencoders: read and written by sae_lens, and refused where not understood."""

from __future__ import annotations

import json

import pytest
import torch
from interp.sae.reference import WIDTH, D, library, sae_of, some_inputs, theirs_of
from safetensors.torch import save_file
from torch.testing import assert_close

from worthit.errors import InputError
from worthit.interp.sae.files import hook_name, load_sae, point_of, save_sae
from worthit.interp.sae.kinds import KINDS

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def used(kind: str, **options: object):
    sae = sae_of(kind, **options)
    if kind == "batchtopk":
        sae.level.fill_(0.4)
    return sae


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read(kind: str, tmp_path) -> None:
    sae, x = used(kind), some_inputs()
    want, on = sae(x).detach(), sae.encode(x) > 0
    save_sae(sae, tmp_path, at="layers.3.resid_post", about={"model_name": "m"})
    again = load_sae(tmp_path)
    assert again.kind == ("jumprelu" if kind == "batchtopk" else kind)
    assert_close(again(x), want, **CLOSE)
    assert torch.equal(again.encode(x) > 0, on)
    assert point_of(tmp_path) == "layers.3.resid_post"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sae_lens_reads_ours(kind: str, tmp_path) -> None:
    sae, x = used(kind), some_inputs()
    save_sae(sae, tmp_path, at="layers.3.resid_post")
    theirs = library().SAE.load_from_disk(tmp_path)
    assert_close(theirs.encode(x), sae.encode(x), **CLOSE)
    assert_close(theirs(x), sae(x), **CLOSE)
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_post"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["save_inference_model", "save_model"])
@pytest.mark.parametrize("kind", KINDS)
def test_ours_reads_theirs(kind: str, way: str, tmp_path) -> None:
    """Released folders, and checkpoints of their training."""
    sae, x = used(kind), some_inputs()
    theirs = theirs_of(sae)
    theirs.cfg.metadata.hook_name = "blocks.5.hook_mlp_out"
    if kind == "batchtopk":
        theirs.topk_threshold.fill_(0.4)
    getattr(theirs, way)(tmp_path)
    got = load_sae(tmp_path)
    assert_close(got(x), sae(x), **CLOSE)
    assert point_of(tmp_path) == "layers.5.ffn_out"


def released(tmp_path, **changes: object) -> None:
    """A folder of the standard kind, its config changed."""
    save_sae(sae_of("standard"), tmp_path, at="layers.0.resid_pre")
    path = tmp_path / "cfg.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_a_topk_of_the_old_layout_is_no_rectified_one(tmp_path) -> None:
    """SAELens#553: the activation function stood beside the architecture `standard`."""
    released(
        tmp_path,
        architecture=None,
        metadata=None,
        activation_fn_str="topk",
        activation_fn_kwargs={"k": 3},
        hook_name="blocks.7.hook_resid_pre",
    )
    sae = load_sae(tmp_path)
    assert sae.kind == "topk"
    assert ((sae.encode(some_inputs()) > 0).sum(-1) <= 3).all()
    assert point_of(tmp_path) == "layers.7.resid_pre"


def test_a_scale_that_was_not_folded(tmp_path) -> None:
    x = some_inputs()
    released(tmp_path)
    plain = load_sae(tmp_path)
    released(tmp_path, normalize_activations="expected_average_only_in", norm_scaling_factor=2.0)
    assert_close(load_sae(tmp_path)(x), plain(2 * x) / 2, **CLOSE)


def test_a_scale_beside_a_checkpoint(tmp_path) -> None:
    x = some_inputs()
    released(tmp_path, normalize_activations="expected_average_only_in")
    plain = load_sae(tmp_path)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 2.0}')
    assert_close(load_sae(tmp_path)(x), plain(2 * x) / 2, **CLOSE)
    (tmp_path / "activation_scaler.json").write_text("{")
    with pytest.raises(InputError, match=r"activation_scaler\.json: cannot be read"):
        load_sae(tmp_path)


def whitened(kind: str, folder, **options: object):
    """A folder whose training saw whitened inputs, and what it made of them."""
    sae = used(kind, **options)
    save_sae(sae, folder)
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "normalize_activations": "covariance_whitening"}))
    generator = torch.Generator().manual_seed(5)
    there = torch.randn(D, D, generator=generator).double() + 2 * torch.eye(D).double()
    mean, back = torch.randn(D, generator=generator).double(), there.inverse()
    tensors = {"mean": mean, "matrix": there, "inverse_matrix": back.contiguous()}
    save_file(tensors, folder / "activation_whitening.safetensors")
    z = ((some_inputs() - mean) @ there).float()
    return sae.encode(z), (sae(z).double() @ back + mean).float()


@pytest.mark.parametrize("is_centred", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_whitened_inputs(kind: str, is_centred: bool, tmp_path) -> None:
    """arXiv:2511.13981: the same latents, and a reconstruction where the inputs are."""
    latents, y = whitened(kind, tmp_path, is_centred=is_centred)
    sae, x = load_sae(tmp_path), some_inputs()
    assert_close(sae.encode(x), latents, atol=2e-4, rtol=1e-4)
    assert_close(sae(x), y, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_theirs(kind: str, way: str, tmp_path) -> None:
    """A training that is not over, and what sae_lens makes of its scaler when it is."""
    library()
    from sae_lens.training.activation_scaler import ActivationScaler

    x, theirs = 3 * some_inputs(2000) + 1, theirs_of(used(kind))
    theirs.cfg.normalize_activations = way
    if kind == "batchtopk":
        theirs.topk_threshold.fill_(0.4)
    scaler = ActivationScaler()
    if way == "covariance_whitening":
        scaler.estimate_whitening(D, iter([x]), n_batches_for_norm_estimate=1)
    else:
        scaler.estimate_scaling_factor(D, iter([x]), n_batches_for_norm_estimate=1)
    theirs.save_model(tmp_path)
    scaler.save(str(tmp_path / "activation_scaler.json"))
    z = scaler.scale(x)
    theirs.eval()
    want = scaler.unscale(theirs(z))
    got = load_sae(tmp_path)
    if kind == "batchtopk":
        # Their training class takes the batch's largest; in use all above the level are on.
        h = (z - theirs.b_dec) @ theirs.W_enc + theirs.b_enc
        h = h * theirs.W_dec.norm(dim=-1)
        want = scaler.unscale(theirs.decode(h * (h > 0.4)))
    assert_close(got(x), want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' is not implemented"),
        (
            {"normalize_activations": "covariance_whitening"},
            r"trained on whitened inputs .* activation_whitening\.safetensors cannot be read",
        ),
        ({"normalize_activations": "quantile"}, "'quantile' is not implemented"),
        ({"activation_fn_str": "tanh-relu"}, "'tanh-relu' is not implemented"),
        ({"d_sae": None}, "d_sae missing"),
        ({"d_sae": WIDTH + 1}, r"encoder: must be \[41, 10\], got \[40, 10\]"),
        ({"architecture": "topk"}, "k missing, which topk needs"),
    ],
)
def test_what_is_not_understood_is_refused(changes, message, tmp_path) -> None:
    released(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_sae(tmp_path)


def test_damage_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"cfg\.json: cannot be read"):
        load_sae(tmp_path)
    sae = sae_of("standard")
    with torch.no_grad():
        sae.b_enc[3] = float("nan")
    save_sae(sae, tmp_path)
    with pytest.raises(InputError, match="b_enc: holds values that are no numbers"):
        load_sae(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"1234")
    with pytest.raises(InputError, match=r"sae_weights\.safetensors: cannot be read"):
        load_sae(tmp_path)
    with pytest.raises(InputError, match="does not say which point it reads"):
        point_of(tmp_path)


def test_names_of_hooks() -> None:
    assert hook_name("layers.15.resid_post") == "blocks.15.hook_resid_post"
    assert hook_name("final_norm") == "final_norm"
    assert D == 10
