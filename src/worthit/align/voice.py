"""A model that reads and writes text: the judge of RLAIF, the writer of Constitutional AI."""

from __future__ import annotations

from collections.abc import Sequence

from worthit.align.constitution import Message
from worthit.align.sample import sample
from worthit.align.scores import logps_of
from worthit.align.sequences import Ids
from worthit.decode.tokenizer import Tokenizer
from worthit.errors import InputError
from worthit.nn import Decoder


class Voice:
    """A loaded model with its tokenizer; in chat form where it has a template.

    Args:
        temperature: of what it writes.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, *, temperature: float = 0.7) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.temperature = temperature

    def likelihoods(self, prompts: Sequence[str], options: Sequence[str]) -> list[list[float]]:
        """For each prompt the log-probability of each option as what comes next."""
        sequences = [
            (self._judged(prompt), tuple(self.tokenizer.encode(option, has_special=False)))
            for prompt in prompts
            for option in options
        ]
        found = logps_of(self.model, sequences).view(len(prompts), len(options))
        return [[float(x) for x in row] for row in found]

    def reply(
        self, conversations: Sequence[Sequence[Message]], *, max_tokens: int, seed: int
    ) -> list[str]:
        """One reply to each conversation."""
        room = self.model.spec.context_len
        prompts = [tuple(self._asked(conversation)) for conversation in conversations]
        for i, prompt in enumerate(prompts):
            if len(prompt) + max_tokens > room:
                raise InputError(
                    f"prompt {i}: {len(prompt)} tokens and {max_tokens} to write do not fit the "
                    f"context of {room}; shorten it, or lower --max-tokens"
                )
        said = sample(
            self.model,
            prompts,
            max_tokens=max_tokens,
            stop_ids=self.tokenizer.stop_ids,
            temperature=self.temperature,
            seed=seed,
        )
        return [self.tokenizer.decode(ids).strip() for ids in said]

    def _asked(self, conversation: Sequence[Message]) -> Sequence[int]:
        if self.tokenizer.chat_template is not None:
            return self.tokenizer.encode_chat(conversation)
        # A model that is not for chat continues a transcript.
        lines = [f"{m['role'].capitalize()}: {m['content']}" for m in conversation]
        return self.tokenizer.encode("\n\n".join([*lines, "Assistant:"]))

    def _judged(self, prompt: str) -> Ids:
        if self.tokenizer.chat_template is None:
            return tuple(self.tokenizer.encode(prompt))
        # What the template ends with is the answer's beginning: the turn is the judge's.
        head, _, tail = prompt.rpartition("\n\n")
        ids = self.tokenizer.encode_chat([{"role": "user", "content": head}])
        return (*ids, *self.tokenizer.encode(tail.rstrip() + " ", has_special=False))
