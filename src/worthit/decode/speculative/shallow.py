"""A model drafts for itself, with fewer of its layers: by skipping some, or by leaving early.

Zhang et al. 2023, "Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative
Decoding", arXiv:2309.08168, section 3 (skipped layers); Elhoushi et al. 2024, "LayerSkip",
arXiv:2404.16710, section 4.3 (early exit, and keys, values and states that verification reuses);
Men et al. 2024, "ShortGPT", arXiv:2403.03853, section 3.1 (which layers matter least).

| paper | here |
|---|---|
| z*, the skipped layers | all but `layers` of `shallow` |
| E, exit layer | `depth` |
| KVQ cache | the target's own cache of layers 0..E, and `Target.begun` |
| BI_i = 1 - E cos(x_i, x_(i+1)) | `influence` |

Draft & Verify searches the layers by Bayesian optimisation of the measured speed; here those whose
output is nearest to their input go, the first and the last apart, which takes one pass. A model
that was not trained to be left early agrees with itself seldom: see the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.decode.speculative.accept import distribution, drawn
from worthit.decode.speculative.caches import can_take_back
from worthit.decode.speculative.drafter import NOTHING, Asked, Plain
from worthit.decode.speculative.loop import Target
from worthit.decode.speculative.tree import Tree
from worthit.decode.speculative.views import shallow
from worthit.errors import InputError
from worthit.nn.decoder import Decoder

# What layers are compared on where nobody gives ids: prose, code and numbers.
CALIBRATION = """The river rises in the hills above the town and reaches the sea after forty miles.
In 1869 a bridge of iron was built across it; two men kept the toll for 12 pence a day.
def area(points):
    total = 0.0
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1]):
        total += x0 * y1 - x1 * y0
    return abs(total) / 2
Question: how many legs do three spiders have? Answer: each has eight, so 3 x 8 = 24 legs."""


@torch.inference_mode()
def influence(model: Decoder, ids: Sequence[int]) -> list[float]:
    """How far each layer turns what it is given, from 0: ShortGPT's equation 1."""
    found: list[float] = []
    native, model.native = model.native, None  # compiled layers run in one call

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        near = functional.cosine_similarity(inputs[0].float(), output.float(), dim=-1)
        found.append(1 - float(near.mean()))

    handles = [block.register_forward_hook(note) for block in model.layers]
    try:
        model(torch.tensor([list(ids)], device=model.device))
    finally:
        for handle in handles:
            handle.remove()
        model.native = native
    return found


def without(model: Decoder, n_skipped: int, ids: Sequence[int]) -> Decoder:
    """`model` without the `n_skipped` layers that matter least to `ids`; never the first or last.

    Raises:
        InputError: more than there are between those.
    """
    n = len(model.layers)
    if not 1 <= n_skipped <= n - 2:
        raise InputError(
            f"layers: of {n} layers 1 to {n - 2} can be skipped, got {n_skipped}; the first and "
            "the last stay"
        )
    turned = influence(model, ids)
    least = sorted(range(1, n - 1), key=turned.__getitem__)[:n_skipped]
    return shallow(model, [i for i in range(n) if i not in least])


def until(model: Decoder, depth: int) -> Decoder:
    """The first `depth` layers of `model`, final norm and head: LayerSkip's draft stage."""
    n = len(model.layers)
    if not 1 <= depth < n:
        raise InputError(f"exit: must be after 1 to {n - 1} of {n} layers, got {depth}")
    return shallow(model, range(depth))


class SharedExit(Plain):
    """Drafts with the first `depth` layers on the target's own cache; they are not run again.

    For the loop of one sequence, which calls `bind`; where caches are in blocks `until` with
    `DraftModel` does the same with a cache of its own.
    """

    def __init__(self, model: Decoder, depth: int, *, name: str = "exit") -> None:
        self.model, self.depth, self.name = until(model, depth), depth, name
        if not can_take_back(model.new_cache()):
            raise InputError(
                "exit: layers with states cannot share them with a draft, which is taken back; "
                "skip layers instead (layers:N)"
            )
        self.target: Target | None = None

    def bind(self, target: Target) -> None:
        """Draft on the cache of `target`."""
        self.target = target

    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        """A chain for the one sequence of `target`."""
        (one,) = asked
        assert self.target is not None, "bind comes first"
        tokens: list[int] = []
        laws: list[Tensor] = []
        while len(tokens) < one.most:
            row = self.target.begin([*one.ids, *tokens], self.depth)
            if one.sampling.is_plain:
                tokens.append(int(row.argmax()))
                continue
            history = torch.tensor(one.ids + tokens) if one.sampling.has_history else None
            law = distribution(row, one.sampling, history, one.n_prompt)
            if one.sampling.is_greedy:
                tokens.append(int(law.argmax()))
            else:
                laws.append(law)
                tokens.append(drawn(law, one.chance()))
        if not tokens:
            return [NOTHING]
        return [Tree.chain(tokens, torch.stack(laws) if laws else None)]
