"""What heads minimise on the target's own outputs, and how many of their guesses are right.

Heads are taught the target's distribution over the tokens that they know (Hinton et al. 2015,
arXiv:1503.02531), at the places where the target chose for itself:

| kind | from | to the target's distribution at |
|---|---|---|
| medusa, head k | the last state of token t | t + k (Cai et al. 2024, arXiv:2401.10774, section 3.2.1) |
| eagle, step s | features to t - s, own outputs after | t + 1, beside token t + 1 |
| exit | the stream of an early layer at t | t |

EAGLE's steps are those of drafting (Li et al. 2025, EAGLE-3, arXiv:2503.01840, section 3.2,
"training-time test"): from step 1 on the layer reads its own outputs, in a pass over all places at
once. What place i of step s sees is what a draft begun s tokens earlier would: true keys up to
i - s, and then one key a step, its own.
"""  # noqa: E501 - a row of a table is one line

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.decode.speculative.eagle import Eagle
from worthit.decode.speculative.exit_head import ExitHead
from worthit.decode.speculative.heads import Heads
from worthit.decode.speculative.medusa import Medusa
from worthit.nn.decoder import Decoder
from worthit.nn.tokens import Tokens

# Steps of drafting that EAGLE is trained on; later ones count less, as they are reached less.
N_STEPS = 3
FADING = 0.8


@dataclass(frozen=True)
class Lesson:
    """Some rows of `own_outputs.Outputs`: ids and `is_said` `(b, n)`, features `(b, n, width)`."""

    ids: Tensor
    is_said: Tensor
    features: Tensor


class Teacher:
    """The target's own distribution over the tokens that heads know, from its last stream."""

    def __init__(self, model: Decoder, heads: Heads) -> None:
        assert heads.head is not None
        self.norm, self.rows = model.final_norm, heads.head.weight
        self.scale, self.cap = model.spec.logit_scale, model.spec.logit_softcap

    @torch.no_grad()
    def __call__(self, streams: Tensor) -> Tensor:
        """`(n, draft_vocab)` of streams `(n, d_model)`."""
        states = streams if self.norm is None else self.norm(streams)
        logits = functional.linear(states, self.rows).float() * self.scale
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits.softmax(dim=-1)


def guesses(heads: Heads, lesson: Lesson) -> list[tuple[Tensor, Tensor]]:
    """For each head or step: its logits `(m, draft_vocab)`, and the places `(m,)` they are of.

    A place is that of the guessed token, in `lesson.ids.flatten()`; places that the target did not
    choose are left out.
    """
    b, n = lesson.ids.shape
    places = torch.arange(b * n, device=lesson.ids.device).view(b, n)
    found = []
    if isinstance(heads, Eagle):
        features, following = lesson.features[:, :-2], lesson.ids[:, 1:-1]
        for outputs in unrolled(heads, features, following, N_STEPS):
            is_asked = lesson.is_said[:, 2:]
            found.append((heads.logits(outputs[is_asked]), places[:, 2:][is_asked]))
    elif isinstance(heads, Medusa):
        for k, turned in enumerate(heads.turned(heads.states(lesson.features))):
            ahead = k + 2
            is_asked = lesson.is_said[:, ahead:]
            logits = heads.read(turned[:, :-ahead][is_asked])
            found.append((logits, places[:, ahead:][is_asked]))
    else:
        assert isinstance(heads, ExitHead)
        is_asked = lesson.is_said[:, 1:]
        early = lesson.features[..., : heads.d_model]
        found.append((heads(early[:, :-1][is_asked]), places[:, 1:][is_asked]))
    return found


