"""RWKV 5, 6 and 7: layers against a loop over the papers' equations, one sequence at a time."""

from __future__ import annotations

import pytest
import torch
from nn.recurrent_checks import D_MODEL, assert_same_gradients, model_of, run
from nn.tolerances import assert_near
from torch import Tensor, nn
from torch.nn import functional

from worthit.nn.mixer import Mixer, module_for
from worthit.nn.ssm.rwkv5 import TimeMixing5, wkv_in_chunks, wkv_in_order
from worthit.nn.ssm.rwkv6 import TimeMixing6
from worthit.nn.ssm.rwkv7 import ChannelMixing7, TimeMixing7, dplr_in_chunks, dplr_in_order
from worthit.nn.tokens import tokens_of
from worthit.spec.model import ChannelMix, Rwkv

HEADS, DIM = 4, D_MODEL // 4


def layer(version: int, **options: object) -> Mixer:
    part = Rwkv(d_attention=D_MODEL, version=version, head_dim=DIM, mix_rank=3, rank=5, **options)
    return drawn(module_for(part, model_of(part)))


def drawn(module: Mixer) -> Mixer:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    # In fp64: a norm right behind a single token's value makes gradients vanish by cancellation.
    return module.double().eval()


def five() -> Mixer:
    return layer(5)


def six() -> Mixer:
    return layer(6)


def seven() -> Mixer:
    return layer(7, has_value_mix=False)


def group_norm(m: Mixer, y: Tensor) -> Tensor:
    return functional.group_norm(y[None], HEADS, m.norm.weight, m.norm.bias, eps=64e-5)[0]


def five_in_words(m: TimeMixing5, x: Tensor) -> Tensor:
    """`x` `(n, d_model)`."""
    state, last, out = x.new_zeros(HEADS, DIM, DIM), x.new_zeros(D_MODEL), []
    decay = torch.exp(-torch.exp(m.omega))

    def mixed(now: Tensor, share: Tensor) -> Tensor:
        return now * share + last * (1 - share)

    for now in x:
        r = m.receptance(mixed(now, m.mix_receptance)).view(HEADS, 1, DIM)
        k = m.key(mixed(now, m.mix_key)).view(HEADS, DIM, 1)
        v = m.value(mixed(now, m.mix_value)).view(HEADS, 1, DIM)
        g = functional.silu(m.gate(mixed(now, m.mix_gate)))
        y = r @ (state + m.bonus[..., None] * (k @ v))
        state, last = k @ v + decay[..., None] * state, now
        out.append(m.output(group_norm(m, y.flatten()) * g))
    return torch.stack(out)


def six_in_words(m: TimeMixing6, x: Tensor) -> Tensor:
    state, last, out = x.new_zeros(HEADS, DIM, DIM), x.new_zeros(D_MODEL), []
    for now in x:
        change = last - now
        low = torch.tanh(m.mix_in(now + change * m.mix_first)).view(5, -1)
        w, k, v, r, g = (now + change * (m.mix[i] + low[i] @ m.mix_out[i]) for i in range(5))
        r, k = m.receptance(r).view(HEADS, 1, DIM), m.key(k).view(HEADS, DIM, 1)
        v, g = m.value(v).view(HEADS, 1, DIM), functional.silu(m.gate(g))
        omega = m.omega + m.decay_out(torch.tanh(m.decay_in(w)))
        decay = torch.exp(-torch.exp(omega)).view(HEADS, DIM, 1)
        y = r @ (state + m.bonus[..., None] * (k @ v))
        state, last = k @ v + decay * state, now
        out.append(m.output(group_norm(m, y.flatten()) * g))
    return torch.stack(out)


def seven_in_words(m: TimeMixing7, x: Tensor) -> Tensor:
    """With the state values by keys, as the paper has it."""
    state, last, out = x.new_zeros(HEADS, DIM, DIM), x.new_zeros(D_MODEL), []
    for now in x:
        mixed = {name: now + (last - now) * (1 - share) for name, share in m.mix.items()}
        r, k, v = m.receptance(mixed["receptance"]), m.key(mixed["key"]), m.value(mixed["value"])
        w = m.decay.up.bias + m.decay.up.weight @ torch.tanh(m.decay.down(mixed["decay"]))
        w = torch.exp(-0.606531 * torch.sigmoid(w))
        a = torch.sigmoid(m.rate.up.bias + m.rate.up.weight @ m.rate.down(mixed["rate"]))
        g = m.gate.up.weight @ torch.sigmoid(m.gate.down(mixed["gate"]))
        kappa = functional.normalize((k * m.key_scale).view(HEADS, DIM), dim=-1)
        k = k * (1 + (a - 1) * m.key_rate)
        move = torch.diag_embed(w.view(HEADS, DIM))
        move = move - kappa[..., None] @ (kappa * a.view(HEADS, DIM))[:, None]
        state = state @ move + v.view(HEADS, DIM, 1) @ k.view(HEADS, 1, DIM)
        y = group_norm(m, (state @ r.view(HEADS, DIM, 1)).flatten()).view(HEADS, DIM)
        own = (r * k).view(HEADS, DIM) * m.bonus
        y = y + own.sum(dim=-1, keepdim=True) * v.view(HEADS, DIM)
        out.append(m.output(y.flatten() * g))
        last = now
    return torch.stack(out)


