"""Runs that advance together are the runs that they would be alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import Addition, layer, tiny

from worthit.errors import InputError, WorthitError
from worthit.spec.model import Attention, FeedForward, LatentAttention, MoE, Norm, Position
from worthit.train.batch import IGNORE
from worthit.train.history import History, read_metrics
from worthit.train.init import seeded
from worthit.train.loop import train
from worthit.train.many import Trained, train_many
from worthit.train.recipe import Recipe

DATA = Addition()
BUILD = seeded(tiny())
SEEDS = (0, 3, 4)


def recipe(**fields: Any) -> Recipe:
    return Recipe(**{"n_steps": 20, "batch_size": 8, "lr": 1e-2, "log_every": 1, **fields})


def alone(chosen: Recipe, build: Any = BUILD) -> list[tuple[nn.Module, History]]:
    runs = []
    for seed in SEEDS:
        model = build(seed)
        runs.append((model, train(model, DATA, chosen, seed=seed)))
    return runs


def assert_same_runs(
    together: Sequence[Trained],
    separate: Sequence[tuple[nn.Module, History]],
    rel: float = 1e-5,
) -> None:
    for run, (model, history) in zip(together, separate, strict=True):
        ours = [e["loss"] for e in run.history.steps]
        assert ours == pytest.approx([e["loss"] for e in history.steps], rel=rel)
        norms = [e["grad_norm"] for e in run.history.steps]
        assert norms == pytest.approx([e["grad_norm"] for e in history.steps], rel=100 * rel)
        assert run.history.scores == pytest.approx(history.scores, rel=rel)
        assert run.history.n_tokens == history.n_tokens
        assert set(run.state) == set(model.state_dict())


# Muon's iteration is in bf16, which keeps eight bits: the order of sums shows sooner.
@pytest.mark.parametrize(("optimizer", "rel"), [("adamw", 1e-5), ("muon", 1e-3)])
def test_each_run_is_the_run_alone(optimizer: Any, rel: float) -> None:
    chosen = recipe(optimizer=optimizer, eval_every=8, ema_decay=0.8, clip_norm=0.5)
    together = train_many(BUILD, DATA, chosen, SEEDS)
    assert [run.seed for run in together] == list(SEEDS)
    assert together[0].history.how == "batched with seeds 3, 4"
    assert_same_runs(together, alone(chosen), rel)


VARIANTS = {
    "tied": tiny(has_tied_embeddings=True),
    "rope and rms norm": tiny(
        n_positions=0, position=Position(), norm=Norm(), layers=(layer(norm=Norm()),)
    ),
    "unit offset": tiny(layers=(layer(norm=Norm(has_unit_offset=True)),) * 2),
    "parallel": tiny(layers=(layer(is_parallel=True),)),
    "grouped queries, qk norm": tiny(
        layers=(layer(mixers=(Attention(n_heads=4, n_kv_heads=2, head_dim=4, qk_norm="head"),)),)
    ),
    "latent attention": tiny(
        layers=(
            layer(
                mixers=(
                    LatentAttention(
                        n_heads=2,
                        q_lora_rank=8,
                        kv_lora_rank=8,
                        qk_nope_head_dim=8,
                        qk_rope_head_dim=4,
                        v_head_dim=8,
                    ),
                )
            ),
        )
    ),
    "looped": tiny(layers=(layer(n_loops=2),)),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("is_dense", [False, True])
def test_every_kind_that_folds_is_the_run_alone(name: str, is_dense: bool) -> None:
    data = Addition()
    if is_dense:
        data.train.targets[data.train.targets == IGNORE] = 1
    build, chosen = seeded(VARIANTS[name]), recipe(n_steps=5)
    together = train_many(build, data, chosen, (0, 3))
    assert together[0].history.how == "batched with seeds 3"
    for run in together:
        history = train(build(run.seed), data, chosen, seed=run.seed)
        ours = [e["loss"] for e in run.history.steps]
        assert ours == pytest.approx([e["loss"] for e in history.steps], rel=1e-5)


def test_bf16_folds_too() -> None:
    chosen = recipe(precision="bf16", n_steps=5)
    for run, (_, history) in zip(
        train_many(BUILD, DATA, chosen, SEEDS), alone(chosen), strict=True
    ):
        assert run.history.loss == pytest.approx(history.loss, rel=5e-3)


def test_large_updates_are_not_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worthit.train.many.SMALL_FLOPS", 0)
    together = train_many(BUILD, DATA, recipe(n_steps=1), SEEDS)
    assert together[0].history.how == "alone: an update keeps a core busy"


def test_on_several_cores_less_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are weighed against folding only where they would start."""
    monkeypatch.setattr("worthit.train.many.SMALL_FLOPS_BESIDE_PROCESSES", 0)
    folded = train_many(BUILD, DATA, recipe(n_steps=1), SEEDS, n_workers=2)
    assert folded[0].history.how == "batched with seeds 3, 4"
    monkeypatch.setattr("worthit.train.many.SHORT_FLOPS", 0)
    apart = train_many(lambda seed: BUILD(seed), DATA, recipe(n_steps=1), SEEDS, n_workers=2)
    assert apart[0].history.how.startswith("alone: an update keeps a core busy; in this process")


def test_runs_differ_from_each_other() -> None:
    """The control: what is compared above is no constant."""
    losses = [run.history.loss for run in train_many(BUILD, DATA, recipe(), SEEDS)]
    assert len({round(loss, 3) for loss in losses}) == 3


