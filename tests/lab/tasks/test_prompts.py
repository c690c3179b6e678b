"""Prompts for inference: complete, distinct, and long documents with a fact to find."""

from __future__ import annotations

import json
import math

import pytest

from worthit.errors import InputError, UnknownName
from worthit.lab.tasks.prompts import FILE, KINDS, long_documents, prompts


def test_six_of_each_kind() -> None:
    assert len(prompts()) == 24
    assert len({prompt.id for prompt in prompts()}) == 24
    for kind in KINDS:
        assert len(prompts(kind)) == 6
    assert prompts("maths")[0].messages == [{"role": "user", "content": prompts("maths")[0].text}]
    with pytest.raises(UnknownName, match="unknown kind of prompt 'math'; did you mean maths"):
        prompts("math")
    assert json.loads(FILE.read_text(encoding="utf-8"))["licence"] == "Apache-2.0"


def test_answers_of_sums() -> None:
    results = {
        "apples": 12 * 7 - 15,
        "train": 150 // 2 * 5,
        "sum": 348 + 276,
        "change": 50 - 3 * 8,
        "garden": 14 * 9,
        "ages": (30 + 4) // 2,
    }
    assert {prompt.id: prompt.answer for prompt in prompts("maths")} == {
        name: str(result) for name, result in results.items()
    }
    assert not any(prompt.answer for kind in KINDS[:3] for prompt in prompts(kind))


def test_long_documents_hide_one_line() -> None:
    documents = long_documents(4000, depths=(0.0, 0.5, 1.0), seed=3)
    assert len({document.text for document in documents}) == 3
    for document in documents:
        assert document.text.count(document.answer) == 1
        line = f"# The code of the north gate is {document.answer}.\n"
        body = document.text.split("```python\n", 1)[1].rsplit("\n```", 1)[0]
        at = body.index(line)
        assert at == 0 or body[at - 1] == "\n"
        assert len(body) == 4000 + len(line)
        # A line's length from where it was meant to be.
        assert math.isclose(at / 4000, document.depth, abs_tol=0.08)
    assert long_documents(4000, depths=(0.0, 0.5, 1.0), seed=3) == documents
    assert long_documents(4000, depths=(0.0, 0.5, 1.0), seed=4) != documents
    with pytest.raises(InputError, match="n_chars: must be at least 200"):
        long_documents(10)
