"""Steering by a latent of an autoencoder, beside the difference of means of labelled texts.

A sparse autoencoder learns the tutor's states without labels. Of its latents, one stands for each
tense: the one that is more on there than elsewhere, or, of the five likeliest, the one that moves
most answers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worthit.interp.directions import difference_in_means, from_sae, unit
from worthit.interp.hooks import activations
from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.sae.kinds import make_sae
from worthit.interp.sae.train import SaeRecipe, Training
from worthit.lab.claims import Metric, superior
from worthit.lab.context import Context
from worthit.lab.experiment import Arm, Custom, Expectation, Experiment, Matched, Measures
from worthit.lab.experiments import _inside as inside
from worthit.lab.experiments.difference_in_means import pushed
from worthit.lab.predict import unseen
from worthit.lab.tasks._verbs import TENSES
from worthit.lab.tasks.grammar_tutor import encode
from worthit.nn.decoder import Decoder
from worthit.techniques.interpretability.sae_steering import WU_2025

MOVED = Metric(id="moved", name="share of answers in the other tense", better="higher", margin=0.1)
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
WIDTH, K, N_STEPS, ROWS = 256, 8, 600, 512
N_CANDIDATES = 5
# Halvings and starts that one tutor is judged by: a single one is as noisy as the tutors are.
N_REPEATS = 3


def autoencoder(model: Decoder, seed: int) -> SparseAutoencoder:
    """Of the stream at every token of every question."""
    rows = []
    for e in [*inside.asked("identify"), *inside.asked("conjugate")]:
        ids = torch.tensor([encode(e.prompt)])
        rows.append(activations(model, ids, inside.POINT)[inside.POINT][0, 1:])
    x = torch.cat(rows)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sae = make_sae("topk", d_in=x.shape[1], width=WIDTH, k=K)
    training = Training(sae, SaeRecipe(steps=N_STEPS, seed=seed))
    training.start(x)
    for _ in range(N_STEPS):
        training.update(x[torch.randint(len(x), (ROWS,), generator=generator)])
    return training.finish()


def run(context: Context, arm: Arm, seed: int) -> Measures:
    """Over several halvings of the verbs and starts of the autoencoder, which vary like tutors."""
    shares = [once(context.shared[seed], arm, 100 * seed + i) for i in range(N_REPEATS)]
    return {"moved": sum(shares) / len(shares)}


def once(model: Decoder, arm: Arm, seed: int) -> float:
    """Chosen and tuned on some verbs, judged on others, over all pairs of tenses."""
    fit, held = {}, {}
    for tense in TENSES:
        fit[tense], held[tense] = inside.halves(inside.asked("identify", tense=tense), seed)
    at = {tense: inside.at_answer(model, rows) for tense, rows in fit.items()}
    sae = None if arm.id == "means" else autoencoder(model, seed)
    fires = None if sae is None else {t: sae.encode(x).mean(0) for t, x in at.items()}
    moved = []
    for one, other in inside.tense_pairs():
        means = difference_in_means(at[other], at[one])
        candidates: list[Tensor] = [means]
        if sae is not None and fires is not None:
            n = N_CANDIDATES if arm.id == "effect" else 1
            best = (fires[other] - fires[one]).topk(n).indices.tolist()
            rows = [from_sae(sae, latent, inside.POINT).vector for latent in best]
            candidates = [unit(row) * means.norm() for row in rows]
        shifts = [pushed(v, strength) for v in candidates for strength in STRENGTHS]
        chosen = max(shifts, key=lambda s: inside.moved(model, fit[one], s, other))
        moved.append(inside.moved(model, held[one], chosen, other))
    return sum(moved) / len(moved)


EXPERIMENT = Experiment(
    id="sae-steering",
    technique="sae-steering",
    question="Where labels exist, does a latent steer as well as a difference of means?",
    expectation=Expectation(
        statement="Differences of means and other simple baselines steer better than latents of "
        "sparse autoencoders.",
        source=WU_2025,
        refuted_if="a latent, equally long, moves as many answers",
        worth_it=False,
    ),
    how=Custom(run=run),
    matched=Matched(
        what=("nothing",),
        because="one tutor a seed; pushes equally long, strengths and latents chosen on the same "
        "verbs",
    ),
    arms=(
        Arm(id="latent", label="latent that is most on"),
        Arm(id="effect", label="latent of most effect"),
        Arm(id="means", label="difference in means"),
    ),
    metrics=(MOVED,),
    claims=(
        superior(MOVED, "means"),
        superior(MOVED, "means", against="effect"),
    ),
    budgets={
        "smoke": inside.BUDGETS["smoke"],
        "quick": replace(inside.BUDGETS["quick"], n_seeds=8, seconds=6.0, setup_seconds=100.0),
        "full": replace(inside.BUDGETS["full"], n_seeds=20, seconds=15.0),
    },
    predicted=lambda setting: unseen(setting, "moved"),
    setup=inside.tutors,
    means={
        "confirmed": "Where labels exist, the difference of means steers better than a latent, "
        "at no training: keep latents for what nobody can label.",
        "refuted": "The latent that is most on steers worse, but one chosen by its effect does "
        "as well as the difference of means: if you use latents, choose them by "
        "what they do.",
    },
)
