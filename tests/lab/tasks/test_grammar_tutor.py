"""The grammar tutor: questions, splits and rows, read back from the tokens alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from worthit.errors import InputError, UnknownName
from worthit.lab.tasks import grammar_tutor, task
from worthit.lab.tasks.grammar_tutor import check, decode, encode
from worthit.spec.resolve import resolve_model
from worthit.train.batch import IGNORE

SPLITS = ("train", "validation", "test")


def read_rows(data: grammar_tutor.GrammarTutor, split: str) -> list[tuple[str, str]]:
    """Question and answer of every row, from its tokens: inputs up to `<=>`, then targets."""
    found = []
    for batch in data.held_out(split):
        for inputs, targets in zip(batch.input_ids.tolist(), batch.targets.tolist(), strict=True):
            question = inputs[: inputs.index(encode("<=>")[0]) + 1]
            answer = [target for target in targets if target != IGNORE]
            found.append((decode(question), decode(answer)))
    return found


def test_fits_the_preset() -> None:
    spec = resolve_model("grammar-tutor")
    data = task("grammar-tutor")
    assert (data.vocab_size, data.seq_len) == (spec.vocab_size, spec.context_len) == (128, 32)
    longest = max(len(encode(e.prompt + e.answer + "<end>")) for e in grammar_tutor.examples())
    assert longest == 32


def test_counts() -> None:
    """Six questions a cell of 300; twenty are ambiguous.

    "I read", "you read": present and past, each asked for its tense and its translation (8).
    "yo fui", "tú fuiste", "él fue": be and go, asked for the same (12).
    """
    assert len(grammar_tutor.examples()) == 1800 - 8 - 12
    assert Counter(e.language for e in grammar_tutor.examples() if e.task == "conjugate") == {
        "en": 300,
        "es": 300,
    }


def test_no_question_has_two_answers_or_two_cells() -> None:
    prompts = Counter(example.prompt for example in grammar_tutor.examples())
    assert max(prompts.values()) == 1


@pytest.mark.parametrize("split", ["form", "verb"])
def test_splits_share_neither_questions_nor_cells(split: str) -> None:
    data = grammar_tutor.build(split=split)
    cells = [{example.cell for example in data.examples[name]} for name in SPLITS]
    questions = [{question for question, _ in read_rows(data, name)} for name in SPLITS]
    for parts in (cells, questions):
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts))


def test_a_split_by_form_holds_out_a_tenth_of_each_tense_and_person() -> None:
    data = grammar_tutor.build(seed=3)
    for split, n in (("train", 16), ("validation", 2), ("test", 2)):
        held = Counter((tense, person) for _, tense, person in cells_of(data, split))
        assert set(held.values()) == {n}
        assert len(held) == 15


def cells_of(data: grammar_tutor.GrammarTutor, split: str) -> set[tuple[str, str, str]]:
    return {example.cell for example in data.examples[split]}


def test_a_split_by_verb_asks_what_rules_can_answer() -> None:
    data = grammar_tutor.build(split="verb")
    seen = {example.verb.infinitives["en"] for example in data.examples["train"]}
    for split, names in (("test", "talk plan touch receive"), ("validation", "copy fear")):
        held = {example.verb.infinitives["en"] for example in data.examples[split]}
        assert held == set(names.split())
        assert not held & seen
        assert {example.task for example in data.examples[split]} == {"conjugate", "identify"}
        assert {example.group("regularity") for example in data.examples[split]} == {"regular"}
    # 15 cells, two languages, two questions.
    assert len(data.examples["test"]) == 4 * 15 * 2 * 2


def test_rows_ask_and_answer_the_examples() -> None:
    data = grammar_tutor.build()
    for split in SPLITS:
        asked = [(example.prompt, example.answer) for example in data.examples[split]]
        assert read_rows(data, split) == asked
        assert all(check(question, answer) for question, answer in asked)


def test_targets_are_the_next_tokens() -> None:
    batch = task("grammar-tutor").batch(torch.Generator().manual_seed(0), 64)
    assert batch.input_ids.shape == batch.targets.shape == (64, 32)
    assert batch.input_ids.dtype == batch.targets.dtype == torch.int64
    end = encode("<end>")[0]
    for inputs, targets in zip(batch.input_ids.tolist(), batch.targets.tolist(), strict=True):
        scored = [i for i, target in enumerate(targets) if target != IGNORE]
        assert scored == list(range(scored[0], scored[-1] + 1))
        assert inputs[scored[0]] == encode("<=>")[0]
        assert targets[scored[-1]] == end
        assert [targets[i] for i in scored[:-1]] == [inputs[i + 1] for i in scored[:-1]]
        assert set(inputs[scored[-1] + 1 :]) <= {encode("<pad>")[0]}


def test_the_same_seed_gives_the_same_data() -> None:
    batches = [
        task("grammar-tutor", seed=seed).batch(torch.Generator().manual_seed(g), 32)
        for seed, g in ((1, 5), (1, 5), (1, 6), (2, 5))
    ]
    assert torch.equal(batches[0].input_ids, batches[1].input_ids)
    assert batches[0].groups == batches[1].groups
    assert not torch.equal(batches[0].input_ids, batches[2].input_ids)
    assert cells_of(grammar_tutor.build(seed=1), "test") != cells_of(
        grammar_tutor.build(seed=2), "test"
    )


def test_groups_name_tense_and_person() -> None:
    data = grammar_tutor.build()
    groups = [group for batch in data.held_out("test") for group in batch.groups]
    assert len(set(groups)) == 15
    assert groups[: len(data.examples["test"])] == [
        f"{example.tense}/{example.person}" for example in data.examples["test"]
    ]
    by_task = grammar_tutor.build(group_by="task")
    assert {g for b in by_task.held_out() for g in b.groups} == {
        "conjugate",
        "translate",
        "identify",
    }


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("<conj><past><3>buscar<=>", "buscó", "buscé"),
        ("<conj><past><1>buscar<=>", "busqué", "buscé"),
        ("<conj><present><3>study<=>", "studies", "studys"),
        ("<to-en>él ha escrito<=>", "has written", "has written "),
        ("<to-es>you went<=>", "fuiste", "Fuiste"),
        ("<tense>he would be<=>", "<conditional>", "conditional"),
    ],
)
def test_check(prompt: str, right: str, wrong: str) -> None:
    assert check(prompt, right)
    assert not check(prompt, wrong)
    assert not check(prompt, "")
    assert decode([*encode(right + "<end>"), 17]) == right


def test_ambiguous_questions_take_every_right_answer() -> None:
    assert grammar_tutor.answers("<to-en>yo fui<=>") == {"was", "went"}
    assert grammar_tutor.answers("<tense>I read<=>") == {"<present>", "<past>"}
    assert grammar_tutor.answers("<tense>he read<=>") == {"<past>"}


def test_bad_input() -> None:
    with pytest.raises(UnknownName, match="unknown split 'forms'; did you mean form"):
        task("grammar-tutor", split="forms")
    with pytest.raises(UnknownName, match="unknown option of grammar-tutor 'spilt'"):
        task("grammar-tutor", spilt="form")
    with pytest.raises(UnknownName, match="unknown task 'identity'; did you mean identify"):
        task("grammar-tutor", tasks=["identity"])
    with pytest.raises(UnknownName, match="unknown grouping 'tense'"):
        task("grammar-tutor", group_by="tense")
    with pytest.raises(InputError, match="never seen cannot be translated"):
        task("grammar-tutor", split="verb", tasks=["translate"])
    with pytest.raises(InputError, match="must name at least one"):
        task("grammar-tutor", tasks=[])
    with pytest.raises(InputError, match="no symbol for 'ç'"):
        encode("français")
    with pytest.raises(InputError, match="not a question of the grammar tutor, got 'stop'"):
        check("stop", "stopped")
    with pytest.raises(UnknownName, match="unknown split 'tset'; did you mean test"):
        next(task("grammar-tutor").held_out("tset"))
