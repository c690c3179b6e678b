"""Activation patching: what one prompt computes is put into the run of another, part by part.

Changes: nothing; which positions, layers, heads and edges cause an answer is known.
Relieves: opacity: which parts compute what is seen.
Does nothing when: the two prompts differ in more than what is asked, or parts stand in for each
other.
Costs: a pass for each part; one backward pass for an estimate of all.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

MENG_2022 = Source(
    cite="Meng et al. 2022",
    title="Locating and Editing Factual Associations in GPT",
    id="arXiv:2202.05262",
    where="section 2.1",
)
WANG_2022 = Source(
    cite="Wang et al. 2022",
    title="Interpretability in the Wild: a Circuit for Indirect Object Identification in "
    "GPT-2 small",
    id="arXiv:2211.00593",
)
CONMY_2023 = Source(
    cite="Conmy et al. 2023",
    title="Towards Automated Circuit Discovery for Mechanistic Interpretability",
    id="arXiv:2304.14997",
    where="algorithm 1",
)
SYED_2023 = Source(
    cite="Syed et al. 2023",
    title="Attribution Patching Outperforms Automated Circuit Discovery",
    id="arXiv:2310.10348",
    where="equation 2",
)
HEIMERSHEIM_2024 = Source(
    cite="Heimersheim and Nanda 2024",
    title="How to use and interpret activation patching",
    id="arXiv:2404.15255",
)


def apply(case: Case) -> Case:
    """Return `case` with its parts patched."""
    return looked_into(case, "activation-patching")


def is_present(case: Case) -> bool:
    """Whether its parts are patched."""
    return is_looked_into(case, "activation-patching")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="activation-patching",
    name="Activation patching (paths, attribution, circuits)",
    relieves=("opacity",),
    bottleneck=(
        "A property can be read in many places, and which of them the answer depends "
        "on cannot be read at all."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "Pairs of prompts of one length, and a pass for each part: thousands for heads "
        "by positions, two and a half for the estimate."
    ),
    nothing_when=(
        "Backup heads take over what was taken out, so that each part alone seems to matter little."
    ),
    pitfalls=(
        "Use a difference of logits: probabilities saturate and hide parts that push "
        "against the answer.",
        "Denoising asks what is enough, noising what is needed: report which.",
        "Attribution is a linear estimate: check the largest effects exactly, above "
        "all at saturated attention.",
        "A circuit is of the contrast that was tested: give its faithfulness on other prompts.",
        "Zeros are no neutral value: patch from another prompt.",
    ),
    sources=(
        MENG_2022,
        WANG_2022,
        CONMY_2023,
        SYED_2023,
        HEIMERSHEIM_2024,
    ),
    evidence=(
        Evidence(
            claim="Facts are recalled at the last token of the subject in middle feed-forwards.",
            source=MENG_2022,
        ),
        Evidence(
            claim="Edges ranked by one gradient recover known circuits as well as patching "
            "each edge, or better.",
            source=SYED_2023,
        ),
    ),
    orientation={
        "en": "Take two prompts that differ in one word and in the answer. Run the wrong "
        "one, but put the inner state of the right one in at a single place. If the "
        "right answer comes back, that place carried the difference. Repeat for every "
        "layer, head and connection, and you have a map of the computation. It is the "
        "one tool here that shows causes rather than traces. It costs a run per place, "
        "or one backward pass if an estimate will do.",
        "es": "Toma dos textos que difieran en una palabra y en la respuesta. Ejecuta el "
        "equivocado, pero pon en un solo lugar el estado interno del correcto. Si "
        "vuelve la respuesta correcta, ese lugar llevaba la diferencia. Repítelo en "
        "cada capa, cabeza y conexión y tendrás un mapa del cálculo. Es aquí la única "
        "herramienta que muestra causas y no huellas. Cuesta una ejecución por lugar, "
        "o una pasada hacia atrás si basta una estimación.",
    },
    diagram=(
        "two prompts that differ in one thing and in the answer",
        "+run one, with one activation of the other",
        "share of the difference of logits that comes back",
        "+edges by attribution, then the fewest that still answer",
    ),
    module="worthit.interp.patch:patch",
    parity=(
        "a loop over positions and heads; attribution where the metric is linear "
        "(tests/interp/test_patch.py)",
        "paths into the output by hand, edges by finite differences, a planted circuit "
        "(tests/interp/test_patch.py)",
    ),
    experiment="worthit.lab.experiments.activation_patching:EXPERIMENT",
)
