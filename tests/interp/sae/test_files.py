"""Folders of autoencoders: read and written by sae_lens, and refused where not understood."""

from __future__ import annotations

import json

import pytest
import torch
from interp.sae.reference import WIDTH, D, library, sae_of, some_inputs, theirs_of
from torch.testing import assert_close

from worthit.errors import InputError
from worthit.interp.sae.files import hook_name, load_sae, point_of, save_sae
from worthit.interp.sae.kinds import KINDS

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def used(kind: str):
    sae = sae_of(kind)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' is not implemented"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening' is not impl"),
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
