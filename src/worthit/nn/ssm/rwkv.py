"""RWKV-4: an attention over all earlier tokens whose weights fade by a constant rate a channel.

Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", arXiv:2305.13048, equations 11
to 18. For every channel:

    wkv_t = (sum_{i<t} e^{-(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v)
    o_t = W_o (sigmoid(r_t) wkv_t)

| paper | here |
|---|---|
| w | `exp(log_decay)`, `(d_attention,)`: what a token's weight loses with every step |
| u | `bonus`: what the token itself gets on top |
| mu_r, mu_k, mu_v | `mix_...` `(d_model,)`: the share of the token; the rest is of the one before |
| a_t, b_t, p_t | `numerator`, `denominator` and the exponent `peak` that both are divided by |

Versions 5, 6 and 7, with a matrix a head for a state, stand in `rwkv5`, `rwkv6` and `rwkv7` beside
this file; `spec.Rwkv.version` picks one.

The sums grow without bound, so both are kept divided by e^peak, with peak_t = max(peak_{t-1} - w,
k_t): no exponent is then positive. `wkv_in_order` is the definition; `wkv` first finds all peaks
(a running maximum), after which numerator and denominator are linear recurrences and run as one
scan in chunks. The result does not depend on the peaks, so no gradient passes through them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worthit.nn.cache import StateCache
from worthit.nn.mixer import Mixer
from worthit.nn.norm.relu import relu2
from worthit.nn.ssm.scan import scan
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

# The peak of sums that nothing has entered yet.
NOTHING = -1e38

State = tuple[Tensor, Tensor, Tensor]


def build_rwkv(rwkv: spec.Rwkv, model: spec.ModelSpec) -> Mixer:
    """The time mixing of `rwkv.version`."""
    if rwkv.version == 5:
        from worthit.nn.ssm.rwkv5 import TimeMixing5

        return TimeMixing5(rwkv, model)
    if rwkv.version == 6:
        from worthit.nn.ssm.rwkv6 import TimeMixing6

        return TimeMixing6(rwkv, model)
    if rwkv.version == 7:
        from worthit.nn.ssm.rwkv7 import TimeMixing7

        return TimeMixing7(rwkv, model)
    return TimeMixing(rwkv, model)


def build_channel_mix(ffn: spec.ChannelMix, model: spec.ModelSpec) -> Mixer:
    """The channel mixing, with its receptance or, as in version 7, without."""
    if ffn.has_receptance:
        return ChannelMixing(ffn, model)
    from worthit.nn.ssm.rwkv7 import ChannelMixing7

    return ChannelMixing7(ffn, model)


class TimeMixing(Mixer):
    """RWKV's mixer: key, value and receptance of shifted inputs, and the fading average."""

    def __init__(self, rwkv: spec.Rwkv, model: spec.ModelSpec) -> None:
        super().__init__()
        self.spec = rwkv
        d, inner = model.d_model, rwkv.d_attention
        self.mix_key, self.mix_value, self.mix_receptance = (shift_mix(d) for _ in range(3))
        self.log_decay = nn.Parameter(decay_speeds(inner))
        self.bonus = nn.Parameter(torch.ones(inner))
        self.key, self.value, self.receptance = (nn.Linear(d, inner, bias=False) for _ in range(3))
        self.output = nn.Linear(inner, d, bias=False)

    def new_cache(self) -> StateCache:
        """`numerator`, `denominator`, `peak` `(batch, d_attention)`; the last input as `conv`."""
        return StateCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        x = tokens.without_padding(x)
        before = shifted(x, cache)
        k = self.key(torch.lerp(before, x, self.mix_key.to(x.dtype)))
        v = self.value(torch.lerp(before, x, self.mix_value.to(x.dtype)))
        r = torch.sigmoid(self.receptance(torch.lerp(before, x, self.mix_receptance.to(x.dtype))))
        names = ("numerator", "denominator", "peak")
        past = None if cache is None else cache.get("peak")
        state = None if past is None or cache is None else tuple(cache.state[n] for n in names)
        w = self.log_decay.float().exp()
        y, new = wkv(w, self.bonus.float(), k, v, state, tokens.is_new_real)
        if cache is not None:
            cache.state.update(zip(names, new, strict=True))
        out: Tensor = self.output(r * y)
        return out


