"""What trained heads share: the target's features, a draft vocabulary, and a folder on disk.

Heads read what the target computes anyway: the stream after some of its layers (`taps`), at the
places of tokens that it has seen. They say which of a few thousand tokens follow: an output head
over the whole vocabulary would cost more than the rest of them (Zhao et al. 2025, "FR-Spec",
arXiv:2502.14856; EAGLE-3 keeps 32,000 likewise). What is not among these tokens is never drafted,
and said all the same: the target decides.

A folder holds `heads.safetensors` and `heads.json`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.decode.speculative.drafter import Drafter
from worthit.errors import InputError, unknown_name
from worthit.nn.decoder import Decoder
from worthit.nn.inference import lay_out
from worthit.nn.quant.linear import StoredEmbedding, StoredLinear

Kind = Literal["medusa", "eagle", "exit"]
TENSORS, CONFIG = "heads.safetensors", "heads.json"
# The layout of what is written.
VERSION = 1
# Tokens that heads can draft, unless told otherwise: 6 % of a step of a 135M model for each row of
# logits, where its whole vocabulary takes 21 %.
DRAFT_VOCAB = 8192


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """What heads are, and whose.

    Attributes:
        taps: after which layers of the target the features are taken, from 0.
        n_heads: tokens guessed at once (medusa).
        shape: sizes of the kind's own; see its module.
        target: facts about the model that they were trained for.
        trained: how: tokens, seconds, seed, and the held-out acceptance that was measured.
    """

    kind: Kind
    taps: tuple[int, ...]
    draft_vocab: int
    n_heads: int = 1
    shape: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown_name("kind of heads", self.kind, get_args(Kind))


class Heads(nn.Module):
    """Heads of any kind: the tokens they know, and an output head that is a part of the target's.

    Attributes:
        ids: `(draft_vocab,)`, the target's number of each token that can be drafted.
        head: rows of the target's output head for these tokens.
    """

    ids: Tensor

    def __init__(self, config: HeadsConfig, d_model: int, *, has_head: bool = True) -> None:
        super().__init__()
        self.config = config
        self.d_model = d_model
        self.register_buffer("ids", torch.arange(config.draft_vocab))
        self.head = nn.Linear(d_model, config.draft_vocab, bias=False) if has_head else None

    def read(self, states: Tensor) -> Tensor:
        """Logits over the draft vocabulary, of normalised states `(..., d_model)`."""
        assert self.head is not None
        y: Tensor = self.head(states)
        return y

    def take_head(self, model: Decoder, ids: Tensor) -> Self:
        """Know the tokens `ids`, and read them with the target's own rows."""
        assert self.head is not None
        self.ids.copy_(ids)
        with torch.no_grad():
            self.head.weight.copy_(head_weight(model)[ids])
        self.head.weight.requires_grad_(requires_grad=False)
        return self


def head_weight(model: Decoder) -> Tensor:
    """The target's output head, `(vocab_size, d_model)`.

    Raises:
        InputError: a head between which and the stream something stands.
    """
    if model.embedding_out is not None or model.is_optimized:
        raise InputError(
            "heads are made from a model as it was loaded, whose output head reads d_model channels"
        )
    head = model.embedding if model.head is None else model.head
    if isinstance(head, StoredEmbedding | StoredLinear):
        from worthit.nn.quant.linear import dense

        return head.weight if isinstance(head, StoredEmbedding) else dense(head).weight
    weight: Tensor = head.weight
    return weight.detach()


