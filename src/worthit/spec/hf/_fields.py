"""Reading one `config.json`: every key is either understood, harmless, or refused.

A family's reader takes what it needs through `Fields`, which remembers what was read. What is left
over at the end and could change shapes is an error: a model is never assumed to be something it
may not be. All problems of one file are reported together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from worthit.errors import SpecError, nearest

# Keys that change no shape, no cache and no context: training, generation, bookkeeping.
_HARMLESS = re.compile(
    r"""^(
      _.*|architectures|model_type|transformers_version|auto_map|dtype|torch_dtype|is_decoder
    | .*_token_id|.*_token_ids|.*_token_index|.*dropout.*|.*drop|.*_pdrop|.*initializer.*|.*_init_.*
    | .*init_std|init_method.*|use_cache|output_.*|return_.*|id2label|label2id|num_labels|problem_type
    | .*coef|.*_coeff|.*loss.*|router_jitter_noise|.*_version|pretraining_tp|attn_implementation
    | .*epsilon|.*_eps|eps|tokenizer_class|task_specific_params|summary_.*|gradient_checkpointing
    | use_flash_attn.*|unsloth.*|tie_weights|layer_norm_epsilon|finetuning_task|prefix|max_length
    | chunk_size_feed_forward|cross_attention_.*|add_cross_attention|is_encoder_decoder|bad_words_ids
    | top_[kp]|temperature|do_sample|num_beams|name_or_path|quantization_config|language|license
    )$""",
    re.VERBOSE,
)


class Fields:
    """A view of a config that records what was read and collects what is wrong."""

    def __init__(self, config: Mapping[str, Any], *, where: str = "config.json") -> None:
        self.config = config
        self.where = where
        self._read: set[str] = set()
        self.problems: list[str] = []

    def get(self, name: str, default: Any = None, *aliases: str) -> Any:
        """The value of `name` or of an alias; `default` where absent or null."""
        self._read.update((name, *aliases))
        for key in (name, *aliases):
            if self.config.get(key) is not None:
                return self.config[key]
        return default

    def size(self, name: str, *aliases: str, default: int | None = None) -> int:
        """A required positive whole number; a problem is recorded and 1 returned otherwise."""
        value = self.get(name, default, *aliases)
        if value is None:
            self.problems.append(f"{name}: missing; this model type needs it")
            return 1
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.problems.append(f"{name}: must be a positive whole number, got {value!r}")
            return 1
        return value

    def flag(self, name: str, default: bool, *aliases: str) -> bool:
        """A truth value."""
        value = self.get(name, default, *aliases)
        if not isinstance(value, bool):
            self.problems.append(f"{name}: must be true or false, got {value!r}")
            return default
        return value

    def choice(self, name: str, default: Any, *allowed: Any) -> Any:
        """A value that must be one of `allowed`: anything else would change what is built."""
        value = self.get(name, default)
        if value not in allowed:
            names = ", ".join(map(repr, allowed))
            self.problems.append(f"{name}: understood here are {names}; got {value!r}")
            return default
        return value

    def ignore(self, *names: str) -> None:
        """Mark `names` as understood and without effect on shapes, cache or context."""
        self._read.update(names)

    def problem(self, path: str, message: str) -> None:
        """Record one problem at `path`."""
        self.problems.append(f"{path}: {message}")

    def finish(self) -> None:
        """Raise if anything was wrong, or was left unread and may change shapes."""
        for key, value in self.config.items():
            if key in self._read or _HARMLESS.match(key):
                continue
            # Text and switched-off features change nothing; a number, list or switch might.
            if value is None or value is False or isinstance(value, str):
                continue
            near = nearest(key, self._read)
            hint = f"; did you mean {near[0]}?" if near else "; remove it if it changes no shape"
            self.problems.append(f"{key}: not understood for this model type, got {value!r}{hint}")
        if self.problems:
            raise SpecError(*self.problems, context=self.where)
