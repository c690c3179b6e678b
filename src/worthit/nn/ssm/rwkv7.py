"""RWKV-7 (Goose): a generalised delta rule; the state learns in context, and forgets by channel.

Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", arXiv:2503.14456,
section 4. For each head, with the state keys by values (transposed to the paper's):

    S_t = diag(w_t) S_{t-1} - (kappa_t * a_t) (kappa_t^T S_{t-1}) + k_t v_t^T        o_t = S_t^T r_t

| paper | here |
|---|---|
| w_t = exp(-e^{-1/2} sigmoid(.)) | `exp(log_decay)`: never below 0.54 |
| kappa, of unit norm | the removal key, `unit_key`: k times `key_scale`, normalised a head |
| a_t | `rate`, in-context learning rate, within 0 and 1 a channel |
| k~ = k (1 + (a - 1) alpha) | the replacement key; alpha is `key_rate` |
| v_t | mixed with the first layer's values by `value_share` (not in the first layer) |
| rho | `bonus`: the token's own value once more, by r k~ rho |
| loramlp | `LowRank`: two thin matrices, with a bias or an activation between |

`dplr_in_order` is the definition, S_t = diag(w_t) S + write_t (erase_t^T S) + k_t v_t^T;
`dplr_in_chunks` solves one triangular system a chunk for all erase_t^T S_{t-1}.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.attention.gated_linear_attention import scores
from worthit.nn.attention.linear_attention import in_chunks
from worthit.nn.cache import StateCache
from worthit.nn.mixer import Mixer
from worthit.nn.norm.relu import relu2
from worthit.nn.ssm.rwkv import shift_mix, shifted
from worthit.nn.ssm.rwkv5 import HeadNorm, by_head
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# e^{-1/2} as the published code rounds it.
DECAY_RANGE = 0.606531
FIRST_VALUES = "rwkv7: values of the first layer"
CHUNK = 64


class LowRank(nn.Module):
    """bias + B f(A x), with f the identity, tanh or sigmoid."""

    def __init__(
        self, inputs: int, rank: int, outputs: int, activation: str = "", *, has_bias: bool = True
    ) -> None:
        super().__init__()
        self.activation = activation
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=has_bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., inputs)` to `(..., outputs)`."""
        h = self.down(x)
        if self.activation:
            h = torch.tanh(h) if self.activation == "tanh" else torch.sigmoid(h)
        y: Tensor = self.up(h)
        return y


class TimeMixing7(Mixer):
    """RWKV-7's mixer.

    The values of the first layer, which has no values to mix in (`has_value_mix`), are kept for the
    pass, where the later layers find them.
    """

    def __init__(self, rwkv: spec.Rwkv, model: spec.ModelSpec) -> None:
        super().__init__()
        self.spec, self.n_heads = rwkv, rwkv.n_heads
        d, inner, rank = model.d_model, rwkv.d_attention, rwkv.rank
        names = ("receptance", "decay", "key", "value", "rate", "gate")
        self.mix = nn.ParameterDict({name: shift_mix(d) for name in names})
        self.decay = LowRank(d, rank, inner, "tanh")
        self.rate = LowRank(d, rank, inner)
        self.value_share = LowRank(d, rank, inner) if rwkv.has_value_mix else None
        self.gate = LowRank(d, rank, inner, "sigmoid", has_bias=False)
        self.key_scale = nn.Parameter(torch.full((inner,), 0.85))
        self.key_rate = nn.Parameter(torch.ones(inner))
        self.bonus = nn.Parameter(torch.zeros(rwkv.n_heads, rwkv.head_dim))
        self.receptance, self.key, self.value = (nn.Linear(d, inner, bias=False) for _ in range(3))
        self.output = nn.Linear(inner, d, bias=False)
        self.norm = HeadNorm(inner, rwkv.n_heads)

    def new_cache(self) -> StateCache:
        """`state` `(batch, n_heads, head_dim, head_dim)`, and the last input as `conv`."""
        return StateCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        x = tokens.without_padding(x)
        before = shifted(x, cache)
        mixed = {name: torch.lerp(before, x, share) for name, share in self.mix.items()}
        k, v = self.key(mixed["key"]), self.value(mixed["value"])
        rate = torch.sigmoid(self.rate(mixed["rate"]))
        unit_key = functional.normalize(by_head(k * self.key_scale, self.n_heads), dim=-1)
        k = k * (1 + (rate - 1) * self.key_rate)
        first = tokens.shared(FIRST_VALUES, lambda: v)
        if self.value_share is not None:
            v = torch.lerp(v, first, torch.sigmoid(self.value_share(mixed["value"])))
        # With zeros on padding nothing is written, whatever the low-rank paths' biases say.
        k, v = tokens.without_padding(k), tokens.without_padding(v)
        r, k, v, rate = (
            by_head(t, self.n_heads) for t in (self.receptance(mixed["receptance"]), k, v, rate)
        )
        decay = by_head(self.decay(mixed["decay"]), self.n_heads)
        past = None if cache is None else cache.get("state")
        log_decay, erase, write = -DECAY_RANGE * torch.sigmoid(decay), -unit_key, unit_key * rate
        chunk = self.spec.chunk
        y, state = dplr_in_chunks(r, k, v, log_decay, erase, write, past, chunk=chunk)
        if cache is not None:
            cache["state"] = state
        own = (r * k * self.bonus[:, None]).sum(dim=-1, keepdim=True) * v
        y = self.norm(y) + own.transpose(1, 2).flatten(2)
        out: Tensor = self.output(y.to(x.dtype) * self.gate(mixed["gate"]))
        return out


