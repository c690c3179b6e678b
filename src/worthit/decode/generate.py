"""The loop: a prompt through the model, a token chosen, the token through the model, and so on.

`tokens_of` is the loop alone, for a batch; `TextStream` turns one row's ids into text as they come;
`generate` puts both together, which is what `Decoder.generate` and `worthit generate` call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from worthit.decode.sampling import Sampling, choose
from worthit.decode.tokenizer import Tokenizer, load_tokenizer
from worthit.errors import InputError, MissingCapability

if TYPE_CHECKING:
    from worthit.decode.speculative.control import Control
    from worthit.decode.speculative.drafter import Drafter
    from worthit.decode.speculative.loop import Tally
    from worthit.nn.decoder import Decoder

FinishReason = Literal["stop", "length"]
# What a decoder of bytes writes for a character that is not whole.
INCOMPLETE = "\ufffd"
# A character is at most four bytes, so at most as many tokens.
MAX_TOKENS_OF_CHARACTER = 4


@dataclass(kw_only=True)
class Generation:
    """What a model said to one prompt.

    Attributes:
        ids: the new tokens; the one that ended it is not among them.
        text: their text, up to a stop string; None without a tokenizer.
        finish_reason: `stop` at a stop token or string, `length` at the limit.
        n_prompt_tokens: tokens of the prompt.
        prefill_s: from the prompt to the first token, in seconds.
        decode_s: all tokens after the first, in seconds.
        tally: passes, and how drafts fared; None without a drafter.
    """

    n_prompt_tokens: int
    ids: list[int] = field(default_factory=list)
    text: str | None = None
    finish_reason: FinishReason = "length"
    prefill_s: float = 0.0
    decode_s: float = 0.0
    n_steps: int = 0
    tally: Tally | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second after the first; None where there was none."""
        return (self.n_steps - 1) / self.decode_s if self.n_steps > 1 else None


def tokens_of(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    seed: int | None = None,
) -> Iterator[list[int]]:
    """The next token of each prompt, step by step; prompts of different lengths are padded left.

    Raises:
        InputError: an empty prompt, ids outside the vocabulary, or a prompt beyond the context.
    """
    _check(model, prompts)
    sampling = Sampling() if sampling is None else sampling
    device = model.device
    ids, mask = left_padded(prompts, device)
    generator = None
    if not sampling.is_greedy:
        generator = torch.Generator(device)
        generator.seed() if seed is None else generator.manual_seed(seed)
    was_there = None
    if sampling.repetition_penalty != 1.0:
        was_there = torch.zeros(len(prompts), model.spec.vocab_size, dtype=torch.bool).to(device)
        for row, prompt in enumerate(prompts):
            was_there[row, list(prompt)] = True
    room = model.spec.context_len - ids.shape[1]
    cache = model.new_cache()
    said = ids
    # The first token needs no place in the context until it is fed.
    for _ in range(min(max_tokens, room + 1)):
        # Not around the whole loop: a generator's caller would run in it too.
        with torch.inference_mode():
            logits = model(ids, cache=cache, attention_mask=mask, last_only=True)[:, -1]
            chosen = choose(logits, sampling, was_there=was_there, generator=generator)
            if was_there is not None:
                was_there[torch.arange(len(prompts), device=device), chosen] = True
        yield chosen.tolist()
        said = torch.cat([said, chosen[:, None]], dim=1)
        if model.outgrows(cache, 1):
            # Cached keys keep a rotation that no longer holds: start again with all of it.
            new = torch.ones_like(chosen[:, None], dtype=torch.bool)
            mask = None if cache.is_real is None else torch.cat([cache.is_real, new], dim=1)
            ids, cache = said, model.new_cache()
        else:
            # The cache remembers which slots were padding.
            ids, mask = chosen[:, None], None


def left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Ids `(batch, longest)` and the mask of what is real; None where all are as long."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    if all(len(prompt) == longest for prompt in prompts):
        return ids, None
    slots = torch.arange(longest, device=device)
    starts = torch.tensor([longest - len(p) for p in prompts], device=device)
    return ids, slots[None] >= starts[:, None]


def _check(model: Decoder, prompts: Sequence[Sequence[int]]) -> None:
    context, vocab_size = model.spec.context_len, model.spec.vocab_size
    problems = []
    for i, prompt in enumerate(prompts):
        where = "prompt" if len(prompts) == 1 else f"prompt {i}"
        if not prompt:
            problems.append(f"{where}: must have at least one token")
        elif len(prompt) > context:
            problems.append(
                f"{where}: must fit the context of {context} tokens, got {len(prompt)}; shorten it"
            )
        elif not all(0 <= token < vocab_size for token in prompt):
            problems.append(f"{where}: ids must be from 0 to {vocab_size - 1}")
    if problems or not prompts:
        raise InputError(*(problems or ["no prompt"]))


