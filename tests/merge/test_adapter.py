"""LoRA adapters are added while rows are read: the weights that `peft` would merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from merge.tiny import HIDDEN, VOCAB, tensors, write
from safetensors.torch import load_file, save_file
from torch import Tensor

from worthit.errors import InputError
from worthit.merge.plan import plan_text
from worthit.merge.run import merge

RANK, ALPHA = 2, 6.0
QUERY, EMBEDDING = "model.layers.1.self_attn.q_proj", "model.embed_tokens"


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def adapter(folder: Path, extra: dict[str, Tensor] | None = None, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA} | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    parts = {
        f"{QUERY}.lora_A.weight": draw(RANK, HIDDEN),
        f"{QUERY}.lora_B.weight": draw(HIDDEN, RANK),
    }
    named = {f"base_model.model.{k}": v for k, v in (parts | (extra or {})).items()}
    save_file(named, folder / "adapter_model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "base", tensors("base"))
    return tmp_path


def weights(folder: Path, model: str = "base+adapter") -> dict[str, Tensor]:
    out = folder / "out"
    (folder / "r.yml").write_text(
        f"merge_method: linear\nmodels: [{model}]\nparameters: {{weight: 1}}\n"
    )
    merge(folder / "r.yml", out)
    return load_file(out / "model.safetensors")


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        plan_text(
            "merge_method: linear\nmodels: [base+adapter]\nparameters: {weight: 1}", folder=folder
        )
    return str(caught.value)


@pytest.mark.parametrize(("changes", "factor"), [({}, 3.0), ({"use_rslora": True}, 6 / 2**0.5)])
def test_the_product_is_added(folder: Path, changes: dict[str, Any], factor: float) -> None:
    adapter(folder / "adapter", **changes)
    found, base = weights(folder), tensors("base")
    wanted = base[f"{QUERY}.weight"] + factor * draw(HIDDEN, RANK) @ draw(RANK, HIDDEN)
    torch.testing.assert_close(found[f"{QUERY}.weight"], wanted)
    for name, value in base.items():
        if name != f"{QUERY}.weight":
            torch.testing.assert_close(found[name], value)


def test_patterns_of_alpha(folder: Path) -> None:
    adapter(folder / "adapter", alpha_pattern={"layers.1.self_attn.q_proj": 2.0})
    wanted = tensors("base")[f"{QUERY}.weight"] + draw(HIDDEN, RANK) @ draw(RANK, HIDDEN)
    torch.testing.assert_close(weights(folder)[f"{QUERY}.weight"], wanted)


def test_embeddings_and_whole_modules(folder: Path) -> None:
    extra = {
        f"{EMBEDDING}.lora_embedding_A": draw(RANK, VOCAB),
        f"{EMBEDDING}.lora_embedding_B": draw(HIDDEN, RANK),
        "lm_head.modules_to_save.weight": draw(VOCAB, HIDDEN),
    }
    adapter(folder / "adapter", extra)
    found = weights(folder)
    product = 3.0 * (draw(HIDDEN, RANK) @ draw(RANK, VOCAB)).T
    wanted = tensors("base")[f"{EMBEDDING}.weight"] + product
    torch.testing.assert_close(found[f"{EMBEDDING}.weight"], wanted)
    torch.testing.assert_close(found["lm_head.weight"], draw(VOCAB, HIDDEN))


# transformers says so of a name that peft still uses.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_against_peft(folder: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "down_proj", "embed_tokens"]
    )
    adapted = peft.get_peft_model(model, config)
    for name, value in adapted.named_parameters():
        if "lora" in name:
            value.data = draw(*value.shape)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    wanted = adapted.merge_and_unload().state_dict()
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-5)


def test_an_adapter_that_does_not_fit(folder: Path) -> None:
    (folder / "adapter").mkdir()
    assert "adapter_config.json: no such file" in refused(folder)
    adapter(folder / "adapter", peft_type="IA3")
    assert "must be a LoRA adapter, got peft_type='IA3'" in refused(folder)
    adapter(folder / "adapter", use_dora=True)
    assert "DoRA adapters are not read here" in refused(folder)
    adapter(folder / "adapter", {"model.layers.9.q.lora_A.weight": draw(2, 3)})
    assert "model.layers.9.q.weight: has one factor of two" in refused(folder)
    adapter(folder / "adapter", {f"{QUERY}.lora_B.weight": draw(9, RANK)})
    assert f"{QUERY}.weight: adapts a weight of [9, 8], got [8, 8]" in refused(folder)
    adapter(folder / "adapter", {"model.nothing.weight": draw(2, 2)})
    assert "model.nothing.weight: not a tensor of the checkpoint" in refused(folder)
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refused(folder)
