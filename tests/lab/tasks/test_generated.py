"""Every generated probe: a plain loop that reads the inputs must predict each scored target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worthit.errors import InputError, UnknownName
from worthit.lab.tasks import associative_recall, needle, task
from worthit.lab.tasks._generated import BUCKETS, split_of
from worthit.lab.tasks.scores import Score, Scores
from worthit.train.batch import IGNORE, Batch

# --- solvers: from one row of inputs to {position: target} ----------------------------------------


def solve_recall(row: list[int], vocab_size: int) -> dict[int, int]:
    n_keys = (vocab_size - 1) // 2
    is_key = [0 < token <= n_keys for token in row]
    is_value = [n_keys < token for token in row]
    known: dict[int, int] = {}
    answers = {}
    for i, token in enumerate(row):
        if is_key[i] and token not in known:
            assert is_value[i + 1]
            known[token] = row[i + 1]
        elif is_key[i]:
            answers[i] = known[token]
    assert len(answers) == len(known)
    return answers


def solve_copying(row: list[int], vocab_size: int) -> dict[int, int]:
    symbols = [token for token in row if token > 1]
    places = [i for i, token in enumerate(row) if token == 1]
    assert places == list(range(len(row) - len(symbols), len(row)))
    return dict(zip(places, symbols, strict=True))


def solve_plain_copying(row: list[int], vocab_size: int) -> dict[int, int]:
    answers = solve_copying(row, vocab_size)
    # Time-invariant: the delay is one and the same for every symbol and every row.
    delay = len(row) - len(answers)
    assert all(row[place - delay] == symbol for place, symbol in answers.items())
    return answers


def solve_induction(row: list[int], vocab_size: int) -> dict[int, int]:
    first, last = (i for i, token in enumerate(row) if token == 0)
    assert last == len(row) - 1
    return {last: row[first + 1]}


def solve_needle(row: list[int], vocab_size: int) -> dict[int, int]:
    facts = {row[i + 1]: row[i + 2] for i, token in enumerate(row) if token == 1}
    at = row.index(2)
    assert set(row[at + 2 :]) <= {0}
    return {at + 1: facts[row[at + 1]]}


def solve_parity(row: list[int], vocab_size: int) -> dict[int, int]:
    odd, answers = False, {}
    for i, bit in enumerate(row):
        odd ^= bool(bit)
        answers[i] = int(odd)
    return answers


def solve_last_parity(row: list[int], vocab_size: int) -> dict[int, int]:
    return {len(row) - 1: sum(row) % 2}


def solve_sorting(row: list[int], vocab_size: int) -> dict[int, int]:
    at = row.index(0)
    answer = sorted(row[:at])
    assert row[at + 1 :] == answer[:-1]
    return {at + i: number for i, number in enumerate(answer)}


def solve_modular(row: list[int], vocab_size: int) -> dict[int, int]:
    p = vocab_size - 2
    a, plus, b, equals = row
    assert (plus, equals) == (p, p + 1)
    return {3: (a + b) % p}


PROBES: list[tuple[str, dict[str, Any], Callable[[list[int], int], dict[int, int]]]] = [
    ("associative-recall", {}, solve_recall),
    ("associative-recall", {"n_pairs": (2, 5, 16), "vocab_size": 40, "power": 1.0}, solve_recall),
    ("copying", {}, solve_plain_copying),
    ("copying", {"n_content": 1, "seq_len": 5, "vocab_size": 40}, solve_plain_copying),
    ("selective-copying", {}, solve_copying),
    ("selective-copying", {"n_content": 20, "seq_len": 41}, solve_copying),
    ("induction-heads", {}, solve_induction),
    ("induction-heads", {"seq_len": 7, "vocab_size": 5}, solve_induction),
    ("needle", {"n_held_out": 300}, solve_needle),
    ("needle", {"n_needles": 6, "lengths": (25, 90), "seq_len": 101}, solve_needle),
    ("parity", {}, solve_parity),
    ("parity", {"scored": "last", "seq_len": 9, "n_held_out": 200}, solve_last_parity),
    ("sorting", {}, solve_sorting),
    ("sorting", {"seq_len": 10, "n_values": 9}, solve_sorting),
    ("modular-arithmetic", {}, solve_modular),
    ("modular-arithmetic", {"p": 11, "train_fraction": 0.3}, solve_modular),
]
IDS = [f"{name} {options}" for name, options, _ in PROBES]


def batches(name: str, options: dict[str, Any]) -> list[Batch]:
    data = task(name, **options)
    found = [data.batch(torch.Generator().manual_seed(7), 64)]
    for split in ("validation", "test"):
        found += data.held_out(split)
    return found


@pytest.mark.parametrize(("name", "options", "solve"), PROBES, ids=IDS)
def test_a_loop_predicts_every_target(
    name: str, options: dict[str, Any], solve: Callable[[list[int], int], dict[int, int]]
) -> None:
    data = task(name, **options)
    for batch in batches(name, options):
        assert batch.input_ids.shape == batch.targets.shape
        assert batch.input_ids.shape[1] == data.seq_len
        assert batch.input_ids.dtype == batch.targets.dtype == torch.int64
        assert int(batch.input_ids.min()) >= 0
        assert max(int(batch.input_ids.max()), int(batch.targets.max())) < data.vocab_size
        assert len(batch.groups) in (0, len(batch.input_ids))
        rows = zip(batch.input_ids.tolist(), batch.targets.tolist(), strict=True)
        for inputs, targets in rows:
            scored = {i: target for i, target in enumerate(targets) if target != IGNORE}
            assert scored == solve(inputs, data.vocab_size)


# Spaces so small that training draws them many times over: leaks would show.
SMALL = [
    ("parity", {"seq_len": 9}),
    ("copying", {"n_content": 3, "seq_len": 8, "vocab_size": 8}),
    ("selective-copying", {"n_content": 2, "seq_len": 5, "vocab_size": 12}),
    ("sorting", {"seq_len": 6, "n_values": 7}),
    ("induction-heads", {"seq_len": 5, "vocab_size": 5}),
    ("associative-recall", {"n_pairs": 1, "seq_len": 6, "vocab_size": 31}),
    ("modular-arithmetic", {"p": 13}),
]


def identity(name: str, row: list[int]) -> tuple[int, ...]:
    """What makes two rows the same question."""
    if name == "sorting":
        return tuple(sorted(row[: row.index(0)]))
    if "copying" in name:
        return tuple(token for token in row if token > 1)
    if name == "modular-arithmetic":
        return tuple(sorted((row[0], row[2])))
    return tuple(row)


@pytest.mark.parametrize(("name", "options"), SMALL, ids=[name for name, _ in SMALL])
def test_splits_share_nothing(name: str, options: dict[str, Any]) -> None:
    data = task(name, **options)
    generator = torch.Generator().manual_seed(1)
    seen = {
        identity(name, row)
        for _ in range(40)
        for row in data.batch(generator, 128).input_ids.tolist()
    }
    held = {
        split: {
            identity(name, row)
            for batch in data.held_out(split)
            for row in batch.input_ids.tolist()
        }
        for split in ("validation", "test")
    }
    assert min(len(seen), len(held["validation"]), len(held["test"])) > 5
    assert not seen & (held["validation"] | held["test"])
    assert not held["validation"] & held["test"]


def test_the_key_decides_the_split_evenly() -> None:
    keys = torch.cartesian_prod(torch.arange(100), torch.arange(100))
    shares = split_of(keys).bincount(minlength=3) / len(keys)
    expected = torch.tensor([len(buckets) / 10 for buckets in BUCKETS.values()])
    # Four standard errors of a share of 10,000.
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.016)
    assert torch.equal(split_of(keys[:50]), split_of(keys)[:50])


@pytest.mark.parametrize(("name", "options", "solve"), PROBES, ids=IDS)
def test_the_same_seed_gives_the_same_data(
    name: str, options: dict[str, Any], solve: Callable[[list[int], int], dict[int, int]]
) -> None:
    first, second = batches(name, options), batches(name, options)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.targets, other.targets)
        assert one.groups == other.groups
    data = task(name, **options, seed=5)
    once, again = (next(data.held_out()).input_ids for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, next(task(name, **options).held_out()).input_ids)
    # Training moves on with its generator.
    generator = torch.Generator().manual_seed(7)
    stream = [data.batch(generator, 64).input_ids for _ in range(2)]
    assert not torch.equal(*stream)


def test_gaps_follow_the_power() -> None:
    """Slots of one question, against the weights of the definition; and power 1 is uniform."""
    for power in (0.3, 1.0):
        data = associative_recall.build(n_pairs=1, seq_len=12, power=power)
        rows = data.batch(torch.Generator().manual_seed(0), 20_000)
        slots = ((rows.targets != IGNORE).nonzero()[:, 1] - 2) // 2
        weights = torch.tensor([slot ** (power - 1) for slot in range(1, 6)])
        shares = slots.bincount(minlength=5) / len(slots)
        torch.testing.assert_close(shares, weights / weights.sum(), rtol=0, atol=0.015)


def test_groups_say_what_they_mean() -> None:
    recall = task("associative-recall", n_pairs=(2, 5))
    for batch in recall.held_out():
        for targets, group in zip(batch.targets, batch.groups, strict=True):
            assert group == f"{int((targets != IGNORE).sum())} pairs"
    induction = task("induction-heads", seq_len=40)
    for batch in induction.held_out():
        for row, group in zip(batch.input_ids.tolist(), batch.groups, strict=True):
            low, _, high = group.partition(" ")[0].rstrip("%").partition("-")
            assert int(low) <= 100 * (39 - row.index(0)) / 40 < int(high)
    haystack = task("needle", n_needles=3, seq_len=128)
    for batch in haystack.held_out():
        for row, group in zip(batch.input_ids.tolist(), batch.groups, strict=True):
            length, _, depth = group.partition("@")
            question = row.index(2)
            assert question + 2 == int(length)
            asked = next(i for i in range(question) if row[i : i + 2] == [1, row[question + 1]])
            n_blocks = question // 3
            assert int(depth.rstrip("%")) // 20 == asked // 3 * 5 // n_blocks
    groups = {g for batch in haystack.held_out() for g in batch.groups}
    # 32, 64 and 128 tokens: an eighth would be too short.
    assert len(groups) == 3 * 5


def test_effective_context_stops_at_the_first_failure() -> None:
    def found(right: int) -> Score:
        return Score(n_rows=10, n_tokens=10, n_right_tokens=right, n_right_rows=right)

    scores = Scores(
        by_group={"32@0%": found(10), "32@80%": found(9), "64@0%": found(9), "128@0%": found(2)}
        | {"256@0%": found(10)}
    )
    assert needle.effective_context(scores) == 64
    assert needle.effective_context(scores, threshold=0.93) == 32
    assert needle.effective_context(scores, threshold=0.99) == 0
    assert needle.by_length(scores)[32].exact_match == 19 / 20


def test_a_haystack_is_as_unequal_as_words() -> None:
    data = task("needle", n_fillers=4, n_keys=2, lengths=(256,), n_held_out=500)
    tokens = torch.cat([batch.input_ids for batch in data.held_out()]).flatten()
    shares = tokens[tokens >= 7].bincount(minlength=11)[7:].double()
    zipf = torch.tensor([1, 1 / 2, 1 / 3, 1 / 4], dtype=torch.float64)
    torch.testing.assert_close(shares / shares.sum(), zipf / zipf.sum(), rtol=0, atol=0.01)


def test_modular_tables_hold_both_orders_or_not() -> None:
    def cells(split: str, **options: Any) -> set[tuple[int, int]]:
        data = task("modular-arithmetic", p=23, **options)
        return {(r[0], r[2]) for batch in data.held_out(split) for r in batch.input_ids.tolist()}

    train, test = cells("train"), cells("test")
    assert all((b, a) in train for a, b in train)
    assert len(train) + len(test) + len(cells("validation")) == 23 * 23
    apart = cells("train", keeps_pairs=False, train_fraction=0.3)
    assert len(apart) == round(0.3 * 23 * 23)
    assert any((b, a) not in apart for a, b in apart)
    # Subtraction does not commute: nothing to keep together.
    assert any((b, a) not in cells("train", operation="subtract") for a, b in train)


@pytest.mark.parametrize(
    ("operation", "result"), [("subtract", 3 - 5), ("multiply", 15), ("squares", 34)]
)
def test_modular_operations(operation: str, result: int) -> None:
    data = task("modular-arithmetic", p=7, operation=operation)
    for split in ("train", "validation", "test"):
        for batch in data.held_out(split):
            for row, targets in zip(batch.input_ids.tolist(), batch.targets.tolist(), strict=True):
                if (row[0], row[2]) == (3, 5):
                    assert targets[-1] == result % 7
                    return
    raise AssertionError("3 and 5 are in no split")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("associative-recall", {"n_pairs": 8, "seq_len": 31}, "seq_len: must be at least 32"),
        ("associative-recall", {"n_pairs": 0}, "n_pairs: must be positive"),
        ("associative-recall", {"vocab_size": 12}, "vocab_size: must be at least 17"),
        ("associative-recall", {"power": 0.0}, "power: must be positive"),
        ("copying", {"seq_len": 15}, "seq_len: must be at least 16, got 15"),
        ("selective-copying", {"vocab_size": 3}, "vocab_size: must be at least 4"),
        ("needle", {"lengths": (512,)}, "lengths: must lie between 17 .* and seq_len=256"),
        ("needle", {"n_needles": 9, "n_keys": 8}, "n_keys: must be at least 9"),
        ("parity", {"scored": "first"}, "unknown setting of scored 'first'"),
        ("parity", {"n_held_out": 0}, "n_held_out: must be positive"),
        ("sorting", {"seq_len": 7}, "seq_len: must be even, got 7; give 8"),
        ("modular-arithmetic", {"operation": "sum"}, "unknown operation 'sum'"),
        ("modular-arithmetic", {"train_fraction": 1.0}, "train_fraction: must lie between"),
        ("modular-arithmetic", {"train_fraction": 0.001, "p": 5}, "leaves a split empty"),
        ("length-extrapolation", {"of": "digits"}, "of: must be a task whose seq_len"),
        ("length-extrapolation", {"of": "length-extrapolation"}, "of: must be a task whose"),
        ("length-extrapolation", {"factors": (0, 1)}, "factors: must be at least 1"),
        ("length-extrapolation", {"spilt": 1}, "unknown option of induction-heads 'spilt'"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(name, **options)


def test_too_few_examples_are_told() -> None:
    data = task("parity", seq_len=2)
    used = {int(place) for place in split_of(torch.cartesian_prod(*[torch.arange(2)] * 2))}
    # Four sequences: at least one of the three splits has none of them, or there is nothing to see.
    empty = next(split for i, split in enumerate(BUCKETS) if i not in used)
    with pytest.raises(InputError, match="parity: has too few examples to hold any out"):
        next(data.held_out(empty))
    with pytest.raises(UnknownName, match="unknown split 'tests'; did you mean test"):
        next(data.held_out("tests"))


# --- longer than in training ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "solve"),
    [
        ("induction-heads", solve_induction),
        ("associative-recall", solve_recall),
        ("selective_copying", solve_copying),
        ("parity", solve_parity),
        ("sorting", solve_sorting),
    ],
)
def test_longer_tests_are_the_same_task(
    of: str, solve: Callable[[list[int], int], dict[int, int]]
) -> None:
    data = task("length-extrapolation", of=of, seq_len=32, factors=(1, 2, 8), n_held_out=40)
    assert data.batch(torch.Generator().manual_seed(0), 8).input_ids.shape == (8, 32)
    for factor in (1, 2, 8):
        for batch in data.held_out(f"test-{factor}x"):
            assert batch.input_ids.shape == (40, 32 * factor)
            for inputs, targets in zip(
                batch.input_ids.tolist(), batch.targets.tolist(), strict=True
            ):
                scored = {i: target for i, target in enumerate(targets) if target != IGNORE}
                assert scored == solve(inputs, data.vocab_size)
    assert torch.equal(next(data.held_out()).input_ids, next(data.held_out("test-1x")).input_ids)
    with pytest.raises(UnknownName, match="unknown split 'test-4x'; did you mean"):
        data.held_out("test-4x")
