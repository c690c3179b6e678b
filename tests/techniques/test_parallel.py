"""Records of the parallel family: which degrees they choose, what they leave, when they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from technique_cases import (
    attention_layer,
    device,
    llama_8b,
    llama_70b,
    mamba,
    mixture,
    one_layer,
    serving,
    training,
)

from worthit.cost.train import TrainCost
from worthit.errors import NotApplicable
from worthit.spec.case import Layout
from worthit.spec.model import Precision
from worthit.techniques.parallel import (
    activation_checkpointing,
    context_parallel,
    expert_parallel,
    fsdp,
    pipeline_parallel,
    tensor_parallel,
)
from worthit.techniques.parallel._devices import held_bytes

SPLITS = (context_parallel, expert_parallel, fsdp, pipeline_parallel, tensor_parallel)
TOTAL = 8_030_261_248  # Llama 3.1 8B


def alone(n_devices=8, model=None, **degrees):
    """Replicas of a whole model, trained, on `n_devices`."""
    layout = Layout(tensor=1, **degrees)
    return training(model, n_devices=n_devices, layout=layout)


def split(model, n_devices, **degrees):
    """A served model with its degrees decided."""
    return serving(model, n_devices=n_devices, layout=Layout(**degrees))


@pytest.mark.parametrize("module", SPLITS, ids=lambda m: m.TECHNIQUE.id)
def test_one_device_cannot_be_split(module):
    model = mixture() if module is expert_parallel else None
    case = training(model)
    with pytest.raises(NotApplicable, match=r"has one Made-up accelerator; it acts from --on"):
        module.apply(case)


@pytest.mark.parametrize("module", SPLITS, ids=lambda m: m.TECHNIQUE.id)
def test_apply_is_seen_and_taken_out_again(module):
    case = alone(model=mixture(n_layers=8))
    after = module.apply(case)
    assert [m.TECHNIQUE.id for m in SPLITS if m.is_present(after)] == [module.TECHNIQUE.id]
    assert not module.is_present(case)
    assert module.remove(after) == case


def test_tensor_degree_fills_the_link_domain():
    assert tensor_parallel.apply(alone(8)).hardware.layout.tensor == 8
    assert tensor_parallel.apply(alone(16)).hardware.layout.tensor == 8
    assert tensor_parallel.apply(alone(6)).hardware.layout.tensor == 2  # 32 heads, not 3 or 6


def test_tensor_degree_stops_at_the_key_value_heads_while_it_fits():
    few = replace(llama_8b(), layers=(attention_layer(n_kv_heads=4),) * 32)
    assert tensor_parallel.apply(split(few, 8, tensor=1)).hardware.layout.tensor == 4
    # 141 GB of Llama 3.1 70B need more than two devices of 80 GB: heads are replicated instead.
    wide = replace(
        llama_70b(), layers=(attention_layer(n_heads=64, n_kv_heads=2, d_ff=28672),) * 80
    )
    assert tensor_parallel.apply(split(wide, 8, tensor=1)).hardware.layout.tensor == 8


def test_tensor_parallelism_takes_the_place_of_expert_parallelism():
    after = tensor_parallel.apply(split(mixture(), 8, tensor=1, expert=8)).hardware.layout
    assert (after.tensor, after.expert) == (8, 1)


def test_heads_that_no_degree_divides():
    nine = replace(llama_8b(), layers=(attention_layer(n_heads=9, n_kv_heads=3),) * 4)
    with pytest.raises(NotApplicable, match=r"divides the heads \(9,\) and the 8 devices"):
        tensor_parallel.apply(alone(8, nine))
    assert tensor_parallel.apply(alone(6, nine)).hardware.layout.tensor == 3


def test_devices_without_a_link_are_not_one():
    case = training(n_devices=4, on=device(link_domain=1), layout=Layout(tensor=1))
    with pytest.raises(NotApplicable, match="within a link domain of 1"):
        tensor_parallel.apply(case)


def test_a_stated_degree_must_leave_no_device_over():
    with pytest.raises(NotApplicable, match="got 16"):
        tensor_parallel.apply(alone(8), degree=16)
    assert tensor_parallel.apply(alone(8), degree=2).hardware.layout.tensor == 2


@pytest.mark.parametrize(
    ("n_devices", "tensor", "stages", "left"),
    [
        (8, 8, 2, 4),  # 141 GB over 8 either way
        (8, 1, 4, 1),  # 2 x 60 GB do not hold 141 GB, 4 do
        (16, 8, 2, 8),
    ],
)
def test_stages_hold_the_model_with_what_tensor_parallelism_divides(
    n_devices, tensor, stages, left
):
    after = pipeline_parallel.apply(split(llama_70b(), n_devices, tensor=tensor)).hardware.layout
    assert (after.pipeline, after.tensor) == (stages, left)


def test_training_needs_stages_for_states_too_unless_replicas_share_them():
    # 16 bytes x 8.03e9 = 128 GB: three devices of 60 GB, so 4 of 8.
    assert pipeline_parallel.apply(alone(8)).hardware.layout.pipeline == 4
    assert pipeline_parallel.apply(alone(8, zero=3)).hardware.layout.pipeline == 2


def test_an_undecided_tensor_degree_stays_undecided():
    assert pipeline_parallel.apply(serving(n_devices=8)).hardware.layout.tensor is None


def test_one_layer_is_no_pipeline():
    with pytest.raises(NotApplicable, match="got 1 layers; it needs a layer or more a stage"):
        pipeline_parallel.apply(alone(8, one_layer()))


def test_dense_models_have_no_experts_to_spread():
    with pytest.raises(NotApplicable, match="every feed-forward of llama-8b is dense"):
        expert_parallel.apply(alone(8))


@pytest.mark.parametrize(
    ("n_experts", "n_devices", "degree"), [(8, 8, 8), (6, 8, 2), (64, 16, 8), (12, 6, 6)]
)
def test_expert_degree_divides_experts_within_a_link_domain(n_experts, n_devices, degree):
    case = alone(n_devices, mixture(n_experts=n_experts))
    assert expert_parallel.apply(case).hardware.layout.expert == degree


def test_experts_that_no_degree_divides():
    with pytest.raises(NotApplicable, match=r"divides the experts \(7,\) and the 8 devices"):
        expert_parallel.apply(alone(8, mixture(n_experts=7)))


def test_a_stated_expert_degree_may_cross_link_domains():
    case = alone(16, mixture(n_experts=64))
    assert expert_parallel.apply(case, degree=16).hardware.layout.expert == 16


def test_expert_parallelism_takes_the_place_of_tensor_parallelism():
    after = expert_parallel.apply(split(mixture(), 8, tensor=8)).hardware.layout
    assert (after.expert, after.tensor) == (8, 1)


def test_context_takes_the_replicas():
    assert context_parallel.apply(alone(8)).hardware.layout.context == 8
    assert context_parallel.apply(alone(32)).hardware.layout.context == 8


def test_context_takes_half_of_a_tensor_group_that_can_spare_it():
    after = context_parallel.apply(split(llama_70b(), 8, tensor=8)).hardware.layout
    assert (after.context, after.tensor) == (2, 4)


def test_context_repeats_weights_that_must_fit():
    with pytest.raises(NotApplicable, match="repeats the weights on each of 2 parts"):
        context_parallel.apply(split(llama_70b(), 4, tensor=4))


def test_a_fixed_state_needs_no_ring():
    with pytest.raises(NotApplicable, match="keep a fixed state"):
        context_parallel.apply(alone(8, mamba()))


def test_adam_holds_16_bytes_a_parameter_and_fsdp_divides_them():
    # ZeRO's own example at its 16 bytes: 7.5e9 parameters are 120 GB, 1.9 GB over 64 devices.
    assert held_bytes(alone(64)) == 16 * TOTAL
    state = sum(np.ravel(part)[0] for part in TrainCost(fsdp.apply(alone(64))).state)
    assert state == pytest.approx(16 * TOTAL / 64)


def test_experts_are_held_in_their_own_format():
    # 4 layers of 8 experts of 3 x 512 x 1024, at 4.25 bits where the rest has 16.
    experts = 4 * 8 * 3 * 512 * 1024
    narrow = replace(mixture(), precision=Precision(experts="mxfp4"))
    saved = held_bytes(serving(mixture())) - held_bytes(serving(narrow))
    assert saved == experts * (16 - 4.25) / 8


def test_sharding_needs_replicas():
    case = training(n_devices=8, layout=Layout(tensor=4, pipeline=2))
    with pytest.raises(NotApplicable, match="tensor=4, pipeline=2, context=1; lower one"):
        fsdp.apply(case)


@pytest.mark.parametrize("module", [fsdp, activation_checkpointing])
def test_nothing_is_sharded_or_recomputed_while_serving(module):
    with pytest.raises(NotApplicable, match="acts when a model is trained; this case serves one"):
        module.apply(serving(n_devices=8))


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_modes(mode):
    case = training()
    after = activation_checkpointing.apply(case, mode=mode)
    assert after.runtime.recompute == mode
    assert activation_checkpointing.is_present(after)
    assert activation_checkpointing.remove(after) == case
