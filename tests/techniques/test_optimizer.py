"""Records of the optimizer family: bytes and FLOPs a parameter, from the shapes of matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from technique_cases import latent_layer, llama_8b, mamba, mixture, serving, training

from worthit.cost.params import count_params
from worthit.errors import NotApplicable
from worthit.spec.case import Range
from worthit.spec.model import (
    S4,
    ChannelMix,
    Layer,
    LinearAttention,
    Mamba2,
    Norm,
    Rwkv,
)
from worthit.techniques.optimizer import muon, shampoo, soap
from worthit.techniques.optimizer._shapes import matrices

ALL = (muon, shampoo, soap)
TOTAL = 8_030_261_248  # Llama 3.1 8B
MATRICES = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.TECHNIQUE.id)
def test_apply_is_seen_and_adamw_comes_back(module):
    case = training()
    after = module.apply(case)
    assert [m.TECHNIQUE.id for m in ALL if m.is_present(after)] == [module.TECHNIQUE.id]
    assert not module.is_present(case)
    assert module.TECHNIQUE.remove(after) == case


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.TECHNIQUE.id)
def test_nothing_is_optimized_while_serving(module):
    with pytest.raises(NotApplicable, match="acts when a model is trained; this case serves one"):
        module.apply(serving())


@pytest.mark.parametrize("module", ALL, ids=lambda m: m.TECHNIQUE.id)
def test_disputed_gains_reach_to_none(module):
    tokens = module.apply(training()).runtime.tokens_to_target
    assert tokens.low < tokens.mid < 1 <= tokens.high


def test_what_the_model_needs_more_of_multiplies():
    case = training()
    more = replace(case.runtime, tokens_to_target=Range(mid=2, low=1, high=4))
    tokens = muon.apply(replace(case, runtime=more)).runtime.tokens_to_target
    claimed = muon.TOKENS_TO_TARGET
    assert tokens == Range(mid=2 * claimed.mid, low=claimed.low, high=4 * claimed.high)


def test_muon_keeps_8_bytes_for_matrices_and_12_for_the_rest():
    # With 2 of weights and 2 of gradients: 12 in all for a matrix, 16 for the rest.
    after = muon.apply(training()).runtime
    expected = (8 * MATRICES + 12 * (TOTAL - MATRICES)) / TOTAL
    assert after.optimizer_bytes_per_param == pytest.approx(expected)
    assert expected == pytest.approx(8.52, abs=0.005)


@pytest.mark.parametrize(
    ("rows", "columns", "flops"),
    [
        (4096, 4096, 30 * 4096),  # 5 x (4 + 2) x side
        (1024, 4096, 5 * (4 * 1024 + 2 * 1024 / 4)),
        (4096, 1024, 5 * (4 * 1024 + 2 * 1024 / 4)),
    ],
)
def test_newton_schulz(rows, columns, flops):
    assert muon.newton_schulz_flops(rows, columns) == pytest.approx(flops)


def test_muon_overhead_is_within_its_authors_bound():
    # At most T m / B of the 6 FLOPs a parameter and token (Jordan et al. 2024, runtime analysis).
    flops = muon.apply(training()).runtime.optimizer_flops_per_param
    batch = 2**20
    assert 0 < flops / (6 * batch) <= 5 * 4096 / batch


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (4096, 4096, 28),  # master 4, momentum 4, graft 4; 2 x 2 x 1024^2 / 1024^2 x 4 = 16
        (1024, 1024, 28),
        (512, 1024, 12 + 4 * 2 * (512**2 + 1024**2) / (512 * 1024)),
        # One whole block, and one of half its height.
        (1536, 1024, 12 + 4 * 2 * (2 * 1024**2 + 512**2 + 1024**2) / (1536 * 1024)),
    ],
)
def test_shampoo_bytes_in_blocks(rows, columns, expected):
    assert shampoo.state_bytes(rows, columns, block=1024) == pytest.approx(expected)


def test_shampoo_flops_of_a_square_block():
    # 8 x 1024 each step, and two roots of 11 x 1024^3 every 50.
    expected = 8 * 1024 + 2 * 11 * 1024 / 50
    assert shampoo.step_flops(4096, 4096, block=1024, interval=50) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (4096, 4096, 28),  # AdamW's 12 and four squares of the same size
        (4096, 1024, 12 + 4 * 2 * (4 + 1 / 4)),  # a narrow projection: 46 bytes
        (4096, 14336, 12 + 4 * 2 * 4096 / 14336),  # the long side keeps the identity
        (20_000, 20_000, 12),
    ],
)
def test_soap_bytes(rows, columns, expected):
    assert soap.state_bytes(rows, columns, max_side=10_000) == pytest.approx(expected)


def test_soap_flops_of_a_square():
    expected = 16 * 4096 + 2 * (2 + 8 / 3) * 4096 / 10
    assert soap.step_flops(4096, 4096, max_side=10_000, interval=10) == pytest.approx(expected)


def test_matrix_optimizers_but_muon_need_more_memory_than_adamw():
    held = {m.TECHNIQUE.id: m.apply(training()).runtime.optimizer_bytes_per_param for m in ALL}
    assert held["muon"] < 12 < held["soap"] < held["shampoo"]


BARE = Norm(has_weight=False)


@pytest.mark.parametrize(
    "mixer",
    [
        latent_layer().mixers[0],
        replace(latent_layer().mixers[0], q_lora_rank=256),
        LinearAttention(
            kind="linear",
            n_key_heads=4,
            n_value_heads=8,
            key_dim=32,
            value_dim=64,
            has_output_norm=False,
        ),
        Mamba2(n_heads=8, head_dim=64, d_state=16, n_groups=1, d_conv=4),
        Rwkv(d_attention=256),
        S4(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_matrices_are_nearly_all_of_a_layer(mixer):
    layer = Layer(mixers=(mixer,), ffn=ChannelMix(d_ff=1024), norm=BARE)
    model = replace(llama_8b(), d_model=256, layers=(layer,) * 3, vocab_size=1)
    inside = sum(rows * columns * n for rows, columns, n in matrices(model))
    # Convolutions, decays, latent norms and S4's own states are the remainder.
    assert 0.8 < inside / count_params(model).total < 1


@pytest.mark.parametrize(("model", "least"), [(mixture(), 0.9), (mamba(), 0.6)])
def test_experts_and_state_spaces_are_counted(model, least):
    inside = sum(rows * columns * n for rows, columns, n in matrices(model))
    assert least < inside / count_params(model).total < 1
