"""What mixers with a state compute and move: linear attention, state spaces, RWKV, random features.

A recurrence is counted in two forms. In decode each token is one step, on the vector units: the
FLOPs of an element of the state are those of the plain loop over the paper's equations. Elsewhere
the chunked form runs, whose matrix products are counted; decays between its chunks and within them
are not. Mamba, RWKV-4 and S4 have no such form: their scan is counted in both. What the modules do
is held equal by tests/nn/test_scan_bridge.py, which says what each count leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from worthit.cost.ledger import Number, Op, Pass, activation_bytes, elementwise, matmul
from worthit.spec.formats import format_of
from worthit.spec.model import S4, Attention, LinearAttention, Mamba, Mamba2, Rwkv

# A recurrence written as plain tensor operations: decay, outer product, update, read-out, sum.
UNCOMPILED_RECURRENCE = 5.0
READ_WRITE_STATE = 2
# A step of each rule, an element of the state. Store k v and read q S: 4. Decay adds 1, recalling
# what the key holds 2.
STEP_FLOPS = {"linear": 4.0, "retention": 5.0, "gated": 5.0, "delta": 6.0, "gated-delta": 7.0}
# Mamba's, a channel and state: Delta A and its exponential, Delta B x, decay and add, read out.
MAMBA_STEP = 8.0
# A parallel scan carries the product of decays too (Gu & Dao 2023, section 3.3; the count of 9 is
# the reference kernel's documentation).
MAMBA_SCAN = MAMBA_STEP + 1.0
# RWKV-4's, a channel, with sums kept divided by their largest term: 13 to read, 12 to store.
WKV_STEP = 25.0
# A pair of conjugate states is turned and damped (6), fed (4) and read (4); each rank of S4's
# low-rank part projects (4) and subtracts (4).
S4_PAIR, S4_RANK = 14.0, 8.0
# A real transform of N numbers, over N log2 N.
REAL_FFT = 2.5
# Product of two spectra, of each complex number.
COMPLEX_PRODUCT = 6.0
# Tokens of a chunk where the spec does not say.
CHUNK = 64


def recurrence(
    name: str,
    p: Pass,
    *,
    state: Number,
    step_flops: Number,
    chunk_flops: Number,
    streams: Number,
    math: str = "bf16",
) -> Op:
    """A state updated per token: read and written every token in decode, kept on chip otherwise."""
    is_decode = p.phase == "decode"
    state_bytes = READ_WRITE_STATE * state * format_of(p.precision.state).bytes
    return Op(
        name=name,
        kernel="scan",
        flops=p.tokens * (step_flops if is_decode else chunk_flops),
        cache=p.batch * state_bytes * (p.new if is_decode else 1.0),
        other=p.tokens * streams / p.tensor * activation_bytes(p),
        launches=1.0 if p.is_compiled else UNCOMPILED_RECURRENCE,
        math="vector" if is_decode else math,
    )


def linear_attention(mixer: LinearAttention, d: Number, p: Pass) -> Iterator[Op]:
    """Projections, convolution, the rule, and the way out."""
    heads = mixer.n_value_heads * p.width
    keys = mixer.n_key_heads * p.width * mixer.key_dim
    values = heads * mixer.value_dim
    gate = values if mixer.has_output_gate else 0
    # What the rule is told of each token: decays and write strengths (see `params`).
    told = {
        "linear": 0,
        "retention": 0,
        "gated": keys,
        "delta": heads,
        "gated-delta": 2 * heads,
    }[mixer.kind]
    yield matmul("qkv and gate projection", p, d, 2 * keys + values + gate + told)
    if mixer.d_conv:
        yield elementwise("short convolution", p, (2 * keys + values) / p.tensor)
    here = heads / p.tensor
    state = here * mixer.key_dim * mixer.value_dim
    chunk = np.minimum(mixer.chunk, p.new)
    # Scores and what is read by them: 2 T (d_k + d_v). A delta rule has the scores of keys on keys
    # beside them, and the solution of its system for keys and values (Yang et al. 2024, section 3).
    within = 2.0 * chunk * (mixer.key_dim + mixer.value_dim)
    between = 4.0 * state
    if "delta" in mixer.kind:
        within = within + 2.0 * chunk * (2 * mixer.key_dim + mixer.value_dim)
        between = 6.0 * state
    yield recurrence(
        "linear attention",
        p,
        state=state,
        step_flops=STEP_FLOPS[mixer.kind] * state,
        chunk_flops=here * within + between,
        streams=2 * keys + 2 * values,
    )
    yield matmul("linear attention output", p, values, d)


def features(mixer: Attention, heads: Number, kv_heads: Number, p: Pass) -> Iterator[Op]:
    """Performer: features of queries and keys, then linear attention with a column for weights."""
    assert mixer.n_features is not None
    n, width = mixer.n_features, mixer.head_dim
    # Drawn once and kept; no weights that training moves, but read as such.
    yield matmul("random features", p, width, n, tokens=p.tokens * (heads + kv_heads))
    here, chunk = heads / p.tensor, np.minimum(CHUNK, p.new)
    state = here * n * (width + 1)
    yield recurrence(
        "linear attention",
        p,
        state=state,
        step_flops=STEP_FLOPS["linear"] * state,
        chunk_flops=here * 2.0 * chunk * (n + width + 1) + 4.0 * state,
        streams=2 * heads * (n + width),
    )


def mamba(mixer: Mamba, d: Number, p: Pass) -> Iterator[Op]:
    """Four projections around a selective scan."""
    inner, rank = mixer.d_inner * p.width, mixer.dt_rank * p.width
    yield matmul("in projection", p, d, 2 * inner)
    yield elementwise("short convolution", p, inner / p.tensor)
    yield matmul("selection projection", p, inner, rank + 2 * mixer.d_state)
    yield matmul("time-step projection", p, rank, inner)
    state = inner / p.tensor * mixer.d_state
    yield recurrence(
        "selective scan",
        p,
        state=state,
        step_flops=MAMBA_STEP * state,
        chunk_flops=MAMBA_SCAN * state,
        streams=4 * inner,
        math="vector",
    )
    yield matmul("out projection", p, inner, d)


def mamba2(mixer: Mamba2, d: Number, p: Pass) -> Iterator[Op]:
    """Two projections around the state-space duality."""
    inner, heads = mixer.d_inner * p.width, mixer.n_heads * p.width / p.tensor
    groups = mixer.n_groups * mixer.d_state
    yield matmul("in projection", p, d, 2 * inner + 2 * groups + mixer.n_heads * p.width)
    yield elementwise("short convolution", p, (inner + 2 * groups) / p.tensor)
    chunk = np.minimum(mixer.chunk, p.new)
    state = heads * mixer.head_dim * mixer.d_state
    # Within a chunk: C B^T once a group and its product with X a head; between chunks: write and
    # read the state (Dao & Gu 2024, section 6).
    yield recurrence(
        "state-space duality",
        p,
        state=state,
        step_flops=STEP_FLOPS["retention"] * state,
        chunk_flops=2.0 * chunk * groups + 2.0 * chunk * heads * mixer.head_dim + 4.0 * state,
        streams=3 * inner + 2 * groups,
    )
    yield elementwise("gated norm", p, inner / p.tensor)
    yield matmul("out projection", p, inner, d)


def rwkv(mixer: Rwkv, d: Number, p: Pass) -> Iterator[Op]:
    """Time mixing of any version."""
    width = mixer.d_attention * p.width
    n_mixes, n_projections = {4: (3, 3), 5: (4, 4), 6: (5, 4), 7: (6, 3)}[mixer.version]
    yield elementwise("token shift", p, n_mixes * d)
    if mixer.version == 6:
        yield matmul("mixes down", p, d, 5 * mixer.mix_rank)
        yield matmul("mixes up", p, mixer.mix_rank, 5 * d)
    names = "key, value, receptance" if n_projections == 3 else "key, value, receptance, gate"
    yield matmul(names, p, d, n_projections * width)
    # Decay; with version 7 also rate, gate and the share of the first layer's values.
    n_low = {4: 0, 5: 0, 6: 1, 7: 3 + int(mixer.has_value_mix)}[mixer.version]
    if n_low:
        yield matmul("low-rank down", p, d, n_low * mixer.rank)
        yield matmul("low-rank up", p, mixer.rank, n_low * width)
    yield _wkv(mixer, width, p)
    yield matmul("output", p, width, d)


def _wkv(mixer: Rwkv, width: Number, p: Pass) -> Op:
    here = width / p.tensor
    if mixer.version == 4:
        return recurrence(
            "wkv",
            p,
            state=3 * here,
            step_flops=WKV_STEP * here,
            chunk_flops=WKV_STEP * here,
            streams=4 * width,
            math="vector",
        )
    state, chunk = here * mixer.head_dim, np.minimum(mixer.chunk, p.new)
    if mixer.version == 7:
        # Four kinds of scores, of reading and erasing on keys and on what is written back; the
        # solution for values and keys; three products of scores with values.
        return recurrence(
            "wkv",
            p,
            state=state,
            step_flops=9.0 * state,
            chunk_flops=here * 18.0 * chunk + 8.0 * state,
            streams=7 * width,
        )
    # As gated linear attention; in a step the token's own part has its bonus beside the decay.
    return recurrence(
        "wkv",
        p,
        state=state,
        step_flops=7.0 * state,
        chunk_flops=here * 4.0 * chunk + 4.0 * state,
        streams=5 * width,
    )


def s4(mixer: S4, d: Number, p: Pass) -> Iterator[Op]:
    """A convolution over the whole sequence, or a step; then a gated projection."""
    here = d / p.tensor
    state = here * mixer.d_state
    # By FFT of twice the length: inputs there and back, the kernel once a pass. The kernel itself
    # is not counted: it depends on no input and is made once a set of weights.
    length = np.maximum(2.0 * p.new, 2.0)
    transforms = REAL_FFT * length * np.log2(length) * (2.0 + 1.0 / p.batch)
    product = COMPLEX_PRODUCT * (p.new + 1.0)
    yield recurrence(
        "state-space convolution",
        p,
        state=state,
        step_flops=(S4_PAIR + S4_RANK * mixer.rank) / 2.0 * state,
        chunk_flops=here * (transforms + product) / p.new,
        streams=6 * d,
        math="vector",
    )
    yield matmul("output and gate", p, d, 2 * d)
