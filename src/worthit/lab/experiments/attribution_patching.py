"""Patching by one gradient in SmolLM2: which of the places that matter does it find?

Two stories part in who gave something away; the answer is who gets it. Every mixer and
feed-forward is patched at every token, exactly and as one backward pass estimates it. Each seed is
another story.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from worthit.interp.patch import Patched, attribute, logit_difference, patch
from worthit.lab.claims import Metric, at_least, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Budget, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _concepts as concepts
from worthit.lab.predict import unseen
from worthit.lab.tasks.sets import rows
from worthit.techniques.interpretability.activation_patching import SYED_2023

FOUND = Metric(
    id="found", name="share of the strongest effects that is found", better="higher", margin=0.1
)
PASSES = Metric(id="passes", name="passes of the model", scale="ratio", margin=0.1)
N_STRONGEST = 10
# Of random choices: the mean over so many.
N_RANDOM = 50


@dataclass
class Subject:
    """The model, and each story patched exactly, once."""

    base: concepts.Subject
    exact: dict[int, Patched] = field(default_factory=dict)


def prepared(context: Context) -> Subject:
    """The model."""
    return Subject(concepts.loaded())


def story(subject: Subject, seed: int) -> tuple[Tensor, Tensor, int, int]:
    """Ids of both prompts, and the first token of each answer."""
    stories = rows("names", "prompts")
    row = stories[seed % len(stories)]
    encode = subject.base.tokenizer.encode
    clean, corrupt = (torch.tensor([encode(row[side])]) for side in ("clean", "corrupt"))
    right, wrong = (encode(f" {row[side]}", has_special=False)[0] for side in ("right", "wrong"))
    return clean, corrupt, right, wrong


def flat(found: Patched) -> Tensor:
    """All effects in one row."""
    return torch.cat([effect.flatten() for effect in found.effects.values()])


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """How much of the ten strongest effects the ten that an arm chooses have."""
    s: Subject = context.shared
    clean, corrupt, right, wrong = story(s, seed)
    metric, points = logit_difference([right], [wrong]), list(context.budget.sizes["points"])
    if seed not in s.exact:
        s.exact[seed] = patch(s.base.model, clean, corrupt, metric, points)
    exact = s.exact[seed]
    effects = flat(exact).abs()
    most = float(effects.topk(N_STRONGEST).values.sum())
    if arm.id == "exact":
        return {"found": 1.0, "passes": float(exact.n_passes)}
    if arm.id == "random":
        generator = torch.Generator().manual_seed(seed)
        touched = effects.nonzero()[:, 0]
        shares = [
            float(
                effects[
                    touched[torch.randperm(len(touched), generator=generator)[:N_STRONGEST]]
                ].sum()
            )
            for _ in range(N_RANDOM)
        ]
        return {"found": concepts.mean(shares) / most, "passes": 1.0}
    estimate = attribute(s.base.model, clean, corrupt, metric, points)
    guessed = flat(estimate)
    both = torch.stack([flat(exact), guessed])
    return {
        "found": float(effects[guessed.abs().topk(N_STRONGEST).indices].sum()) / most,
        "passes": float(estimate.n_passes),
        "correlation": float(torch.corrcoef(both)[0, 1]),
    }


QUICK = Budget(
    n_seeds=4,
    sizes={"points": ("layers.*.mixer_out", "layers.*.ffn_out")},
    seconds=10.0,
    setup_seconds=5.0,
)
EXPERIMENT = Experiment(
    id="attribution-patching",
    technique="activation-patching",
    question="Does one gradient find the places in SmolLM2 that patching each of them finds?",
    expectation=Expectation(
        statement="What one backward pass estimates ranks the parts of a model nearly as patching "
        "each of them does.",
        source=SYED_2023,
        refuted_if="the ten places that it ranks highest have less than half of the ten largest "
        "effects, or no more than thirty points above ten random ones",
        worth_it=True,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="one model and the same stories; ten places in every arm, out of those where the "
        "runs differ",
    ),
    arms=(
        Arm(id="exact", label="each place patched"),
        Arm(id="random", label="random places"),
        Arm(id="gradient", label="places by gradient"),
    ),
    metrics=(FOUND, PASSES),
    claims=(
        at_least(FOUND, "gradient", 0.5),
        superior(FOUND, "gradient", by=0.3, against="random"),
    ),
    budgets={
        "smoke": replace(
            QUICK,
            n_seeds=2,
            sizes={"points": ("layers.1?.ffn_out",)},
            seconds=3.0,
        ),
        "quick": QUICK,
        "full": replace(
            QUICK,
            sizes={"points": ("layers.*.mixer_out", "layers.*.ffn_out", "layers.*.resid_mid")},
            seconds=20.0,
        ),
    },
    predicted=lambda setting: unseen(setting, "found", "passes"),
    setup=prepared,
    means={
        "confirmed": "Three passes find what hundreds find: estimate first, then patch the largest "
        "exactly.",
        "refuted": "The gradient's ten places miss too much of what patching finds: use it to "
        "order the patches, not in their place.",
    },
)
