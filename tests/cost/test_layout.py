"""The layout that is chosen where none is stated: degrees that divide devices and heads."""

from __future__ import annotations

import pytest

from worthit.cost.layout import choose
from worthit.spec.load import build_case, load_preset


@pytest.mark.parametrize(
    ("model", "on", "tensor"),
    [
        ("llama-3.1-70b", "h100:8", 8),  # 64 heads over 8
        ("llama-3.1-70b", "h100:6", 2),  # neither 6 nor 3 divides 64
        ("llama-3.1-8b", "h100:1", 1),
        ("llama-3.1-70b", "h100:16", 8),  # eight reach one another, two replicas of them
        ("gpt2-xl", "h100:8", 1),  # 25 heads
    ],
)
def test_tensor_degree_divides_devices_and_heads(model: str, on: str, tensor: int) -> None:
    case = build_case(load_preset(model), on=on, prompt=100, output=100, concurrency=4)
    assert choose(case).hardware.layout.tensor == tensor
