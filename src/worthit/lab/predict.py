"""What `worthit.cost` says of an experiment before it runs: the other half of every outcome.

Each function makes the predictions of one metric for every variant against the baseline. Where the
machine has been calibrated, times are of this machine; otherwise of a plain two-core CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from worthit.cost.evaluate import evaluate
from worthit.errors import MissingCapability
from worthit.judge.verdict import gain
from worthit.lab.context import Setting
from worthit.lab.experiment import Prediction, Quantity
from worthit.lab.matching import counts
from worthit.spec.case import Case, Hardware, Runtime, Serving, Training, Workload
from worthit.spec.load import load_device
from worthit.spec.model import ModelSpec, Precision

# What experiments compute in.
FP32 = Precision(weights="fp32", embeddings="fp32", activations="fp32", cache="fp32", state="fp32")
PLAIN_CPU = "cpu-2vcpu"


def counted(
    setting: Setting, metric: str, what: Quantity, *, by_ratio: bool = True
) -> Iterator[Prediction]:
    """A quantity that is counted: parameters, cache bytes, FLOPs; exact."""
    found = counts(setting)
    base = found[setting.experiment.baseline.id][what]
    for arm in setting.experiment.variants:
        value = found[arm.id][what]
        effect = value / base if by_ratio else value - base
        yield Prediction(
            metric=metric, arm=arm.id, value=effect, low=effect, high=effect, basis="counted"
        )


def train_time(setting: Setting, metric: str) -> Iterator[Prediction]:
    """Seconds of a training step, as a ratio with the interval of the kernels' efficiencies."""
    assert setting.data is not None
    seq, batch = setting.data.seq_len, setting.budget.batch_size
    work = Training(tokens=max(setting.tokens, 1), seq=seq, batch_tokens=seq * batch)
    yield from _times(setting, metric, work, "train_total_s", micro_batch=batch)


def decode_time(
    setting: Setting, metric: str, *, prompt: int, output: int, concurrency: int = 1
) -> Iterator[Prediction]:
    """Seconds of a generated token, prefill shared out, as a ratio with its interval."""
    work = Serving(prompt=prompt, output=output, concurrency=concurrency)
    yield from _times(setting, metric, work, "s_per_token")


def unseen(setting: Setting, *metrics: str) -> Iterator[Prediction]:
    """Metrics that cost cannot see, quality and balance among them; saying so is a record too."""
    for metric in metrics:
        for arm in setting.experiment.variants:
            yield Prediction(metric=metric, arm=arm.id, value=None, basis="cost cannot see it")


def case_of(spec: ModelSpec, work: Workload, *, micro_batch: int = 1) -> Case:
    """A small model on this machine, as the lab runs it: eager, fp32, AdamW."""
    try:
        device = load_device("this")
    except MissingCapability:
        device = load_device(PLAIN_CPU)
    return Case(
        model=replace(spec, precision=FP32),
        workload=work,
        hardware=Hardware(device=device, n_devices=1),
        runtime=Runtime(is_compiled=False, micro_batch=micro_batch, optimizer_bytes_per_param=8.0),
        stage="design",
    )


def ratio(before: Case, after: Case, attribute: str) -> tuple[float, float, float]:
    """`after / before` of one attribute of the cost: middle, low, high."""
    was, becomes = (getattr(evaluate(case), attribute) for case in (before, after))
    found = gain(was, becomes)
    return float(found.ratio[0]), float(found.low[0]), float(found.high[0])


def _times(
    setting: Setting, metric: str, work: Workload, attribute: str, *, micro_batch: int = 1
) -> Iterator[Prediction]:
    base = case_of(setting.specs[setting.experiment.baseline.id], work, micro_batch=micro_batch)
    device = base.hardware.device
    for arm in setting.experiment.variants:
        case = case_of(setting.specs[arm.id], work, micro_batch=micro_batch)
        middle, low, high = ratio(base, case, attribute)
        yield Prediction(
            metric=metric,
            arm=arm.id,
            value=middle,
            low=low,
            high=high,
            basis=f"cost on {device.name}"
            + ("" if device.efficiency.is_calibrated else ", not calibrated"),
        )
