"""RWKV-6 (Finch): the decay, and how much of the token before is mixed in, follow from the token.

Peng et al. 2024, "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence",
arXiv:2404.05892, section 4.2:

    ddlerp(x, x', mu) = x + (x' - x) (mu + lora(x + (x' - x) mu_x))
    w_t = exp(-exp(omega + lora(x_w)))        S_t = diag(w_t) S_{t-1} + k_t^T v_t

| paper | here |
|---|---|
| x' | the token before; here mu is *its* share, where version 5 has the token's own |
| mu_x; mu_w, mu_k, mu_v, mu_r, mu_g | `mix_first`; `mix` `(5, d_model)`, in this order |
| lora of the mixes | `mix_in`, then `mix_out` `(5, rank, d_model)` |
| omega, lora of the decay | `omega` `(d_model,)`; `decay_in`, `decay_out` |
| u | `bonus` |

State, reading and norm are version 5's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.cache import StateCache
from worthit.nn.mixer import Mixer
from worthit.nn.ssm.rwkv import decay_speeds, shifted
from worthit.nn.ssm.rwkv5 import HeadNorm, by_head, wkv_in_chunks
from worthit.nn.tokens import Tokens
from worthit.spec import model as spec

LORA_STD = 1e-2


class TimeMixing6(Mixer):
    """RWKV-6's mixer."""

    def __init__(self, rwkv: spec.Rwkv, model: spec.ModelSpec) -> None:
        super().__init__()
        self.spec, self.n_heads = rwkv, rwkv.n_heads
        d, inner = model.d_model, rwkv.d_attention
        share = 1 - torch.arange(d) / d
        self.mix_first = nn.Parameter(share.clone())
        self.mix = nn.Parameter(share.repeat(5, 1))
        self.mix_in = nn.Linear(d, 5 * rwkv.mix_rank, bias=False)
        self.mix_out = nn.Parameter(torch.randn(5, rwkv.mix_rank, d) * LORA_STD)
        self.omega = nn.Parameter(decay_speeds(inner))
        self.decay_in = nn.Linear(d, rwkv.rank, bias=False)
        self.decay_out = nn.Linear(rwkv.rank, inner, bias=False)
        nn.init.normal_(self.decay_out.weight, std=LORA_STD)
        self.bonus = nn.Parameter(torch.zeros(rwkv.n_heads, rwkv.head_dim))
        self.key, self.value, self.receptance, self.gate = (
            nn.Linear(d, inner, bias=False) for _ in range(4)
        )
        self.output = nn.Linear(inner, d, bias=False)
        self.norm = HeadNorm(inner, rwkv.n_heads)

    def new_cache(self) -> StateCache:
        """`state`, and the last input as `conv`."""
        return StateCache()

    def forward(self, x: Tensor, tokens: Tokens, cache: StateCache | None = None) -> Tensor:
        """`(batch, n, d_model)` to the same shape."""
        x = tokens.without_padding(x)
        change = shifted(x, cache) - x
        low = torch.tanh(self.mix_in(x + change * self.mix_first)).unflatten(-1, (5, -1))
        more = torch.einsum("btir,ird->ibtd", low, self.mix_out)
        for_w, for_k, for_v, for_r, for_g = x + change * (self.mix[:, None, None] + more)
        r, k, v = (
            by_head(project(part), self.n_heads)
            for project, part in ((self.receptance, for_r), (self.key, for_k), (self.value, for_v))
        )
        omega = self.omega + self.decay_out(torch.tanh(self.decay_in(for_w)))
        log_decay = -by_head(omega, self.n_heads).exp()
        past = None if cache is None else cache.get("state")
        u, chunk = self.bonus.to(r.dtype), self.spec.chunk
        y, state = wkv_in_chunks(r, k, v, log_decay, u, past, chunk=chunk)
        if cache is not None:
            cache["state"] = state
        out: Tensor = self.output(self.norm(y).to(x.dtype) * functional.silu(self.gate(for_g)))
        return out
