"""A model as facts: every layer's mixer, feed-forward and norms, and what surrounds them.

A `ModelSpec` is a tuple of `Layer`s. A layer holds zero or more *mixers* (what moves information
between tokens; several run in parallel and are added) and at most one *feed-forward*. Equal layers
share one object, so that everything downstream works once per kind of layer and multiplies.

Names are the field's own and mean the same everywhere: `d_model`, `n_heads`, `n_kv_heads`,
`head_dim` (always stored, never derived), `d_ff`, `d_state`, `d_conv`, `kv_lora_rank`, ...
Multiply-adds, bytes and parameters are counted in `worthit.cost`; nothing here computes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import field, replace
from functools import cached_property
from typing import Literal, get_args

from worthit._record import record
from worthit.errors import SpecError
from worthit.spec.formats import arithmetic

NormKind = Literal["layernorm", "rmsnorm"]
QKNorm = Literal["none", "head", "full", "per-head", "no-weight"]
LinearKind = Literal["linear", "retention", "gated", "delta", "gated-delta"]
Routing = Literal["token-choice", "expert-choice", "soft"]
PositionKind = Literal["rope", "learned", "sinusoidal", "alibi", "relative-bias", "nope"]
ScalingKind = Literal["linear", "ntk", "dynamic", "yarn", "longrope", "llama3"]
Placement = Literal["pre", "post", "output", "sandwich"]
Activation = Literal["relu", "relu2", "gelu", "gelu-tanh", "silu", "clamped-swish"]
Score = Literal["softmax", "sigmoid"]
RWKV_VERSIONS = (4, 5, 6, 7)
# More keys to a block save no choice worth the name, and a kernel reads this many at once.
MAX_SPARSE_BLOCK = 64


@record
class Norm:
    """A normalisation over `d_model`; `has_unit_offset` scales by (1 + w), as Gemma does."""

    kind: NormKind = "rmsnorm"
    eps: float = 1e-6
    has_weight: bool = True
    has_bias: bool = False
    has_unit_offset: bool = False


@record
class PositionScaling:
    """How rotary positions are stretched from `original_context_len` by `factor`.

    `attention_factor` multiplies the rotated queries and keys (YaRN, LongRoPE); None leaves it to
    the method's own formula, in which `mscale` and `mscale_all_dim` are DeepSeek's two weights.
    `beta_fast` and `beta_slow` bound YaRN's ramp, `low_freq_factor` and `high_freq_factor`
    Llama 3's; `short_factors` and `long_factors` are LongRoPE's, one per rotated pair.
    """

    kind: ScalingKind
    factor: float
    original_context_len: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise SpecError(f"a position scaling factor must be positive, got {self.factor}")


@record
class Position:
    """How the model knows order; `scaling` only for `rope`.

    `is_interleaved` rotates neighbouring channels, otherwise channel i with i + dim/2. `offset` is
    the row of a learned table that position 0 reads (OPT starts at 2).
    """

    kind: PositionKind = "rope"
    rope_theta: float = 10_000.0
    scaling: PositionScaling | None = None
    is_interleaved: bool = False
    offset: int = 0


@record
class QueryTemperature:
    """Queries at position p are scaled by 1 + `scale` * ln(1 + floor((p + 1) / `floor`))."""

    scale: float
    floor: float


@record
class Attention:
    """Softmax attention: MHA, GQA and MQA by `n_kv_heads`; local, chunked and sparse by fields.

    `scale` multiplies the scores, 1/sqrt(head_dim) where None. `position` replaces the model's in
    this layer (Gemma 3's local layers). QK-norm is of the layer's norm kind and eps: over each
    head with one weight vector (`head`), the whole projection (`full`), each head with its own
    weights (`per-head`), or without weights; `is_qk_norm_after_rope` normalises rotated heads.
    `temperature` scales the queries of far positions in position-free layers (Llama 4). `in_scale`,
    `key_scale` and `out_scale` multiply what it reads, its keys and what it adds (Falcon-H1).

    `window` keys including the query's own are attended (Mistral's convention); `chunk` restricts
    attention to the query's own chunk (Llama 4); `sparse_keys` caps the keys that a query reads,
    chosen block by block; with `sparse_near` it reads that many nearest keys and compressed blocks
    beside them, each weighed by a gate (native sparse attention). `low_rank` projects the keys of
    the whole sequence to that many (Linformer); `n_features` random features a head take the place
    of the softmax, and a state that of the cache (Performer).
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    has_qkv_bias: bool = False
    has_out_bias: bool = False
    qk_norm: QKNorm = "none"
    has_qk_norm_bias: bool = False
    rotary_dim: int | None = None
    is_position_free: bool = False
    window: int | None = None
    chunk: int | None = None
    sparse_keys: int | None = None
    sparse_near: int | None = None
    low_rank: int | None = None
    n_features: int | None = None
    has_sinks: bool = False
    has_output_gate: bool = False
    logit_softcap: float | None = None
    scale: float | None = None
    position: Position | None = None
    is_qk_norm_after_rope: bool = False
    qkv_clip: float | None = None
    temperature: QueryTemperature | None = None
    in_scale: float = 1.0
    key_scale: float = 1.0
    out_scale: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, "n_heads", "n_kv_heads", "head_dim")
        _require_positive(self, "window", "chunk", "sparse_keys", "sparse_near", "low_rank")
        _require_positive(self, "n_features")
        if self.sparse_near is not None and self.sparse_keys is None:
            raise SpecError(
                f"sparse_near stands beside sparse_keys, got sparse_near={self.sparse_near} alone; "
                "a window alone is `window`"
            )
        if self.n_heads % self.n_kv_heads:
            divisors = [n for n in range(1, self.n_heads + 1) if self.n_heads % n == 0]
            raise SpecError(
                f"n_kv_heads must divide n_heads, got n_heads={self.n_heads} and "
                f"n_kv_heads={self.n_kv_heads}; pick one of {divisors}"
            )

    @property
    def reach(self) -> int | None:
        """The most keys that a query can see, or None when it sees the whole sequence."""
        limits = [n for n in (self.window, self.chunk) if n is not None]
        return min(limits) if limits else None

    @property
    def sparse_blocks(self) -> tuple[int, int]:
        """Keys of a block of sparse attention, and blocks: four at least, where there are four."""
        assert self.sparse_keys is not None
        size = min(MAX_SPARSE_BLOCK, 1 << max(0, self.sparse_keys.bit_length() - 3))
        return size, self.sparse_keys // size


