"""What every recurrent mixer must satisfy, whatever its equations."""

from __future__ import annotations

import torch
from nn.tolerances import assert_near
from torch import Tensor, nn

from worthit.cost.cache import cache_elements
from worthit.cost.params import ffn_params, mixer_params
from worthit.nn.mixer import Mixer, module_for
from worthit.nn.tokens import tokens_of
from worthit.spec import model as spec

D_MODEL = 32


def model_of(part: spec.Mixer | spec.Ffn) -> spec.ModelSpec:
    if isinstance(part, spec.Ffn):
        layer = spec.Layer(mixers=(), ffn=part)
    else:
        layer = spec.Layer(mixers=(part,), ffn=None)
    return spec.ModelSpec(name="m", d_model=D_MODEL, vocab_size=8, layers=(layer,), context_len=64)


def built(part: spec.Mixer | spec.Ffn, *, seed: int = 0) -> Mixer:
    """The module of `part` with every parameter drawn anew: defaults of 0 and 1 hide mistakes."""
    torch.manual_seed(seed)
    module = module_for(part, model_of(part)).eval()
    assert isinstance(module, Mixer)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return module


def run(module: nn.Module, x: Tensor, cache: object = None, past: int = 0, mask: object = None):
    tokens = tokens_of(x[..., 0], past=past, attention_mask=mask)
    return module(x, tokens, cache)


def check_parameters(part: spec.Mixer | spec.Ffn) -> None:
    with torch.device("meta"):
        module = module_for(part, model_of(part))
    n = sum(p.numel() for p in module.parameters())
    if isinstance(part, spec.Ffn):
        assert n == ffn_params(part, D_MODEL).total
    else:
        assert n == mixer_params(part, D_MODEL)


def check_cached(part: spec.Mixer | spec.Ffn, *, n: int = 23) -> None:
    """Prefill and single tokens, and chunks of any length, give what one pass gives."""
    module = built(part)
    x = torch.randn(2, n, D_MODEL)
    with torch.no_grad():
        whole = run(module, x)
        for lengths in ([n], [n - 5] + [1] * 5, [1] * n, [7, 1, 2, n - 10]):
            cache, past, parts = module.new_cache(), 0, []
            for length in lengths:
                parts.append(run(module, x[:, past : past + length], cache, past))
                past += length
            assert_near(torch.cat(parts, dim=1), whole)


def check_cache_bytes(part: spec.Mixer, *, other: int = 0) -> None:
    """The real cache is as large as predicted; `other` elements of it are held elsewhere."""
    want = cache_elements(part, D_MODEL)
    for dtype in (torch.float32, torch.bfloat16):
        module = built(part).to(dtype)
        for lengths in ((9,), (2, 1), (1,)):
            cache, past = module.new_cache(), 0
            for length in lengths:
                run(module, torch.randn(3, length, D_MODEL, dtype=dtype), cache, past)
                past += length
            assert want.per_token == 0
            assert cache.nbytes == 3 * (4 * want.fixed + (want.conv - other) * dtype.itemsize)


def check_padding(part: spec.Mixer | spec.Ffn, *, n: int = 11, padding: int = 4) -> None:
    """Padding on the left changes nothing for the tokens behind it, now or later."""
    module = built(part)
    x = torch.randn(2, n, D_MODEL)
    padded = torch.cat([torch.randn(2, padding, D_MODEL), x], dim=1)
    padded[1, :padding] = 1e3
    mask = torch.ones(2, padding + n, dtype=torch.long)
    mask[:, :padding] = 0
    with torch.no_grad():
        want = run(module, x)
        assert_near(run(module, padded, mask=mask)[:, padding:], want)
        cache, end = module.new_cache(), padding + n - 2
        parts = [run(module, padded[:, :end], cache, 0, mask[:, :end])[:, padding:]]
        for i in range(end, padding + n):
            parts.append(run(module, padded[:, i : i + 1], cache, i, mask[:, : i + 1]))
        assert_near(torch.cat(parts, dim=1), want)


def check_causal(part: spec.Mixer | spec.Ffn, *, n: int = 21) -> None:
    """A later token changes no earlier output, and does change its own."""
    module = built(part)
    x = torch.randn(1, n, D_MODEL)
    changed = x.clone()
    changed[:, 13] += 1.0
    with torch.no_grad():
        before, after = run(module, x), run(module, changed)
    assert_near(after[:, :13], before[:, :13])
    assert not torch.allclose(after[:, 13], before[:, 13])


def check_all(part: spec.Mixer | spec.Ffn) -> None:
    check_parameters(part)
    check_cached(part)
    check_padding(part)
    check_causal(part)


def assert_same_gradients(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert_near(g, w)
