"""Log-probabilities of the reference, scored once and kept.

The reference is the model before its first update, so there is never a second one in memory: the
data are scored, and then training starts. A file keeps what was scored under a key of the weights
and the data; another model or other data are scored anew.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from worthit.align.scores import logps_of
from worthit.align.sequences import Ids
from worthit.nn import Decoder
from worthit.train.history import disk_error


class Cache:
    """Scores of a reference in a folder; in memory alone where there is none."""

    def __init__(self, folder: Path | None, on_scored: Callable[[int], None] | None = None) -> None:
        self.folder = folder
        self._on_scored = on_scored or (lambda n: None)

    def logps(self, model: nn.Module, name: str, sequences: Sequence[tuple[Ids, Ids]]) -> Tensor:
        """`logps_of(model, sequences)`, from the folder where it is there."""
        if self.folder is None:
            return self._scored(model, sequences)
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save_file

        path = self.folder / f"reference-{name}.safetensors"
        key = f"{fingerprint(model)}-{_digest(json.dumps(list(sequences)).encode())}"
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    if (file.metadata() or {}).get("key") == key:
                        found: Tensor = file.get_tensor("logps")
                        return found
            except SafetensorError:
                pass  # cut off: it is written again
        scored = self._scored(model, sequences)
        beside = path.with_suffix(".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"logps": scored}, beside, metadata={"key": key})
            beside.replace(path)
        except OSError as error:
            raise disk_error(path, error) from error
        return scored

    def _scored(self, model: nn.Module, sequences: Sequence[tuple[Ids, Ids]]) -> Tensor:
        found = logps_of(model, sequences)
        self._on_scored(len(sequences))
        return found


def fingerprint(model: nn.Module) -> str:
    """A digest of all weights of `model`."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(
            memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        )
    return digest.hexdigest()


@contextmanager
def as_reference(model: nn.Module, frozen: nn.Module | None) -> Iterator[nn.Module]:
    """The reference of `model` inside the block: a frozen copy, or itself without its adapters."""
    if frozen is not None:
        yield frozen
        return
    from worthit.align.lora import disabled

    with disabled(model):
        yield model


def frozen_copy(model: Decoder) -> Decoder:
    """`model` as it is now, in memory of its own, never trained."""
    copied: Decoder = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    copied.eval()
    return copied


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