@record
class LatentAttention:
    """Multi-head latent attention: keys and values rebuilt from one cached latent (DeepSeek-V2).

    `scale` multiplies the scores, 1/sqrt(qk_nope_head_dim + qk_rope_head_dim) where None. The
    latents are normalised (RMSNorm, eps 1e-6) before they are expanded.
    """

    n_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    has_bias: bool = False
    scale: float | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "n_heads", "kv_lora_rank", "v_head_dim", "q_lora_rank")


@record
class LinearAttention:
    """Attention with a state of `key_dim x value_dim` a head in place of a growing cache.

    `kind` names the state's rule: `linear` adds (Katharopoulos 2020), `retention` decays by a
    constant, `gated` by the data (GLA), `delta` overwrites, `gated-delta` does both. Queries, keys
    and values pass a causal convolution over `d_conv` tokens and `activation` where `d_conv` is
    set. The output norm, of `norm_eps`, is over each value head, and before the gate.
    """

    kind: LinearKind
    n_key_heads: int
    n_value_heads: int
    key_dim: int
    value_dim: int
    d_conv: int = 0
    has_output_gate: bool = True
    has_output_norm: bool = True
    norm_eps: float = 1e-6
    activation: Activation = "silu"
    chunk: int = 64

    def __post_init__(self) -> None:
        _require_positive(self, "n_key_heads", "n_value_heads", "key_dim", "value_dim", "chunk")
        if self.n_value_heads % self.n_key_heads:
            raise SpecError(
                f"n_key_heads must divide n_value_heads, got n_key_heads={self.n_key_heads} and "
                f"n_value_heads={self.n_value_heads}"
            )


@record
class Mamba:
    """Mamba-1's selective state space (Gu & Dao 2023, arXiv:2312.00752).

    `has_bias` is of the input and output projections; `activation` follows the convolution and is
    the gate's. With `has_inner_norms` the step's low-rank input, B and C pass an RMS norm each, of
    `norm_eps` (Jamba), without weights in Falcon-Mamba.
    """

    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int
    has_bias: bool = False
    has_conv_bias: bool = True
    has_inner_norms: bool = False
    has_inner_norm_weights: bool = True
    norm_eps: float = 1e-6
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        _require_positive(self, "d_inner", "d_state", "d_conv", "dt_rank")


