"""A case: one situation to judge, as plain frozen data.

`Case` = model + workload + hardware + runtime + data + stage. The runtime is how the model is run
today (which techniques of serving and training are already switched on); techniques return a case
with the model, the runtime or the layout changed.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal, get_args

from worthit._record import record
from worthit.errors import CaseError
from worthit.spec.model import ModelSpec
from worthit.spec.preference_facts import PreferenceFacts

Adoption = Literal["drop-in", "calibrate", "finetune", "retrain"]
ADOPTIONS: tuple[Adoption, ...] = ("drop-in", "calibrate", "finetune", "retrain")
Stage = Literal["design", "deployed"]
Goal = Literal["latency", "throughput", "memory", "train-time"]
Merge = Literal[
    "linear", "task-arithmetic", "slerp", "ties", "dare-ties", "dare-linear", "passthrough"
]
Inside = Literal["represent", "control", "circuit", "debug", "detect"]
INSIDES: tuple[Inside, ...] = get_args(Inside)
Alignment = Literal["dpo", "ipo", "kto", "simpo", "orpo", "spin", "rlaif", "constitutional-ai"]
AnswerCheck = Literal["exact", "learned", "short"]
Reasoning = Literal["best-of-n", "self-consistency", "verifier-search", "budget-forcing"]


@record
class Range:
    """A number that depends on data nobody has measured yet: its best guess and its bounds."""

    mid: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.mid <= self.high:
            raise CaseError(f"a range needs low <= mid <= high, got {self}")


@record
class Serving:
    """Requests to answer.

    `concurrency` sequences are in flight at once. `output_spread` is the coefficient of variation
    of the output length (0: all equal); `shared_prefix` the share of the prompt that all requests
    have in common; `copy_rate` the share of output tokens that stand verbatim in the prompt.
    """

    prompt: int
    output: int
    concurrency: int = 1
    output_spread: float = 0.0
    shared_prefix: float = 0.0
    copy_rate: float = 0.0
    name: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        _require(
            (self.prompt >= 1, f"prompt must be at least 1 token, got {self.prompt}"),
            (self.output >= 1, f"output must be at least 1 token, got {self.output}"),
            (self.concurrency >= 1, f"concurrency must be at least 1, got {self.concurrency}"),
            (self.output_spread >= 0, f"output_spread must be >= 0, got {self.output_spread}"),
            (
                0 <= self.shared_prefix <= 1,
                f"shared_prefix must be in [0, 1], got {self.shared_prefix}",
            ),
            (0 <= self.copy_rate <= 1, f"copy_rate must be in [0, 1], got {self.copy_rate}"),
        )

    @property
    def context(self) -> int:
        """Tokens of one sequence when it ends."""
        return self.prompt + self.output


@record
class Training:
    """Tokens to train on: `tokens` in all, in sequences of `seq`, `batch_tokens` a step."""

    tokens: int
    seq: int
    batch_tokens: int
    name: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        _require(
            (self.tokens >= 1, f"train tokens must be at least 1, got {self.tokens}"),
            (self.seq >= 1, f"seq must be at least 1 token, got {self.seq}"),
            (
                self.batch_tokens >= self.seq,
                f"batch_tokens must hold one sequence or more, got batch_tokens="
                f"{self.batch_tokens} and seq={self.seq}; use at least {self.seq}",
            ),
        )

    @property
    def context(self) -> int:
        """Tokens of one sequence."""
        return self.seq


Workload = Serving | Training


@record
class Efficiency:
    """Which share of a device's peak its kernels reach, and what one launch costs.

    `calibrated` is True where the numbers were measured on this very machine; intervals shrink.
    """

    gemm_compute: float
    gemm_memory: float
    decode_attention_memory: float
    prefill_attention_compute: float
    launch_s: float
    decode_attention_launch_s: float
    comm_floor_s: float
    source: str
    is_calibrated: bool = False


@record
class Device:
    """One accelerator or processor: dense peaks, per second and in bytes; None where it has none.

    `link_bytes_per_s` is one way, per device, within a domain of `link_domain` devices;
    `net_bytes_per_s` the same between domains. `llc_bytes` is the last-level cache: a working set
    that fits there moves at `llc_bytes_per_s`.
    """

    id: str
    name: str
    kind: str
    flops_per_s: dict[str, float | None] = field(hash=False)
    mem_bytes_per_s: float
    mem_bytes: float
    efficiency: Efficiency
    llc_bytes: float | None = None
    llc_bytes_per_s: float | None = None
    link_bytes_per_s: float | None = None
    link_domain: int = 1
    net_bytes_per_s: float | None = None
    price_usd_per_hour: float | None = None
    aliases: tuple[str, ...] = ()
    source: str = ""
    date: str = ""
    note: str = ""

    def peak(self, math: str) -> float:
        """Dense peak for `math` in FLOP/s; the next wider arithmetic where the device lacks it."""
        for name in _WIDENING[math]:
            value = self.flops_per_s.get(name)
            if value:
                return value
        raise CaseError(f"device {self.id} states no peak for {math} or anything wider")


# An operand is widened to the first arithmetic the device has, in this order.
_WIDENING = {
    "fp4": ("fp4", "fp8", "bf16", "fp16", "fp32"),
    "fp8": ("fp8", "bf16", "fp16", "fp32"),
    "int8": ("int8", "bf16", "fp16", "fp32"),
    "int4": ("int8", "bf16", "fp16", "fp32"),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp32": ("fp32", "tf32", "bf16"),
}


@record
class Layout:
    """How one replica is split over devices; None lets the cost model choose.

    `tensor`, `pipeline`, `expert` and `context` are degrees; what they leave of the devices are
    data-parallel replicas. `zero` is the ZeRO stage (3 is FSDP) over those replicas in training.
    """

    tensor: int | None = None
    pipeline: int = 1
    expert: int = 1
    context: int = 1
    zero: Literal[0, 1, 2, 3] = 0
    has_sequence_parallel: bool = False

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "expert", "context"):
            degree = getattr(self, name)
            if degree is not None and degree < 1:
                raise CaseError(f"layout.{name} must be at least 1, got {degree}")


@record
class Hardware:
    """`n_devices` of one kind, and how the model is laid out over them."""

    device: Device
    n_devices: int = 1
    layout: Layout = field(default_factory=Layout)

    def __post_init__(self) -> None:
        if self.n_devices < 1:
            raise CaseError(f"n_devices must be at least 1, got {self.n_devices}")


@record
class Speculation:
    """Drafting `draft_len` tokens that the model then verifies at once.

    `acceptance` is the chance that one drafted token is kept. The draft costs one pass of a model
    `draft_scale` times the target's total parameters (of its shape, experts included) per drafted
    token (0: drafting is free, as a table look-up), or `draft_layers` of the target's own layers
    (self-speculation), or extra heads that add `head_params` read once a step. `is_parallel` drafts
    all tokens in one pass (Medusa); `branches` counts the candidates verified per position in a
    tree.
    """

    draft_len: int
    acceptance: Range
    draft_scale: float = 0.0
    draft_layers: float = 0.0
    head_params: float = 0.0
    is_parallel: bool = False
    branches: int = 1

    def __post_init__(self) -> None:
        _require(
            (self.draft_len >= 1, f"draft_len must be at least 1, got {self.draft_len}"),
            (
                self.acceptance.low >= 0 and self.acceptance.high < 1,
                f"acceptance must stay in [0, 1), got {self.acceptance}",
            ),
        )


@record
class Runtime:
    """How the model is run today.

    `attention`: `fused` never writes the score matrix to memory (FlashAttention), `naive` does.
    `is_compiled`: element-wise operations are fused and launches overlap (CUDA graphs,
    `torch.compile`); None follows the device: yes on accelerators, no on a CPU.
    `kept_cache`: the share of a sequence's cache entries that eviction keeps, at most
    `kept_tokens`. `recent_tokens` of a quantized cache stay in the format of activations, and older
    ones are quantized a group at a time; None quantizes every token by itself. `recompute`: which
    activations are recomputed in the backward pass.
    `reasoning` is how more than one answer is paid for: `samples` of them are drawn side by side
    for each request, of which one is given, and `rounds` tokens are said for each of the output.
    `optimizer_bytes_per_param` counts states and the master copy. `merge` is the method by which
    the weights were, or are to be, made of `data.checkpoints` instead of trained. `inside` names
    the technique by which the model is looked into or steered while it runs. `alignment` is the
    method by which the training learns from `data.preferences`, None for plain fine-tuning.
    """

    attention: Literal["naive", "fused"] = "fused"
    is_compiled: bool | None = None
    has_paging: bool = False
    page_tokens: int = 16
    has_continuous_batching: bool = False
    has_prefix_caching: bool = False
    prefill_chunk: int | None = None
    kept_tokens: int | None = None
    recent_tokens: int | None = None
    speculation: Speculation | None = None
    recompute: Literal["none", "selective", "full"] = "none"
    optimizer: str = "adamw"
    optimizer_bytes_per_param: float = 12.0
    optimizer_flops_per_param: float = 0.0
    micro_batch: int = 1
    tokens_to_target: Range | None = None
    merge: Merge | None = None
    inside: str | None = None
    alignment: Alignment | None = None
    reasoning: Reasoning | None = None
    samples: int = 1
    rounds: float = 1.0

    def __post_init__(self) -> None:
        _require(
            (self.samples >= 1, f"samples must be at least 1, got {self.samples}"),
            (self.rounds >= 1, f"rounds must be at least 1, got {self.rounds}"),
        )


@record
class Data:
    """Facts about the user's data that some techniques depend on; None where not stated.

    `checkpoints` counts the fine-tuned checkpoints of the case's model that exist and could be
    merged, each for a task of its own.
    `inside` is what is wanted of the model's activations: to know what they `represent`, to
    `control` behaviour by them, to find the `circuit` of a computation, to `debug` an output, or to
    `detect` what the text does not show. `labels` counts the labelled texts, or contrast pairs, of
    it that exist.
    `preferences` are the facts of a set of preferences; in a case file its name, too. `label_noise`
    is the share of its labels that are known to be wrong, where that is known better than the file
    tells. `is_safety_critical` says that wrong answers do harm, and not only displease.
    `answer_check` says how answers are told apart where one try is not good enough: by an `exact`
    check (tests, a proof, arithmetic), a `learned` verifier, or because they are `short` enough to
    be counted as votes.
    """

    unique_tokens: int | None = None
    repeat_epochs: float | None = None
    checkpoints: int | None = None
    answer_check: AnswerCheck | None = None
    inside: Inside | None = None
    labels: int | None = None
    preferences: PreferenceFacts | None = None
    label_noise: float | None = None
    is_safety_critical: bool | None = None

    def __post_init__(self) -> None:
        noise = self.label_noise
        if noise is not None and not 0 <= noise <= 0.5:
            raise CaseError(
                f"label_noise must be in [0, 0.5], got {noise:g}; with more than half of them "
                "wrong, turn the labels round"
            )


@record
class Case:
    """One situation to judge. `stage` says whether weights exist already."""

    model: ModelSpec
    workload: Workload
    hardware: Hardware
    runtime: Runtime = field(default_factory=Runtime)
    data: Data = field(default_factory=Data)
    stage: Stage = "deployed"
    goal: Goal | None = None
    max_adoption: Adoption | None = None
    warnings: tuple[str, ...] = ()
    name: str = ""

    @property
    def effective_goal(self) -> Goal:
        """The stated goal, or the one that the workload implies."""
        if self.goal is not None:
            return self.goal
        if isinstance(self.workload, Training):
            return "train-time"
        return "latency" if self.workload.concurrency == 1 else "throughput"

    @property
    def allowed_adoption(self) -> Adoption:
        """The furthest step that is acceptable: anything at design time, no training after it."""
        if self.max_adoption is not None:
            return self.max_adoption
        return "retrain" if self.stage == "design" else "calibrate"


def _require(*checks: tuple[bool, str]) -> None:
    problems = [message for holds, message in checks if not holds]
    if problems:
        raise CaseError(*problems)
