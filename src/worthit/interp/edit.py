"""Editing a fact by a rank-one change of one feed-forward matrix (ROME).

Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv:2202.05262, section 3.
The last matrix of a feed-forward is read as a memory from keys to values, W k = v. A new pair
(k*, v*) is put in with the least change of what other keys get (equation 2):

    W' = W + (v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*),      C = mean of k k^T over text

| paper | here |
|---|---|
| k* | what `down` reads at the subject's last token, mean over prefixes (equation 3) |
| v* | `W k*` plus the `delta` that makes the target likely (equation 4: likelihood, decay, and |
|  | the KL of what follows "{subject} is a", which is to stay) |
| C | `second_moment`, uncentred; plus a small share of its mean diagonal, so that few tokens do |

One matrix holds few edits: the next one moves the last. It changes the direction that was asked
for, not its reverse, and facts that follow from it stay as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.decode.generate import left_padded
from worthit.errors import InputError
from worthit.interp.hooks import activations, intervene
from worthit.interp.patch import _frozen
from worthit.nn.decoder import Block, Decoder
from worthit.nn.ffn import FeedForward
from worthit.nn.tokens import Tokens

# Weights of the terms beside the likelihood, as in the authors' settings.
ESSENCE = 0.0625
DECAY = 0.5
# The longest change of v, as a multiple of its length.
LONGEST = 4.0
RIDGE = 1e-3


class Encodes(Protocol):
    """What is needed of a tokenizer: `worthit.decode.tokenizer.Tokenizer` and others have it."""

    def encode(self, text: str, *, has_special: bool = True) -> list[int]:
        """The ids of a text."""
        ...


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What is to be said from now on.

    Attributes:
        prompt: with `{}` where the subject stands, up to where the target begins.
        subject: what it is about.
        target: what is to follow, its leading space included.
        truth: what follows now, where it is known.
        paraphrases: other prompts with `{}` that ask for the same.
        neighbours: `(prompt, answer)` of other subjects, which must stay.
    """

    prompt: str
    subject: str
    target: str
    truth: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        problems = [
            f"{where}: must have {{}} exactly once, for the subject, got {text!r}"
            for where, text in [
                ("prompt", self.prompt),
                *((f"paraphrases[{i}]", p) for i, p in enumerate(self.paraphrases)),
            ]
            if text.count("{}") != 1
        ]
        if not self.subject.strip():
            problems.append("subject: must not be empty")
        if not self.target.strip():
            problems.append("target: must not be empty")
        if self.truth is not None and self.truth.strip() == self.target.strip():
            problems.append(f"target: equals the truth, {self.target!r}; nothing to edit")
        if problems:
            raise InputError(*problems)


@dataclass(frozen=True)
class Edit:
    """A rank-one change `value key^T` of `layers.{layer}.ffn.down`.

    Attributes:
        value: `(d_model,)`; key: `(d_ff,)`.
        likelihood: of the target after the prompt, when the value was found.
    """

    layer: int
    value: Tensor
    key: Tensor
    likelihood: float

    @contextmanager
    def applied(self, model: Decoder) -> Iterator[None]:
        """Within it, `model` has the edit; the very weights of before come back."""
        matrix = memory(model, self.layer)
        before = matrix.weight.data
        matrix.weight.data = before + torch.outer(self.value, self.key).to(before)
        try:
            yield
        finally:
            matrix.weight.data = before

    def apply(self, model: Decoder) -> None:
        """Change `model` for good."""
        weight = memory(model, self.layer).weight
        weight.data += torch.outer(self.value, self.key).to(weight)


def memory(model: Decoder, layer: int) -> nn.Linear:
    """The matrix that is read as a memory.

    Raises:
        InputError: no such layer, or it has none of this kind.
    """
    if not 0 <= layer < len(model.layers):
        raise InputError(f"layer: must be from 0 to {len(model.layers) - 1}, got {layer}")
    block = model.layers[layer]
    ffn = block.ffn
    if type(block) is not Block or type(ffn) is not FeedForward:
        raise InputError(f"layer {layer}: has no dense feed-forward, got {type(ffn).__name__}")
    if not isinstance(ffn.down, nn.Linear):
        raise InputError(f"layer {layer}: its weights are packed; load it with packed=False")
    if block.spec.placement != "pre" or ffn.spec.out_scale != 1 or block.spec.residual_scale != 1:
        raise InputError(f"layer {layer}: what its memory returns is scaled or normalised after")
    return ffn.down


