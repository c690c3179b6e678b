"""Questions of the lab with their checks, curves from known answers, and students that stop."""

from __future__ import annotations

import pytest
import torch
from decode.tiny import byte_level
from reason.models import Script
from torch import nn

from worthit.decode.tokenizer import Tokenizer
from worthit.errors import InputError
from worthit.lab import reasoning
from worthit.lab.experiments._reasoning import step_accuracy, teach
from worthit.lab.reason_curve import curve, doubled, of_revisions
from worthit.lab.tasks import grammar_tutor, task, worked_sums
from worthit.reason import Chosen, Draft, Generator
from worthit.train import Recipe


def draft(text: str) -> Draft:
    return Draft(ids=(), text=text, logprob=-1.0, n_said=len(text), is_ended=True)


def test_sums_have_checks_of_answers_and_of_steps() -> None:
    kind = reasoning.sums(5, n_terms=3, seed=0)
    assert kind.is_checked
    for question in kind.questions:
        digits = [int(d) for d in question.text.rstrip("=").split("+")]
        first, total = (digits[0] + digits[1]) % 10, sum(digits) % 10
        answer = f"{first}{total}{total}"
        assert worked_sums.decode(question.prompt) == question.text
        assert question.is_right(answer)
        assert not question.is_right(f"{(first + 1) % 10}{total}{total}")
        right = f"{digits[0]}+{digits[1]}:{first};"
        wrong = f"{digits[0]}+{digits[1]}:{(first + 1) % 10};"
        assert kind.step_score is not None
        assert kind.step_score(question, [draft(right), draft(wrong), draft("")]) == [1, 0, 1]
        assert kind.again is not None
        prompt = kind.again(question, [draft(right + "#3"), draft(wrong)])
        assert worked_sums.decode(prompt) == f"{question.text}{right}~{wrong}~"


def test_forms_are_checked_by_the_tutor() -> None:
    kind = reasoning.tutor(6, seed=0)
    for question in kind.questions:
        assert all(question.is_right(a) for a in grammar_tutor.answers(question.text))
        assert not question.is_right("xyz")


def test_arithmetic_in_words() -> None:
    tokenizer = Tokenizer(byte_level(), special={}, chat_template=None)
    kind = reasoning.arithmetic(200, tokenizer, seed=0, signs="+-")
    # 81 sums, and as many differences as are not below zero.
    assert len({q.text for q in kind.questions}) == 81 + 45
    for question in kind.questions:
        asked = question.text.removeprefix("What is ").removesuffix("?")
        a, sign, b = asked.split()
        assert question.is_right(str(int(a) + int(b) if sign == "+" else int(a) - int(b)))
        assert asked in tokenizer.decode(question.prompt)
    assert kind.again is not None
    again = tokenizer.decode(kind.again(kind.questions[0], [draft("17")]))
    assert "17" in again
    assert reasoning.CHECK_AGAIN in again
    free = reasoning.one("Who are you?", tokenizer, is_checked=False)
    assert not free.is_checked
    with pytest.raises(InputError, match="needs one sum or product"):
        reasoning.one("Who are you?", tokenizer, is_checked=True)


def test_a_curve_of_known_answers() -> None:
    # Greedy is wrong; of four samples two are right, and the others differ.
    end = 0
    script = Script([2, end], [1, end], [2, end], [1, end], [3, end])
    generator = Generator(script, lambda ids: "".join(map(str, ids)), (end,))
    question = reasoning.Question(text="?", prompt=(5,), is_right=lambda a: a == "1")
    kind = reasoning.Kind(questions=(question,), read_answer=str, max_tokens=4)
    record = curve(generator, kind, n=4, n_revisions=0, seed=0)
    found = {(p["strategy"], p["setting"]): p["accuracy"] for p in record["points"]}
    assert found["one greedy answer", 1] == 0
    assert found["best-of-n, exact check", 2] == pytest.approx(1 - 1 / 6)
    assert found["self-consistency", 4] == 1
    # Two of six pairs hold no right one; of four mixed pairs a random one is given.
    assert found["self-consistency", 2] == pytest.approx((1 + 4 * 0.5) / 6)
    assert record["questions"][0] == {
        "text": "?",
        "greedy": "2",
        "is_greedy_right": False,
        "n_right": 2,
        "n": 4,
    }
    assert doubled(6) == [1, 2, 4, 6]


def test_revisions_by_their_last_and_by_a_vote() -> None:
    question = reasoning.Question(text="?", prompt=(5,), is_right=lambda a: a == "1")
    kind = reasoning.Kind(questions=(question,), read_answer=str, max_tokens=4)
    texts = ["2", "1", "1"]
    one = Chosen(
        question=question,
        draft=None,
        answer=None,
        n_said=3,
        drafts=tuple(draft(t) for t in texts),
    )
    found = {(p.strategy, p.setting): (p.accuracy, p.n_tokens) for p in of_revisions([one], kind)}
    assert found["revision, the last", 2] == (1.0, 2)
    # The later of equals.
    assert found["revision, a vote", 2] == (1.0, 2)
    assert found["revision, a vote", 1] == (0.0, 1)


class Solver(nn.Module):
    """Says what follows, and of steps every second one wrong."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        said = self.rows.clamp(min=0)
        said[::2] = (said[::2] + 1) % worked_sums.VOCAB_SIZE
        return nn.functional.one_hot(said, worked_sums.VOCAB_SIZE).float()


def test_steps_are_counted_where_results_stand() -> None:
    rows = next(iter(task("worked-sums", n_terms=3, n_held_out=8).held_out("validation")))
    assert step_accuracy(Solver(rows.targets), rows) == pytest.approx(0.5)


def test_a_student_stops_when_it_has_learned() -> None:
    from worthit.lab import models
    from worthit.lab.context import fitted
    from worthit.train import seeded

    data = task("worked-sums", n_terms=2)
    model = seeded(fitted(models.decoder(16, n_layers=1), data))(0)
    steps = []
    recipe = Recipe(n_steps=10_000, batch_size=4, lr=1e-3, eval_every=0)
    model.register_forward_hook(lambda *_: steps.append(1))
    teach(model, data, recipe, seed=0, until=0.0)
    assert len(steps) < 12
