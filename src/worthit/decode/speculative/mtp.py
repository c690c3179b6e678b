"""Multi-token prediction: the further layer that a checkpoint was trained with, as a drafter.

DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", arXiv:2412.19437, section 2.2, equations 21 to 23:

    h'_i = M [RMSNorm(h_i); RMSNorm(Emb(t_{i+1}))]          M is `project`
    h_i^1 = TRM(h'_i)                                       `block`: a layer of the model's own kind
    P_{i+2} = OutHead(h_i^1)                                the model's own, behind `out_norm`

As files have it, the embedding comes first in what M reads, and h_i is the state that the output
head reads. It is EAGLE's layer with one tap and no fusion, and drafts like it: its own output
stands for the next h, again and again, where more than one token is wanted. Of several such layers
(no published model has them) the first is used.

| model | tensors |
|---|---|
| DeepSeek-V3 and those that took its layout (GLM-4.5 among them) | `model.layers.{n_layers}.*` |
| Qwen3-Next | `mtp.*` |
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from worthit.decode.speculative.eagle import FeatureHead, FeatureLayer
from worthit.decode.speculative.heads import HeadsConfig, target_facts
from worthit.errors import InputError
from worthit.nn.decoder import Decoder
from worthit.nn.inference import lay_out
from worthit.nn.load import FolderFiles, fill
from worthit.nn.quant.linear import StoredEmbedding
from worthit.nn.weights.names import Rule, choose, names_of
from worthit.spec.model import Attention, Layer


@dataclass(frozen=True)
class Naming:
    """What a family of checkpoints calls the parts: of the layer's own by the model's names."""

    layer: str
    embedding_norm: str
    feature_norm: str
    project: str
    out_norm: str


def _naming(model_type: str, n_layers: int) -> Naming:
    if model_type == "qwen3_next":
        return Naming(
            layer="mtp.layers.0",
            embedding_norm="mtp.pre_fc_norm_embedding",
            feature_norm="mtp.pre_fc_norm_hidden",
            project="mtp.fc",
            out_norm="mtp.norm",
        )
    at = f"model.layers.{n_layers}"
    return Naming(
        layer=at,
        embedding_norm=f"{at}.enorm",
        feature_norm=f"{at}.hnorm",
        project=f"{at}.eh_proj",
        out_norm=f"{at}.shared_head.norm",
    )


class MtpHead(FeatureHead):
    """The layer, with the target's own embedding, final norm and output head."""

    def __init__(self, model: Decoder, layer: Layer) -> None:
        config = HeadsConfig(
            kind="eagle",
            taps=(len(model.layers) - 1,),
            draft_vocab=model.spec.vocab_size,
            target=target_facts(model),
        )
        super().__init__(config, model, has_head=False)
        self.layer = FeatureLayer(layer, model.spec)

    def fused(self, features: Tensor) -> Tensor:
        """What the target's output head reads."""
        norm = self.target.final_norm
        return features if norm is None else norm(features)

    def logits(self, outputs: Tensor) -> Tensor:
        """The target's own head: all tokens can be drafted."""
        target = self.target
        head = target.tied_head if target.head is None else target.head
        if head is not None:
            y: Tensor = head(outputs)
            return y
        table = target.embedding
        if isinstance(table, StoredEmbedding):
            return table.as_head(outputs)
        return functional.linear(outputs, table.weight)


def load_mtp(model: Decoder) -> MtpHead:
    """The first layer for multi-token prediction in the checkpoint that `model` came from.

    Raises:
        InputError: a model that came from no folder, or a checkpoint without such a layer.
    """
    spec = model.spec
    folder = None if model.source is None else Path(model.source)
    if folder is None or not folder.is_dir() or model.source_config is None:
        raise InputError(
            "mtp: its layer is read from the folder of safetensors that the model came from, and "
            f"this one came from {model.source or 'none'}"
        )
    naming = _naming(spec.model_type, spec.n_layers)
    with torch.device("meta"):
        head = MtpHead(model, _layer_of(model))
    with ExitStack() as stack:
        files = FolderFiles(folder, stack, is_composite=False)
        if f"{naming.project}.weight" not in files.stored:
            raise InputError(
                f"mtp: {folder} holds no layer for multi-token prediction ({naming.project}); "
                "train heads for this model: `worthit train-heads`"
            )
        rules = _rules(head, naming, model, files)
        missing = [n for rule in rules for n in rule.theirs if n not in files.stored]
        if missing:
            raise InputError(f"mtp: {folder} holds no tensor {missing[0]}")
        head.ids = torch.arange(spec.vocab_size)
        fill(head, rules, files.read, model.dtype, model.device)
    head.requires_grad_(requires_grad=False)
    if model.is_optimized:
        lay_out(head)
    head.eval()
    return head


def _layer_of(model: Decoder) -> Layer:
    """The kind of layer that it is: the model's last, or the last with attention in a hybrid."""
    layers = model.spec.layers
    attending = [layer for layer in layers if isinstance(layer.mixers[0], Attention)]
    is_hybrid = 0 < len(attending) < len(layers)
    return attending[-1] if is_hybrid else layers[-1]


def _rules(head: MtpHead, naming: Naming, model: Decoder, files: FolderFiles) -> list[Rule]:
    """Our tensors and theirs: the block's by the names of the layer after the last."""
    n = model.spec.n_layers
    prefix = f"layers.{n}."
    block = [f"{prefix}{name}" for name in head.layer.block.state_dict()]
    there = [
        name.replace(f"{naming.layer}.", f"model.layers.{n}.", 1)
        for name in files.stored
        if name.startswith(f"{naming.layer}.")
    ]
    chosen = choose(names_of(model.spec).entries, block, n + 1, there)
    rules = [
        Rule(
            tuple(f"layer.block.{name.removeprefix(prefix)}" for name in rule.ours),
            tuple(
                name.replace(f"model.layers.{n}.", f"{naming.layer}.", 1) for name in rule.theirs
            ),
            rule.layout,
        )
        for rule in dict.fromkeys(chosen.values())
    ]
    for ours in ("embedding_norm", "feature_norm", "project", "out_norm"):
        rules.append(Rule((f"layer.{ours}.weight",), (f"{getattr(naming, ours)}.weight",)))
    return rules