@record
class Mamba2:
    """Mamba-2's state-space duality layer (Dao & Gu 2024, arXiv:2405.21060).

    `has_bias` is the input projection's, `has_out_bias` the output projection's. The output norm
    is an RMS norm over each of `n_groups` groups of channels, after the gate unless
    `is_norm_before_gate`. The step is held within `dt_min` and `dt_max` (None: unbounded).
    `in_scale` and `out_scale` multiply what it reads and adds, `part_scales` the gate, the
    sequence, B, C and the step after the input projection (Falcon-H1).
    """

    n_heads: int
    head_dim: int
    d_state: int
    n_groups: int
    d_conv: int
    chunk: int = 256
    has_bias: bool = False
    has_out_bias: bool = False
    has_conv_bias: bool = True
    has_output_norm: bool = True
    is_norm_before_gate: bool = False
    norm_eps: float = 1e-5
    activation: Activation = "silu"
    dt_min: float = 0.0
    dt_max: float | None = None
    in_scale: float = 1.0
    out_scale: float = 1.0
    part_scales: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        _require_positive(self, "n_heads", "head_dim", "d_state", "n_groups", "d_conv", "chunk")
        if self.n_heads % self.n_groups:
            raise SpecError(
                f"n_groups must divide n_heads, got n_heads={self.n_heads} and "
                f"n_groups={self.n_groups}"
            )

    @property
    def d_inner(self) -> int:
        """Width of the inner sequence: `n_heads * head_dim`."""
        return self.n_heads * self.head_dim


@record
class Rwkv:
    """RWKV's time mixing: `version` 4 (Peng et al. 2023, arXiv:2305.13048), 5, 6 or 7.

    From version 5 on (Peng et al. 2024, arXiv:2404.05892) the state is a matrix for each head of
    `head_dim`. `mix_rank` is of version 6's low-rank mixes of the token before, `rank` of its decay
    and of all low-rank paths of version 7 (Peng et al. 2025, arXiv:2503.14456), whose layers mix
    in the first one's values with `has_value_mix`: all but the first itself.
    """

    d_attention: int
    version: int = 4
    head_dim: int = 64
    mix_rank: int = 32
    rank: int = 64
    has_value_mix: bool = True
    chunk: int = 64

    def __post_init__(self) -> None:
        _require_positive(self, "d_attention", "head_dim", "mix_rank", "rank", "chunk")
        if self.version not in RWKV_VERSIONS:
            raise SpecError(
                f"version must be one of {', '.join(map(str, RWKV_VERSIONS))}, got {self.version}"
            )
        if self.version > 4 and self.d_attention % self.head_dim:
            raise SpecError(
                f"head_dim must divide d_attention, got d_attention={self.d_attention} and "
                f"head_dim={self.head_dim}"
            )

    @property
    def n_heads(self) -> int:
        """Heads of version 5 and later."""
        return self.d_attention // self.head_dim


@record
class S4:
    """A structured state space per channel, diagonal plus low rank (Gu et al. 2021)."""

    d_state: int = 64
    rank: int = 1

    def __post_init__(self) -> None:
        _require_positive(self, "d_state")


@record
class FeedForward:
    """Two matrices and an activation, or three when `is_gated` (SwiGLU, GeGLU).

    `clamped-swish` is gpt-oss's gate: g sigmoid(1.702 g) (u + 1), with g and u held within
    `activation_limit`. `gate_scale` multiplies the gate before its activation and `out_scale` what
    the feed-forward adds (Falcon-H1).
    """

    d_ff: int
    is_gated: bool = True
    activation: Activation = "silu"
    has_bias: bool = False
    activation_limit: float | None = None
    gate_scale: float = 1.0
    out_scale: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, "d_ff")


@record
class ChannelMix:
    """RWKV's channel mixing: key and value matrices with token shift; a receptance before 7."""

    d_ff: int
    has_receptance: bool = True

    def __post_init__(self) -> None:
        _require_positive(self, "d_ff")


