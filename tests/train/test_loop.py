"""The loop: parts of a batch, clipping, decay, averages, mixed precision, early failure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from training_cases import Addition, tiny

from worthit.errors import InputError
from worthit.train.batch import IGNORE, Batch
from worthit.train.history import read_metrics
from worthit.train.init import seeded
from worthit.train.loop import Diverged, seed_for, train
from worthit.train.objective import mean_loss, next_token_loss
from worthit.train.progress import Update
from worthit.train.recipe import Recipe
from worthit.train.schedule import lr_at

BUILD = seeded(tiny())
DATA = Addition()


def recipe(**fields: Any) -> Recipe:
    return Recipe(**{"n_steps": 6, "batch_size": 8, "lr": 1e-2, **fields})


def trained(fields: dict[str, Any] | None = None, **options: Any) -> tuple[nn.Module, Any]:
    model = BUILD(0)
    history = train(model, DATA, recipe(**(fields or {})), seed=0, **options)
    return model, history


def assert_same(one: nn.Module, other: nn.Module, **tolerances: float) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), **tolerances)


def test_equals_a_loop_written_out() -> None:
    """Against torch alone: AdamW in two groups, clipped by its utility, in fp32."""
    chosen = recipe(clip_norm=0.5, weight_decay=0.2, warmup_steps=2)
    ours, history = trained({"clip_norm": 0.5, "weight_decay": 0.2, "warmup_steps": 2})
    model = BUILD(0)
    matrices = [m.weight for n, m in model.layers.named_modules() if isinstance(m, nn.Linear)]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}],
        betas=chosen.betas,
    )
    generator = torch.Generator().manual_seed(seed_for("data", 0))
    losses, norms = [], []
    for step in range(6):
        batch = DATA.batch(generator, 8)
        logits = model(batch.input_ids)
        is_target = batch.targets != IGNORE
        loss = functional.cross_entropy(logits[is_target], batch.targets[is_target])
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = lr_at(chosen, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert_same(ours, model, rtol=1e-5, atol=1e-6)
    assert max(norms) > 0.5, "clipping was never tested"
    assert [e["loss"] for e in history.steps] == pytest.approx([losses[0], losses[-1]], rel=1e-5)
    assert history.steps[-1]["grad_norm"] == pytest.approx(norms[-1], rel=1e-4)


@pytest.mark.parametrize("n_accumulate", [2, 8])
def test_parts_of_a_batch_add_up_to_it(n_accumulate: int) -> None:
    # With this eps Adam does not blow up gradients that are rounding alone.
    whole, _ = trained({"eps": 1e-4})
    in_parts, _ = trained({"eps": 1e-4, "n_accumulate": n_accumulate})
    assert_same(in_parts, whole, rtol=1e-4, atol=1e-5)


def test_a_mean_over_parts_would_be_another_thing() -> None:
    """The control of the test above: parts hold unequally many targets."""
    batch = DATA.batch(torch.Generator().manual_seed(1), 8)
    counts = [(batch.targets[i : i + 4] != IGNORE).sum() for i in (0, 4)]
    assert counts[0] != counts[1]


def test_a_part_without_targets_is_left_out() -> None:
    class Sparse(Addition):
        def batch(self, generator: torch.Generator, size: int) -> Batch:
            batch = super().batch(generator, size)
            batch.targets[: size // 2] = IGNORE
            return batch

    one, other = BUILD(0), BUILD(0)
    train(one, Sparse(), recipe(), seed=0)
    train(other, Sparse(), recipe(n_accumulate=2), seed=0)
    assert_same(one, other, rtol=1e-4, atol=1e-5)


def test_the_caller_keeps_its_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained()
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_another_seed_sees_other_batches() -> None:
    one, other = BUILD(0), BUILD(0)
    a = train(one, DATA, recipe(), seed=1)
    b = train(other, DATA, recipe(), seed=2)
    assert a.loss != b.loss


def test_the_average_is_evaluated_and_handed_over() -> None:
    seen: list[Tensor] = []
    scored: list[Tensor] = []

    def weight(model: nn.Module) -> Tensor:
        return model.layers[0].ffn.up.weight.detach().clone()  # type: ignore[union-attr,index]

    def score(model: nn.Module) -> dict[str, float]:
        scored.append(weight(model))
        return {"x": 0.0}

    model, _ = trained(
        {"ema_decay": 0.5},
        after_step=lambda m: seen.append(weight(m)),
        evaluate=score,
    )
    expected = weight(BUILD(0))
    for step, value in enumerate(seen):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(weight(model), expected)
    torch.testing.assert_close(scored[-1], expected)
    assert not torch.equal(seen[-1], expected)


def test_bf16_is_near_fp32_and_not_it() -> None:
    model, history = trained({"precision": "bf16"})
    _, exact = trained()
    assert history.loss == pytest.approx(exact.loss, rel=2e-2)
    assert history.loss != exact.loss
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_evaluates_where_it_says() -> None:
    _, history = trained({"eval_every": 4})
    assert [e["step"] for e in history.evaluations] == [4, 6]
    _, never = trained({"eval_every": 0})
    assert never.evaluations == []


def test_scores_are_of_the_validation_split_and_without_dropout() -> None:
    model, history = trained()
    (batch,) = DATA.held_out("validation")
    is_target = batch.targets != IGNORE
    logits = model(batch.input_ids)
    expected = functional.cross_entropy(logits[is_target], batch.targets[is_target]).detach()
    assert history.scores == {"loss": pytest.approx(float(expected), rel=1e-5)}
    assert not model.training


def test_mean_loss_counts_every_target_alike() -> None:
    model = BUILD(0)
    (batch,) = DATA.held_out("test")
    pieces = [Batch(batch.input_ids[:1], batch.targets[:1]), Batch(*_rest(batch))]
    whole = float(next_token_loss(model, batch).detach())
    assert mean_loss(model, pieces) == pytest.approx(whole, rel=1e-5)
    with pytest.raises(InputError, match="no targets"):
        mean_loss(model, [])


def _rest(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.input_ids[1:], batch.targets[1:]


def test_a_loss_of_ones_own() -> None:
    def doubled(model: nn.Module, batch: Batch) -> Tensor:
        return 2 * next_token_loss(model, batch)

    _, plain = trained()
    _, twice = trained(loss=doubled)
    assert twice.steps[0]["loss"] == pytest.approx(2 * plain.steps[0]["loss"], rel=1e-6)


def test_progress_says_where_it_is() -> None:
    updates: list[Update] = []
    trained(progress=updates.append)
    assert [u.step for u in updates] == [1, 2, 3, 4, 5, 6]
    assert updates[0].eta_s is None
    assert updates[-1].eta_s == 0
    assert updates[2].eta_s is not None
    assert updates[2].eta_s > 0
    assert updates[-1].tokens_per_s > 0


def test_a_run_that_blows_up_says_what_to_look_at() -> None:
    with pytest.raises(Diverged) as caught:
        trained({"lr": 1e30, "clip_norm": None, "n_steps": 50, "schedule": "constant"})
    message = str(caught.value)
    assert "of 50: the loss is nan at learning rate 1e+30, seed 0; losses before: " in message
    assert "first gradient that is not finite: embedding.weight" in message
    assert "Lower lr=1e+30" in message
    assert caught.value.step > 1
    assert caught.value.history.failure == message


def test_a_gradient_that_is_no_number_is_named() -> None:
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * math.inf

    def bad(model: nn.Module, batch: Batch) -> Tensor:
        up = model.layers[0].ffn.up.weight  # type: ignore[union-attr,index]
        added: Tensor = Root.apply(up).sum() * 1e-9
        return next_token_loss(model, batch) + added

    with pytest.raises(Diverged, match=r"first gradient that is not finite: layers\.0\.ffn\.up"):
        trained(loss=bad)


def test_metrics_are_lines(tmp_path: Path) -> None:
    _, history = trained({"log_every": 2, "eval_every": 3}, folder=tmp_path)
    lines = read_metrics(tmp_path)
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("step", 1),
        ("step", 2),
        ("eval", 3),
        ("step", 4),
        ("step", 6),
        ("eval", 6),
    ]
    assert [line["loss"] for line in lines if line["kind"] == "step"] == [
        loss for _, loss in history.curve("loss") if loss in {e["loss"] for e in history.steps}
    ]
    assert lines[-2]["tokens"] == history.n_tokens == 6 * 8 * 3