VERSIONS = {
    "5": (five, five_in_words),
    "6": (six, six_in_words),
    "7": (seven, seven_in_words),
}
each_version = pytest.mark.parametrize(("make", "in_words"), VERSIONS.values(), ids=VERSIONS)


@pytest.mark.parametrize("n", [1, 63, 100])
@each_version
def test_outputs_and_gradients_of_the_equations(make, in_words, n: int) -> None:
    module, x = make(), torch.randn(2, n, D_MODEL, dtype=torch.float64)
    weights = torch.randn(2, n, D_MODEL, dtype=torch.float64)
    results = []
    for form in (lambda x: run(module, x), lambda x: torch.stack([in_words(module, r) for r in x])):
        module.zero_grad()
        given = x.clone().requires_grad_()
        y = form(given)
        (y * weights).sum().backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
        results.append([y, given.grad, *(g.clone() for g in gradients)])
    assert_same_gradients(results[0], results[1])


@each_version
def test_cached_padded_and_causal(make, in_words) -> None:
    module, n, padding = make(), 23, 4
    x = torch.randn(2, n, D_MODEL, dtype=torch.float64)
    padded = torch.cat([x.new_full((2, padding, D_MODEL), 1e3), x], dim=1)
    mask = torch.ones(2, padding + n, dtype=torch.long)
    mask[:, :padding] = 0
    with torch.no_grad():
        whole = run(module, x)
        for lengths in ([n], [n - 5] + [1] * 5, [7, 1, 2, n - 10]):
            cache, past, parts = module.new_cache(), 0, []
            for length in lengths:
                parts.append(run(module, x[:, past : past + length], cache, past))
                past += length
            assert_near(torch.cat(parts, dim=1), whole)
            assert cache.nbytes == 2 * 8 * (HEADS * DIM * DIM + D_MODEL)
        assert_near(run(module, padded, mask=mask)[:, padding:], whole)
        changed = x.clone()
        changed[:, 13] += 1.0
        assert_near(run(module, changed)[:, :13], whole[:, :13])


def inputs_of(n: int) -> list[Tensor]:
    torch.manual_seed(n)
    shape = (2, 3, n, 5)
    r, k, v = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    log_decay = -torch.rand(shape, dtype=torch.float64) * 0.6
    return [t.requires_grad_() for t in (r, k, v, log_decay)]


@pytest.mark.parametrize("n", [1, 2, 16, 63, 100])
def test_chunks_are_the_recurrence_5_and_6(n: int) -> None:
    r, k, v, log_decay = inputs_of(n)
    u = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for form in (wkv_in_order, wkv_in_chunks):
        y, last = form(r, k, v, log_decay, u, state)
        loss = (y * torch.arange(5.0)).sum() + last.square().sum()
        results.append([y, last, *torch.autograd.grad(loss, [r, k, v, log_decay, u, state])])
    assert_same_gradients(results[1], results[0])


@pytest.mark.parametrize("n", [1, 2, 16, 63, 100])
def test_chunks_are_the_recurrence_7(n: int) -> None:
    inputs = inputs_of(n)
    unit = functional.normalize(torch.randn(2, 3, n, 5, dtype=torch.float64), dim=-1)
    rate = torch.rand(2, 3, n, 5, dtype=torch.float64)
    inputs += [(-unit).requires_grad_(), (unit * rate).requires_grad_()]
    inputs.append(torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True))
    results = []
    for form in (dplr_in_order, dplr_in_chunks):
        y, last = form(*inputs)
        loss = (y * torch.arange(5.0)).sum() + last.square().sum()
        results.append([y, last, *torch.autograd.grad(loss, inputs)])
    assert_same_gradients(results[1], results[0])


def test_later_layers_of_version_7_mix_in_the_first_ones_values() -> None:
    first = seven()
    later = layer(7)
    x = torch.randn(1, 6, D_MODEL, dtype=torch.float64)
    tokens = tokens_of(x[..., 0], past=0, attention_mask=None)
    with torch.no_grad():
        first(x, tokens)
        share = torch.sigmoid(
            later.value_share(
                torch.lerp(functional.pad(x[:, :-1], (0, 0, 1, 0)), x, later.mix["value"])
            )
        )
        # Where the share is 1 the later layer's own value weights do not matter.
        later.value_share.up.bias.fill_(1e4)
        a = later(x, tokens)
        later.value.weight.add_(1.0)
        assert_near(later(x, tokens), a)
    assert share.max() < 1


def test_channel_mixing_7() -> None:
    part = ChannelMix(d_ff=40, has_receptance=False)
    module = drawn(module_for(part, model_of(part)))
    assert isinstance(module, ChannelMixing7)
    x = torch.randn(1, 9, D_MODEL, dtype=torch.float64)
    cache = module.new_cache()
    with torch.no_grad():
        before = functional.pad(x[:, :-1], (0, 0, 1, 0))
        k = module.key(x * module.mix_key + before * (1 - module.mix_key))
        want = module.value(k.relu() ** 2)
        assert_near(run(module, x), want)
        parts = [run(module, x[:, :5], cache), run(module, x[:, 5:], cache, 5)]
    assert_near(torch.cat(parts, dim=1), want)
