"""Detectors of wrong answers: features by hand, and what is said of signals and of noise."""

from __future__ import annotations

import math

import pytest
import torch
from interp.tiny import model_of

from worthit.errors import InputError
from worthit.interp.detect import Answered, answer_entropy, ask, detect, is_right
from worthit.interp.hooks import activations

POINTS = ("embed", "layers.1.resid_post")


class Letters:
    """A tokenizer of single letters."""

    chat_template = None
    stop_ids: tuple[int, ...] = ()

    def encode(self, text: str, *, has_special: bool = True) -> list[int]:
        return [ord(c) % 23 for c in text]

    def decode(self, ids, *, has_special: bool = False) -> str:
        return "".join(chr(97 + i) for i in ids)


def test_features_are_those_of_the_logits() -> None:
    model = model_of("attention", "attention")
    (found,) = ask(model, Letters(), [("question", ["x"])], points=POINTS, max_tokens=3)
    ids = Letters().encode("question")
    with torch.no_grad():
        said, p = [], []
        for _ in range(3):
            logits = model(torch.tensor([ids + said]))[0, -1]
            p.append(logits.softmax(-1))
            said.append(int(logits.argmax()))
    first = p[0].sort(descending=True).values
    entropy = -sum(float(q) * math.log(float(q)) for q in p[0])
    surprise = -sum(math.log(float(q.max())) for q in p) / 3
    assert found.said == Letters().decode(said).strip()
    assert found.features["entropy"] == pytest.approx(entropy, abs=1e-4)
    assert found.features["surprise"] == pytest.approx(surprise, abs=1e-4)
    assert found.features["margin"] == pytest.approx(float((first[1] / first[0]).log()), abs=1e-4)
    want = activations(model, torch.tensor([ids]), POINTS[1])[POINTS[1]][0, -1]
    torch.testing.assert_close(found.states[POINTS[1]], want.detach(), atol=1e-5, rtol=1e-4)


def test_answers_are_compared_as_words() -> None:
    assert is_right(" The capital is Paris.", ["paris"])
    assert not is_right("Parisian", ["Paris"])
    assert is_right("Buenos  Aires", ["X", "Buenos Aires"])
    assert answer_entropy(["x.", "the x", "X"]) == pytest.approx(0)
    assert answer_entropy(["x", "y", "z", "X"]) == pytest.approx(
        -(0.5 * math.log(0.5) + 0.5 * math.log(0.25))
    )


def answered(n: int = 120, *, signal: float, state: float, words: float = 0.0):
    g = torch.Generator().manual_seed(0)
    rows = []
    for i in range(n):
        wrong = i % 3 == 0
        entropy = float(torch.randn((), generator=g)) + signal * wrong
        late, early = (torch.randn(6, generator=g) for _ in range(2))
        late[0] += state * wrong
        early[0] += words * wrong
        states = {POINTS[0]: early, POINTS[1]: late}
        rows.append(Answered(str(i), "", wrong, {"entropy": entropy}, states))
    return rows


def test_a_signal_is_found_and_the_controls_are_not() -> None:
    found = detect(answered(signal=0.0, state=5.0))
    assert found.reports[f"probe@{POINTS[1]}"].auroc.low > 0.8
    assert found.reports[f"shuffled@{POINTS[1]}"].auroc.value < 0.8
    assert found.reports["entropy"].is_useless
    assert found.accuracy == pytest.approx(2 / 3)
    assert not any("costs nothing" in c for c in found.cautions)


def test_failure_is_said() -> None:
    nothing = detect(answered(signal=0.0, state=0.0))
    assert any("nothing here is shown to detect" in c for c in nothing.cautions)
    cheap = detect(answered(signal=4.0, state=4.0))
    record = cheap.to_json()
    assert {d["name"] for d in record["detectors"]} == {
        "entropy",
        *(f"{kind}@{point}" for kind in ("probe", "shuffled") for point in POINTS),
    }
    in_words = detect(answered(signal=0.0, state=4.0, words=4.0))
    best = max(in_words.reports.values(), key=lambda r: r.auroc.value)
    if best.name == f"probe@{POINTS[1]}":
        assert any("words may be" in c for c in in_words.cautions)


def test_too_few_errors_say_nothing() -> None:
    with pytest.raises(InputError, match="5 of 15 answers are wrong, and a detector needs 8"):
        detect(answered(15, signal=1.0, state=1.0))
