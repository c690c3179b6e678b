"""Passes of sequences side by side: each gets what it gets alone, whatever it is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn.recurrent_checks import D_MODEL
from nn.test_bridge import FFN, LATENT, LINEAR, MIXERS, PLAIN

from worthit.nn.decoder import build
from worthit.nn.ragged import ragged_tokens, side_by_side
from worthit.spec.model import (
    ChannelMix,
    FeedForward,
    Layer,
    ModelSpec,
    MoE,
    Position,
    PositionScaling,
    Rwkv,
)

VOCAB = 40
EXPERTS = MoE(n_experts=4, n_experts_per_token=2, expert=FeedForward(d_ff=16))
ROPE = Position(kind="rope")


def spec_of(*layers: Layer, **changed: object) -> ModelSpec:
    given = {"name": "m", "d_model": D_MODEL, "vocab_size": VOCAB, "context_len": 64}
    return ModelSpec(**{**given, "layers": layers * 2, "position": ROPE, **changed})


MODELS: dict[str, ModelSpec] = {
    **{
        name: spec_of(Layer(mixers=(m,), ffn=ChannelMix(d_ff=48) if isinstance(m, Rwkv) else FFN))
        for name, m in MIXERS.items()
    },
    "hybrid": spec_of(
        Layer(mixers=(MIXERS["mamba2"],), ffn=EXPERTS), Layer(mixers=(PLAIN, LATENT), ffn=FFN)
    ),
    "experts": spec_of(Layer(mixers=(PLAIN,), ffn=EXPERTS)),
    "expert choice": spec_of(Layer(mixers=(PLAIN,), ffn=replace(EXPERTS, routing="expert-choice"))),
    "capacity": spec_of(Layer(mixers=(PLAIN,), ffn=replace(EXPERTS, capacity_factor=1.0))),
    "alibi": spec_of(Layer(mixers=(PLAIN,), ffn=FFN), position=Position(kind="alibi")),
    "relative bias": spec_of(
        Layer(mixers=(PLAIN,), ffn=FFN), position=Position(kind="relative-bias")
    ),
    "longrope": spec_of(
        Layer(mixers=(PLAIN,), ffn=FFN),
        position=Position(
            kind="rope",
            scaling=PositionScaling(
                kind="longrope",
                factor=8.0,
                original_context_len=8,
                short_factors=(1.0,) * 4,
                long_factors=(32.0, 16.0, 8.0, 4.0),
            ),
        ),
    ),
    "mixture of depths": spec_of(
        Layer(mixers=(PLAIN,), ffn=FFN, token_fraction=0.5), Layer(mixers=(LINEAR,), ffn=FFN)
    ),
    "recursive": spec_of(Layer(mixers=(PLAIN,), ffn=FFN, n_loops=2)),
}


def passes(lengths: list[list[int]]) -> list[list[tuple[int, int]]]:
    """From new tokens by pass and sequence to `(sequence, tokens)` of those that take part."""
    return [[(i, n) for i, n in enumerate(step) if n] for step in lengths]


@pytest.mark.parametrize("name", MODELS)
def test_every_sequence_gets_what_it_gets_alone(name: str) -> None:
    torch.manual_seed(0)
    model = build(MODELS[name]).eval()
    if name == "mixture of depths":
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    # Whole prompts and chunks, single tokens together and alone; one sequence joins late.
    steps = [[5, 3, 0], [1, 1, 4], [1, 1, 1], [1, 0, 1], [2, 1, 3], [1, 1, 1]]
    alone = [model.new_cache() for _ in range(3)]
    ours = [model.new_cache() for _ in range(3)]
    seen = [0, 0, 0]
    for step in passes(steps):
        ids = {i: torch.randint(VOCAB, (1, n)) for i, n in step}
        tokens = ragged_tokens([(n, seen[i]) for i, n in step], torch.device("cpu"))
        with torch.no_grad():
            want = [model(ids[i], cache=alone[i]) for i, _ in step]
            got = model.forward_ragged(
                torch.cat([ids[i] for i, _ in step], dim=1),
                tokens,
                side_by_side([ours[i] for i, _ in step]),
            )
        torch.testing.assert_close(got, torch.cat(want, dim=1), atol=1e-5, rtol=1e-4)
        for i, n in step:
            seen[i] += n
            assert ours[i].nbytes == alone[i].nbytes


def test_rows_pick_the_tokens_whose_logits_are_wanted() -> None:
    model = build(MODELS["grouped"]).eval()
    ids = torch.randint(VOCAB, (1, 7))
    tokens = ragged_tokens([(4, 0), (3, 0)], torch.device("cpu"))
    with torch.no_grad():
        every = model.forward_ragged(
            ids, tokens, side_by_side([model.new_cache(), model.new_cache()])
        )
        some = model.forward_ragged(
            ids,
            ragged_tokens([(4, 0), (3, 0)], torch.device("cpu")),
            side_by_side([model.new_cache(), model.new_cache()]),
            rows=torch.tensor([6, 3]),
        )
    torch.testing.assert_close(some, every[:, [6, 3]])
    # Control: a sequence does not see its neighbour.
    torch.testing.assert_close(every[:, 4:], model(ids[:, 4:]), atol=1e-5, rtol=1e-4)