def lesson_loss(heads: Heads, teacher: Teacher, lesson: Lesson) -> Tensor:
    """Mean cross-entropy to the target's distribution, in nats; later steps fade."""
    streams = lesson.features[..., -heads.d_model :].flatten(0, 1)
    total, weight = streams.new_zeros((), dtype=torch.float32), 0.0
    taught: Tensor | None = None
    for step, (logits, places) in enumerate(guesses(heads, lesson)):
        if not len(places):
            # Nothing was said in these rows: a loss of zero, that a gradient still goes through.
            total = total + logits.float().sum()
            continue
        # All steps of EAGLE are about the same places.
        if taught is None or not isinstance(heads, Eagle):
            taught = teacher(streams[places - 1])
        logps = logits.float().log_softmax(dim=-1)
        total = total - FADING**step * (taught * logps).sum(dim=-1).mean()
        weight += FADING**step
    return total / max(weight, 1e-9)


@torch.no_grad()
def agreement(heads: Heads, lesson: Lesson) -> Tensor:
    """Of greedy texts: whether each guess is the token that came, `(steps, places)`, as floats.

    Column i is a draft begun before the i-th place that all steps reach; what step s says in it
    counts only where those before it were right, so a column reads 1, 1, 0, 0 at most.
    """
    b, n = lesson.ids.shape
    steps = guesses(heads, lesson)
    is_right = torch.zeros(len(steps), b * n, device=lesson.ids.device)
    is_asked = torch.zeros_like(is_right, dtype=torch.bool)
    for step, (logits, places) in enumerate(steps):
        said = heads.ids[logits.argmax(dim=-1)]
        is_right[step, places] = (said == lesson.ids.flatten()[places]).float()
        is_asked[step, places] = True
    # Step s of a draft is about the place s later.
    last = b * n - len(steps) + 1
    rows = [is_right[s, s : s + last] for s in range(len(steps))]
    asked = [is_asked[s, s : s + last] for s in range(len(steps))]
    together = torch.stack(asked).all(dim=0)
    return torch.stack(rows)[:, together].cumprod(dim=0)


class _Kept:
    """A cache in a pass that is learned from: one pair of tensors a step, side by side."""

    is_observing = False

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys.append(keys)
        self.values.append(values)
        return torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)


def unrolled(heads: Eagle, features: Tensor, next_ids: Tensor, n_steps: int) -> list[Tensor]:
    """The layer's outputs of each step of drafting, `(b, n, d_model)` a step.

    Args:
        features: `(b, n, n_taps * d_model)`.
        next_ids: `(b, n)`, the token after each of these.

    At place i of step s the layer has read true features up to i - s and its own outputs since;
    the first s places of a step mean nothing.
    """
    n = features.shape[1]
    embedded = heads.embedded(next_ids).to(features.dtype)
    current, kept = heads.fused(features), _Kept()
    places = torch.arange(n, device=features.device)
    found: list[Tensor] = []
    for step in range(n_steps):
        tokens = Tokens(
            n=n,
            past=step * n,
            positions=places[None],
            slot_positions=places.repeat(step + 1)[None],
            among=seen_in_step(n, step).to(features.device),
        )
        outputs = heads.layer(embedded, current, tokens, [kept])
        found.append(outputs)
        current = functional.pad(outputs[:, :-1], (0, 0, 1, 0))
    return found


def seen_in_step(n: int, step: int) -> Tensor:
    """`(n, (step + 1) n)` booleans: the true keys up to i - step, then one key of each step."""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    parts = [j <= i - step, *(j == i - step + r for r in range(1, step + 1))]
    return torch.cat(parts, dim=1)


def warm_start(heads: Heads, model: Decoder) -> None:
    """Give EAGLE's layer the target's last weights where the shapes agree: it is like them."""
    if not isinstance(heads, Eagle):
        return
    layer = heads.layer
    own: dict[str, Any] = layer.block.state_dict()
    theirs = model.layers[-1].state_dict()
    same = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    layer.block.load_state_dict({**own, **same})
    if model.final_norm is not None:
        layer.out_norm.load_state_dict(model.final_norm.state_dict())
    d = heads.d_model
    with torch.no_grad():
        nn.init.normal_(layer.project.weight, std=0.5 * d**-0.5)
        layer.project.weight[:, d:] += torch.eye(d)
