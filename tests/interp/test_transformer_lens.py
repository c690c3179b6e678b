"""Points, logit lens, patching and attribution beside transformer-lens, on one random Llama.

Its `TransformerBridge` wraps transformers' own model of the same checkpoint, so that nothing is
asked of a network; patching is its own `patching` module, attribution its own hooks both ways.
"""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from interp.tiny import ids_of
from torch.testing import assert_close

from worthit.interp.hooks import capture
from worthit.interp.lens import lens_logits
from worthit.interp.patch import attribute, logit_difference, patch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_lens") is None,
        reason="transformer-lens is not installed",
    ),
]
N_LAYERS = 3
# Ours on the left; q and k after rotation, and heads before tokens.
NAMES = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "mixer_in": "ln1.hook_out",
    "mixer_out": "hook_attn_out",
    "ffn_in": "ln2.hook_out",
    "ffn_hidden": "mlp.out.hook_in",
    "ffn_out": "hook_mlp_out",
    "heads": "attn.hook_z",
    "pattern": "attn.hook_pattern",
    "q": "attn.hook_rot_q",
    "k": "attn.hook_rot_k",
    "v": "attn.hook_v",
}


@pytest.fixture(scope="module")
def bridge(llama):
    """transformer-lens' view of the checkpoint."""
    folder, hf, _ = llama
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        return TransformerBridge.boot_transformers(
            str(folder), hf_model=hf, tokenizer=tokenizer, device="cpu"
        )


@pytest.fixture
def prompts():
    """Three pairs of prompts that differ in their first half, with two answers each."""
    clean, corrupt = ids_of(3, 6), ids_of(3, 6, seed=2)
    corrupt[:, 3:] = clean[:, 3:]
    return clean, corrupt, [4, 5, 6], [7, 8, 9]


def test_points(llama, bridge) -> None:
    model, ids = llama[2], ids_of()
    with torch.no_grad():
        _, cache = bridge.run_with_cache(ids)
    with capture(model, "layers.*") as seen:
        model(ids)
    assert len(seen) == N_LAYERS * len(NAMES)
    for i in range(N_LAYERS):
        for ours, theirs in NAMES.items():
            want = cache[f"blocks.{i}.{theirs}"]
            got = seen[f"layers.{i}.{ours}"]
            got = got.transpose(1, 2) if ours in "qkv" else got
            assert_close(got, want, atol=1e-5, rtol=1e-5, msg=lambda m, n=ours: f"{n}: {m}")


def test_logit_lens(llama, bridge) -> None:
    """Their accumulated stream of every layer, through their last norm and their head."""
    model, ids = llama[2], ids_of()
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(ids)
        streams = cache.accumulated_resid(apply_ln=False)
        ours = lens_logits(model, ids)
        assert len(ours) == len(streams) == N_LAYERS + 1
        for point, stream in zip(ours, streams, strict=True):
            want = bridge.unembed(bridge.ln_final(stream))
            assert_close(
                ours[point], want, atol=1e-4, rtol=1e-4, msg=lambda m, p=point: f"{p}: {m}"
            )
        assert_close(ours[f"layers.{N_LAYERS - 1}.resid_post"], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("ours", "theirs"), [("resid_post", "resid_post"), ("heads", "z")])
@pytest.mark.parametrize("kind", ["denoising", "noising"])
def test_activation_patching(llama, bridge, prompts, kind: str, ours: str, theirs: str) -> None:
    """Every layer and position (and head) by their `generic_activation_patch`, prompt by prompt."""
    from transformer_lens import patching

    model, (clean, corrupt, right, wrong) = llama[2], prompts
    base, other = (corrupt, clean) if kind == "denoising" else (clean, corrupt)
    is_by_head = theirs == "z"
    setter = "layer_pos_head_vector_patch_setter" if is_by_head else "layer_pos_patch_setter"
    grids = []
    for row in range(len(clean)):

        def metric(logits, row=row):
            return logits[0, -1, right[row]] - logits[0, -1, wrong[row]]

        with torch.no_grad():
            after, cache = bridge.run_with_cache(other[row : row + 1])
            before = metric(bridge(base[row : row + 1]))
            grid = patching.generic_activation_patch(
                bridge,
                base[row : row + 1],
                cache,
                metric,
                getattr(patching, setter),
                theirs,
                index_axis_names=("layer", "pos", "head") if is_by_head else ("layer", "pos"),
            )
        grids.append((grid - before) / (metric(after) - before))
    found = patch(
        model, clean, corrupt, logit_difference(right, wrong), f"layers.*.{ours}", kind=kind
    )
    got = torch.stack([found.effects[f"layers.{i}.{ours}"] for i in range(N_LAYERS)])
    assert_close(got, torch.stack(grids).mean(0), atol=1e-4, rtol=1e-3)
    assert got.abs().max() > 0.3


@pytest.mark.parametrize(
    ("ours", "theirs"), [("resid_post", "hook_resid_post"), ("mixer_out", "hook_attn_out")]
)
def test_attribution_patching(llama, bridge, prompts, ours: str, theirs: str) -> None:
    """(a' - a) . dm/da from their forward and backward hooks."""
    model, (clean, corrupt, right, wrong) = llama[2], prompts
    metric = logit_difference(right, wrong)
    names = [f"blocks.{i}.{theirs}" for i in range(N_LAYERS)]
    states, gradients = {}, {}

    def keep(into, name):
        def kept(value, hook):
            into[name] = value.detach().clone()

        return name, kept

    with torch.no_grad():
        after, cache = bridge.run_with_cache(clean)
        given = {name: cache[name] for name in names}
    with bridge.hooks(
        fwd_hooks=[keep(states, name) for name in names],
        bwd_hooks=[keep(gradients, name) for name in names],
    ):
        before = metric(bridge(corrupt))
        before.sum().backward()
    scale = (metric(after) - before.detach())[:, None]
    found = attribute(model, clean, corrupt, metric, f"layers.*.{ours}")
    for i, name in enumerate(names):
        want = (((given[name] - states[name]) * gradients[name]).sum(-1) / scale).mean(0)
        assert_close(found.effects[f"layers.{i}.{ours}"], want, atol=1e-4, rtol=1e-3)
