"""Training: what each pipeline stage keeps, and how context parallelism divides the work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from technique_cases import llama_8b, training

from worthit.cost.train import TrainCost
from worthit.spec.case import Layout, Runtime


def test_logits_stand_on_the_last_stage_only() -> None:
    tokens, vocab, d = 4096, 128256, 4096
    case = training(llama_8b(), n_devices=4, layout=Layout(pipeline=4), batch_tokens=8 * tokens)
    case = replace(case, runtime=Runtime(recompute="full"))
    # Full recomputation keeps each layer's input: 8 of 32 layers a stage, 2 bytes an element.
    layers = 8 * tokens * d * 2
    # Logits in 16 bits, their gradient in fp32.
    logits = tokens * vocab * (2 + 4)
    # First stage: four micro-batches in flight. Last: one, and its logits.
    assert TrainCost(case).activation_bytes[0] == max(4 * layers, layers + logits)


@pytest.mark.parametrize("degree", [2, 4])
def test_context_parallelism_divides_every_product_once(degree: int) -> None:
    whole = TrainCost(training(llama_8b(), n_devices=1, seq=8192, batch_tokens=8192))
    split = TrainCost(
        training(
            llama_8b(),
            n_devices=degree,
            layout=Layout(context=degree),
            seq=8192,
            batch_tokens=8192,
        )
    )
    for bottleneck in ("attention-compute", "matmul-compute"):
        one, each = whole.micro.causes[bottleneck], split.micro.causes[bottleneck]
        np.testing.assert_allclose(each, one / degree, rtol=1e-12)