class ChannelMixing(Mixer):
    """RWKV's feed-forward: W_v relu(W_k x')^2, gated by the receptance; x' is shifted as above."""

    def __init__(self, ffn: spec.ChannelMix, model: spec.ModelSpec) -> None:
        super().__init__()
        self.spec = ffn
        d = model.d_model
        self.mix_key, self.mix_receptance = shift_mix(d), shift_mix(d)
        self.key = nn.Linear(d, ffn.d_ff, bias=False)
        self.receptance = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(ffn.d_ff, d, bias=False)

    def new_cache(self) -> StateCache:
        """The last input, `(batch, d_model)`, as `conv`."""
        return StateCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        x = tokens.without_padding(x)
        before = shifted(x, cache)
        k = relu2(self.key(torch.lerp(before, x, self.mix_key.to(x.dtype))))
        r = torch.sigmoid(self.receptance(torch.lerp(before, x, self.mix_receptance.to(x.dtype))))
        y: Tensor = r * self.value(k)
        return y


def shifted(x: Tensor, cache: StateCache | None) -> Tensor:
    """The token before each of `x` `(batch, n, d_model)`: zeros, or what `cache` holds, first."""
    last = None if cache is None else cache.get("conv")
    first = torch.zeros_like(x[:, :1]) if last is None else last.to(x.dtype)[:, None]
    if cache is not None:
        cache["conv"] = x[:, -1].clone()
    return torch.cat([first, x[:, :-1]], dim=1)


def shift_mix(d_model: int) -> nn.Parameter:
    """Shares of the token itself that rise over the channels, from 0 to nearly 1.

    The paper's initialisation bends this line by the layer's depth, which a part does not know.
    """
    return nn.Parameter(torch.arange(d_model) / d_model)


def decay_speeds(n: int) -> Tensor:
    """ln w, `(n,)`: from slow to fast over the channels; the paper's, for the middle layer."""
    share = torch.arange(n) / max(n - 1, 1)
    return -5 + 8 * share ** (0.7 + 1.3 * 0.5)


def _nothing(like: Tensor) -> State:
    """The state before the first token."""
    zeros = torch.zeros_like(like[:, 0], dtype=torch.promote_types(like.dtype, torch.float32))
    return zeros, zeros, torch.full_like(zeros, NOTHING)


def wkv_in_order(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: State | None = None
) -> tuple[Tensor, State]:
    """The definition, token by token. Shapes as in `wkv`."""
    num, den, peak = _nothing(k) if state is None else state
    outputs = []
    for t in range(k.shape[1]):
        k_t, v_t = k[:, t].to(num.dtype), v[:, t].to(num.dtype)
        top = torch.maximum(peak, k_t + u)
        old, own = torch.exp(peak - top), torch.exp(k_t + u - top)
        outputs.append((old * num + own * v_t) / (old * den + own))
        top = torch.maximum(peak - w, k_t)
        old, own = torch.exp(peak - w - top), torch.exp(k_t - top)
        num, den, peak = old * num + own * v_t, old * den + own, top
    return torch.stack(outputs, dim=1).to(v.dtype), (num, den, peak)


def wkv(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: State | None = None,
    is_real: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The fading averages `(batch, n, d)`, and the sums after the last token.

    Args:
        w: what a weight's exponent loses with each step, `(d,)`, positive.
        u: what the token's own exponent gains, `(d,)`.
        k: exponents, `(batch, n, d)`.
        v: values, the same shape.
        state: numerator, denominator and peak `(batch, d)` of the tokens before.
        is_real: `(batch, n)`, False on padding, whose weight the first real key takes to nothing.
    """
    start_num, start_den, start_peak = _nothing(k) if state is None else state
    wide = start_num.dtype
    k_, v_ = k.to(wide), v.to(wide)
    if is_real is not None:
        k_ = k_.masked_fill(~is_real[..., None], NOTHING)
    peaks = _peaks(w.detach(), k_.detach(), start_peak)
    before = torch.cat([start_peak[:, None], peaks[:, :-1]], dim=1)
    kept, own = torch.exp(before - w - peaks), torch.exp(k_ - peaks)
    added = torch.stack([own * v_, own], dim=2)  # (batch, n, 2, d)
    start = torch.stack([start_num, start_den], dim=1)
    sums = scan(kept[:, :, None].expand_as(added), added, start)
    earlier = torch.cat([start[:, None], sums[:, :-1]], dim=1)

    top = torch.maximum(before, k_.detach() + u.detach())
    old, now = torch.exp(before - top), torch.exp(k_ + u - top)
    num, den = (old[:, :, None] * earlier).unbind(2)
    y = (num + now * v_) / (den + now)
    return y.to(v.dtype), (sums[:, -1, 0], sums[:, -1, 1], peaks[:, -1])


def _peaks(w: Tensor, k: Tensor, start: Tensor) -> Tensor:
    """max(peak_{t-1} - w, k_t) for all t: a running maximum of k_t + t w, less t w."""
    risen = torch.arange(k.shape[1] + 1, device=k.device)[:, None] * w.double()
    exponents = torch.cat([start[:, None], k], dim=1).double() + risen
    return (exponents.cummax(dim=1).values - risen)[:, 1:].to(k.dtype)
