"""The physics that no case may break: bounds, memory before time, monotony, exact rewrites."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import strategies
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from worthit.cost.evaluate import evaluate
from worthit.cost.ledger import Pass, build
from worthit.cost.memory import Split, cache_bytes, weight_bytes
from worthit.cost.params import count_params
from worthit.cost.points import neighbourhood, one_point
from worthit.cost.record import cost
from worthit.cost.serve import ServeCost
from worthit.cost.train import TrainCost
from worthit.spec.case import Case, Hardware, Layout, Runtime, Serving, Training
from worthit.spec.load import load_device, load_preset, preset_names
from worthit.spec.model import Attention, ModelSpec, MoE, Precision

few = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
# Rounding of sums over hundreds of terms.
EPS = 1e-9

shipped = st.sampled_from(["h100", "a100-80", "rtx-4090", "mi300x", "laptop-cpu"]).map(load_device)
degrees = st.sampled_from([1, 2, 4, 8])


@st.composite
def servings(draw: st.DrawFn, models: st.SearchStrategy[ModelSpec] | None = None) -> Case:
    """A case that serves on devices that exist, split in ways that divide them."""
    tensor, expert = draw(degrees), draw(degrees)
    return Case(
        model=draw(strategies.models() if models is None else models),
        workload=Serving(
            prompt=draw(st.integers(1, 1 << 17)),
            output=draw(st.integers(1, 1 << 12)),
            concurrency=draw(st.integers(1, 512)),
            output_spread=draw(st.sampled_from([0.0, 1.0])),
        ),
        hardware=Hardware(
            device=draw(shipped),
            n_devices=tensor * draw(degrees),
            layout=Layout(tensor=tensor, expert=expert),
        ),
        runtime=Runtime(
            has_paging=draw(st.booleans()),
            has_continuous_batching=draw(st.booleans()),
            attention=draw(st.sampled_from(["fused", "naive"])),
        ),
    )


@st.composite
def trainings(draw: st.DrawFn) -> Case:
    """A case that trains, sharded or not."""
    case = draw(servings())
    seq = draw(st.sampled_from([128, 2048, 32768]))
    tensor = case.hardware.layout.tensor
    return replace(
        case,
        workload=Training(tokens=10**9, seq=seq, batch_tokens=seq * draw(st.integers(1, 512))),
        hardware=replace(
            case.hardware, layout=Layout(tensor=tensor, zero=draw(st.sampled_from([0, 1, 2, 3])))
        ),
        runtime=replace(
            case.runtime, recompute=draw(st.sampled_from(["none", "selective", "full"]))
        ),
    )


def served(case: Case) -> ServeCost:
    found = evaluate(case)
    assert isinstance(found, ServeCost)
    return found


def trained(case: Case) -> TrainCost:
    found = evaluate(case)
    assert isinstance(found, TrainCost)
    return found


def fastest_bytes_per_s(case: Case) -> float:
    device = case.hardware.device
    return max(device.mem_bytes_per_s, device.llc_bytes_per_s or 0.0)


def fastest_flops_per_s(case: Case) -> float:
    return max(peak for peak in case.hardware.device.flops_per_s.values() if peak)


def peak_flops_per_s(case: Case, math: str) -> float:
    """Of matrix units in that arithmetic, of any unit for what runs beside them."""
    device = case.hardware.device
    return fastest_flops_per_s(case) if math == "vector" else device.peak(math)


# Time is bounded by what must move and by what must be computed.


@few
@given(servings())
def test_a_pass_takes_its_bytes_and_its_flops(case: Case) -> None:
    found = served(case)
    for phase, new, past, time in (
        ("decode", 1.0, found.mean_context, found.step),
        ("prefill", found.points.prompt, 0.0, found.prefill),
    ):
        p = found.forward(phase, batch=found.batch, new=new, past=past)
        ops = build(found.model, p)
        # Peaks without any efficiency, kernel by kernel: nothing is faster, nothing overlaps.
        bound = 0.0
        for op in ops:
            at_once = peak_flops_per_s(case, op.math)
            moved = float(np.ravel(op.bytes * op.count)[0]) / fastest_bytes_per_s(case)
            bound += max(moved, float(np.ravel(op.flops * op.count)[0]) / at_once)
        assert float(time.mid[0]) * (1 + EPS) >= bound


@few
@given(servings(), st.data())
def test_a_decode_step_reads_every_dense_weight(case: Case, data: st.DataObject) -> None:
    """The bound from the stored bytes, which the ledger does not enter."""
    names = [n for n in preset_names() if not n.startswith(("opt-350m", "grammar"))]
    model = load_preset(data.draw(st.sampled_from(names)))
    assume(not any(isinstance(f, MoE) for f in model.ffns))
    found = served(replace(case, model=model))
    tables = model.n_positions * model.d_model
    if not model.has_tied_embeddings:
        tables += count_params(model).embedding
    left_out = tables / count_params(model).total
    # Norms, biases and convolutions are in no matrix: under 1 % of any of these.
    must_move = float(found.weights_bytes[0]) * (1 - left_out - 0.01)
    assert float(found.step.mid[0]) >= must_move / fastest_bytes_per_s(case)


@few
@given(trainings())
def test_a_training_step_takes_its_flops(case: Case) -> None:
    found = trained(case)
    flops = found.flops_per_token * found.work.batch_tokens / case.hardware.n_devices
    seconds = float(found.micro.mid[0] * found.micro_steps[0])
    assert seconds * (1 + 1e-6) >= flops / fastest_flops_per_s(case)


# Memory comes first.


@few
@given(st.one_of(servings(), trainings()))
def test_what_does_not_fit_has_no_times(case: Case) -> None:
    record = cost(case)
    if record["memory"]["total_bytes"] > record["memory"]["capacity_bytes"] * (1 + EPS):
        assert not record["memory"]["fits"]
    if not record["memory"]["fits"]:
        assert set(record["time"].values()) == {None}
        assert record["money"] is None


def test_weights_beyond_memory_make_every_time_infinite() -> None:
    found = served(
        Case(
            model=load_preset("llama-3.1-405b"),
            workload=Serving(prompt=10, output=10),
            hardware=Hardware(device=load_device("h100")),
        )
    )
    for times in (found.ttft_s, found.tpot_s, found.s_per_token, found.stall_s):
        assert np.isinf(times).all()


# More work never takes less.


@few
@given(servings(), st.sampled_from([2, 3, 8]))
def test_more_sequences_take_more_memory_and_longer_steps(case: Case, times: int) -> None:
    assert isinstance(case.workload, Serving)
    more = replace(case.workload, concurrency=case.workload.concurrency * times)
    a, b = served(case), served(replace(case, workload=more))
    assert b.total_bytes[0] >= a.total_bytes[0]
    assume(b.fits[0])
    assert a.fits[0]
    assert b.step.mid[0] >= a.step.mid[0] * (1 - EPS)


@few
@given(servings(), st.sampled_from(["prompt", "output"]), st.sampled_from([2, 3, 8]))
def test_longer_sequences_take_more_memory_and_longer_steps(
    case: Case, which: str, times: int
) -> None:
    # A chunk's queries see half of it on average once there are several: not monotone at its end.
    assume(not any(isinstance(m, Attention) and m.chunk for m in case.model.mixers))
    work = case.workload
    a = served(case)
    b = served(replace(case, workload=replace(work, **{which: getattr(work, which) * times})))
    assert b.total_bytes[0] >= a.total_bytes[0]
    assert b.sequence_bytes[0] >= a.sequence_bytes[0] * (1 - EPS)
    assume(b.running[0] == a.running[0] >= 1)
    assert b.step.mid[0] >= a.step.mid[0] * (1 - EPS)


@few
@given(servings())
def test_doubling_devices_never_raises_memory_per_device(case: Case) -> None:
    found = evaluate(case, neighbourhood(case))
    axis = np.array(found.points.axis)
    more = (axis == "devices") & (found.points.factor >= 2)
    assert (found.total_bytes[more] <= found.total_bytes[0] * (1 + EPS)).all()


# Exact rewrites and structure.


@few
@given(st.one_of(servings(), trainings()))
def test_fused_attention_is_never_slower(case: Case) -> None:
    naive, fused = (
        evaluate(replace(case, runtime=replace(case.runtime, attention=kind)))
        for kind in ("naive", "fused")
    )
    assert fused.total_bytes[0] <= naive.total_bytes[0]
    if isinstance(naive, ServeCost) and isinstance(fused, ServeCost):
        assume(fused.running[0] == naive.running[0])
        assert fused.step.mid[0] <= naive.step.mid[0] * (1 + EPS)
        assert fused.prefill.mid[0] <= naive.prefill.mid[0] * (1 + EPS)
    elif isinstance(naive, TrainCost) and isinstance(fused, TrainCost):
        assert fused.micro.mid[0] <= naive.micro.mid[0] * (1 + EPS)


@pytest.mark.parametrize("sparse_near", [None, 64])
@pytest.mark.parametrize("prompt", [1, 63, 65, 5000])
def test_fused_choice_of_blocks_is_never_slower(prompt: int, sparse_near: int | None) -> None:
    """Random cases seldom have a prompt shorter than a block that attention chooses among."""
    model = load_preset("smollm2-135m").map_layers(
        lambda layer: replace(
            layer,
            mixers=tuple(
                replace(m, sparse_keys=16, sparse_near=sparse_near)
                if isinstance(m, Attention)
                else m
                for m in layer.mixers
            ),
        )
    )
    naive, fused = (
        evaluate(
            Case(
                model=replace(model, context_len=8192),
                workload=Serving(prompt=prompt, output=1, concurrency=1),
                hardware=Hardware(device=load_device("h100")),
                runtime=Runtime(attention=kind),
            )
        )
        for kind in ("naive", "fused")
    )
    assert isinstance(naive, ServeCost)
    assert isinstance(fused, ServeCost)
    assert fused.step.mid[0] <= naive.step.mid[0] * (1 + EPS)
    assert fused.prefill.mid[0] <= naive.prefill.mid[0] * (1 + EPS)


@given(strategies.models())
def test_active_parameters_are_among_the_stored(model: ModelSpec) -> None:
    params = count_params(model)
    assert 0 < params.active <= params.total
    assert params.active_without_embeddings <= params.active


@given(strategies.moes(), st.integers(1, 4096))
def test_a_mixture_reads_between_k_and_all_experts(moe: MoE, batch: int) -> None:
    assume(moe.routing != "soft")
    layer = load_preset("mixtral-8x7b").layers[0]
    model = replace(
        load_preset("mixtral-8x7b"), layers=(replace(layer, ffn=moe),), precision=Precision()
    )
    p = Pass(phase="decode", batch=float(batch), new=1.0, past=10.0)
    (op,) = [op for op in build(model, p) if op.name == "experts"]
    one = (3 if moe.expert.is_gated else 2) * model.d_model * moe.expert.d_ff * 2
    e, k = moe.n_experts, moe.n_experts_per_token
    assert float(op.weights) == pytest.approx(e * (1 - (1 - k / e) ** batch) * one, rel=1e-9)
    assert k * one * (1 - EPS) <= float(op.weights) <= min(e, batch * k) * one * (1 + EPS)


@given(st.sampled_from([1, 2, 4, 8]), degrees, degrees)
def test_ranks_beyond_the_kv_heads_hold_one_each(kv: int, tensor: int, more: int) -> None:
    layer = load_preset("llama-3.1-8b").layers[0]
    (mixer,) = layer.mixers
    assert isinstance(mixer, Attention)
    layer = replace(layer, mixers=(replace(mixer, n_kv_heads=kv),))
    model = replace(load_preset("llama-3.1-8b"), layers=(layer,))
    each = float(cache_bytes(model, Split(tensor=tensor * more), 100.0).per_sequence)
    heads = max(kv / (tensor * more), 1)
    assert each == heads * 2 * mixer.head_dim * 2 * 100


@given(st.integers(1, 4096), st.integers(1, 1 << 20))
def test_a_window_caps_the_cache(window: int, tokens: int) -> None:
    layer = load_preset("llama-3.1-8b").layers[0]
    (mixer,) = layer.mixers
    assert isinstance(mixer, Attention)
    local = replace(layer, mixers=(replace(mixer, window=window),))
    model = replace(load_preset("llama-3.1-8b"), layers=(layer, local))
    full = float(cache_bytes(replace(model, layers=(layer,)), Split(), tokens).per_sequence)
    both = float(cache_bytes(model, Split(), tokens).per_sequence)
    assert both - full == pytest.approx(full * min(tokens, window) / tokens)


@pytest.mark.parametrize("name", preset_names())
def test_the_ledger_reads_the_weights_that_are_stored(name: str) -> None:
    """So many tokens that every expert is touched: all matrices once, tables looked up aside."""
    model = replace(load_preset(name), precision=Precision())
    p = Pass(phase="decode", batch=1e7, new=1.0, past=1.0)
    read = sum(float(np.ravel(op.weights * op.count)[0]) for op in build(model, p))
    params = count_params(model)
    looked_up = 0 if model.has_tied_embeddings else params.embedding
    looked_up += model.n_positions * model.d_model
    stored = float(weight_bytes(model, Split())) - 2 * looked_up
    # Norms, biases, convolutions and per-head scalars are in no matrix.
    assert 0 <= stored - read <= 0.008 * stored


# One formula for numbers and arrays; arguments stay as they were.


@few
@given(st.one_of(servings(), trainings()))
def test_the_first_point_is_the_case_alone(case: Case) -> None:
    alone, among = evaluate(case, one_point(case)), evaluate(case, neighbourhood(case))
    names = ["total_bytes", "capacity_bytes", "context_shortfall"]
    names += ["s_per_token", "ttft_s"] if isinstance(alone, ServeCost) else ["train_total_s"]
    for name in names:
        one, all_ = getattr(alone, name), getattr(among, name)
        np.testing.assert_allclose(all_[..., 0], one[..., 0], rtol=1e-12, err_msg=name)
    for bottleneck, share in alone.shares.items():
        np.testing.assert_allclose(
            among.shares[bottleneck][0], share[0], rtol=1e-9, atol=1e-12, err_msg=bottleneck
        )


@few
@given(st.one_of(servings(), trainings()), st.data())
def test_a_neighbour_is_the_changed_case_alone(case: Case, data: st.DataObject) -> None:
    among = evaluate(case, neighbourhood(case))
    p = among.points
    fields = {
        "prompt": ("prompt", p.prompt),
        "output": ("output", p.output),
        "concurrency": ("concurrency", p.concurrency),
        "batch tokens": ("batch_tokens", p.batch_tokens),
    }
    chosen = [i for i, axis in enumerate(p.axis) if axis in fields]
    i = data.draw(st.sampled_from(chosen))
    name, values = fields[p.axis[i]]
    work = replace(case.workload, **{name: int(values[i])})
    alone = evaluate(replace(case, workload=work))
    metric = "s_per_token" if isinstance(alone, ServeCost) else "train_total_s"
    np.testing.assert_allclose(among.total_bytes[i], alone.total_bytes[0], rtol=1e-12)
    np.testing.assert_allclose(
        getattr(among, metric)[:, i], getattr(alone, metric)[:, 0], rtol=1e-9
    )


@few
@given(st.one_of(servings(), trainings()))
def test_costing_leaves_the_case_untouched(case: Case) -> None:
    before = copy.deepcopy(case)
    cost(case)
    assert case == before
    assert case.hardware.device.flops_per_s == before.hardware.device.flops_per_s
