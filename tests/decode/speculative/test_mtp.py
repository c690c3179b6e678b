"""Layers for multi-token prediction in checkpoints, against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import worthit
from worthit.decode.generate import tokens_of
from worthit.decode.speculative.feature_drafter import FeatureDrafter
from worthit.decode.speculative.heads import load_drafter
from worthit.decode.speculative.loop import Tally, speculate
from worthit.decode.speculative.mtp import load_mtp
from worthit.decode.speculative.taps import Taps
from worthit.errors import InputError
from worthit.nn.decoder import Decoder
from worthit.nn.tokens import Tokens

IDS = [5, 9, 20, 31, 7, 2, 44]
DEEPSEEK = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def saved(folder: Path, kind: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """A random model of transformers; its tensors in the file."""
    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(kind, **config)
    model = transformers.AutoModelForCausalLM.from_config(made).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def with_layer(folder: Path, tensors: dict[str, Tensor], layer: int, prefix: str) -> None:
    """Write the file with one more layer, shaped as `layer`, under `prefix`."""
    generator = torch.Generator().manual_seed(1)
    like = f"model.layers.{layer}."
    for name in [name for name in tensors if name.startswith(like)]:
        shape = tensors[name].shape
        new = torch.randn(shape, generator=generator) * 0.3
        tensors[name.replace(like, f"{prefix}.")] = new.abs() + 0.5 if "norm" in name else new
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def streams(model: Decoder, ids: list[int]) -> Tensor:
    taps = Taps(model, (len(model.layers) - 1,))
    with torch.no_grad():
        model(torch.tensor([ids]))
    found = taps.features()
    taps.close()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepseek")
    tensors = saved(folder, "deepseek_v3", DEEPSEEK)
    at = "model.layers.3"
    for name in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"{at}.{name}.weight"] = torch.rand(32) + 0.5
    tensors[f"{at}.eh_proj.weight"] = torch.randn(32, 64) * 0.3
    with_layer(folder, tensors, 2, at)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_nextn_predict_layers": 1}))
    return folder


def as_transformers_has_it(folder: Path) -> dict[str, Tensor]:
    """The layer's tensors under the names of its `MtpLayer`, experts in one tensor."""
    at = "model.layers.3."
    tensors = load_file(folder / "model.safetensors")
    own = {name.removeprefix(at): t for name, t in tensors.items() if name.startswith(at)}
    found = {f"{name}.weight": own.pop(f"{name}.weight") for name in ("enorm", "hnorm", "eh_proj")}
    found["post_norm.weight"] = own.pop("shared_head.norm.weight")
    experts = "mlp.experts."
    if f"{experts}0.gate_proj.weight" in own:
        parts = {
            part: torch.stack([own.pop(f"{experts}{i}.{part}_proj.weight") for i in range(8)])
            for part in ("gate", "up", "down")
        }
        own[f"{experts}gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1)
        own[f"{experts}down_proj"] = parts["down"]
    return {**found, **{f"mtp_block.{name}": t for name, t in own.items()}}


@torch.no_grad()
def test_the_layer_is_transformers_own(deepseek: Path) -> None:
    from transformers.modeling_layers import MtpModel

    theirs = transformers.AutoModelForCausalLM.from_pretrained(deepseek, dtype=torch.float32).eval()
    # Its own reader knows the layer of the published model alone, the 61st.
    their_layer = MtpModel(theirs, 1).eval()
    their_layer.layers[0].load_state_dict(as_transformers_has_it(deepseek))
    model = worthit.load_model(deepseek)
    head = load_mtp(model)
    n = len(IDS) - 1
    hidden = theirs.model(torch.tensor([IDS[:-1]])).last_hidden_state
    # Their positions are those of the embedded tokens, ours those of the features: one apart.
    want = their_layer.forward_layer(
        0, hidden, torch.arange(1, n + 1)[None], None, input_ids=torch.tensor([IDS[1:]])
    )
    fused = head.fused(streams(model, IDS[:-1]))
    torch.testing.assert_close(fused, hidden, rtol=1e-4, atol=1e-4)
    tokens = Tokens(n=n, past=0, positions=torch.arange(n)[None])
    mine = head.layer(head.embedded(torch.tensor([IDS[1:]])), fused, tokens, None)
    torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-4)
    logits = their_layer._project_to_logits(want)
    torch.testing.assert_close(head.logits(mine), logits, rtol=1e-4, atol=1e-4)


def test_it_drafts_and_changes_no_word(deepseek: Path) -> None:
    model = worthit.load_model(deepseek)
    drafter = load_drafter("mtp", model)
    assert isinstance(drafter, FeatureDrafter)
    assert drafter.name == "mtp"
    tally = Tally()
    said = list(speculate(model, IDS, drafter, max_tokens=30, most=3, tally=tally))
    assert said == [row[0] for row in tokens_of(model, [IDS], max_tokens=30)]
    assert tally.n_drafted > 20


@torch.no_grad()
def test_qwen3_next_calls_its_parts_otherwise(tmp_path: Path) -> None:
    tensors = saved(tmp_path, "qwen3_next", QWEN)
    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        tensors[f"mtp.{name}.weight"] = torch.rand(32)
    tensors["mtp.fc.weight"] = torch.randn(32, 64)
    with_layer(tmp_path, tensors, 3, "mtp.layers.0")
    model = worthit.load_model(tmp_path)
    head = load_mtp(model)
    assert torch.equal(head.layer.project.weight, tensors["mtp.fc.weight"])
    gate = tensors["mtp.layers.0.mlp.gate.weight"]
    found = [t for n, t in head.layer.block.state_dict().items() if t.shape == gate.shape]
    assert any(torch.equal(t, gate) for t in found)
    # Every tensor of the layer was read: none is left without memory.
    assert not [name for name, t in head.state_dict().items() if t.is_meta]
    drafter = FeatureDrafter(head, name="mtp")
    said = list(speculate(model, IDS, drafter, max_tokens=12, most=2))
    assert said == [row[0] for row in tokens_of(model, [IDS], max_tokens=12)]


def test_a_checkpoint_without_one_is_told_what_to_do(tmp_path: Path) -> None:
    saved(tmp_path, "deepseek_v3", DEEPSEEK)
    with pytest.raises(InputError, match="worthit train-heads"):
        load_mtp(worthit.load_model(tmp_path))
    model = worthit.load_model(tmp_path)
    model.source = None
    with pytest.raises(InputError, match="came from none"):
        load_mtp(model)
