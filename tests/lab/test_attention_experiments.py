"""What the experiments on attention count and score themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from worthit.cost.params import count_params
from worthit.lab import models
from worthit.lab.experiments import _heads, _recall, flash_attention, low_rank_attention
from worthit.lab.experiments._heads import as_large_as, decoder, full_heads, heads
from worthit.train import Batch, seeded

SIZES: Any = SimpleNamespace(sizes={"d_model": 48, "seq_len": 16, "pairs": 4})


def tensors(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, n, 8, generator=generator) for _ in range(4)]


def test_an_error_is_seen() -> None:
    *inputs, d_out = tensors(12)
    assert flash_attention.largest_error(flash_attention.in_tiles, inputs, d_out) < 1e-5

    def sees_ahead(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    assert flash_attention.largest_error(sees_ahead, inputs, d_out) > 1e-2


def test_saved_bytes_are_those_of_a_hand_count() -> None:
    *inputs, _ = tensors(12)
    # q, k, v of 2 heads, 12 tokens, 8 channels; probabilities; a mask of one byte.
    one = 2 * 12 * 8 * 4
    assert flash_attention.saved_bytes(flash_attention.plain, inputs) == (
        3 * one + 2 * 12 * 12 * 4 + 12 * 12
    )
    # The output and a sum a row in place of the matrix.
    assert flash_attention.saved_bytes(flash_attention.in_tiles, inputs) == 4 * one + 2 * 12 * 4


def test_what_heads_free_the_feed_forward_gets() -> None:
    full = full_heads(SIZES)
    small = decoder(heads(SIZES, n_kv_heads=1), SIZES)
    assert count_params(small).total < 0.95 * count_params(full).total
    widened = as_large_as(full, small)
    assert abs(count_params(widened).total / count_params(full).total - 1) < 0.005
    assert widened.layers[0].ffn.d_ff > small.layers[0].ffn.d_ff  # type: ignore[union-attr]


def leak(model: torch.nn.Module) -> float:
    ids = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1], ids[:, 1:])
    data = SimpleNamespace(seq_len=16, held_out=lambda split: iter([batch]))
    trial: Any = SimpleNamespace(model=model, data=data)
    with torch.no_grad():
        found = low_rank_attention.cut_off(trial)["leak"]
    assert isinstance(found, float)
    return found


def test_only_what_looks_ahead_leaks() -> None:
    causal = models.decoder(16, mixers=models.attention(16, head_dim=8))
    features = models.decoder(16, mixers=models.attention(16, head_dim=8, n_features=8))
    ahead = models.decoder(16, mixers=models.attention(16, head_dim=8, low_rank=4), context_len=16)
    assert abs(leak(seeded(causal)(0))) < 1e-5
    assert abs(leak(seeded(features)(0))) < 1e-5
    assert abs(leak(seeded(ahead)(0))) > 1e-4


def test_every_recall_arm_has_the_same_first_layer() -> None:
    arms = (_recall.attention(), _recall.linear("delta", 4), _recall.linear("linear", 16))
    specs = [arm.model(SIZES) for arm in arms]  # type: ignore[operator, misc]
    assert len({spec.layers[0] for spec in specs}) == 1
    assert _heads.MATCHED.what == ("parameters", "tokens")