def hits(model: nn.Module) -> dict[str, float]:
    (batch,) = DATA.held_out("test")
    answers = model(batch.input_ids)[:, 2].argmax(dim=-1)
    return {"accuracy": float((answers == batch.targets[:, 2]).float().mean())}


def test_scores_of_ones_own_are_those_alone() -> None:
    chosen = recipe(n_steps=60)
    together = train_many(BUILD, DATA, chosen, SEEDS, evaluate=hits)
    for run in together:
        model = BUILD(run.seed)
        history = train(model, DATA, chosen, seed=run.seed, evaluate=hits)
        assert run.history.scores == history.scores
        assert hits(run.into(BUILD(9))) == history.scores


MOE = seeded(tiny(MoE(n_experts=4, n_experts_per_token=2, expert=FeedForward(d_ff=16))))


def test_what_cannot_be_batched_runs_apart_and_says_why() -> None:
    chosen = recipe(n_steps=4)
    together = train_many(MOE, DATA, chosen, SEEDS, n_workers=1)
    assert together[0].history.how == "alone: Experts has parameters of its own"
    separate = alone(chosen, MOE)
    for run, (model, history) in zip(together, separate, strict=True):
        assert run.history.steps[-1]["loss"] == history.steps[-1]["loss"]
        torch.testing.assert_close(run.state, dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.slow
def test_processes_give_the_same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worthit.train.many.SHORT_FLOPS", 0)
    chosen = recipe(n_steps=4)
    seen = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        apart = train_many(MOE, DATA, chosen, SEEDS, n_workers=2, progress=seen.append)
        separate = alone(chosen, MOE)
    finally:
        torch.set_num_threads(threads)
    assert apart[0].history.how.startswith("in a process of its own: Experts")
    for run, (model, history) in zip(apart, separate, strict=True):
        assert run.history.loss == history.loss
        torch.testing.assert_close(run.state, dict(model.state_dict()), rtol=0, atol=0)
    assert {(update.seeds, update.step) for update in seen} == {
        ((seed,), step) for seed in SEEDS for step in range(1, 5)
    }


def test_what_cannot_be_sent_to_a_process_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worthit.train.many.SHORT_FLOPS", 0)
    together = train_many(lambda seed: MOE(seed), DATA, recipe(n_steps=2), SEEDS, n_workers=2)
    assert "; in this process: " in together[0].history.how


def test_something_done_after_each_step_is_done_to_each_model_alone() -> None:
    seen = []
    together = train_many(
        BUILD, DATA, recipe(n_steps=2), (0, 1), after_step=lambda m: seen.append(m), n_workers=1
    )
    assert len({id(model) for model in seen}) == 2
    assert "after each update" in together[0].history.how


def test_a_run_that_diverges_leaves_the_others_alone() -> None:
    def build(seed: int) -> nn.Module:
        model = BUILD(seed)
        if seed == 3:
            with torch.no_grad():
                model.layers[0].ffn.up.weight[0, 0] = float("inf")
        return model

    together = train_many(build, DATA, recipe(), SEEDS)
    assert together[1].history.failure is not None
    assert "update 1 of 20: the loss is nan" in together[1].history.failure
    assert "first parameter that is not finite: layers.0.ffn.up.weight" in (
        together[1].history.failure
    )
    assert together[1].history.steps == []
    with pytest.raises(WorthitError, match="there is no trained model"):
        together[1].into(BUILD(0))
    for run, (_, history) in zip(together[::2], alone(recipe())[::2], strict=True):
        assert run.history.failure is None
        assert run.history.loss == pytest.approx(history.loss, rel=1e-5)


def test_runs_continue_together(tmp_path: Path) -> None:
    chosen = recipe(checkpoint_every_s=1e-9, ema_decay=0.9, eval_every=6)
    whole = train_many(BUILD, DATA, chosen, SEEDS)

    def stop(update: Any) -> None:
        if update.step == 9:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train_many(BUILD, DATA, chosen, SEEDS, folder=tmp_path, progress=stop)
    continued = train_many(BUILD, DATA, chosen, SEEDS, folder=tmp_path)
    for run, other in zip(continued, whole, strict=True):
        torch.testing.assert_close(run.state, other.state, rtol=0, atol=0)
        lines = read_metrics(tmp_path / f"seed-{run.seed}")
        steps = [line["step"] for line in lines if line["kind"] == "step"]
        assert steps == list(range(1, 21))
    again = train_many(BUILD, DATA, chosen, SEEDS, folder=tmp_path)
    torch.testing.assert_close(again[2].state, whole[2].state, rtol=0, atol=0)


def test_a_run_that_others_began_is_continued_alone_and_back(tmp_path: Path) -> None:
    """What is kept of a run does not depend on who ran it."""
    chosen = recipe(checkpoint_every_s=1e-9)

    def stop(update: Any) -> None:
        if update.step == 9:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train_many(BUILD, DATA, chosen, SEEDS, folder=tmp_path, progress=stop)
    model = BUILD(3)
    finished = train(model, DATA, chosen, seed=3, folder=tmp_path / "seed-3")
    together = train_many(BUILD, DATA, chosen, SEEDS, folder=tmp_path)
    assert together[1].history.loss == finished.loss
    assert together[0].history.how == "batched with seeds 4"
    assert_same_runs(together, alone(chosen))


def test_seeds_are_checked() -> None:
    with pytest.raises(InputError, match="seeds must name at least one run"):
        train_many(BUILD, DATA, recipe(), [])
    with pytest.raises(InputError, match="seeds must differ"):
        train_many(BUILD, DATA, recipe(), [1, 1])
