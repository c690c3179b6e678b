"""QK-norm: queries and keys are normalised before they meet, so that scores cannot explode.

Changes: `qk_norm` of every softmax attention, over each head. Matched: everything else; two weight
vectors of a head's width a layer are added.
Relieves: stability: attention logits stay bounded at high learning rates and in low precision.
Does nothing when: training is stable anyway, or done.
Costs: training anew; one small element-wise pass.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.spec.case import Case
from worthit.techniques._change import attentions, map_attention
from worthit.techniques._mixers import require_absent, require_heads
from worthit.techniques._record import Evidence, Source, Technique

HENRY_2020 = Source(
    cite="Henry et al. 2020",
    title="Query-Key Normalization for Transformers",
    id="arXiv:2010.04245",
    where="section 3",
)
DEHGHANI_2023 = Source(
    cite="Dehghani et al. 2023",
    title="Scaling Vision Transformers to 22 Billion Parameters",
    id="arXiv:2302.05442",
    where="section 2",
)
WORTSMAN_2023 = Source(
    cite="Wortsman et al. 2023",
    title="Small-scale proxies for large-scale Transformer training instabilities",
    id="arXiv:2309.14322",
    where="section 3.1",
)


def apply(case: Case) -> Case:
    """Return `case` with each head's queries and keys normalised."""
    require_heads(
        case,
        "qk-norm",
        "the latents are normalised already, and keys normalised after them could not be absorbed "
        "into the queries",
    )
    require_absent(is_present(case), "qk-norm", "queries and keys are normalised")
    return map_attention(case, lambda a: replace(a, qk_norm="head"))


def is_present(case: Case) -> bool:
    """Whether some attention normalises queries and keys."""
    return any(a.qk_norm != "none" for a in attentions(case))


def remove(case: Case) -> Case:
    """Return `case` with queries and keys as projected."""
    return map_attention(
        case,
        lambda a: replace(a, qk_norm="none", has_qk_norm_bias=False, is_qk_norm_after_rope=False),
    )


TECHNIQUE = Technique(
    id="qk-norm",
    name="Query-key normalisation",
    relieves=("stability",),
    bottleneck="Attention logits grow during training until the softmax saturates and the loss "
    "diverges.",
    apply=apply,
    module="worthit.nn.norm.qk_norm:QKNorm",
    parity=(
        "transformers 5.23 `LlamaRMSNorm` a head, `Olmo2RMSNorm` a projection: outputs and "
        "gradients (tests/nn/norm/test_norms.py)",
        "transformers 5.23 `StableLmLayerNormPerHead`, `CohereLayerNorm`, weights of each head: "
        "outputs (tests/nn/norm/test_norms.py)",
    ),
    experiment="worthit.lab.experiments.qk_norm:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="retrain",
    cost_of_adoption="A training run; inserted into a trained model it changes every score.",
    nothing_when=(
        "The run is small and its learning rate moderate, or the model is only served: a trained "
        "model gains nothing from it."
    ),
    pitfalls=(
        "Over each head or over the whole projection are different designs; with tensor "
        "parallelism the latter needs an exchange.",
        "It stands before the rotation in most models, after it in some.",
        "Bounded scores also bound how sharply a head can attend; the weights must be able to "
        "grow.",
    ),
    sources=(HENRY_2020, DEHGHANI_2023, WORTSMAN_2023),
    evidence=(
        Evidence(
            claim="Five low-resource translation pairs gain 0.928 BLEU on average.",
            source=replace(HENRY_2020, where="abstract"),
        ),
        Evidence(
            claim="At 8B parameters a vision transformer diverged after a few thousand steps from "
            "growing attention logits, and normalising queries and keys cured it.",
            source=DEHGHANI_2023,
        ),
        Evidence(
            claim="Small models reproduce the instability at high learning rates, and with the "
            "norms they train well over several orders of magnitude of it.",
            source=WORTSMAN_2023,
        ),
    ),
    orientation={
        "en": "The score of a query and a key is a product, so it grows with the length of both, "
        "and nothing keeps those lengths in check. Normalising each head's queries and keys bounds "
        "the scores, lets higher learning rates survive and makes low precision safer. It belongs "
        "in a training plan; once a model is trained there is nothing left for it to do.",
        "es": "La puntuación de una consulta y una clave es un producto, así que crece con la "
        "longitud de ambas, y nada mantiene a raya esas longitudes. Normalizar las consultas y las "
        "claves de cada cabeza acota las puntuaciones, permite tasas de aprendizaje más altas y "
        "hace más segura la precisión baja. Su sitio es el plan de entrenamiento; en un modelo ya "
        "entrenado no le queda nada que hacer.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj",
        "+norm of each head's q and k",
        "rotation",
        "softmax(q k) v",
    ),
)
