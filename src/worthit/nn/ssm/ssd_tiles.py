"""State-space duality on a CPU: a few chunks at a time, in memory that stays near the core.

The numbers of `worthit.nn.ssm.ssd.ssd_in_chunks`, and its symbols. There every step is one call
over the whole sequence, and each moves all of it through memory; here a tile of some rows and
chunks goes through all steps, which write into one `Space`, and then the next tile does.

The gradient of a token's Delta A is a sum over all that crosses it, from earlier tokens to it and
later ones; taken so, and not as that of running sums, nothing large cancels. With W the decayed
scores, S the state before a chunk that ends with token T, e = exp(s_T - s) Delta x what of each
token is left there, g a gradient and G that of the state there:

    g(Delta_t A) = sum_{r >= t > u} g(W_ru) W_ru        within the chunk
                 + sum_{r >= t} g(y_r) . r_r            from S; r_r is what token r reads of it
                 + sum_{u < t} g(e_u) . e_u             to the chunk's end; g(e) = B G
                 + <G, exp(s_T) S>                      from S to the chunk's end
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Elements of a tile's inner sequence. A dozen such tensors are at work: fewer elements would be
# nearer the core, and cost more calls.
TILE_ELEMENTS = 2**17


class Space:
    """Tensors by name, made once and written over by every tile of the same size."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._made: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        key = name, shape
        if key not in self._made:
            self._made[key] = self._like.new_empty(shape)
        return self._made[key]


class Decays:
    """What follows from steps alone, all `(batch, n, heads)`.

    Attributes:
        sums: running sums of Delta A from each chunk's start, fp64.
        from_start: exp of them.
        to_end: exp of what is missing to the chunk's end.
        entering: the same times Delta.
    """

    def __init__(self, step: Tensor, a: Tensor, chunk: int) -> None:
        parts = [part.cumsum(dim=1) for part in (step * a).double().split(chunk, dim=1)]
        self.sums = torch.cat(parts, dim=1)
        self.from_start = self.sums.to(step.dtype).exp()
        missing = torch.cat([part[:, -1:] - part for part in parts], dim=1)
        self.to_end = missing.to(step.dtype).exp()
        self.entering = self.to_end * step


@dataclass(frozen=True)
class Place:
    """Where a tile stands: `n_chunks` of T tokens, in `rows`."""

    rows: slice
    tokens: slice
    n_chunks: int


