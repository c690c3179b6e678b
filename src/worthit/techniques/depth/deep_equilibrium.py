"""Deep equilibrium: one layer is iterated to a fixed point, and differentiated there.

Changes: all layers become one, applied `n_iterations` times; training keeps the fixed point alone.
Relieves: activation memory of training, constant in depth, and memory of weights.
Does nothing when: memory is no problem; it computes more than the model it replaces.
Costs: pretraining, a root solver, care for stability.

Held equal: the width. Parameters fall to one layer's; the papers spend them on a wider one.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import with_model
from worthit.techniques._record import Evidence, Source, Technique

BAI_2019 = Source(
    cite="Bai et al. 2019",
    title="Deep Equilibrium Models",
    id="arXiv:1909.01377",
    where="section 3, theorem 1",
)
BAI_2021 = Source(
    cite="Bai et al. 2021",
    title="Stabilizing Equilibrium Models by Jacobian Regularization",
    id="arXiv:2106.14342",
)


def apply(case: Case, *, n_iterations: int = 30) -> Case:
    """Return `case` as its most frequent layer, iterated `n_iterations` times.

    The solver runs at least as often as there were layers to stand in for.
    """
    model = case.model
    if model.is_equilibrium:
        raise NotApplicable(f"deep-equilibrium finds {model.name} at equilibrium already")
    layer, _ = max(model.layer_kinds, key=lambda kind: kind[1])
    one = replace(
        layer,
        n_loops=max(n_iterations, model.n_layers),
        token_fraction=1.0,
        shares_loop_cache=True,
    )
    return with_model(case, replace(model, layers=(one,), is_equilibrium=True, early_exit=None))


def is_present(case: Case) -> bool:
    """Whether the model is solved for a fixed point."""
    return case.model.is_equilibrium


TECHNIQUE = Technique(
    id="deep-equilibrium",
    name="Deep equilibrium model",
    relieves=("activation-memory", "optimizer-memory", "weight-capacity"),
    bottleneck=(
        "Training keeps the activations of every layer, so memory grows with depth, as do weights."
    ),
    apply=apply,
    module="worthit.nn.depth.deep_equilibrium:EquilibriumBlock",
    parity=(
        "a long unroll: outputs and gradients (tests/nn/depth/test_deep_equilibrium.py)",
        "`torch.linalg.solve`, for Anderson's method (tests/nn/depth/test_deep_equilibrium.py)",
    ),
    experiment="worthit.lab.experiments.deep_equilibrium:EXPERIMENT",
    is_present=is_present,
    adoption="retrain",
    cost_of_adoption=(
        "Pretraining a different model; a solver with its tolerance, implicit gradients, and "
        "regularisation to keep it contracting."
    ),
    nothing_when=(
        "Memory is not what binds: time grows with the number of iterations, in training and in "
        "decoding alike."
    ),
    pitfalls=(
        "The number of iterations grows during training as the layer becomes stiffer; regularise "
        "its Jacobian.",
        "A library's default may be a one-step gradient, not the implicit one: check against a "
        "long unroll.",
        "A loose tolerance changes outputs between runs, a tight one never ends.",
        "Checkpointing gives most of the memory at a third more time and no new model.",
    ),
    sources=(BAI_2019, BAI_2021),
    evidence=(
        Evidence(
            claim="On WikiText-103 a one-layer equilibrium transformer reaches the perplexity of "
            "deep ones of like size with up to 88 % less training memory, and is a few times "
            "slower.",
            source=BAI_2019,
        ),
    ),
    orientation={
        "en": "Repeat one layer often enough and its output may stop changing. A deep equilibrium "
        "model defines its output as that fixed point, finds it with a root solver, and computes "
        "gradients at the point itself by the implicit function theorem. Nothing on the way has to "
        "be remembered, so memory no longer depends on depth. The price is time: tens of "
        "iterations forward, and a linear solve backward.",
        "es": "Si se repite una capa suficientes veces, su salida puede dejar de cambiar. Un "
        "modelo de equilibrio profundo define su salida como ese punto fijo, lo halla con un "
        "método de búsqueda de raíces y calcula los gradientes en el propio punto mediante el "
        "teorema de la función implícita. No hay que recordar nada del camino, así que la memoria "
        "ya no depende de la profundidad. El precio es tiempo: decenas de iteraciones hacia "
        "delante y resolver un sistema lineal hacia atrás.",
    },
    diagram=(
        "x",
        "~layers: n of their own => one, iterated until z = f(z, x)",
        "-activations of every layer",
        "+backward: solve (I - J) at the fixed point",
        "final norm and head",
    ),
)
