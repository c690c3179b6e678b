"""Losses and gradients beside TRL's own trainers on its own batches, and beside its functions."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from align import trl_batches as tiny
from torch import Tensor

from worthit.align.dpo import DPO, dpo_loss
from worthit.align.grpo import grpo_loss
from worthit.align.ipo import IPO
from worthit.align.kto import KTO, RatedLoss, kl_estimate
from worthit.align.objective import PairLoss
from worthit.align.orpo import odds_ratio_loss
from worthit.align.reward import RewardModel, reward_loss
from worthit.align.scores import score
from worthit.align.sequences import pair_rows, rows_of
from worthit.align.simpo import simpo_loss

trl = pytest.importorskip("trl", reason="parity needs trl: pip install 'worthit[references]'")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    found: dict[str, Any] = {"folder": folder}
    for name, seed in (("policy", 0), ("reference", 1)):
        found[name] = tiny.llama(seed)
        found[f"our {name}"] = tiny.ours(found[name], folder / name)
    return found


def gradients(model: torch.nn.Module, names: tuple[str, ...]) -> list[Tensor]:
    return [dict(model.named_parameters())[name].grad for name in names]


def check_gradients(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    names = ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight")
    own = ("embedding.weight", "layers.1.ffn.down.weight", "head.weight")
    for got, expected in zip(gradients(ours, own), gradients(theirs, names), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-6)


def dpo_trainer(models: dict[str, Any], **settings: Any) -> tuple[Any, dict[str, Tensor]]:
    from datasets import Dataset

    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in tiny.TEXTS]
    trainer = trl.DPOTrainer(
        model=models["policy"],
        ref_model=models["reference"],
        args=tiny.arguments(trl.DPOConfig, models["folder"] / "dpo", **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(),
    )
    trainer.model.eval()
    return trainer, next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize(
    ("theirs", "method"),
    [
        ({"loss_type": ["sigmoid"], "beta": 0.3}, DPO(beta=0.3)),
        ({"loss_type": ["hinge"], "beta": 0.2}, DPO(beta=0.2, kind="hinge")),
        (
            {"loss_type": ["robust"], "beta": 0.3, "label_smoothing": 0.2},
            DPO(beta=0.3, kind="robust", label_smoothing=0.2),
        ),
        ({"loss_type": ["ipo"], "beta": 0.2}, IPO(beta=0.2)),
    ],
    ids=("sigmoid", "hinge", "robust", "ipo"),
)
def test_pairs_and_gradients_are_trls(
    models: dict[str, Any], theirs: dict[str, Any], method: Any
) -> None:
    trainer, batch = dpo_trainer(models, **theirs)
    trainer.model.zero_grad()
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()

    policy, reference = models["our policy"], models["our reference"]
    policy.zero_grad()
    rows = pair_rows(tiny.pairs())
    with torch.no_grad():
        scored = score(reference, rows).logps.view(2, -1).T
    loss = PairLoss(method)(policy, pair_rows(tiny.pairs(), scored))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    check_gradients(trainer.model, policy)


def test_kto_and_its_estimate_are_trls_on_an_odd_batch(models: dict[str, Any]) -> None:
    """Five examples in one batch; a negative estimate would test the clamp alone."""
    from datasets import Dataset

    rated = tiny.rated()
    rows = [
        {"prompt": p, "completion": c if i % 3 else r, "label": bool(i % 3)}
        for i, (p, c, r) in enumerate(tiny.TEXTS)
    ]
    # Which of the two models is the reference decides the sign of the estimate.
    names = ("policy", "reference")
    others = [rated[i - 1].completion for i in range(len(rated))]

    def blocks(name: str) -> Any:
        return rows_of(
            [(r.prompt, r.completion) for r in rated]
            + [(r.prompt, o) for r, o in zip(rated, others, strict=True)],
            reference=reference(name),
            is_good=torch.tensor([r.is_good for r in rated]),
        )

    def reference(name: str) -> Tensor:
        plain = rows_of(
            [(r.prompt, r.completion) for r in rated]
            + [(r.prompt, o) for r, o in zip(rated, others, strict=True)]
        )
        with torch.no_grad():
            return score(models[f"our {name}"], plain).logps

    n = len(rated)
    z = {
        policy: float(kl_estimate(score(models[f"our {policy}"], blocks(other))[slice(n, None)]))
        for policy, other in (names, names[::-1])
    }
    policy = max(z, key=lambda name: z[name])
    other = next(name for name in names if name != policy)
    assert z[policy] > 0.01

    trainer = trl.KTOTrainer(
        model=models[policy],
        ref_model=models[other],
        args=tiny.arguments(
            trl.KTOConfig,
            models["folder"] / "kto",
            beta=0.1,
            desirable_weight=1.3,
            undesirable_weight=0.7,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(),
    )
    trainer.model.eval()
    trainer.model.zero_grad()
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()
    own = models[f"our {policy}"]
    own.zero_grad()
    loss = RatedLoss(KTO(beta=0.1, good_weight=1.3, bad_weight=0.7))(own, blocks(other))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    check_gradients(trainer.model, own)


def two(seed: int, n: int = 7, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (-scale * torch.rand(n, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(2)
    )  # type: ignore[return-value]


def stub(**fields: Any) -> Any:
    return SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), **fields)


def same(got: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(got, expected)
    ones = torch.ones_like(got)
    mine = torch.autograd.grad(got, inputs, ones, retain_graph=True)
    theirs = torch.autograd.grad(expected, inputs, ones)
    torch.testing.assert_close(mine, theirs)


def test_simpo_is_trls() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.cpo import CPOTrainer
    chosen, rejected = two(0, scale=3)
    # alpha=0.0: any other silently makes it AlphaPO.
    settings = stub(label_smoothing=0.0, beta=2.5, simpo_gamma=1.2, alpha=0.0, loss_type="simpo")
    expected = CPOTrainer.cpo_loss(settings, chosen, rejected)[0]
    got = simpo_loss(chosen - rejected, beta=2.5, gamma=1.2)
    same(got, expected, chosen, rejected)


def test_label_smoothing_is_trls() -> None:
    """TRL 1.16 smooths the sigmoid loss in its CPO trainer alone; the formula is the same."""
    from trl.experimental.cpo import CPOTrainer

    chosen, rejected = two(1, scale=30)
    settings = stub(label_smoothing=0.15, beta=0.3, simpo_gamma=0, alpha=0.0, loss_type="sigmoid")
    expected = CPOTrainer.cpo_loss(settings, chosen, rejected)[0]
    same(dpo_loss(chosen - rejected, beta=0.3, label_smoothing=0.15), expected, chosen, rejected)


def test_orpo_is_trls() -> None:
    from trl.experimental.orpo import ORPOTrainer

    chosen, rejected = (x.detach().float().requires_grad_() for x in two(2, scale=3))
    # Theirs is lambda log sigma, with the other sign.
    expected = -ORPOTrainer.odds_ratio_loss(stub(beta=1.0), chosen, rejected)[0]
    same(odds_ratio_loss(chosen, rejected), expected, chosen, rejected)


def test_reward_model_is_trls(models: dict[str, Any]) -> None:
    """TRL's own loss, on rewards of our model."""
    generator = torch.Generator().manual_seed(3)
    rewards = torch.randn(10, 1, generator=generator).requires_grad_()
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=0.07),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": __import__("collections").defaultdict(list)},
        _total_train_tokens=0,
    )
    expected = trl.RewardTrainer.compute_loss(
        trainer, lambda **batch: SimpleNamespace(logits=rewards), {}
    )
    chosen, rejected = rewards.squeeze(-1).chunk(2)
    got = reward_loss(chosen, rejected, centring=0.07).mean()
    same(got, expected, rewards)