def generate(
    model: Decoder,
    prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]] | Tensor,
    *,
    max_tokens: int = 128,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    stop_ids: Sequence[int] | None = None,
    seed: int | None = None,
    tokenizer: Tokenizer | None = None,
    on_text: Callable[[str], None] | None = None,
    drafter: Drafter | None = None,
    draft_tokens: int = 7,
    control: Control | None = None,
) -> list[Generation]:
    """What `model` says to each prompt, until a stop token or string, or `max_tokens`.

    Args:
        prompt: one text, its ids, or several of either; texts need a tokenizer.
        stop: strings that end the text and are not part of it.
        stop_ids: tokens that end it; None for the tokenizer's own.
        seed: of the choice, where it is not greedy.
        on_text: called with each new piece of text of the first prompt, whole characters only.
        drafter: guesses what follows, for one prompt; see `worthit.decode.speculative`.
        draft_tokens: of a guess, at most; `control` may take fewer.

    Raises:
        InputError: a prompt that is empty or beyond the context, or settings out of range.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens: must be at least 1, got {max_tokens}")
    if stop and tokenizer is None:
        raise InputError("stop: needs the model's tokenizer")
    if any(not text for text in stop):
        raise InputError("stop: a stop string must not be empty")
    prompts = _as_ids(prompt, tokenizer)
    if stop_ids is None:
        stop_ids = () if tokenizer is None else tokenizer.stop_ids
    done = [Generation(n_prompt_tokens=len(p)) for p in prompts]
    streams = [None if tokenizer is None else TextStream(tokenizer, stop) for _ in prompts]
    is_open = [True] * len(prompts)
    started = time.perf_counter()
    first_at = None
    if drafter is None:
        steps = tokens_of(model, prompts, max_tokens=max_tokens, sampling=sampling, seed=seed)
    else:
        from worthit.decode.speculative.loop import Tally, speculate

        _check(model, prompts)
        if len(prompts) > 1:
            raise InputError("drafter: one prompt at a time; the engine drafts for many")
        done[0].tally = tally = Tally()
        tokens = speculate(
            model,
            prompts[0],
            drafter,
            max_tokens=max_tokens,
            most=draft_tokens,
            sampling=sampling,
            seed=seed,
            control=control,
            tally=tally,
        )
        steps = ([token] for token in tokens)
    for chosen in steps:
        now = time.perf_counter()
        first_at = now if first_at is None else first_at
        for row, token in enumerate(chosen):
            if not is_open[row]:
                continue
            one, stream = done[row], streams[row]
            one.n_steps += 1
            one.prefill_s, one.decode_s = first_at - started, now - first_at
            if token in stop_ids:
                is_open[row], one.finish_reason = False, "stop"
                continue
            one.ids.append(token)
            if stream is not None:
                new = stream.feed(token)
                if row == 0 and new and on_text is not None:
                    on_text(new)
                if stream.is_stopped:
                    is_open[row], one.finish_reason = False, "stop"
        if not any(is_open):
            break
    for row, stream in enumerate(streams):
        if stream is not None:
            rest = stream.finish()
            if row == 0 and rest and on_text is not None:
                on_text(rest)
            done[row].text = stream.text
    return done


def generate_with(model: Decoder, prompt: Any, **options: Any) -> Generation | list[Generation]:
    """`generate`, with the tokenizer of the files that `model` came from, where they have one.

    One prompt gets one `Generation`, several get a list.
    """
    if isinstance(prompt, Tensor):
        prompt = prompt.tolist()
    is_one = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], int))
    is_text = isinstance(prompt, str) or (not is_one and len(prompt) and isinstance(prompt[0], str))
    if "tokenizer" not in options and model.source is not None:
        try:
            options["tokenizer"] = load_tokenizer(model.source)
        except (InputError, MissingCapability):
            if is_text or options.get("stop"):
                raise
    found = generate(model, prompt, **options)
    return found[0] if is_one else found


def _as_ids(
    prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]] | Tensor,
    tokenizer: Tokenizer | None,
) -> list[list[int]]:
    several: list[Any] = prompt.tolist() if isinstance(prompt, Tensor) else [*prompt]
    if isinstance(prompt, str):
        several = [prompt]
    elif several and isinstance(several[0], int):
        several = [several]
    if tokenizer is None and any(isinstance(one, str) for one in several):
        raise InputError("prompt: text needs the model's tokenizer; give its ids")
    return [
        tokenizer.encode(one) if tokenizer is not None and isinstance(one, str) else list(one)
        for one in several
    ]


class TextStream:
    """Text of ids as they come: whole characters, and nothing that may begin a stop string.

    Ids are decoded behind a few earlier ones, for a token's text may depend on what stands before
    it; the cost of a token does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.text = ""
        self.is_stopped = False
        self.stopped_by: str | None = None
        self._window: list[int] = []
        # How many ids of the window have given their text.
        self._n_said = 0
        self._held = ""

    def feed(self, token: int) -> str:
        """Add a token and return what of the text is now certain."""
        self._window.append(token)
        before = self.tokenizer.decode(self._window[: self._n_said])
        after = self.tokenizer.decode(self._window)
        n_waiting = len(self._window) - self._n_said
        if after.endswith(INCOMPLETE) and n_waiting < MAX_TOKENS_OF_CHARACTER:
            return ""
        self._window = self._window[self._n_said :]
        self._n_said = len(self._window)
        return self._pass(after[len(before) :])

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        if self.is_stopped:
            return ""
        before = self.tokenizer.decode(self._window[: self._n_said])
        rest = self.tokenizer.decode(self._window)[len(before) :]
        new = self._pass(rest) + self._held
        if not self.is_stopped:
            self.text += self._held
        self._held = ""
        return new

    def _pass(self, new: str) -> str:
        """Let through what no stop string can begin in."""
        waiting = self._held + new
        found = [(at, s) for s in self.stop if (at := waiting.find(s)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            self.is_stopped = True
            waiting, self._held = waiting[:at], ""
        else:
            n_held = self._n_possible_start(waiting)
            self._held = waiting[len(waiting) - n_held :]
            waiting = waiting[: len(waiting) - n_held]
        self.text += waiting
        return waiting

    def _n_possible_start(self, text: str) -> int:
        """The longest end of `text` with which a stop string begins."""
        longest = max((len(s) - 1 for s in self.stop), default=0)
        for n in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-n:]) for s in self.stop):
                return n
        return 0