class ChannelMixing7(Mixer):
    """RWKV-7's feed-forward: no receptance any more."""

    def __init__(self, ffn: spec.ChannelMix, model: spec.ModelSpec) -> None:
        super().__init__()
        self.spec = ffn
        self.mix_key = shift_mix(model.d_model)
        self.key = nn.Linear(model.d_model, ffn.d_ff, bias=False)
        self.value = nn.Linear(ffn.d_ff, model.d_model, bias=False)

    def new_cache(self) -> StateCache:
        """The last input, as `conv`."""
        return StateCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        x = tokens.without_padding(x)
        y: Tensor = self.value(relu2(self.key(torch.lerp(shifted(x, cache), x, self.mix_key))))
        return y


def dplr_in_order(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state, token by token: the reference. Shapes as below."""
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    for t in range(r.shape[2]):
        recalled = erase[:, :, t, None, :] @ state
        state = log_decay[:, :, t, :, None].exp() * state + write[:, :, t, :, None] * recalled
        state = state + k[:, :, t, :, None] * v[:, :, t, None, :]
        out.append((r[:, :, t, None, :] @ state)[:, :, 0])
    return torch.stack(out, dim=2), state


def dplr_in_chunks(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    erase: Tensor,
    write: Tensor,
    state: Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last state.

    Args:
        r, k, v: `(batch, n_heads, n, head_dim)`.
        log_decay: log w_t, the same shape, not positive and bounded: 1 / w_t is taken.
        erase, write: the same shape; what of the state is read, and where it is added.
        state: `(batch, n_heads, head_dim, head_dim)`; zeros where None.
    """
    n = r.shape[2]
    if n == 1:
        return dplr_in_order(r, k, v, log_decay, erase, write, state)
    size = min(chunk, n)
    # What is erased is read before token t's decay.
    erase = erase * torch.exp(-log_decay)
    r, k, v, log_decay, erase, write = (
        in_chunks(t, size) for t in (r, k, v, log_decay, erase, write)
    )
    total = log_decay.cumsum(dim=-2)
    end = total[..., -1:, :]
    erase_write, erase_key = (scores(erase, t, total).tril(-1) for t in (write, k))
    read_write, read_key = (scores(r, t, total) for t in (write, k))
    from_start, to_end = total.exp(), (end - total).exp()
    # erase_t^T S_{t-1} for all t: one part of the chunk itself, one of the state that it starts at.
    solved = torch.linalg.solve_triangular(
        -erase_write,
        torch.cat([erase_key @ v, erase * from_start], dim=-1),
        upper=False,
        unitriangular=True,
    )
    within, of_state = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    parts = (
        *(r * from_start, read_write, read_key @ v, within, of_state),
        *((write * to_end).mT, (k * to_end).mT @ v, end.exp().mT),
    )
    out = []
    for r_c, write_c, own_c, within_c, of_state_c, adds_c, keys_c, kept in zip(
        *(t.unbind(2) for t in parts), strict=True
    ):
        recalled = within_c + of_state_c @ state
        out.append(r_c @ state + write_c @ recalled + own_c)
        state = kept * state + adds_c @ recalled + keys_c
    return torch.cat(out, dim=2)[:, :, :n], state