def test_rewards_read_the_last_token_of_each_row(models: dict[str, Any]) -> None:
    """As `LlamaForSequenceClassification` does, on rows of different lengths."""
    import transformers

    body = models["policy"]
    config = body.config.__class__(**{**body.config.to_dict(), "num_labels": 1})
    theirs = transformers.LlamaForSequenceClassification(config).eval()
    theirs.model.load_state_dict(body.model.state_dict())
    own = RewardModel(models["our policy"]).eval()
    with torch.no_grad():
        own.value.weight.copy_(theirs.score.weight)
    rows = [(p.prompt, p.chosen) for p in tiny.pairs()]
    batch = rows_of(rows, has_last=True)
    mask = torch.zeros_like(batch.input_ids)
    for i, (prompt, completion) in enumerate(rows):
        mask[i, : len(prompt) + len(completion)] = 1
    with torch.no_grad():
        expected = theirs(input_ids=batch.input_ids, attention_mask=mask).logits.squeeze(-1)
        torch.testing.assert_close(own.rewards(batch), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own.score(rows), expected, rtol=1e-5, atol=1e-5)


class _Grpo(SimpleNamespace):
    """What `GRPOTrainer._compute_loss` reads of a trainer."""

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        return self.logps, torch.zeros_like(self.logps), None


@pytest.mark.parametrize(
    ("theirs", "normaliser"),
    [("grpo", "sequence"), ("bnpo", "tokens"), ("dapo", "tokens"), ("dr_grpo", "constant")],
)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo_is_trls(theirs: str, normaliser: Any, beta: float) -> None:
    generator = torch.Generator().manual_seed(4)
    n, width = 6, 5
    draw = lambda: -torch.rand(n, width, generator=generator)  # noqa: E731
    logps, old, reference = draw().requires_grad_(), draw(), draw()
    advantages = torch.randn(n, generator=generator)
    lengths = torch.tensor([5, 3, 1, 4, 2, 5])
    mask = torch.arange(width) < lengths[:, None]
    trainer = _Grpo(
        logps=logps,
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(
            device="cpu", num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        loss_type=theirs,
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm=False,
        max_completion_length=9,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics={"eval": __import__("collections").defaultdict(list)},
    )
    batch = {
        "prompt_ids": torch.zeros(n, 1),
        "prompt_mask": torch.ones(n, 1),
        "completion_ids": torch.zeros(n, width),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    expected = trl.GRPOTrainer._compute_loss(trainer, None, batch)
    got = grpo_loss(
        logps,
        old,
        advantages,
        mask,
        reference=reference,
        beta=beta,
        clip=0.2,
        clip_high=0.28,
        normaliser=normaliser,
        max_tokens=9,
    )
    same(got, expected, logps)
