"""Knowledge editing: a rank-one change of one feed-forward matrix makes it say another fact (ROME).

Changes: one matrix, by one outer product.
Relieves: control: one fact is wrong or out of date.
Does nothing when: the fact is not recalled at that layer, or what follows from it must change
too.
Costs: a covariance of keys once, some seconds an edit; other facts near it, and room for few
edits.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.interpretability._inside import is_looked_into, left_alone, looked_into

MENG_2022 = Source(
    cite="Meng et al. 2022",
    title="Locating and Editing Factual Associations in GPT",
    id="arXiv:2202.05262",
    where="section 3, equation 2",
)
COHEN_2023 = Source(
    cite="Cohen et al. 2023",
    title="Evaluating the Ripple Effects of Knowledge Editing in Language Models",
    id="arXiv:2307.12976",
)
HASE_2023 = Source(
    cite="Hase et al. 2023",
    title="Does Localization Inform Editing?",
    id="arXiv:2301.04213",
)


def apply(case: Case) -> Case:
    """Return `case` with a fact edited."""
    return looked_into(case, "knowledge-editing")


def is_present(case: Case) -> bool:
    """Whether a fact is edited."""
    return is_looked_into(case, "knowledge-editing")


def remove(case: Case) -> Case:
    """Return `case` left alone."""
    return left_alone(case)


TECHNIQUE = Technique(
    id="knowledge-editing",
    name="Knowledge editing (ROME)",
    relieves=("control",),
    bottleneck=(
        "One fact is wrong, retraining is out of proportion, and a note in every "
        "prompt is not wanted."
    ),
    apply=apply,
    is_present=is_present,
    remove=remove,
    adoption="calibrate",
    cost_of_adoption=(
        "Keys of some thousand tokens once, some seconds of gradient an edit, and a "
        "test of neighbours and paraphrases."
    ),
    nothing_when=(
        "The fact could simply stand in the prompt or in a document that is retrieved: "
        "that is cheaper and can be undone."
    ),
    pitfalls=(
        "Edit at the last token of the subject; another token gives an edit of the phrasing.",
        "Report paraphrases and neighbours: an edit that works may move every fact of its kind.",
        "It is one-way: the reverse of the fact, and what follows from it, stay as they were.",
        "Edits pile up in one matrix: after some dozens the model falls apart.",
        "A covariance from few tokens needs a ridge, and makes edits less specific.",
        "The layer at which a fact is traced is not the best layer to edit: sweep it.",
    ),
    sources=(
        MENG_2022,
        COHEN_2023,
        HASE_2023,
    ),
    evidence=(
        Evidence(
            claim="On GPT-2 XL and GPT-J it generalises and stays specific at once, where "
            "fine-tuning the same weights does one or the other.",
            source=MENG_2022,
        ),
        Evidence(
            claim="Facts that follow from an edit mostly stay unedited; putting the fact "
            "into the prompt does better.",
            source=COHEN_2023,
        ),
    ),
    orientation={
        "en": "A middle layer of a model can be seen as a lookup: the name of a thing goes "
        "in, what is known of it comes out. Changing one entry is a small piece of "
        "algebra: the smallest change of the matrix that gives the new answer for this "
        "name and leaves other names alone. It works surprisingly well for a single "
        "sentence. It does not teach the model: what follows from the new fact stays "
        "as it was, and many edits ruin it.",
        "es": "Una capa intermedia puede verse como una consulta: entra el nombre de una "
        "cosa y sale lo que se sabe de ella. Cambiar una entrada es un poco de "
        "álgebra: el menor cambio de la matriz que da la nueva respuesta para ese "
        "nombre y deja en paz a los demás. Funciona sorprendentemente bien con una "
        "sola frase. No enseña nada al modelo: lo que se sigue del hecho nuevo queda "
        "como estaba, y muchas ediciones lo estropean.",
    },
    diagram=(
        "key k of the subject at one layer, W k = what is known",
        "+v* by gradient: the target becomes likely",
        "~W => W + (v* - W k) (C^-1 k)^T / (k^T C^-1 k)",
    ),
    module="worthit.interp.edit:find_edit",
    parity=("constrained least squares by its Lagrangian (tests/interp/test_edit.py)",),
    experiment="worthit.lab.experiments.knowledge_editing:EXPERIMENT",
)