@torch.inference_mode()
def second_moment(
    model: Decoder,
    layer: int,
    rows: Sequence[Sequence[int]],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """`C` `(d_ff, d_ff)`: the mean of k k^T over all but the first token of each row."""
    matrix = memory(model, layer)
    total = torch.zeros(matrix.in_features, matrix.in_features, dtype=torch.float64)
    n, point = 0, f"layers.{layer}.ffn_hidden"
    for done, row in enumerate(rows, 1):
        k = activations(model, torch.tensor([row]), point)[point][0, 1:].double()
        total += k.T @ k
        n += len(k)
        if on_progress is not None:
            on_progress(done, len(rows))
    if not n:
        raise InputError("text: needs rows of two tokens or more")
    return total / n


def find_edit(
    model: Decoder,
    tokenizer: Encodes,
    fact: Fact,
    moment: Tensor,
    *,
    layer: int,
    prefixes: Sequence[str] = ("",),
    n_steps: int = 20,
    lr: float = 0.5,
    on_progress: Callable[[int, int], None] | None = None,
) -> Edit:
    """The edit that makes `model` say `fact.target`; the model is left as it is.

    Args:
        moment: of `second_moment`, on text in the model's domain.
        prefixes: texts before the prompt, over which key and value are meant to hold.
        n_steps: of Adam on the value.
    """
    matrix = memory(model, layer)
    target = tokenizer.encode(fact.target, has_special=False)
    rows = [_with_subject(tokenizer, prefix + fact.prompt, fact.subject) for prefix in prefixes]
    essence = _with_subject(tokenizer, "{} is a", fact.subject)
    with torch.inference_mode(), _frozen(model):
        key = torch.stack([_key(model, layer, *row) for row in rows]).mean(0)
    with _frozen(model):
        value, likelihood = _find_value(
            model, layer, rows, essence, target, n_steps=n_steps, lr=lr, on_progress=on_progress
        )
    # What `down` must return for the key: its own output plus the change that was found.
    moment = moment.double()
    ridge = RIDGE * moment.diagonal().mean()
    eye = torch.eye(len(moment), dtype=torch.float64)
    toward = torch.linalg.solve(moment + ridge * eye, key.double())
    with torch.inference_mode():
        own = functional.linear(key, matrix.weight, matrix.bias)
        mean_own = torch.stack([_value(model, layer, *row) for row in rows]).mean(0)
    change = (mean_own + value - own).double()
    return Edit(layer, change, toward / (toward @ key.double()), likelihood)


def _with_subject(tokenizer: Encodes, prompt: str, subject: str) -> tuple[list[int], int]:
    """The ids of a prompt, and how far from its end the subject's last token stands."""
    before, after = prompt.split("{}")
    whole = tokenizer.encode(before + subject + after)
    upto = tokenizer.encode(before + subject)
    # A token may reach from the subject into what follows: count what both have in common.
    n = 0
    while n < min(len(whole), len(upto)) and whole[n] == upto[n]:
        n += 1
    return whole, len(whole) - max(n, 1) + 1


def _key(model: Decoder, layer: int, ids: list[int], back: int) -> Tensor:
    point = f"layers.{layer}.ffn_hidden"
    return activations(model, torch.tensor([ids]), point)[point][0, -back]


def _value(model: Decoder, layer: int, ids: list[int], back: int) -> Tensor:
    point = f"layers.{layer}.ffn_out"
    return activations(model, torch.tensor([ids]), point)[point][0, -back]


def _find_value(
    model: Decoder,
    layer: int,
    rows: Sequence[tuple[list[int], int]],
    essence: tuple[list[int], int],
    target: list[int],
    *,
    n_steps: int,
    lr: float,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, float]:
    """The change of the value at the subject (equation 4), and the target's likelihood with it."""
    prompts = [ids + target[:-1] for ids, _ in rows] + [essence[0]]
    backs = [back + len(target) - 1 for _, back in rows] + [essence[1]]
    ids, mask = left_padded(prompts, model.device)
    wanted = torch.tensor(target, device=model.device)
    n, places = len(rows), torch.tensor([ids.shape[1] - back for back in backs])
    every = torch.arange(len(prompts))
    with torch.inference_mode():
        length = float(torch.stack([_value(model, layer, *row) for row in rows]).mean(0).norm())
        plain = model(ids, attention_mask=mask)[n, -1].log_softmax(-1).clone()
    delta = torch.zeros(model.spec.d_model, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=lr * length / model.spec.d_model**0.5)

    def changed(h: Tensor, _: Tokens) -> Tensor:
        step = torch.zeros_like(h)
        step[every, places] = delta.to(h)
        return h + step

    likelihood = 0.0
    for i in range(n_steps + 1):
        with torch.enable_grad(), intervene(model, {f"layers.{layer}.ffn_out": changed}):
            logits = model(ids, attention_mask=mask)
        said = logits[:n, -len(target) :].log_softmax(-1)
        nll = -said.gather(-1, wanted.expand(n, -1)[..., None]).sum((1, 2)).mean()
        kept = logits[n, -1].log_softmax(-1)
        drift = functional.kl_div(kept, plain, log_target=True, reduction="sum")
        decay = delta.square().sum() / length**2
        likelihood = float(torch.exp(-nll.detach()))
        if on_progress is not None:
            on_progress(i, n_steps)
        if i == n_steps or likelihood > 0.98:
            break
        optimizer.zero_grad()
        (nll + ESSENCE * drift + DECAY / 10 * decay).backward()
        optimizer.step()
        with torch.no_grad():
            delta *= min(1.0, LONGEST * length / max(float(delta.norm()), 1e-12))
    return delta.detach(), likelihood


# --- what came of it ---------------------------------------------------------------------------


@dataclass(frozen=True)
class EditScores:
    """How an edit did, each a share in [0, 1] (section 3.3 of the paper).

    Attributes:
        efficacy: whether the target is likelier than the truth after the prompt.
        says: whether the target is what greedy decoding says.
        generalisation: efficacy over paraphrases; None without any.
        specificity: the share of neighbours whose answer is still likelier than the target.
    """

    efficacy: float
    says: float
    generalisation: float | None
    specificity: float | None

    def to_json(self) -> dict[str, Any]:
        """As a record."""
        return vars(self) | {}


@torch.inference_mode()
def score_edit(model: Decoder, tokenizer: Encodes, fact: Fact) -> EditScores:
    """Score `model`, edited or not, on `fact`; without a truth, against saying anything else."""

    def prefers(prompt: str, first: str, second: str | None) -> bool:
        a: float = sequence_log_probability(model, tokenizer, prompt, first)
        if second is None:
            return a > math.log(0.5)  # likelier than all else together
        b: float = sequence_log_probability(model, tokenizer, prompt, second)
        return a > b

    asked = fact.prompt.format(fact.subject)
    others = [prefers(p.format(fact.subject), fact.target, fact.truth) for p in fact.paraphrases]
    kept = [prefers(prompt, answer, fact.target) for prompt, answer in fact.neighbours]
    ids = tokenizer.encode(asked)
    target = tokenizer.encode(fact.target, has_special=False)
    logits = model(torch.tensor([ids + target[:-1]]))[0, -len(target) :]
    return EditScores(
        efficacy=float(prefers(asked, fact.target, fact.truth)),
        says=float(logits.argmax(-1).tolist() == target),
        generalisation=_mean(others),
        specificity=_mean(kept),
    )


@torch.inference_mode()
def sequence_log_probability(model: Decoder, tokenizer: Encodes, prompt: str, answer: str) -> float:
    """log p of `answer` after `prompt`, summed over its tokens."""
    ids = tokenizer.encode(prompt)
    said = tokenizer.encode(answer, has_special=False)
    logits = model(torch.tensor([ids + said[:-1]]))[0, -len(said) :].float().log_softmax(-1)
    return float(logits.gather(-1, torch.tensor(said)[:, None]).sum())


def finetune_edit(
    model: Decoder,
    tokenizer: Encodes,
    fact: Fact,
    *,
    layer: int,
    n_steps: int = 25,
    lr: float = 5e-4,
) -> Tensor:
    """The baseline: gradient descent on the same matrix until the target is likely.

    Returns:
        The change of the matrix, `(d_model, d_ff)`; the model is left as it is.
    """
    matrix = memory(model, layer)
    before = matrix.weight.data
    weight = nn.Parameter(before.clone())
    target = tokenizer.encode(fact.target, has_special=False)
    ids = torch.tensor([tokenizer.encode(fact.prompt.format(fact.subject)) + target[:-1]])
    wanted = torch.tensor(target)
    optimizer = torch.optim.Adam([weight], lr=lr)
    with _frozen(model), torch.enable_grad():
        for _ in range(n_steps):
            logits = torch.func.functional_call(
                model, {f"layers.{layer}.ffn.down.weight": weight}, (ids,)
            )
            loss = functional.cross_entropy(logits[0, -len(target) :], wanted)
            if float(torch.exp(-loss.detach() * len(target))) > 0.98:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (weight.detach() - before).clone()


def _mean(values: Iterable[bool]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
