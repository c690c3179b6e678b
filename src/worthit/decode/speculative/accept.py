"""Which of the guesses are kept, so that what is said is the target's own: exactly.

Leviathan et al. 2022, arXiv:2211.17192, algorithm 1 and appendix A.1; Chen et al. 2023,
arXiv:2302.01318, theorem 1; for siblings Miao et al. 2023, SpecInfer, arXiv:2305.09781, algorithm
2.

| paper | here |
|---|---|
| p(x), the target's distribution | `p` |
| q(x), the draft's | `tree.q`; None is the point mass on the token itself |
| r ~ U(0, 1) | `chance()`, a fresh number each time |
| norm(max(0, p(x) - q(x))) | `residual` |

For a point mass the rule (accept x with probability p(x), else draw from p without x) is the law of
one draw from p that is compared with the guess. It is done so: with as many numbers of chance as
without guesses, the same seed then says the same with and without them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worthit.decode.sampling import Sampling, adjust, draw, restrict
from worthit.decode.speculative.tree import ROOT, Tree


def pick(p: Tensor, tree: Tree, node: int, chance: Callable[[], float]) -> tuple[int, int]:
    """The token said after `node`, and the child of the tree that it is; `ROOT` for none.

    Args:
        p: `(vocab_size,)`, what the target says after `node`: all settings applied, sums to 1.
        tree: the guess.
        node: of the tree, or `ROOT`.
    """
    children = tree.children(node)
    if tree.q is None:
        token = drawn(p, chance())
        return token, child_of(tree, node, token)
    rest = p.double()
    for child in children:
        token, q = tree.tokens[child], tree.q[child].double()
        # u q(x) < p(x) and not u < p(x) / q(x): a token that q never gives may be asked about too.
        if chance() * float(q[token]) < float(rest[token]):
            return token, child
        rest = residual(rest, q)
    return drawn(rest, chance()), ROOT


def child_of(tree: Tree, node: int, token: int) -> int:
    """The child of `node` that guesses `token`; `ROOT` for none."""
    return next((i for i in tree.children(node) if tree.tokens[i] == token), ROOT)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What of `p` `(..., vocab_size)` the draws of `q` do not cover, normalised.

    Where rounding leaves nothing (p and q are the same), it is `p`.
    """
    left = (p - q).clamp_min(0)
    total = left.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, left / total.clamp_min(torch.finfo(left.dtype).tiny), p)


def drawn(p: Tensor, chance: float) -> int:
    """The token at which the running sum of `p` `(vocab_size,)` passes `chance`."""
    return int(draw(p[None], torch.tensor([chance], dtype=torch.float64))[0])


def accept_chains(
    p: Tensor, tokens: Tensor, q: Tensor | None, chances: Tensor
) -> tuple[Tensor, Tensor]:
    """`pick` down many chains at once: how many guesses each keeps, and the token after them.

    Args:
        p: `(batch, k + 1, vocab_size)`, the target's after each guess.
        tokens: `(batch, k)`, the guesses.
        q: `(batch, k, vocab_size)` that they were drawn from; None where they were picked.
        chances: `(batch, k + 1)`, from 0 to below 1: one a guess, and one for the last draw.

    Returns:
        `(batch,)` twice.
    """
    batch, k = tokens.shape
    each = torch.arange(batch)
    at_guess = p[:, :k].gather(2, tokens[..., None])[..., 0]
    odds = 1.0 if q is None else q.gather(2, tokens[..., None])[..., 0]
    is_kept = chances[:, :k] * odds < at_guess
    n_kept = is_kept.long().cumprod(dim=1).sum(dim=1)
    rest = p[each, n_kept]
    some = n_kept < k
    where, places = each[some], n_kept[some]
    if q is None:
        covered = torch.zeros_like(rest[some])
        guess = tokens[where, places][:, None]
        covered.scatter_(1, guess, rest[some].gather(1, guess))
    else:
        covered = q[where, places]
    rest[some] = residual(rest[some], covered)
    return n_kept, draw(rest, chances[:, k])


def distribution(
    logits: Tensor, sampling: Sampling, history: Tensor | None = None, n_prompt: int = 0
) -> Tensor:
    """The target's distribution `(vocab_size,)`: penalties, temperature and truncation applied.

    A greedy one is the point mass on its largest logit.

    Args:
        logits: `(vocab_size,)`.
        history: all ids before this place, drafted ones included; needed where penalties are asked.
        n_prompt: how many of them are the prompt, which counts for repeats alone.
    """
    was_there = counts = None
    if sampling.has_history:
        assert history is not None
        was_there = torch.zeros(1, len(logits), dtype=torch.bool)
        was_there[0, history] = True
        counts = torch.bincount(history[n_prompt:], minlength=len(logits))[None].float()
    row = adjust(logits[None].float(), sampling, was_there=was_there, counts=counts)
    if sampling.is_greedy:
        mass = torch.zeros_like(row[0])
        mass[row[0].argmax()] = 1.0
        return mass
    return restrict(row, sampling).softmax(dim=-1)[0]