def spread_taps(model: Decoder, n: int = 3) -> tuple[int, ...]:
    """A low, a middle and a high layer (Li et al. 2025, EAGLE-3, section 3.1); the last of one."""
    last = len(model.layers) - 1
    if n == 1 or last < 2:
        return (last,)
    return tuple(sorted({min(2, last), last // 2, last}))


def likely_tokens(said: Tensor, vocab_size: int, n: int = DRAFT_VOCAB) -> Tensor:
    """The `n` tokens that were said most, ascending; what is missing are the first of the others.

    Low numbers are merged early by tokenizers of byte pairs, and so are common in any text.

    Args:
        said: ids of any shape.
    """
    counts = torch.bincount(said.flatten(), minlength=vocab_size)[:vocab_size]
    order = torch.argsort(counts, descending=True, stable=True)
    return order[: min(n, vocab_size)].sort().values


def rms_normed(x: Tensor) -> Tensor:
    """`x` with a mean square of 1: streams of different layers differ by orders of magnitude."""
    return functional.rms_norm(x, (x.shape[-1],))


def target_facts(model: Decoder) -> dict[str, Any]:
    """What must be the same for heads to fit; a name beside it, which need not."""
    spec = model.spec
    return {
        "name": spec.name,
        "n_layers": spec.n_layers,
        "d_model": spec.d_model,
        "vocab_size": spec.vocab_size,
    }


def save_heads(heads: Heads, folder: Path) -> None:
    """Write the folder; it is there whole or not at all.

    Raises:
        InputError: there is something in its place.
    """
    from safetensors.torch import save_file

    if folder.exists():
        raise InputError(f"{folder}: is there already; choose another place")
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    beside.mkdir(parents=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in heads.state_dict().items()}
    save_file(tensors, beside / TENSORS, metadata={"format": "pt"})
    config = {"version": VERSION, **asdict(heads.config)}
    (beside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    beside.replace(folder)


def load_heads(folder: str | Path, model: Decoder) -> Heads:
    """The heads in a folder, for `model`, in its type and place.

    Raises:
        InputError: no heads there, of another version, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        stated = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        version = stated.pop("version")
        config = HeadsConfig(**{**stated, "taps": tuple(stated["taps"])})
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder}: no heads that can be read ({error}); `worthit train-heads` writes them"
        ) from None
    if version != VERSION:
        raise InputError(f"{folder}: heads of version {version}, and this reads version {VERSION}")
    facts = target_facts(model)
    wrong = [
        f"{folder}: heads for {key}={config.target.get(key)}, and the model has {value}"
        for key, value in facts.items()
        if key != "name" and config.target.get(key) != value
    ]
    if wrong:
        raise InputError(*wrong)
    heads = make_heads(config, model)
    heads.to(dtype=model.dtype)
    try:
        heads.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{folder}: {error}") from None
    heads.requires_grad_(requires_grad=False)
    heads.to(device=model.device).eval()
    return heads


def make_heads(config: HeadsConfig, model: Decoder) -> Heads:
    """Heads of `config` with fresh weights."""
    if config.kind == "medusa":
        from worthit.decode.speculative.medusa import Medusa

        return Medusa(config, model)
    if config.kind == "eagle":
        from worthit.decode.speculative.eagle import Eagle

        return Eagle(config, model)
    from worthit.decode.speculative.exit_head import ExitHead

    return ExitHead(config, model)


def load_drafter(value: str, model: Decoder) -> Drafter:
    """What `--draft heads:VALUE` means for `model`.

    Args:
        value: a folder of heads, which draft chains; `tree:FOLDER`, trees; `mtp`, the layer for
            multi-token prediction in the model's own checkpoint.

    Raises:
        InputError: no heads there, or not for this model.
    """
    from worthit.decode.speculative.feature_drafter import FeatureDrafter, TreeShape
    from worthit.decode.speculative.medusa import Medusa, MedusaDrafter

    if value == "mtp":
        from worthit.decode.speculative.mtp import load_mtp

        return FeatureDrafter(load_mtp(model), name="mtp")
    is_tree = value.startswith("tree:")
    heads = load_heads(value.removeprefix("tree:"), model)
    if model.is_optimized:
        lay_out(heads)
    if isinstance(heads, Medusa):
        return MedusaDrafter(heads, has_trees=is_tree)
    if heads.config.kind == "eagle":
        from worthit.decode.speculative.eagle import FeatureHead

        assert isinstance(heads, FeatureHead)
        return FeatureDrafter(heads, shape=TreeShape() if is_tree else None)
    if is_tree:
        raise InputError("heads:tree: an exit says one token at a time; leave `tree:` out")
    from worthit.decode.speculative.exit_head import ExitHead, exit_drafter

    assert isinstance(heads, ExitHead)
    return exit_drafter(heads, model)
