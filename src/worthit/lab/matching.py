"""What the arms of an experiment have in common, counted from their models and compared.

Counts are those of `worthit.cost`, which tests hold equal to the modules': parameters, FLOPs of one
pass, bytes of the cache. A multiply-add is 2 FLOPs, and training is three forward passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worthit.cost.ledger import Pass, build
from worthit.cost.memory import Split, cache_bytes
from worthit.cost.params import count_params
from worthit.cost.serve import total_flops
from worthit.errors import SpecError
from worthit.lab.context import Setting
from worthit.spec.model import ModelSpec

# Forward once, backward for inputs and for weights.
PASSES_OF_TRAINING = 3
# What is only known once the arms have run: seconds of a step, times steps.
WALL_TIME = "wall time"


def counts(setting: Setting) -> dict[str, dict[str, float]]:
    """Every countable quantity of every arm that has a model."""
    return {arm: counts_of(setting, arm) for arm in setting.specs}


def counts_of(setting: Setting, arm: str) -> dict[str, float]:
    """What can be counted of one arm before it runs."""
    spec = setting.specs[arm]
    seq_len = spec.context_len if setting.data is None else setting.data.seq_len
    params = count_params(spec)
    forward = forward_flops(spec, seq_len) / seq_len
    recipe = setting.experiment.by_arm[arm].recipe
    n_steps = recipe.get("n_steps", setting.budget.n_steps)
    tokens = n_steps * recipe.get("batch_size", setting.budget.batch_size) * seq_len
    return {
        "parameters": float(params.total),
        "active parameters": float(params.active),
        "forward FLOPs a token": forward,
        "FLOPs": PASSES_OF_TRAINING * forward * (tokens or 1),
        "tokens": float(tokens),
        "cache bytes": sequence_bytes(spec, seq_len),
    }


def forward_flops(spec: ModelSpec, seq_len: int) -> float:
    """FLOPs of one sequence forward, causal attention counted once a visible key."""
    return total_flops(build(spec, Pass(phase="train", batch=1, new=seq_len)))


def sequence_bytes(spec: ModelSpec, n_tokens: int) -> float:
    """Bytes that the cache of one sequence of `n_tokens` holds, in the model's formats."""
    return float(cache_bytes(spec, Split(), float(n_tokens)).per_sequence)


def matched(setting: Setting, counted: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Each quantity that should be equal, with its values and how far apart they are.

    Raises:
        SpecError: arms differ by more than the experiment allows.
    """
    wanted = setting.experiment.matched
    rows = []
    for what in wanted.what:
        if what in ("nothing", WALL_TIME) or not counted:
            continue
        values = {arm: c[what] for arm, c in counted.items()}
        rows.append(row := compare(what, values, wanted.within))
        if not row["is_matched"]:
            shown = ", ".join(f"{arm} {value:,.6g}" for arm, value in values.items())
            raise SpecError(
                f"experiment {setting.experiment.id!r}: {what} must match within "
                f"{100 * wanted.within:g} %, got {shown}; change a width"
            )
    return rows


def wall_time(setting: Setting, step_s: Mapping[str, float]) -> list[dict[str, Any]]:
    """The same check for seconds of training, where an experiment matches those.

    `step_s` is the median second of a step of each arm. A mismatch is no error: a machine may be
    busy. It stands in the record and is noted.
    """
    wanted = setting.experiment.matched
    if WALL_TIME not in wanted.what:
        return []
    arms = setting.experiment.by_arm
    values = {
        arm: seconds * arms[arm].recipe.get("n_steps", setting.budget.n_steps)
        for arm, seconds in step_s.items()
    }
    return [compare(WALL_TIME, values, wanted.within)]


def compare(what: str, values: Mapping[str, float], within: float) -> dict[str, Any]:
    """How far apart `values` are, as a share of the first one."""
    first = next(iter(values.values()))
    spread = max(abs(value / first - 1) for value in values.values()) if first else 0.0
    return {
        "what": what,
        "values": dict(values),
        "spread": spread,
        "within": within,
        "is_matched": spread <= within,
    }