@record
class MoE:
    """A mixture of experts: `n_experts_per_token` of `n_experts` copies of `expert` per token.

    `shared` runs for every token beside the routed experts. `n_groups` and `n_groups_per_token`
    limit routing to some groups (DeepSeek-V2/V3), ranked by the sum of each group's best
    `n_group_scores`. `capacity_factor` is set where tokens over an expert's capacity are dropped
    (Switch); None is dropless. A chosen expert's output is weighted by its `score`, divided by the
    chosen ones' sum where `has_normalised_weights`, times `weight_scale`; `scales_input` weights
    the expert's input instead (Llama 4). The routed experts read and write `d_latent` channels, two
    projections away from `d_model`, where it is set (Nemotron-H).
    """

    n_experts: int
    n_experts_per_token: int
    expert: FeedForward
    shared: FeedForward | None = None
    n_shared_experts: int = 0
    has_shared_gate: bool = False
    has_router_bias: bool = False
    routing: Routing = "token-choice"
    n_groups: int = 1
    n_groups_per_token: int = 1
    n_group_scores: int = 1
    score: Score = "softmax"
    has_normalised_weights: bool = True
    weight_scale: float = 1.0
    scales_input: bool = False
    d_latent: int | None = None
    has_latent_bias: bool = False
    capacity_factor: float | None = None
    balance: Literal["none", "aux-loss", "bias"] = "aux-loss"

    def __post_init__(self) -> None:
        _require_positive(self, "n_experts", "n_experts_per_token", "n_groups", "d_latent")
        if self.n_experts_per_token > self.n_experts:
            raise SpecError(
                f"n_experts_per_token must be at most n_experts, got "
                f"n_experts_per_token={self.n_experts_per_token} and n_experts={self.n_experts}"
            )
        if self.n_experts % self.n_groups:
            raise SpecError(
                f"n_groups must divide n_experts, got n_experts={self.n_experts} and "
                f"n_groups={self.n_groups}"
            )


Mixer = Attention | LatentAttention | LinearAttention | Mamba | Mamba2 | Rwkv | S4
Ffn = FeedForward | ChannelMix | MoE


@record
class Layer:
    """One block of the residual stream.

    `placement` of the norms: `pre` is x + f(N(x)), `post` N(x + f(x)), `output` x + N(f(x))
    (OLMo 2), `sandwich` x + N(f(N(x))) (Gemma 2). `residual_scale` multiplies what a sublayer adds
    (Granite). `mixers` run in parallel on the same input; `is_parallel` lets the feed-forward run
    beside them too, and `has_one_norm` says that both then read one normalised input.
    `token_fraction` below 1 is a mixture of depths: a router lets that share of the tokens
    through. `n_loops` applies the layer that many times with the same weights (recursion);
    `shares_loop_cache` keeps one cache for all of its applications.
    """

    mixers: tuple[Mixer, ...]
    ffn: Ffn | None
    norm: Norm = field(default_factory=Norm)
    placement: Placement = "pre"
    residual_scale: float = 1.0
    is_parallel: bool = False
    has_one_norm: bool = False
    token_fraction: float = 1.0
    n_loops: int = 1
    shares_loop_cache: bool = False
    n_extra_params: int = 0

    def __post_init__(self) -> None:
        if not self.mixers and self.ffn is None:
            raise SpecError("a layer needs a mixer or a feed-forward, got neither")
        if not 0 < self.token_fraction <= 1:
            raise SpecError(
                f"token_fraction must be in (0, 1], got {self.token_fraction}; "
                "1 lets every token through"
            )
        _require_positive(self, "n_loops")

    @property
    def kind(self) -> str:
        """What to call this layer in tables: its parts, joined by `+`."""
        parts: list[str] = []
        for mixer in self.mixers:
            name = MIXER_NAMES[type(mixer)]
            local = isinstance(mixer, Attention) and mixer.reach is not None
            parts.append(f"local-{name}" if local else name)
        if self.ffn is not None:
            parts.append(FFN_NAMES[type(self.ffn)])
        return "+".join(parts)


MIXER_NAMES: dict[type, str] = {
    Attention: "attention",
    LatentAttention: "mla",
    LinearAttention: "linear-attention",
    Mamba: "mamba",
    Mamba2: "mamba2",
    Rwkv: "rwkv",
    S4: "s4",
}
FFN_NAMES: dict[type, str] = {FeedForward: "ffn", ChannelMix: "channel-mix", MoE: "moe"}


@record
class EarlyExit:
    """Tokens may leave after any of `layers`; `mean_depth` is the share of layers run on average.

    `mean_depth` depends on the data: `low` and `high` bound it until it is measured.
    """

    layers: tuple[int, ...]
    mean_depth: float
    low: float
    high: float


