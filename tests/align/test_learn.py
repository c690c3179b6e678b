"""The loop: references, displacement, adapters, resumption, self-play and rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from worthit.align import (
    DPO,
    GRPO,
    KTO,
    PPO,
    SPIN,
    Demonstration,
    Demonstrations,
    Pair,
    Pairs,
    Rated,
    Ratings,
    SimPO,
    learn_demonstrations,
    learn_pairs,
    learn_ratings,
    logps_of,
    recipe,
    self_play,
    split_off,
)
from worthit.align.data import WholePairs
from worthit.align.learn import learn_rewards
from worthit.align.lora import adaptable, adapters, add_lora, disabled, merge
from worthit.align.ppo import WithValue
from worthit.align.reference import Cache, frozen_copy
from worthit.align.reward import RewardModel, load_reward_model
from worthit.align.rollouts import ActorCriticLoss, GroupLoss, Rollouts, asked, logp_matrix
from worthit.align.sample import sample
from worthit.align.sequences import pair_rows, rows_of
from worthit.errors import InputError, SpecError
from worthit.lab import models
from worthit.nn import Decoder
from worthit.train import seeded, train
from worthit.train.objective import parts

N_WORDS, END = 12, 1
SPEC = models.decoder(32, n_layers=2, vocab_size=16, context_len=24)


def model(seed: int = 0) -> Decoder:
    return seeded(SPEC)(seed)


def answer(word: int, *, is_good: bool) -> tuple[int, ...]:
    """What is preferred: even words, once or twice, and the end."""
    said = word - word % 2 if is_good else word - word % 2 + 1
    return (said, END) if word % 3 else (said, said, END)


def pairs() -> list[Pair]:
    return [
        Pair(prompt=(0, o, w), chosen=answer(w, is_good=True), rejected=answer(o, is_good=False))
        for w in range(2, 2 + N_WORDS)
        for o in range(2, 2 + N_WORDS)
        if o != w
    ]


def data(kind: Any = Pairs) -> Any:
    train_part, held_out = split_off(pairs(), 0.2)
    return kind("words", train_part, held_out, vocab_size=16)


RECIPE = recipe(12, batch_size=8, lr=3e-3)


def test_splits_share_no_prompt() -> None:
    train_part, held_out = split_off(pairs(), 0.2)
    assert {p.prompt for p in train_part}.isdisjoint({p.prompt for p in held_out})
    assert len(train_part) + len(held_out) == len(pairs())


def test_dpo_learns_and_says_what_became_of_both() -> None:
    learned = learn_pairs(model(), data(), DPO(), recipe(20, batch_size=16, lr=5e-3), seed=0)
    assert learned.before is not None
    assert learned.after is not None
    assert learned.before.chosen_change == 0.0
    assert learned.after.accuracy > learned.before.accuracy
    assert learned.after.margin > 1
    assert set(learned.scores) >= {"accuracy", "margin", "chosen_change", "both_fell"}


def test_the_reference_is_the_model_before_training(tmp_path: Path) -> None:
    one, prefs = model(), data()
    expected = logps_of(model(), prefs.sequences("train")).view(-1, 2)
    learn_pairs(one, prefs, DPO(), RECIPE, seed=0, folder=tmp_path)
    torch.testing.assert_close(prefs.reference["train"], expected)


def test_logps_are_those_of_a_plain_loop() -> None:
    """Token by token over whole logits, against rows of the output head alone."""
    m, part = model(), pairs()[:5]
    sequences = [(p.prompt, c) for p in part for c in (p.chosen, p.rejected)]
    expected = []
    with torch.no_grad():
        for prompt, completion in sequences:
            ids = torch.tensor([[*prompt, *completion]])
            logs = m(ids).log_softmax(-1)[0]
            start = len(prompt)
            expected.append(sum(float(logs[start + i - 1, t]) for i, t in enumerate(completion)))
    torch.testing.assert_close(logps_of(m, sequences), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_scores_of_a_reference_are_kept_and_belong_to_model_and_data(tmp_path: Path) -> None:
    scored: list[int] = []
    cache = Cache(tmp_path, scored.append)
    sequences = data().sequences("validation")
    first = cache.logps(model(), "v", sequences)
    assert torch.equal(cache.logps(model(), "v", sequences), first)
    assert scored == [len(sequences)]
    cache.logps(model(1), "v", sequences)
    cache.logps(model(1), "v", sequences[1:])
    assert len(scored) == 3
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    cache.logps(model(1), "v", sequences)
    assert len(scored) == 4


def stop_at(step: int) -> Any:
    def progress(update: Any) -> None:
        if update.step == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_that_was_stopped_ends_as_if_it_had_not(tmp_path: Path, rank: int) -> None:
    def run(folder: Path, stop: int | None = None) -> Decoder:
        m = model()
        if rank:
            add_lora(m, rank)
        often = recipe(12, batch_size=8, lr=3e-3, checkpoint_every_s=1e-9)
        progress = None if stop is None else stop_at(stop)
        learn_pairs(m, data(), DPO(), often, seed=3, folder=folder, progress=progress)
        return m

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "half", stop=7)
    resumed = run(tmp_path / "half")
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_accumulated_pairs_stay_together_and_give_the_same_update() -> None:
    prefs = data()
    batch = prefs.rows("train", range(8))
    halves = list(parts(batch, 2))
    assert [share for _, share in halves] == [0.5, 0.5]
    again = prefs.rows("train", range(4, 8))
    width = again.input_ids.shape[1]
    assert torch.equal(halves[1][0].input_ids[:, :width], again.input_ids)
    one, two = model(), model()
    learn_pairs(one, data(), DPO(), RECIPE, seed=0)
    learn_pairs(two, data(), DPO(), recipe(12, batch_size=8, lr=3e-3, n_accumulate=4), seed=0)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_methods_without_a_reference_need_none_in_their_batches() -> None:
    learned = learn_pairs(model(), data(), SimPO(), RECIPE, seed=0)
    assert learned.after is not None


def test_kto_takes_odd_batches_and_ratings() -> None:
    rated = [
        Rated(prompt=p.prompt, completion=c, is_good=good)
        for p in pairs()
        for c, good in ((p.chosen, True), (p.rejected, False))
    ]
    train_part, held_out = split_off(rated, 0.2)
    learned = learn_ratings(
        model(),
        Ratings("words", train_part, held_out, vocab_size=16),
        KTO(beta=0.3),
        recipe(20, batch_size=7, lr=5e-3),
        seed=0,
    )
    assert learned.scores["ranked"] > 0.6
    assert learned.scores["good_change"] > learned.scores["bad_change"]


# --- 16 bits -------------------------------------------------------------------------------------


def test_adamw_in_bf16_moves_nothing_and_is_refused() -> None:
    weight = torch.nn.Parameter(torch.full((64,), 0.5, dtype=torch.bfloat16))
    start = weight.detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=1e-6, weight_decay=0.0)
    for _ in range(20):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert torch.equal(weight.detach(), start)
    with pytest.raises(InputError, match="rounded away in 16 bits"):
        learn_pairs(model().bfloat16(), data(), DPO(), RECIPE, seed=0)


# --- adapters ------------------------------------------------------------------------------------


def test_adapters_start_as_nothing_train_alone_and_merge() -> None:
    m, ids = model(), torch.tensor([[0, 3, 5, 2]])
    plain = model()
    targets = add_lora(m, 4)
    assert set(targets) == set(adaptable(plain))
    torch.testing.assert_close(m(ids), plain(ids))
    learn_pairs(m, data(), DPO(), recipe(8, batch_size=8, lr=1e-2), seed=0)
    learned = m(ids)
    assert not torch.allclose(learned, plain(ids), atol=1e-2)
    with disabled(m):
        torch.testing.assert_close(m(ids), plain(ids))
    merge(m)
    assert not adapters(m)
    torch.testing.assert_close(m(ids), learned, rtol=1e-4, atol=1e-5)
    assert [n for n, _ in m.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert all(p.requires_grad for p in m.parameters())


def test_adapters_of_a_bf16_model_learn_in_fp32() -> None:
    m = model().bfloat16()
    add_lora(m, 2)
    learned = learn_pairs(m, data(), DPO(), RECIPE, seed=0)
    assert learned.after is not None
    assert {p.dtype for p in m.parameters() if p.requires_grad} == {torch.float32}


# --- self-play, rewards --------------------------------------------------------------------------


def shown() -> list[Demonstration]:
    return [Demonstration(prompt=p.prompt, completion=p.chosen) for p in pairs()]


def test_self_play_draws_anew_each_round_and_resumes(tmp_path: Path) -> None:
    train_part, held_out = split_off(shown(), 0.2)

    def run(m: Decoder) -> Any:
        return self_play(
            m,
            train_part,
            held_out,
            SPIN(n_rounds=2),
            RECIPE,
            seed=0,
            stop_ids=(END,),
            max_tokens=4,
            folder=tmp_path,
        )

    first = model()
    rounds = run(first)
    assert len(rounds) == 2
    assert all(r.learned is not None for r in rounds)
    answers = [(tmp_path / f"round-{t}" / "train-answers.json").read_text() for t in (0, 1)]
    assert answers[0] != answers[1]
    again = model()
    run(again)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_samples_end_and_are_those_of_their_prompts() -> None:
    m = model()
    learn_demonstrations(
        m,
        Demonstrations("words", shown(), [], vocab_size=16),
        recipe(40, batch_size=16, lr=1e-2),
        seed=0,
    )
    prompts = [p.prompt for p in pairs()]
    said = sample(m, prompts, max_tokens=4, stop_ids=(END,), temperature=0.0)
    assert {ids[-1] for ids in said} == {END}
    assert all(t % 2 == 0 for ids in said for t in ids[:-1])
    assert sample(m, prompts[:3], max_tokens=1, stop_ids=(END,), temperature=0.0)[0] == said[0][:1]


def is_even(places: Any, said: Any) -> list[float]:
    return [float(ids[0] % 2 == 0) for ids in said]


@pytest.mark.parametrize("beta", [0.0, 0.02])
def test_grpo_raises_the_reward(beta: float) -> None:
    m = model()
    prompts = [p.prompt for p in pairs()]
    settings = {"max_tokens": 4, "stop_ids": (END,)}
    before = asked(m, prompts, is_even, temperature=1.0, **settings)["reward"]
    rollouts = Rollouts(
        "words",
        m,
        prompts,
        is_even,
        GRPO(group=4, beta=beta),
        frozen=frozen_copy(m) if beta else None,
        **settings,
    )
    train(
        m,
        rollouts,
        recipe(12, batch_size=32, lr=5e-3, eval_every=0),
        seed=0,
        loss=GroupLoss(GRPO(group=4, beta=beta), max_tokens=4),
    )
    after = asked(m, prompts, is_even, temperature=1.0, **settings)["reward"]
    assert after > before + 0.1
    assert len(rollouts.seen) == 12


def test_ppo_raises_the_reward_and_its_values_learn() -> None:
    m = WithValue(model())
    prompts = [p.prompt for p in pairs()]
    settings = {"max_tokens": 4, "stop_ids": (END,)}
    before = asked(m, prompts, is_even, temperature=1.0, **settings)["reward"]
    method = PPO(beta=0.01)
    rollouts = Rollouts(
        "words",
        m,
        prompts,
        is_even,
        method,
        frozen=frozen_copy(m.decoder),
        n_updates=2,
        **settings,
    )
    train(
        m,
        rollouts,
        recipe(24, batch_size=32, lr=5e-3, eval_every=0),
        seed=0,
        loss=ActorCriticLoss(method),
    )
    after = asked(m, prompts, is_even, temperature=1.0, **settings)["reward"]
    assert after > before + 0.1
    assert float(m.value.weight.detach().abs().max()) > 0
    assert len(rollouts.seen) == 12


def from_rewards(kind: str, **changed: Any) -> tuple[Any, Rollouts, Any]:
    """A model with what it learns from, by a method that compares with a reference."""
    m = model()
    method: Any = PPO(beta=0.01) if kind == "ppo" else GRPO(group=4, beta=0.02, **changed)
    whole = WithValue(m) if kind == "ppo" else m
    rollouts = Rollouts(
        "words",
        whole,
        [p.prompt for p in pairs()],
        is_even,
        method,
        max_tokens=4,
        stop_ids=(END,),
        frozen=frozen_copy(m),
        n_updates=2,
    )
    loss = ActorCriticLoss(method) if kind == "ppo" else GroupLoss(method, max_tokens=4)
    return whole, rollouts, loss


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
@pytest.mark.parametrize("stop", [6, 7])
def test_rewards_that_were_stopped_end_as_if_they_had_not(
    tmp_path: Path, kind: str, stop: int
) -> None:
    """Between two answers to the prompts, and between two updates on the same answers."""

    def run(folder: Path, stop: int | None = None) -> tuple[Any, Rollouts]:
        m, rollouts, loss = from_rewards(kind)
        often = recipe(10, batch_size=8, lr=3e-3, eval_every=0, checkpoint_every_s=1e-9)
        progress = None if stop is None else stop_at(stop)
        train(m, rollouts, often, seed=3, folder=folder, loss=loss, progress=progress)
        return m, rollouts

    whole, seen = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "half", stop=stop)
    resumed, seen_again = run(tmp_path / "half")
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert seen.seen == seen_again.seen


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("ppo", {}),
        ("grpo", {"normaliser": "tokens"}),
        ("grpo", {"normaliser": "sequence"}),
        ("grpo", {"normaliser": "constant"}),
    ],
)
def test_accumulated_answers_give_the_gradient_of_all_at_once(
    kind: str, changed: dict[str, Any]
) -> None:
    m, rollouts, loss = from_rewards(kind, **changed)
    batch = rollouts.batch(torch.Generator().manual_seed(0), 16)
    lengths = (batch.targets >= 0).sum(dim=1)
    assert len(set(lengths.tolist())) > 1, "answers as long as each other tell nothing apart"
    loss(m, batch).backward()
    whole = [p.grad.clone() for p in m.parameters() if p.grad is not None]
    assert any(bool(g.abs().max() > 0) for g in whole)
    m.zero_grad()
    for part, share in parts(batch, 4):
        (loss(m, part) * share).backward()
    again = [p.grad for p in m.parameters() if p.grad is not None]
    for a, b in zip(whole, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_group_must_divide_the_batch() -> None:
    m = model()
    rollouts = Rollouts(
        "w", m, [(0, 2)], lambda i, s: [0.0] * len(s), GRPO(group=4), max_tokens=2, stop_ids=(END,)
    )
    with pytest.raises(InputError, match="multiple of the group of 4"):
        rollouts.batch(torch.Generator(), 6)


def test_a_matrix_of_logps_is_where_the_targets_are() -> None:
    m = model()
    batch = rows_of([((0, 3), (4, 1)), ((0, 5, 6), (7, 8, 1))])
    matrix = logp_matrix(m, batch)
    assert matrix.shape == batch.targets.shape
    assert bool(((matrix != 0) == (batch.targets >= 0)).all())


def test_a_reward_model_learns_is_saved_and_read_back(tmp_path: Path) -> None:
    reward = RewardModel(model())
    learned = learn_rewards(
        reward, data(WholePairs), recipe(20, batch_size=16, lr=5e-3), seed=0, centring=0.01
    )
    assert learned.scores["accuracy"] > 0.8
    assert abs(learned.scores["offset"]) < 1.0
    reward.save(tmp_path / "reward")
    again = load_reward_model(tmp_path / "reward")
    sequences = [(p.prompt, p.chosen) for p in pairs()[:3]]
    torch.testing.assert_close(again.score(sequences), reward.score(sequences))
    (tmp_path / "reward" / "reward_head.safetensors").unlink()
    with pytest.raises(SpecError, match="no reward model"):
        load_reward_model(tmp_path / "reward")


def test_rows_without_a_prompt_or_completion_are_refused() -> None:
    with pytest.raises(InputError, match="row 1: needs a prompt and a completion"):
        rows_of([((1,), (2,)), ((), (2,))])
    assert pair_rows(pairs()[:3]).input_ids.shape[0] == 6
