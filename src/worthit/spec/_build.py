"""Parts to a `Case`: what is assumed where nothing is said, and whether the parts go together.

`build_case` is the one home of both; a case file and the command line's flags end here. What was
assumed, and what is odd though possible, stands in `Case.warnings`.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, get_args

from worthit.errors import CaseError, unknown_name
from worthit.spec._problems import Problems
from worthit.spec._shipped import load_device, load_workload, preset_entry, preset_names
from worthit.spec.case import (
    ADOPTIONS,
    Adoption,
    Case,
    Data,
    Goal,
    Hardware,
    Layout,
    Runtime,
    Serving,
    Stage,
    Training,
    Workload,
)
from worthit.spec.codec import from_trusted
from worthit.spec.formats import format_of
from worthit.spec.model import Attention, LatentAttention, ModelSpec
from worthit.spec.preference_facts import PreferenceFacts

# Where a model goes when nobody says: the first of these whose memory holds it.
USUAL_HARDWARE = ("rtx-4090", "h100", "h100:8", "h200:8", "b300:8")
# Of the memory, what these may take and still leave room for cache and activations.
ROOM_FOR_WEIGHTS = 0.85
USUAL_SERVING = "chat"
USUAL_TRAINING = "pretraining"
# Of English text in today's vocabularies, roughly; only the size of an assumed workload needs it.
CHARS_PER_TOKEN = 4
# Rafailov et al. 2023, appendix B: 64 pairs.
SEQUENCES_A_STEP = 128
CHOICES: dict[str, tuple[str, ...]] = {
    "stage": get_args(Stage),
    "goal": get_args(Goal),
    "max_adoption": ADOPTIONS,
}


def parse_hardware(text: str) -> Hardware:
    """Read `DEVICE[:N]`, such as `h100:8`.

    Raises:
        UnknownName: no such device.
        CaseError: N is not a positive whole number.
    """
    name, colon, count = text.partition(":")
    name = name.strip()
    if colon and not (count.strip().isascii() and count.strip().isdigit() and int(count) > 0):
        raise CaseError(
            f"the number of devices must be a positive whole number, got {count.strip()!r} in "
            f"{text!r}; write {name or 'h100'} or {name or 'h100'}:8"
        )
    return Hardware(device=load_device(name), n_devices=int(count) if colon else 1)


def build_case(
    model: ModelSpec,
    *,
    on: str | Hardware | None = None,
    workload: str | Workload | None = None,
    prompt: int | None = None,
    output: int | None = None,
    concurrency: int | None = None,
    train_tokens: int | None = None,
    seq: int | None = None,
    batch_tokens: int | None = None,
    stage: str | None = None,
    goal: str | None = None,
    max_adoption: str | None = None,
    weights: str | None = None,
    cache: str | None = None,
    layout: Layout | None = None,
    runtime: Runtime | None = None,
    data: Data | None = None,
    preferences: str | None = None,
    name: str = "",
) -> Case:
    """Put a case together, filling in what is not given and checking that the parts fit.

    Args:
        model: what is judged.
        on: `DEVICE[:N]`; by default the smallest usual hardware that holds the weights.
        workload: a shipped workload's name, changed by the sizes that follow; `chat` by default,
            `pretraining` where a training size is given.
        prompt: tokens of a request; `output` and `concurrency` likewise are the serving sizes.
        train_tokens: tokens to train on; `seq` and `batch_tokens` likewise are training sizes.
        stage: `design` or `deployed`; by default `deployed` when serving and `design` when
            training.
        preferences: a file of preferences, whose facts enter `data`. Where no workload is given,
            one is assumed: fine-tuning the model, which exists, on that file.
        weights: a number format for the layers' matrices; `cache` likewise for the cache.
        layout: how the model is split; by default the cost model chooses.

    Raises:
        InputError: everything that is wrong, at once.
    """
    usual = usual_case(model)
    found = Problems()
    warnings: list[str] = []

    with found:
        model = _with_formats(model, weights, cache)
    serving = _stated(prompt=prompt, output=output, concurrency=concurrency)
    training = _stated(tokens=train_tokens, seq=seq, batch_tokens=batch_tokens)
    data = data or Data()
    if preferences is not None:
        from worthit.spec.preference_stats import read_facts

        with found:
            data = replace(data, preferences=read_facts(preferences))
    job: Workload | None = None
    with found:
        if workload is None and not serving and not training:
            job = _assumed_alignment(model, data.preferences, warnings)
        job = job or _workload(model, workload, usual, serving, training, warnings)
    hardware: Hardware | None = None
    with found:
        hardware = _hardware(model, job, on, usual, warnings)
        if layout is not None:
            hardware = replace(hardware, layout=layout)
        _check_layout(model, hardware)
    with found:
        check_choices(stage=stage, goal=goal, max_adoption=max_adoption)
    found.raise_any()
    assert job is not None
    assert hardware is not None

    if runtime is None:
        runtime = from_trusted(usual.get("runtime", {}), Runtime)
    if data.preferences is not None and isinstance(job, Training):
        # Whoever brings preferences has a model, and means to fine-tune it.
        stage = stage or "deployed"
        max_adoption = max_adoption or ("finetune" if stage == "deployed" else None)
    if stage is None:
        stage = usual.get("stage", "deployed" if isinstance(job, Serving) else "design")
    warnings += _context_warnings(model, job)
    return Case(
        model=model,
        workload=job,
        hardware=hardware,
        runtime=runtime,
        data=data,
        stage=_as_stage(stage),
        goal=_as_goal(goal),
        max_adoption=_as_adoption(max_adoption),
        warnings=tuple(warnings),
        name=name or model.name,
    )


def check_choices(**chosen: object) -> None:
    """Raise for each of `stage`, `goal` and `max_adoption` that is none of its kind."""
    found = Problems()
    for name, value in chosen.items():
        with found:
            if value is not None and value not in CHOICES[name]:
                raise unknown_name(name.replace("max_", ""), str(value), CHOICES[name])
    found.raise_any()


def _stated(**sizes: int | None) -> dict[str, Any]:
    return {key: value for key, value in sizes.items() if value is not None}


def usual_case(model: ModelSpec) -> dict[str, Any]:
    """The case that a shipped model states for itself, or an empty one."""
    if model.name not in preset_names():
        return {}
    usual: dict[str, Any] = preset_entry(model.name).get("case", {})
    return usual


def _with_formats(model: ModelSpec, weights: str | None, cache: str | None) -> ModelSpec:
    """`model` with the formats that are given, and every format of it known."""
    stated = {"weights": weights, "cache": cache}
    changes: dict[str, Any] = {key: value for key, value in stated.items() if value is not None}
    model = replace(model, precision=replace(model.precision, **changes)) if changes else model
    found = Problems()
    for field in fields(model.precision):
        stored = getattr(model.precision, field.name)
        with found.at(f"model.precision.{field.name}"):
            # Experts without a format of their own share the weights'.
            if stored is not None:
                format_of(stored)
    found.raise_any()
    return model


def _workload(
    model: ModelSpec,
    given: str | Workload | None,
    usual: dict[str, Any],
    serving: dict[str, Any],
    training: dict[str, Any],
    warnings: list[str],
) -> Workload:
    if serving and training:
        raise CaseError(
            f"a case serves or trains, got {_flags(serving)} beside {_flags(training)}; "
            "give one kind"
        )
    base = load_workload(given) if isinstance(given, str) else given
    if base is None:
        return _assumed_workload(model, usual, serving, training, warnings)
    changes, other = (serving, training) if isinstance(base, Serving) else (training, serving)
    if other:
        does = "is served" if isinstance(base, Serving) else "trains"
        raise CaseError(
            f"{_flags(other)} does not go with the workload {base.name or 'given'!r}, which {does}"
        )
    # With other sizes it is no longer the workload of that name.
    return replace(base, **changes, name="", source="") if changes else base


def _assumed_workload(
    model: ModelSpec,
    usual: dict[str, Any],
    serving: dict[str, Any],
    training: dict[str, Any],
    warnings: list[str],
) -> Workload:
    """The workload when no name is given: the usual one with the stated sizes in it."""
    if training:
        return _assumed_training(model, training, warnings)
    name = usual.get("workload", USUAL_SERVING)
    base = load_workload(name)
    assert isinstance(base, Serving)
    context = model.context_len
    fitted = ""
    if base.context > context > 1 and not serving:
        # Nobody asked for more than the model was trained for: keep the shape, fit the context.
        prompt = max(1, base.prompt * context // base.context)
        base = replace(base, prompt=prompt, output=context - prompt)
        fitted = f", cut to the context of {context:,} tokens"
    job = replace(base, **serving)
    missing = [key for key in ("prompt", "output", "concurrency") if key not in serving]
    if missing and "workload" not in usual:
        warnings.append(_assumed(job, missing, name) + fitted)
    return replace(job, name="", source="") if serving else job


def _assumed_training(model: ModelSpec, stated: dict[str, Any], warnings: list[str]) -> Training:
    usual = load_workload(USUAL_TRAINING)
    assert isinstance(usual, Training)
    seq = stated.get("seq", min(usual.seq, model.context_len))
    tokens = stated.get("tokens", usual.tokens)
    batch = stated.get("batch_tokens", max(seq, min(usual.batch_tokens, tokens)))
    job = Training(tokens=tokens, seq=seq, batch_tokens=batch)
    missing = [key for key in ("tokens", "seq", "batch_tokens") if key not in stated]
    if missing:
        warnings.append(_assumed(job, missing, USUAL_TRAINING))
    return job


def _assumed_alignment(
    model: ModelSpec, facts: PreferenceFacts | None, warnings: list[str]
) -> Training | None:
    """Fine-tuning on the preferences once, by their size; None where that is not known."""
    if facts is None or not facts.mean_chars:
        return None
    each = facts.mean_chars / CHARS_PER_TOKEN
    seq = max(1, min(math.ceil(each), model.context_len))
    n_sequences = facts.n * (2 if facts.shape == "pair" else 1)
    tokens = max(seq, math.ceil(n_sequences * each))
    job = Training(
        tokens=tokens, seq=seq, batch_tokens=max(seq, min(SEQUENCES_A_STEP * seq, tokens))
    )
    warnings.append(
        f"no workload given, so assumed fine-tuning on the preferences once: {tokens:,} tokens "
        f"({CHARS_PER_TOKEN} characters each), seq {seq:,}, batch tokens {job.batch_tokens:,}"
    )
    return job


def _assumed(job: Workload, missing: list[str], name: str) -> str:
    sizes = ", ".join(f"{key.replace('_', ' ')} {getattr(job, key):,}" for key in missing)
    return f"not given, so assumed after the workload {name}: {sizes}"


def _flags(sizes: dict[str, Any]) -> str:
    names = {"tokens": "train-tokens"}
    return " and ".join(names.get(key, key).replace("_", "-") for key in sizes)


def _hardware(
    model: ModelSpec,
    job: Workload | None,
    on: str | Hardware | None,
    usual: dict[str, Any],
    warnings: list[str],
) -> Hardware:
    if isinstance(on, Hardware):
        return on
    if on is not None:
        return parse_hardware(on)
    if "hardware" in usual:
        return parse_hardware(usual["hardware"])
    what, needed_bytes = _needed_bytes(model, job)
    why = "the largest of the usual hardware"
    for text in USUAL_HARDWARE:
        hardware = parse_hardware(text)
        if needed_bytes <= ROOM_FOR_WEIGHTS * hardware.device.mem_bytes * hardware.n_devices:
            why = f"the first of {', '.join(USUAL_HARDWARE)} with room for {what}"
            break
    warnings.append(f"no hardware given, so assumed {text}: {why} ({needed_bytes / 1e9:.3g} GB)")
    return hardware


def _needed_bytes(model: ModelSpec, job: Workload | None) -> tuple[str, float]:
    """What has to stay in memory whatever else does, in words and in bytes."""
    # The one look upwards: hardware that is assumed has to hold what it is assumed for.
    from worthit.cost.params import count_params

    params = count_params(model)
    n_tables = params.embedding * (1 if model.has_tied_embeddings else 2)
    tables_bytes = n_tables * format_of(model.precision.embeddings).bytes
    inside_bytes = max(params.total - n_tables, 0) * format_of(model.precision.weights).bytes
    weights_bytes = tables_bytes + inside_bytes
    if not isinstance(job, Training):
        return "the weights", weights_bytes
    states_bytes = params.total * Runtime().optimizer_bytes_per_param
    return "weights, gradients and optimizer states", 2 * weights_bytes + states_bytes


def _check_layout(model: ModelSpec, hardware: Hardware) -> None:
    layout, n = hardware.layout, hardware.n_devices
    problems = []
    tensor = layout.tensor or 1
    degrees = {"tensor": tensor, "pipeline": layout.pipeline, "context": layout.context}
    product = tensor * layout.pipeline * layout.context
    if n % product:
        stated = " x ".join(f"{key} {value}" for key, value in degrees.items() if value > 1)
        problems.append(
            f"hardware.layout: degrees must multiply into n_devices, got {stated} = {product} on "
            f"{n} devices; use a divisor of {n}"
        )
    if n % layout.expert:
        problems.append(
            f"hardware.layout.expert: must divide n_devices, got {layout.expert} on {n} devices; "
            f"pick one of {_divisors(n)}"
        )
    if layout.pipeline > model.n_layers:
        problems.append(
            f"hardware.layout.pipeline: must be at most the number of layers, got "
            f"{layout.pipeline} for {model.n_layers}"
        )
    heads = sorted({m.n_heads for m in model.mixers if isinstance(m, (Attention, LatentAttention))})
    for n_heads in heads:
        if n_heads % tensor:
            problems.append(
                f"hardware.layout.tensor: must divide n_heads, got {tensor} for {n_heads} heads; "
                f"pick one of {_divisors(n_heads)}"
            )
    if problems:
        raise CaseError(*problems)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


def _context_warnings(model: ModelSpec, job: Workload) -> list[str]:
    if job.context <= model.context_len:
        return []
    if isinstance(job, Serving):
        wants = f"prompt {job.prompt:,} + output {job.output:,} = {job.context:,} tokens"
    else:
        wants = f"sequences of {job.seq:,} tokens"
    reason = (
        f"it has {model.n_positions:,} learned positions"
        if model.n_positions
        else f"it was trained for {model.context_len:,}"
    )
    return [
        f"{wants} go beyond the context of {model.name} ({reason}); the numbers assume that the "
        "context has been extended"
    ]


def _as_stage(value: str) -> Stage:
    return "design" if value == "design" else "deployed"


def _as_goal(value: str | None) -> Goal | None:
    goals: tuple[Goal, ...] = get_args(Goal)
    return next((goal for goal in goals if goal == value), None)


def _as_adoption(value: str | None) -> Adoption | None:
    return next((level for level in ADOPTIONS if level == value), None)
