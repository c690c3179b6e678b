"""Passthrough: layers of one or more checkpoints stacked as they are, into a deeper model.

Changes: the number of layers: two overlapping ranges, each `share` of them, end to end.
Relieves: the capacity of a model that exists, without training a larger one from nothing.
Does nothing when: nobody trains the result further: at the seam it sees what it never saw.
Costs: time, memory and cache of the added layers, at every token; continued pre-training.

Held equal: width, tokenizer, serving. Unlike other merges its price is visible to cost.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.techniques._change import with_model, with_runtime
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.merging._checkpoints import GODDARD_2024, is_merged, need_checkpoints

KIM_2023 = Source(
    cite="Kim et al. 2023",
    title="SOLAR 10.7B: Scaling Large Language Models with Simple yet Effective Depth Up-Scaling",
    id="arXiv:2312.15166",
    where="section 2",
)


def apply(case: Case, *, share: float = 0.75) -> Case:
    """Return `case` with the first and the last `share` of its layers, one after the other."""
    need_checkpoints(case, "passthrough", least=1)
    n = case.model.n_layers
    kept = round(share * n)
    if not n < 2 * kept <= 2 * n:
        raise NotApplicable(
            f"passthrough would stack twice {kept} of {n} layers, which makes no deeper model of "
            f"them; choose a share above {1 / 2:g} and at most 1"
        )
    layers = case.model.layers
    deeper = replace(case.model, layers=layers[:kept] + layers[n - kept :])
    return with_runtime(with_model(case, deeper), merge="passthrough")


def is_present(case: Case) -> bool:
    """Whether the layers were stacked."""
    return is_merged(case, "passthrough")


TECHNIQUE = Technique(
    id="passthrough",
    name="Passthrough (frankenmerge, depth up-scaling)",
    relieves=("separate-skills",),
    bottleneck=("A larger model is wanted, and there is no budget to train one from nothing."),
    apply=apply,
    is_present=is_present,
    adoption="finetune",
    cost_of_adoption=(
        "Minutes for the files, then continued pre-training until the seam has healed, and half as "
        "much time and memory again for every token served."
    ),
    nothing_when=(
        "The stacked model is not trained further, or the added layers come from a model of "
        "another start: their inputs mean nothing to them."
    ),
    pitfalls=(
        "Right after stacking the loss jumps: a layer receives what layers far below it produced.",
        "Per-layer settings of a config (kinds of attention, windows) must follow their layers.",
        "Every added layer has a cache of its own: serving memory grows with it.",
        "Scores of raw frankenmerges on leaderboards were seldom reproduced on new tests.",
    ),
    sources=(KIM_2023, GODDARD_2024),
    evidence=(
        Evidence(
            claim="Two copies of a 32-layer model, eight layers cut from each at the seam, lose "
            "quality at first and recover quickly in continued pre-training: 48 layers, 10.7B.",
            source=KIM_2023,
        ),
    ),
    orientation={
        "en": "Passthrough copies layers without changing a number: the first 24 of a model, then "
        "its last 24 again, make one of 48 layers. Residual layers tolerate that surprisingly "
        "well, yet at the seam a layer sees inputs from elsewhere, and quality drops until the "
        "stack is trained further. What it costs is plain: every token passes through more layers. "
        "Unlike the other merges it buys capacity, not a union of skills.",
        "es": "Passthrough copia capas sin cambiar un número: las primeras 24 de un modelo y "
        "después sus últimas 24 otra vez dan uno de 48 capas. Las capas residuales lo toleran "
        "sorprendentemente bien, pero en la costura una capa recibe entradas de otro lugar y la "
        "calidad cae hasta que se sigue entrenando. Su precio es claro: cada token pasa por más "
        "capas. A diferencia de las demás fusiones compra capacidad, no una unión de habilidades.",
    },
    diagram=(
        "embedding",
        "layers 1 to 24",
        "+layers 9 to 32 again, copied",
        "norm and head",
        "~train from nothing => continue pre-training from the stack",
    ),
    module="worthit.merge.passthrough:passthrough",
    experiment="worthit.lab.experiments.passthrough:EXPERIMENT",
    parity=(
        "mergekit 0.1.5, frozen tensors of whole recipes and live where it is installed "
        "(tests/merge/test_parity.py)",
    ),
)
