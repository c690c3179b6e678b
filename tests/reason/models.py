"""A real engine over a tiny random model, and one that says what a script says."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.decode.engine.request import Completion, Sample, TokenLogprob, Usage
from worthit.lab import models
from worthit.nn import Decoder, build
from worthit.reason import Generator, Question

END = 0


def decoder(vocab_size: int = 5, seed: int = 0, scale: float = 0.5) -> Decoder:
    spec = models.decoder(16, n_layers=1, vocab_size=vocab_size, context_len=32)
    torch.manual_seed(seed)
    model = build(spec)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return model.eval().requires_grad_(False)


def engine(model: Decoder, **config: int) -> Engine:
    return Engine(model, None, EngineConfig(**{"block_tokens": 2, "n_blocks": 400, **config}))


def words(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def generator(model: Decoder) -> Generator:
    return Generator(engine(model), words, (END,))


def question(*prompt: int, right: str = "") -> Question:
    return Question(text=words(prompt), prompt=prompt, is_right=lambda answer: answer == right)


class Script:
    """Says the next of its lines to each sample, and keeps what it was asked."""

    def __init__(self, *lines: Sequence[int]) -> None:
        self.lines = [list(line) for line in lines]
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [
            Completion(id="", samples=[self._sample(request) for _ in range(request.n)])
            for request in requests
        ]

    def _sample(self, request: Request) -> Sample:
        self.asked.append(request)
        said = Sample(finish_reason="length")
        assert request.stop_ids is not None
        assert request.max_tokens is not None
        for token in self.lines.pop(0)[: request.max_tokens]:
            if token in request.stop_ids:
                said.finish_reason, said.stopped_by, said.stop_logprob = "stop", token, -0.5
                break
            said.ids.append(token)
            said.logprobs.append(TokenLogprob(token=token, logprob=-1.0))
        n_said = len(said.ids) + (said.finish_reason == "stop")
        said.usage = Usage(
            n_prompt=len(request.prompt),
            n_cached=0,
            n_completion=n_said,
            n_drafted=0,
            n_accepted=0,
            n_preemptions=0,
            queue_s=0.0,
            ttft_s=None,
            total_s=0.0,
        )
        return said
