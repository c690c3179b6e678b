"""Sliding-window attention: most layers see only the nearest tokens.

Changes: `window` of full softmax layers; one layer in `global_every` keeps the whole context, as in
Gemma 3 (five local to one global, window 1024). Matched: everything else; no parameter changes.
Relieves: KV-cache capacity and traffic, and attention compute, each beyond the window.
Does nothing when: the context is no longer than the window.
Costs: fine-tuning; what lies beyond the window is reached only through the global layers.
"""

from __future__ import annotations

from dataclasses import replace

from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import Attention, Layer, Mixer
from worthit.techniques._change import attentions, change_layers, map_attention
from worthit.techniques._mixers import require_absent, require_heads
from worthit.techniques._record import Evidence, Source, Technique
from worthit.techniques.attention._sources import CHILD_2019

GEMMA_3 = Source(
    cite="Gemma Team 2025",
    title="Gemma 3 Technical Report",
    id="arXiv:2503.19786",
    where="sections 2 and 5.2",
)
JIANG_2023 = Source(
    cite="Jiang et al. 2023",
    title="Mistral 7B",
    id="arXiv:2310.06825",
    where="section 2",
)
BELTAGY_2020 = Source(
    cite="Beltagy, Peters and Cohan 2020",
    title="Longformer: The Long-Document Transformer",
    id="arXiv:2004.05150",
    where="section 3.1",
)
XIAO_2023 = Source(
    cite="Xiao et al. 2023",
    title="Efficient Streaming Language Models with Attention Sinks",
    id="arXiv:2309.17453",
    where="section 3",
)


def apply(case: Case, *, window: int = 1024, global_every: int = 6) -> Case:
    """Return `case` with a window of `window` keys in all but every `global_every`-th attention.

    The last attention of each period stays global, or the last of all where there is no whole
    period. `global_every=0` makes every layer local, as Mistral 7B did with `window=4096`.
    """
    found = require_heads(
        case, "sliding-window", "a window over latents is not modelled, and their cache is small"
    )
    here = sorted({a.reach for a in found if a.reach is not None})
    require_absent(bool(here), "sliding-window", f"some layers see at most {here} keys")
    if window < 1 or global_every < 0:
        raise NotApplicable(
            f"sliding-window needs window >= 1 and global_every >= 0, got window={window} and "
            f"global_every={global_every}"
        )
    layers = case.model.layers
    where = [i for i, x in enumerate(layers) if any(isinstance(m, Attention) for m in x.mixers)]
    whole = set(where[global_every - 1 :: global_every]) if global_every else set()
    if global_every and not whole and len(where) > 1:
        whole = {where[-1]}

    def limit(index: int, layer: Layer) -> Layer:
        if index in whole:
            return layer
        return replace(layer, mixers=tuple(_local(m, window) for m in layer.mixers))

    return change_layers(case, limit)


def is_present(case: Case) -> bool:
    """Whether some attention sees only a window or its own chunk."""
    return any(a.reach is not None for a in attentions(case))


def remove(case: Case) -> Case:
    """Return `case` with the whole context in every layer."""
    return map_attention(case, lambda a: replace(a, window=None, chunk=None))


def _local(mixer: Mixer, window: int) -> Mixer:
    return replace(mixer, window=window) if isinstance(mixer, Attention) else mixer


TECHNIQUE = Technique(
    id="sliding-window",
    name="Sliding-window attention, interleaved with global layers",
    relieves=("kv-capacity", "decode-cache", "attention-compute"),
    bottleneck="Every layer caches and reads the whole context, though most heads look nearby.",
    apply=apply,
    module="worthit.nn.attention.sliding_window:SlidingWindowAttention",
    experiment="worthit.lab.experiments.sliding_window:EXPERIMENT",
    parity=(
        "transformers 5.23 `MistralAttention`: outputs and gradients "
        "(tests/nn/attention/test_heads.py)",
        "every score written down under the mask, windows, chunks and sinks: outputs "
        "(tests/nn/attention/test_heads.py)",
    ),
    is_present=is_present,
    remove=remove,
    adoption="finetune",
    cost_of_adoption=(
        "Continued training with the window, so that the remaining global layers learn to carry "
        "what the local ones no longer see; a short one is enough for moderate windows."
    ),
    nothing_when=(
        "The context fits in the window, which for chat it often does; or the model is decoded one "
        "short sequence at a time and reads weights, not cache."
    ),
    pitfalls=(
        "Information moves at most one window a local layer: with no global layer nothing older "
        "than layers times window can matter.",
        "Evicting the very first tokens breaks models that park attention on them; keep a few, or "
        "train explicit sinks.",
        "Whether the window counts the query's own position differs between models by one.",
        "A rolling buffer stores slots, not positions: rotations must use the true position.",
        "A server that allocates the same cache for every layer saves nothing.",
    ),
    sources=(GEMMA_3, JIANG_2023, BELTAGY_2020, CHILD_2019, XIAO_2023),
    evidence=(
        Evidence(
            claim="Gemma 3's ablation finds little change in perplexity up to seven local layers "
            "for each global one, and at windows well below 4096.",
            source=GEMMA_3,
        ),
        Evidence(
            claim="Window attention alone collapses once the first tokens leave the cache, and "
            "keeping four of them restores it.",
            source=XIAO_2023,
        ),
    ),
    orientation={
        "en": "Most attention falls on the recent past. With a window, a layer caches and reads "
        "only the last so many tokens, and its memory stops growing; a few layers keep the whole "
        "context so that distant facts can still be fetched. Five local layers to one global cut "
        "the cache of long contexts nearly sixfold. Below the window nothing changes at all.",
        "es": "La mayor parte de la atención recae en el pasado reciente. Con una ventana, una "
        "capa guarda y lee solo los últimos tokens y su memoria deja de crecer; unas pocas capas "
        "conservan todo el contexto para poder recuperar hechos lejanos. Cinco capas locales por "
        "cada global reducen casi seis veces la caché de los contextos largos. Por debajo de la "
        "ventana no cambia absolutamente nada.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj",
        "~local layers: keys 1..i => keys i-window+1..i",
        "~cache of local layers: context => window tokens",
        "every sixth layer: all keys",
        "o_proj",
    ),
)
