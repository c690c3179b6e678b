"""The decision tree: grown from verdicts, and right about what it was grown from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from worthit.judge.tree import Node, Situation, grow, impurity, mermaid, outline, survey


def situation(hardware: str, prompt: int, concurrency: int, *names: str) -> Situation:
    return Situation(
        hardware=hardware,
        prompt=prompt,
        concurrency=concurrency,
        binds="decode-cache",
        gains=dict.fromkeys(names, 2.0),
    )


def leaves(node: Node) -> Iterator[Node]:
    if node.yes is None or node.no is None:
        yield node
        return
    yield from leaves(node.yes)
    yield from leaves(node.no)


# Planted: from 4000 tokens on gqa, and mamba2 there for 64 sequences or more.
PLANTED = [
    situation(
        where,
        prompt,
        concurrency,
        *(["gqa"] if prompt >= 4000 else []),
        *(["mamba2"] if prompt >= 4000 and concurrency >= 64 else []),
    )
    for where in ("a node of GPUs", "a laptop")
    for prompt in (500, 4000, 32_000)
    for concurrency in (1, 8, 64)
]


def test_impurity_is_the_hand_sum() -> None:
    # gqa in 12 of 18: 2 x 2/3 x 1/3; mamba2 in 4 of 18: 2 x 2/9 x 7/9.
    assert impurity(PLANTED) == pytest.approx(4 / 9 + 28 / 81)
    assert impurity(PLANTED[:3]) == 0


def test_a_planted_rule_is_found_again() -> None:
    root = grow(PLANTED)
    assert root.question == "prompt of 4000 or more?"
    assert root.yes is not None
    assert root.yes.question == "concurrency of 64 or more?"
    assert [leaf.always for leaf in leaves(root)] == [("gqa", "mamba2"), ("gqa",), ()]
    assert all(not leaf.sometimes for leaf in leaves(root))


def test_depth_is_a_limit() -> None:
    assert grow(PLANTED, depth=0).yes is None
    one = grow(PLANTED, depth=1)
    assert [leaf.sometimes for leaf in leaves(one)] == [("mamba2",), ()]


def test_diagram_and_text_hold_every_question_and_leaf() -> None:
    root = grow(PLANTED)
    for lines in (mermaid(root), outline(root)):
        text = "\n".join(lines)
        assert text.count("or more?") == 2
        assert text.count("keep plain attention") == 1
        assert "gqa 2.0x, mamba2 2.0x" in text


def test_the_judge_agrees_with_what_the_field_says() -> None:
    """Short prompts for few: attention stays; long ones: what has a state of fixed size wins."""
    by_place = {(s.hardware, s.prompt, s.concurrency): s for s in survey()}
    assert by_place["a node of GPUs", 500, 1].gains == {}
    long = by_place["a node of GPUs", 128_000, 64].gains
    assert long["mamba2"] > long["hybrid"] > long["gqa"] > 1
