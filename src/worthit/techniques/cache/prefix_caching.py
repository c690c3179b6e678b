"""Prefix caching: the cache of a prompt's beginning is kept and reused by later requests.

Changes: `runtime.has_prefix_caching`; the shared share of a prompt is neither computed nor stored
again.
Relieves: prefill done twice, and copies of the same cache.
Does nothing when: prompts have nothing in common at their beginning.
Costs: an engine that has it; memory for prefixes nobody asks for again.

Held equal: the workload, warm (the prefix has been seen). It is judged on the time to the first
token, under any goal: after that token nothing is saved but memory.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.techniques._change import require_serving, with_runtime
from worthit.techniques._record import Evidence, Source, Technique

ZHENG_2023 = Source(
    cite="Zheng et al. 2023",
    title="SGLang: Efficient Execution of Structured Language Model Programs",
    id="arXiv:2312.07104",
    where="section 3 (RadixAttention)",
)
GIM_2023 = Source(
    cite="Gim et al. 2023",
    title="Prompt Cache: Modular Attention Reuse for Low-Latency Inference",
    id="arXiv:2311.04934",
    where="section 3",
)


def apply(case: Case) -> Case:
    """Return `case` reusing the cache of `workload.shared_prefix` of every prompt."""
    require_serving(case, "prefix-caching")
    return with_runtime(case, has_prefix_caching=True)


def is_present(case: Case) -> bool:
    """Whether prefixes are reused already."""
    return case.runtime.has_prefix_caching


def remove(case: Case) -> Case:
    """Return `case` computing every prompt from its first token."""
    return with_runtime(case, has_prefix_caching=False)


TECHNIQUE = Technique(
    id="prefix-caching",
    name="Prefix caching",
    relieves=("prefill-recompute", "kv-capacity"),
    bottleneck=(
        "Requests that begin with the same instructions, documents or history compute and store "
        "the same keys and values again each time."
    ),
    apply=apply,
    experiment="worthit.lab.experiments.prefix_caching:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption="One engine flag, and prompts ordered so that what is common comes first.",
    nothing_when=(
        "Prompts differ from their first tokens on, or decoding takes nearly all of the time."
    ),
    pitfalls=(
        "One changed token early (a date, a user name) makes everything after it different: put "
        "what varies last.",
        "Only full pages match; a full hit must still compute the last token.",
        "Recurrent layers need a stored state at the very boundary, not any page.",
        "Shared caches leak by timing between tenants, and predictable hashes can be attacked: "
        "salt them for each tenant.",
    ),
    module="worthit.decode.cache.prefix:Chain",
    parity=(
        "the same tokens with and without a known prefix, states and windows included "
        "(tests/decode/engine/test_service.py)",
        "random loads on a model whose tokens are a hash of what its blocks hold "
        "(tests/decode/engine/test_properties.py)",
    ),
    sources=(ZHENG_2023, GIM_2023),
    evidence=(
        Evidence(
            claim="Programs that share prefixes (few-shot, agents, chat, extraction) run with up "
            "to 6.4 times the throughput of engines without reuse; the gain includes other parts "
            "of the system.",
            source=ZHENG_2023,
        ),
    ),
    metric="ttft_s",
    orientation={
        "en": "Keys and values of a token depend only on the tokens before it. So when many "
        "requests open with the same system prompt, document or conversation, their caches are "
        "identical up to the first difference, and computing them once is enough. The first answer "
        "token comes earlier by the share of the prompt that is common, and one copy in memory "
        "serves everyone.",
        "es": "Las claves y los valores de un token dependen solo de los tokens anteriores. Por "
        "eso, cuando muchas peticiones empiezan con las mismas instrucciones, el mismo documento o "
        "la misma conversación, sus cachés son idénticas hasta la primera diferencia y basta con "
        "calcularlas una vez. El primer token de la respuesta llega antes, en la proporción del "
        "texto que es común, y una sola copia en memoria sirve a todos.",
    },
    diagram=(
        "prompt",
        "+look up the longest known prefix, page by page",
        "~prefill: whole prompt => the part after the prefix",
        "~cache: a copy a request => one copy of the prefix, shared",
        "decode",
    ),
)