class Tile:
    """r rows, k chunks of T tokens, g groups of h heads each, d_state states a channel.

    Two orders of `(batch, n, heads, ...)`: `by_head` is `(r, k, g, h, T, ...)`, `by_group` is
    `(r, k, g, T, h, ...)`, both views. What lies in `space` has its first three dimensions in one.
    """

    def __init__(self, place: Place, b: Tensor, c: Tensor, space: Space) -> None:
        self.place, self.space, self.n_groups = place, space, b.shape[2]
        # (r k g, T, d_state): a view where there is one group.
        self.b, self.c = (self.by_chunk(t).transpose(2, 3).flatten(0, 2) for t in (b, c))
        self.size = self.b.shape[0]

    def by_chunk(self, x: Tensor) -> Tensor:
        """`(r, k, T, ...)`, a view."""
        return x[self.place.rows, self.place.tokens].unflatten(1, (self.place.n_chunks, -1))

    def by_head(self, x: Tensor) -> Tensor:
        return self.by_chunk(x).unflatten(3, (self.n_groups, -1)).movedim(2, 4)

    def by_group(self, x: Tensor) -> Tensor:
        return self.by_chunk(x).unflatten(3, (self.n_groups, -1)).transpose(2, 3)

    def states(self, x: Tensor) -> Tensor:
        """`(r k g, d_state, h dim)` as `(r, k, g, d_state, h dim)`."""
        return x.view(-1, self.place.n_chunks, self.n_groups, *x.shape[1:])

    def split(self, x: Tensor) -> Tensor:
        """`(r k g, T, d_state)` as `(r, k, T, g, d_state)`."""
        return self.states(x).transpose(2, 3)

    def scaled(self, name: str, x: Tensor, factor: Tensor) -> Tensor:
        """`x` times a number a head, by head in `space`: `(r, k, g, h, T, dim)`."""
        x, factor = self.by_head(x), self.by_head(factor)[..., None]
        return torch.mul(x, factor, out=self.space(name, *x.shape))

    def scaled_by_group(self, name: str, x: Tensor, factor: Tensor) -> Tensor:
        """The same, by group: `(r k g, T, h dim)`."""
        x, factor = self.by_group(x), self.by_group(factor)[..., None]
        return torch.mul(x, factor, out=self.space(name, *x.shape)).flatten(4).flatten(0, 2)

    def between(self, sums: Tensor) -> Tensor:
        """exp(sum_t - sum_s) for s <= t, else zero: `(r k g, h, T, T)`."""
        sums = self.by_head(sums).flatten(0, 2).contiguous()
        between = self.space("between", *sums.shape, sums.shape[-1])
        torch.sub(sums[..., :, None], sums[..., None, :], out=between)
        # Ahead of a token the sums grow: their exponentials, finite or not, are cut off.
        return between.exp_().tril_()

    def scores(self) -> Tensor:
        """C B^T, for all heads of a group: `(r k g, 1, T, T)`."""
        return self.product("scores", self.c, self.b.mT)[:, None]

    def product(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """Of piles of matrices."""
        out = self.space(name, left.shape[0], left.shape[1], right.shape[2])
        return torch.bmm(left, right, out=out)

    def kept(self, from_start: Tensor, dim: int) -> Tensor:
        """What each chunk leaves of a state, `(r, k, g, 1, h dim)`."""
        ends = self.by_chunk(from_start)[:, :, -1].unflatten(2, (self.n_groups, 1, -1))
        return ends[..., None].expand(*ends.shape, dim).flatten(4)


class SsdTiles(torch.autograd.Function):
    """`ssd` of fp32 or fp64 inputs; shapes as there."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        start: Tensor,
        skip: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        decays, space = Decays(step, a, chunk), Space(x)
        y, state, kept_back = torch.empty_like(x), start.clone(), []
        for place in _places(x, chunk):
            t = Tile(place, b, c, space)
            entered = t.scaled_by_group("entered", x, decays.entering)
            left = t.states(t.product("left", t.b.mT, entered))
            # Before each chunk, and after the last one.
            states = left.new_empty(left.shape[0], place.n_chunks + 1, *left.shape[2:])
            states[:, 0] = state[place.rows]
            kept = t.kept(decays.from_start, x.shape[3])
            for i in range(place.n_chunks):
                torch.addcmul(left[:, i], kept[:, i], states[:, i], out=states[:, i + 1])
            state[place.rows] = states[:, -1]
            before = states[:, :-1].flatten(0, 2)
            read = t.c @ before
            kept_back += [states, read]

            written, here = t.scaled("written", x, step), t.by_head(y)
            weights = t.between(decays.sums).mul_(t.scores()).flatten(0, 1)
            within = t.product("within", weights, written.flatten(0, 3)).view_as(written)
            from_start = t.by_head(decays.from_start)[..., None]
            torch.addcmul(within, from_start, _by_head(read, here), out=here)
            if skip is not None:
                here.addcmul_(t.by_head(x), skip.view(t.n_groups, -1, 1, 1))
        ctx.save_for_backward(x, step, a, b, c, skip, *kept_back)
        ctx.chunk = chunk
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, g_state: Tensor) -> tuple[Tensor | None, ...]:
        x, step, a, b, c, skip, *kept_back = ctx.saved_tensors
        decays, space = Decays(step, a, ctx.chunk), Space(x)
        gy, total = gy.contiguous(), g_state.clone()
        gx, g_step, gb, gc = (torch.empty_like(t) for t in (x, step, b, c))
        crossed, of_reads, of_entered = (torch.empty_like(step) for _ in range(3))
        tiles = list(zip(_places(x, ctx.chunk), kept_back[::2], kept_back[1::2], strict=True))
        for place, states, read in reversed(tiles):
            t = Tile(place, b, c, space)
            before = states[:, :-1]
            # States: their gradients after each chunk, and before the first one.
            g_read = t.scaled_by_group("g_read", gy, decays.from_start)
            through = t.states(t.product("through", t.c.mT, g_read))
            totals = space("totals", *states.shape)
            totals[:, -1] = total[place.rows]
            kept = t.kept(decays.from_start, x.shape[3])
            for i in range(place.n_chunks - 1, -1, -1):
                torch.addcmul(through[:, i], kept[:, i], totals[:, i + 1], out=totals[:, i])
            total[place.rows] = totals[:, 0]
            passed = torch.mul(totals[:, 1:], before, out=through).sum(dim=3, keepdim=True)
            passed = (passed * kept).unflatten(4, (-1, x.shape[3])).sum(dim=(3, 5))

            # What was written, by later tokens of the chunk and by its last state.
            written = t.scaled("written", x, step)
            g = space("g", *written.shape).copy_(t.by_head(gy))
            between = t.between(decays.sums)
            scores = t.scores()
            weights = torch.mul(between, scores, out=space("weights", *between.shape))
            g_after = totals[:, 1:].flatten(0, 2)
            g_entered = t.product("g_entered", t.b, g_after)
            g_written = t.product("g_written", weights.flatten(0, 1).mT, g.flatten(0, 3))
            g_written = g_written.view_as(written)
            g_written.addcmul_(t.by_head(decays.to_end)[..., None], _by_head(g_entered, g))
            torch.mul(g_written, t.by_head(step)[..., None], out=t.by_head(gx))
            torch.sum(g_written.mul_(t.by_head(x)), dim=-1, out=t.by_head(g_step))

            # Scores, and with them B and C.
            g_weights = t.product("g_weights", g.flatten(0, 3), written.flatten(0, 3).mT)
            g_weights = g_weights.view_as(between).mul_(between)
            g_scores = g_weights.sum(dim=1)  # (r k g, T, T)
            entered = t.scaled_by_group("entered", x, decays.entering)
            g_b = t.product("g_b", entered, g_after.mT).baddbmm_(g_scores.mT, t.c)
            g_c = t.product("g_c", g_read, before.flatten(0, 2).mT).baddbmm_(g_scores, t.b)
            t.by_chunk(gb).copy_(t.split(g_b))
            t.by_chunk(gc).copy_(t.split(g_c))

            # Decays: what crosses each token, by head.
            m = torch.cumsum(g_weights.mul_(scores), dim=-1, out=space("m", *between.shape))
            t.by_head(crossed).copy_(m.tril_(-1).sum(dim=-2).view(g.shape[:-1]))
            torch.sum(_by_head(g_read.mul_(read), g), dim=-1, out=t.by_head(of_reads))
            t.by_head(of_reads)[..., -1] += passed
            torch.sum(_by_head(entered.mul_(g_entered), g), dim=-1, out=t.by_head(of_entered))
        g_skip = None
        if skip is not None:
            gx.addcmul_(gy, skip[:, None])
            g_skip = (gy * x).sum(dim=(0, 1, 3))
        g_exponents = torch.cat(
            [
                _from_here(read) + functional.pad((left.cumsum(dim=1) + over)[:, :-1], (0, 0, 1, 0))
                for read, left, over in zip(
                    *(t.split(ctx.chunk, dim=1) for t in (of_reads, of_entered, crossed)),
                    strict=True,
                )
            ],
            dim=1,
        )
        g_step += g_exponents * a
        ga = (g_exponents * step).sum(dim=(0, 1))
        return gx, g_step, ga, gb, gc, total, g_skip, None


def _from_here(x: Tensor) -> Tensor:
    """Sums from each token to the last one."""
    return x.flip(1).cumsum(dim=1).flip(1)


def _by_head(x: Tensor, like: Tensor) -> Tensor:
    """`(r k g, T, h dim)` in the shape of `like`, `(r, k, g, h, T, dim)`: a view."""
    r, k, g, h, length, dim = like.shape
    return x.view(r, k, g, length, h, dim).transpose(3, 4)


def _places(x: Tensor, chunk: int) -> Iterator[Place]:
    """Tiles of whole chunks, and one of what is left behind the last of them."""
    batch, n, heads, dim = x.shape
    per_chunk = min(n, chunk) * heads * dim
    n_chunks = max(1, min(n // chunk, TILE_ELEMENTS // per_chunk))
    n_rows = max(1, TILE_ELEMENTS // (n_chunks * per_chunk))
    for row in range(0, batch, n_rows):
        rows, token = slice(row, min(row + n_rows, batch)), 0
        while token < n:
            here = min(n_chunks, (n - token) // chunk)
            end = token + here * chunk if here else n
            yield Place(rows, slice(token, end), max(1, here))
            token = end
