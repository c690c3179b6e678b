"""Reading one `config.json`: every key is either understood, harmless, or refused.

A family's reader takes what it needs through `Fields`, which remembers what was read. What is left
over at the end and could change shapes is an error: a model is never assumed to be something it
may not be. All problems of one file are reported together.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

from worthit.errors import SpecError

P = ParamSpec("P")
T = TypeVar("T")

# Share of letters in order above which a key reads as a slip of another, not as one of its own.
TYPO_CUTOFF = 0.8

# No size of a model comes near it; beyond, a file is wrong and would only be slow to read.
MAX_SIZE = 10**9

# Keys that change no shape, no cache and no arithmetic: training, generation, bookkeeping.
_HARMLESS = re.compile(
    r"""^(
      _.* | architectures | model_type | transformers_version | auto_map | dtype | torch_dtype
    | name_or_path | language | license | tokenizer_class | task_specific_params | .*_version
    | [a-z_]*token_ids? | [a-z_]*token_index | suppress_tokens | begin_suppress_tokens
    | [a-z_]*dropout(_prob|_rate|_p)? | [a-z_]*_drop | [a-z_]*pdrop
    | initializer_[a-z]+ | [a-z_]*_init_[a-z]+ | init_[a-z_]+ | [a-z_]*init_std
    | use_cache | output_[a-z_]+ | return_[a-z_]+ | id2label | label2id | num_labels | problem_type
    | [a-z_]*(coef|coeff|alpha_loss|_loss|_loss_[a-z]+)
    | router_jitter_noise | router_bias_update_rate
    | pretraining_tp | attn_implementation | use_flash_attn[a-z_]* | unsloth[a-z_]*
    | tie_weights | tie_encoder_decoder | finetuning_task | prefix | summary_[a-z_]+
    | gradient_checkpointing | chunk_size_feed_forward | pruned_heads | torchscript | use_bfloat16
    | is_decoder | cross_attention_hidden_size | for_llm_compressor | cache_implementation
    | bad_words_ids | top_[kp] | typical_p | temperature | do_sample | early_stopping | num_beams
    | num_beam_groups | num_return_sequences | (min|max)_length | length_penalty
    | (encoder_)?no_repeat_ngram_size | diversity_penalty | repetition_penalty
    | exponential_decay_length_penalty | remove_invalid_values | forced_[a-z_]+ | tf_legacy_loss
    | quantization_config | ep_size | moe_layer_[a-z]+_parallel | static
    )$""",
    re.VERBOSE,
)


class Fields:
    """A view of a config that records what was read and collects what is wrong."""

    def __init__(self, config: Mapping[str, Any], *, where: str = "config.json") -> None:
        self.config = config
        self.where = where
        self._read: set[str] = set()
        self._unusable: set[str] = set()
        self.problems: list[str] = []

    def get(self, name: str, default: Any = None, *aliases: str) -> Any:
        """The value of `name` or of an alias; `default` where absent or null."""
        self._read.update((name, *aliases))
        for key in (name, *aliases):
            if self.config.get(key) is not None:
                return self.config[key]
        return default

    def has(self, name: str) -> bool:
        """Whether `name` is there and not null; it counts as read."""
        return self.get(name) is not None

    def size(
        self,
        name: str,
        *aliases: str,
        default: int | None = None,
        at_least: int = 1,
        at_most: int = MAX_SIZE,
    ) -> int:
        """A whole number within the bounds; otherwise a problem is recorded, 1 returned."""
        value = self.get(name, default, *aliases)
        if value is None:
            self._refuse(name, "missing; this model type needs it")
            return 1
        # Some writers store whole numbers as 4096.0.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            kind = {0: "a whole number, zero or more", 1: "a positive whole number"}[at_least]
            self._refuse(self._found(name, *aliases), f"must be {kind}, got {value!r}")
            return 1
        if value > at_most:
            self._refuse(self._found(name, *aliases), f"must be at most {at_most:,}, got {value}")
            return 1
        return value

    def optional_size(self, name: str, *, absent: int | None = None) -> int | None:
        """A positive whole number; None where null, `absent` where the key is not there."""
        if self.has(name):
            return self.size(name)
        return None if name in self.config else absent

    def number(self, name: str, default: float | None = None, *aliases: str) -> float:
        """A positive number."""
        value = self.get(name, default, *aliases)
        if value is None:
            self._refuse(name, "missing; this model type needs it")
            return 1.0
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not value > 0 or not math.isfinite(value):
            self._refuse(name, f"must be a positive number, got {value!r}")
            return 1.0
        return float(value)

    def optional_number(self, name: str, *, absent: float | None = None) -> float | None:
        """A positive number; None where null, `absent` where the key is not there."""
        if self.has(name):
            return self.number(name)
        return None if name in self.config else absent

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers, empty where absent."""
        value = self.get(name, [])
        if not isinstance(value, list) or any(type(x) not in (int, float) for x in value):
            self._refuse(name, f"must be a list of numbers, got {_short(value)}")
            return ()
        return tuple(float(x) for x in value)

    def flag(self, name: str, default: bool, *aliases: str) -> bool:
        """A truth value."""
        value = self.get(name, default, *aliases)
        if not isinstance(value, bool):
            self._refuse(name, f"must be true or false, got {value!r}")
            return default
        return value

    def choice(self, name: str, default: Any, *allowed: Any) -> Any:
        """A value that must be one of `allowed`: anything else would change what is built."""
        value = self.get(name, default)
        if value not in allowed:
            names = ", ".join(map(repr, allowed))
            self._refuse(name, f"understood here: {names}; got {value!r}")
            return default
        return value

    def per_layer(self, name: str, n_layers: int) -> list[Any] | None:
        """A list with one entry a layer, or None where absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            self._refuse(name, f"must be a list with one entry per layer, got {value!r}")
            return None
        if len(value) != n_layers and "num_hidden_layers" not in self._unusable:
            self._refuse(name, f"must have one entry per layer, {n_layers}, got {len(value)}")
            return None
        return value

    def indices(self, name: str) -> list[int] | None:
        """A list of layer numbers from 0, or None where absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
            self._refuse(name, f"must be a list of layer numbers, got {value!r}")
            return None
        return value

    def divides(self, name: str, value: int, into: str, total: int) -> bool:
        """Require that `value` divides `total`, unless one of them was already refused."""
        if {name, into} & self._unusable or total % value == 0:
            return True
        divisors = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
        self._refuse(
            name,
            f"must divide {into}, got {name}={value} and {into}={total}; pick one of {divisors}",
        )
        return False

    def at_most(self, name: str, value: int, bound: str, limit: int) -> None:
        """Require `value <= limit`, unless one of them was already refused."""
        if value > limit and not {name, bound} & self._unusable:
            self._refuse(name, f"must be at most {bound}, got {name}={value} and {bound}={limit}")

    def part(self, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Build a part of the model; what it refuses joins the other problems of the file.

        The stand-in returned then never leaves this package: `finish` raises.
        """
        try:
            return make(*args, **kwargs)
        except SpecError as error:
            # With a stand-in for an unusable size this may be its echo, and would mislead.
            if not self._unusable:
                self.problems.extend(error.problems)
            return cast(T, None)

    def inconsistent(self, path: str, message: str) -> None:
        """Record a problem that sizes have together; nothing where one of them is unusable."""
        if not self._unusable:
            self.problem(path, message)

    def table(
        self, name: str, *aliases: str, default: Mapping[str, Any] | None = None
    ) -> Fields | None:
        """The nested object `name`, to be read and then given to `absorb`; None where absent."""
        value = self.get(name, None, *aliases)
        if value is None:
            return None if default is None else Fields(default, where=name)
        if not isinstance(value, Mapping):
            self._refuse(self._found(name, *aliases), f"must be an object, got {value!r}")
            return None
        return Fields(value, where=self._found(name, *aliases))

    def absorb(self, table: Fields) -> None:
        """Take over the problems of a nested object that has been read."""
        try:
            table.finish()
        except SpecError as error:
            self.problems.extend(f"{table.where}.{line}" for line in error.problems)

    def ignore(self, *names: str) -> None:
        """Mark `names` as understood and without effect on shapes, cache or arithmetic."""
        self._read.update(names)

    def problem(self, path: str, message: str) -> None:
        """Record one problem at `path`."""
        self.problems.append(f"{path}: {message}")

    def finish(self) -> None:
        """Raise if anything was wrong, or was left unread and may change shapes."""
        for key, value in self.config.items():
            if key in self._read or _HARMLESS.match(key):
                continue
            # Switched off or empty, a feature changes nothing; whatever is set might.
            if not value:
                continue
            # Only a key that is not there as well can have been meant.
            meant = difflib.get_close_matches(key, self._read - set(self.config), 1, TYPO_CUTOFF)
            hint = f"; did you mean {meant[0]}?" if meant else "; remove it if it changes no shape"
            self.problem(key, f"not understood for this model type, got {_short(value)}{hint}")
        if self.problems:
            raise SpecError(*dict.fromkeys(self.problems), context=self.where)

    def _found(self, *names: str) -> str:
        """Which of these keys the file gives."""
        return next((key for key in names if self.config.get(key) is not None), names[0])

    def _refuse(self, name: str, message: str) -> None:
        self._unusable.add(name)
        self.problem(name, message)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
