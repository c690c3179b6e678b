"""Edits: the closed form against constrained least squares, and what follows of it in a model."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from worthit.errors import InputError
from worthit.interp.edit import (
    Edit,
    Fact,
    find_edit,
    finetune_edit,
    memory,
    score_edit,
    second_moment,
    sequence_log_probability,
)
from worthit.lab import models
from worthit.nn import build

WORDS = [
    "<s>",
    "the",
    "capital",
    "of",
    "France",
    "Spain",
    "Italy",
    "is",
    "Paris",
    "Rome",
    "Madrid",
    "seat",
    "a",
    "in",
    "government",
    "city",
]


class Words:
    """A tokenizer of whole words."""

    chat_template = None

    def encode(self, text: str, *, has_special: bool = True) -> list[int]:
        return [0] * has_special + [WORDS.index(word) for word in text.split()]


def model_of():
    torch.manual_seed(0)
    model = build(models.decoder(32, n_layers=2, vocab_size=len(WORDS))).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=0.2)
    return model


FACT = Fact(
    prompt="the capital of {} is",
    subject="France",
    target=" Rome",
    truth=" Paris",
    paraphrases=("the seat of government in {} is",),
    neighbours=(("the capital of Spain is", " Madrid"),),
)


def moment(d: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(3 * d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x / len(x)


def test_the_target_is_said_and_the_model_is_left_alone() -> None:
    model, words = model_of(), Words()
    before = {name: p.clone() for name, p in model.named_parameters()}
    edit = find_edit(
        model, words, FACT, moment(memory(model, 0).in_features), layer=0, n_steps=60, lr=2.0
    )
    for name, p in model.named_parameters():
        assert_close(p, before[name], rtol=0, atol=0)
    asked = FACT.prompt.format(FACT.subject)
    assert edit.likelihood > 4 * math.exp(sequence_log_probability(model, words, asked, " Rome"))
    with edit.applied(model):
        after = score_edit(model, words, FACT)
    assert (after.efficacy, after.says) == (1.0, 1.0)
    assert_close(memory(model, 0).weight, before["layers.0.ffn.down.weight"], rtol=0, atol=0)


def test_the_change_is_the_least_that_puts_the_value_there() -> None:
    # Equation 2: W' minimises |W' K - V| subject to W' k* = v*. Its Lagrangian by a linear solve.
    model, words = model_of(), Words()
    c = moment(memory(model, 0).in_features)
    edit = find_edit(model, words, FACT, c, layer=0, n_steps=10)
    c = c + 1e-3 * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype)
    change = torch.outer(edit.value, edit.key)
    from worthit.interp.hooks import activations

    ids = torch.tensor([words.encode("the capital of France is")])
    k = activations(model, ids, "layers.0.ffn_hidden")["layers.0.ffn_hidden"][0, -2].double()
    assert_close(change @ k, edit.value)
    d = len(k)
    # [C k; k^T 0] [w; l] = [0; 1], a row of W' - W for each unit of v*.
    system = torch.zeros(d + 1, d + 1, dtype=torch.float64)
    system[:d, :d], system[:d, d], system[d, :d] = c, k, k
    wanted = torch.zeros(d + 1, dtype=torch.float64)
    wanted[d] = 1
    row = torch.linalg.solve(system, wanted)[:d]
    assert_close(edit.key, row.detach(), rtol=1e-6, atol=1e-9)


def test_the_moment_is_a_loop_over_tokens() -> None:
    model = model_of()
    rows = [[0, 1, 2, 3], [0, 4, 5]]
    from worthit.interp.hooks import activations

    total, n = 0, 0
    for row in rows:
        k = activations(model, torch.tensor([row]), "layers.1.ffn_hidden")["layers.1.ffn_hidden"][0]
        for one in k[1:].double().detach():
            total, n = total + torch.outer(one, one), n + 1
    assert_close(second_moment(model, 1, rows), total / n)


def test_the_baseline_changes_one_matrix_and_says_the_target() -> None:
    model, words = model_of(), Words()
    change = finetune_edit(model, words, FACT, layer=1, n_steps=60, lr=3e-2)
    assert all(p.grad is None for p in model.parameters())
    weight = memory(model, 1).weight
    with torch.no_grad():
        weight += change
    assert score_edit(model, words, FACT).says == 1.0


def test_scores_by_hand() -> None:
    class Says:
        """Paris after anything that mentions France, Madrid otherwise."""

        def __call__(self, ids):
            logits = torch.zeros(1, ids.shape[1], len(WORDS))
            word = "Paris" if WORDS.index("France") in ids[0] else "Madrid"
            logits[..., WORDS.index(word)] = 5.0
            return logits

    found = score_edit(Says(), Words(), FACT)
    assert (found.efficacy, found.says, found.generalisation, found.specificity) == (0, 0, 0, 1)
    swapped = Fact(
        prompt=FACT.prompt,
        subject="France",
        target=" Paris",
        truth=" Rome",
        paraphrases=FACT.paraphrases,
        neighbours=(("the capital of Italy is", " Rome"),),
    )
    found = score_edit(Says(), Words(), swapped)
    # Neither Rome nor Paris is likelier in Italy: a tie is not kept.
    assert (found.efficacy, found.says, found.generalisation, found.specificity) == (1, 1, 1, 0)


def test_facts_with_mistakes_name_all_of_them() -> None:
    with pytest.raises(InputError) as caught:
        Fact(prompt="no place", subject=" ", target="", paraphrases=("{} and {}",))
    text = str(caught.value)
    for part in ("prompt: must have {}", "paraphrases[0]", "subject: must not", "target: must not"):
        assert part in text
    with pytest.raises(InputError, match="equals the truth"):
        Fact(prompt="{} is", subject="a", target=" b", truth="b")
    with pytest.raises(InputError, match="from 0 to 1, got 7"):
        memory(model_of(), 7)


def test_an_edit_can_be_kept() -> None:
    model = model_of()
    matrix = memory(model, 0)
    before = matrix.weight.detach().clone()
    edit = Edit(0, torch.ones(32, dtype=torch.float64), torch.ones(matrix.in_features), 1.0)
    edit.apply(model)
    assert_close(matrix.weight.detach(), before + 1)