@record
class Precision:
    """Number formats, by what they hold; see `worthit.spec.formats` for their bits.

    `weights` are the layers' matrices, `experts` the routed experts' where they differ (gpt-oss);
    `embeddings` the embedding and output head; `activations` what flows between operations;
    `cache` keys, values and latents; `state` the recurrent states of SSM and linear-attention
    layers. Both factors of a matrix product are cast to `operands` first where it is set (fp8, MX);
    otherwise the wider of weights and activations decides the arithmetic.
    """

    weights: str = "bf16"
    experts: str | None = None
    embeddings: str = "bf16"
    activations: str = "bf16"
    cache: str = "bf16"
    state: str = "fp32"
    operands: str | None = None

    @property
    def of_experts(self) -> str:
        """The format of the routed experts' matrices."""
        return self.experts or self.weights

    def math_of(self, stored: str) -> str:
        """What a product of weights stored in `stored` with activations computes in."""
        return arithmetic(self.operands or stored, self.operands or self.activations)


@record
class ModelSpec:
    """A decoder, layer by layer.

    `context_len` is the context it was trained for (after its own scaling). `embedding_dim` is
    set where the embedding is narrower than `d_model` and projected (OPT-350m). `n_positions` is
    the number of learned position rows, 0 for none. `n_extra_params` counts parameters outside
    every structure named here, and `extra` says which. `embedding_scale` multiplies the embedded
    tokens and `logit_scale` the logits, before `logit_softcap`.
    """

    name: str
    d_model: int
    vocab_size: int
    layers: tuple[Layer, ...]
    context_len: int
    position: Position = field(default_factory=Position)
    norm: Norm = field(default_factory=Norm)
    has_final_norm: bool = True
    has_embedding_norm: bool = False
    has_tied_embeddings: bool = False
    has_head_bias: bool = False
    embedding_dim: int | None = None
    n_positions: int = 0
    n_extra_params: int = 0
    extra: str = ""
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    early_exit: EarlyExit | None = None
    is_equilibrium: bool = False
    precision: Precision = field(default_factory=Precision)
    model_type: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        _require_positive(self, "d_model", "vocab_size", "context_len", "embedding_dim")
        if not self.layers:
            raise SpecError(f"model {self.name!r} needs at least one layer, got none")

    @cached_property
    def layer_kinds(self) -> tuple[tuple[Layer, int], ...]:
        """Each different layer with how often it occurs, in order of first appearance."""
        distinct = {id(layer): layer for layer in self.layers}
        canonical: dict[Layer, Layer] = {}
        first = {key: canonical.setdefault(layer, layer) for key, layer in distinct.items()}
        counts = Counter(id(first[id(layer)]) for layer in self.layers)
        return tuple((distinct[key], n) for key, n in counts.items())

    @property
    def n_layers(self) -> int:
        """Number of layers, each counted once however often it is looped."""
        return len(self.layers)

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """Every different mixer, in order of first appearance."""
        return tuple(dict.fromkeys(m for layer, _ in self.layer_kinds for m in layer.mixers))

    @property
    def ffns(self) -> tuple[Ffn, ...]:
        """Every different feed-forward, in order of first appearance."""
        return tuple(
            dict.fromkeys(layer.ffn for layer, _ in self.layer_kinds if layer.ffn is not None)
        )

    def map_layers(self, change: Callable[[Layer], Layer]) -> ModelSpec:
        """Return this model with `change` applied once to each distinct layer object."""
        changed = {key: change(layer) for key, layer in {id(x): x for x in self.layers}.items()}
        return replace(self, layers=tuple(changed[id(layer)] for layer in self.layers))

    def map_mixers(self, change: Callable[[Mixer], Mixer]) -> ModelSpec:
        """Return this model with `change` applied to each mixer."""
        return self.map_layers(
            lambda layer: replace(layer, mixers=tuple(change(m) for m in layer.mixers))
        )

    def map_ffns(self, change: Callable[[Ffn], Ffn]) -> ModelSpec:
        """Return this model with `change` applied to each feed-forward."""
        return self.map_layers(
            lambda layer: layer if layer.ffn is None else replace(layer, ffn=change(layer.ffn))
        )


def _require_positive(spec: object, *names: str) -> None:
    """Raise unless each named field is None or a positive number."""
    values = {name: getattr(spec, name) for name in names}
    wrong = {name: n for name, n in values.items() if n is not None and n <= 0}
    if wrong:
        raise SpecError(*(f"{name} must be positive, got {n}" for name, n in wrong.items()))


ACTIVATIONS: tuple[str, ...] = get_args(Activation)
