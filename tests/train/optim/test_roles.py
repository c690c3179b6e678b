"""Which parameter goes to which optimizer, and what of it the records count."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from train.layers import LAYERS, MIXTURE, PLAIN, D, spec_of

from worthit.nn.decoder import build
from worthit.spec.load import load_preset
from worthit.spec.model import Layer
from worthit.techniques.optimizer._shapes import matrices
from worthit.train.optim.roles import Role, join, roles, split


def shapes(model: nn.Module) -> Counter[tuple[int, ...]]:
    """Every matrix, both sides sorted: who calls which one rows does not matter."""
    found: Counter[tuple[int, ...]] = Counter()
    named = dict(model.named_parameters())
    for name, role in roles(model).items():
        if role.kind == "matrix":
            apart = split(named[name], role.parts)
            found[tuple(sorted(apart.shape[-2:]))] += apart[..., 0, 0].numel()
    return found


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_matrices_are_those_that_the_records_count(layer: Layer) -> None:
    spec = spec_of(layer)
    want: Counter[tuple[int, ...]] = Counter()
    for rows, columns, n in matrices(spec):
        want[tuple(sorted((rows, columns)))] += n
    with torch.device("meta"):
        assert shapes(build(spec)) == want


@pytest.mark.parametrize(
    "name", ["grammar-tutor", "smollm2-135m", "deepseek-v2-lite", "gpt2-medium"]
)
def test_matrices_of_a_preset(name: str) -> None:
    spec = load_preset(name)
    want: Counter[tuple[int, ...]] = Counter()
    for rows, columns, n in matrices(spec):
        want[tuple(sorted((rows, columns)))] += n
    with torch.device("meta"):
        assert shapes(build(spec)) == want


def test_roles_follow_the_module() -> None:
    layer = Layer(mixers=(replace(PLAIN, has_qkv_bias=True),), ffn=MIXTURE)
    found = roles(build(spec_of(layer, has_tied_embeddings=False)))
    kinds = {name: role.kind for name, role in found.items()}
    assert kinds["embedding.weight"] == kinds["head.weight"] == "table"
    assert kinds["layers.0.mixers.0.q_proj.weight"] == "matrix"
    assert kinds["layers.0.mixers.0.q_proj.bias"] == "vector"
    assert kinds["layers.1.ffn.router.linear.weight"] == "router"
    assert kinds["layers.1.ffn.shared.gate.weight"] == "vector"  # one output
    assert kinds["layers.0.mixer_norm.weight"] == kinds["final_norm.weight"] == "vector"
    assert found["layers.0.ffn.experts.up"] == Role("matrix", n_parts=2)
    assert found["layers.0.ffn.experts.down"] == Role("matrix")


def test_convolutions_and_states_are_no_matrices() -> None:
    kinds = {name: r.kind for name, r in roles(build(spec_of(LAYERS["mamba"]))).items()}
    assert kinds["layers.0.mixers.0.log_a"] == "other"
    assert kinds["layers.0.mixers.0.in_proj.weight"] == "matrix"
    assert {kind for name, kind in kinds.items() if "conv.weight" in name} == {"other"}


def test_any_module_has_roles() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    kinds = [role.kind for role in roles(model).values()]
    assert kinds == ["table", "matrix", "vector", "vector", "vector", "matrix", "vector"]


def test_every_parameter_has_one_role() -> None:
    for layer in LAYERS.values():
        model = build(spec_of(layer))
        assert list(roles(model)) == [name for name, _ in model.named_parameters()]


def test_parts_come_apart_and_together() -> None:
    x = torch.arange(8 * 3).view(8, 3)
    assert split(x, (2, 1))[1].tolist() == x[4:].tolist()
    assert split(x, (2, 2))[0].tolist() == x[[0, 1, 4, 5]].tolist()
    many = torch.randn(5, 2, 12, 7)
    for parts in ((1, 1), (2, 1), (2, 3), (3, 2)):
        assert torch.equal(join(split(many, parts), parts), many)


def test_the_query_of_gated_attention_is_its_own_matrix() -> None:
    """Query and gate stand side by side within each head: a gate's weights are not in its part."""
    attention = build(spec_of(LAYERS["gated attention"])).layers[0].mixers[0]
    role = roles(attention)["q_proj.weight"]
    query, gate = split(attention.q_proj.weight, role.parts)
    x = torch.randn(1, 1, D)
    both = attention.q_proj(x).unflatten(-1, (4, 16))
    torch.testing.assert_close(x @ query.T, both[..., :8].flatten(-2))
    torch.testing.assert_close(x @ gate.T, both[..., 8:].flatten(-2))
