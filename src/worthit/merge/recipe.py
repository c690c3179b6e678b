"""A merge as a recipe: what YAML in the form of `mergekit` says, as plain data.

    merge_method: ties                   slices:
    base_model: ./base                     - sources:
    models:                                    - model: ./a
      - model: ./a                               layer_range: [0, 16]
        parameters: {weight: 0.5}          - sources:
      - model: ./b                             - model: ./a
        parameters: {weight: 0.5}                layer_range: [8, 24]
    parameters: {density: [0.4, 0.6]}    merge_method: passthrough
    dtype: bfloat16                      tokenizer_source: base

A model is a folder, or an id in the local hub cache; `model+adapter` adds a LoRA adapter first.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from worthit._record import record
from worthit.merge.methods import Method
from worthit.merge.settings import Setting

Path_ = tuple[str | int, ...]


@record
class Source:
    """One model's part in a slice: which layers (None: all of them), with what parameters."""

    model: str
    layers: tuple[int, int] | None
    parameters: dict[str, Setting] = field(default_factory=dict, hash=False)
    path: Path_ = ()


@record
class Slice:
    """Consecutive layers of the output, and the layers that are merged into them."""

    sources: tuple[Source, ...]
    base_model: str | None
    parameters: dict[str, Setting] = field(default_factory=dict, hash=False)
    path: Path_ = ()


@record
class TokenRule:
    """Where the embedding of one token comes from.

    `model` alone: its row of the same token; with `token` or `token_id`, that one's row; no model:
    zeros. `is_forced` uses it for models that have the token too.
    """

    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    has_source: bool = True
    is_forced: bool = False


@record
class TokenizerChoice:
    """The output's vocabulary: `base`, `union` or a model's."""

    source: str
    tokens: dict[str, TokenRule] = field(default_factory=dict, hash=False)
    multiple_of: int = 1
    path: Path_ = ()


@record
class Recipe:
    """A recipe whose keys and values make sense.

    `is_whole` says that it lists `models`, so that every slice is all layers.
    """

    method: Method
    slices: tuple[Slice, ...]
    is_whole: bool
    base_model: str | None = None
    parameters: dict[str, Setting] = field(default_factory=dict, hash=False)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerChoice | None = None
    chat_template: str | None = None
    warnings: tuple[str, ...] = ()
    text: str = ""
    folder: Path = Path()
    name: str = ""

    @property
    def models(self) -> tuple[str, ...]:
        """Every model named, the base first, each once."""
        named = [s.model for piece in self.slices for s in piece.sources]
        bases = [piece.base_model for piece in self.slices if piece.base_model]
        first = [self.base_model] if self.base_model else []
        return tuple(dict.fromkeys([*first, *named, *bases]))
