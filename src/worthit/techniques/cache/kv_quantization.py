"""KV-cache quantization: keys and values are stored in 8 or 4 bits instead of 16.

Changes: `precision.cache`; weights, activations and recurrent states keep their formats.
Relieves: the capacity for sequences and the bytes that decoding reads from the cache.
Does nothing when: weights dominate the bytes of a step, or the cache is small already.
Costs: a flag for 8 bits; a calibration, or per-channel keys (KIVI), for 4 bits.

Held equal: the model, the workload and every other format.
"""

from __future__ import annotations

from worthit.spec.case import Case
from worthit.spec.formats import format_of
from worthit.techniques._change import (
    require_growing_cache,
    require_narrower,
    require_serving,
    wide_format,
    with_precision,
    with_runtime,
)
from worthit.techniques._record import Evidence, Source, Technique

LIU_2024 = Source(
    cite="Liu et al. 2024",
    title="KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
    id="arXiv:2402.02750",
    where="sections 3.1 and 3.2",
)
HOOPER_2024 = Source(
    cite="Hooper et al. 2024",
    title="KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization",
    id="arXiv:2401.18079",
    where="section 3",
)

# KIVI's layout at 4 bits, and the tokens at the end that it leaves whole.
KIVI = "int4-g64"
RECENT_TOKENS = 64


def apply(case: Case, *, format: str | None = None) -> Case:
    """Return `case` with the cache in `format`.

    None takes 8 bits: fp8 where the device computes in it (its attention kernels read it
    directly), int8 elsewhere. `int4-g64` is KIVI's layout at 4 bits.
    """
    require_serving(case, "kv-quantization")
    require_growing_cache(case, "kv-quantization")
    if format is None:
        has_fp8 = bool(case.hardware.device.flops_per_s.get("fp8"))
        format = "fp8" if has_fp8 else "int8"
    require_narrower("kv-quantization", "cache", case.model.precision.cache, format)
    # Groups of tokens that share a scale are quantized when they are whole and no longer recent.
    recent = RECENT_TOKENS if format == KIVI else None
    return with_runtime(with_precision(case, cache=format), recent_tokens=recent)


def is_present(case: Case) -> bool:
    """Whether the cache is kept in fewer than 16 bits."""
    return format_of(case.model.precision.cache).bits < 16


def remove(case: Case) -> Case:
    """Return `case` with the cache in the format of the activations."""
    return with_runtime(with_precision(case, cache=wide_format(case)), recent_tokens=None)


TECHNIQUE = Technique(
    id="kv-quantization",
    name="KV-cache quantization",
    relieves=("kv-capacity", "decode-cache"),
    bottleneck=(
        "Every cached key and value takes 16 bits, which bounds how many sequences fit and is "
        "read back for every new token."
    ),
    apply=apply,
    experiment="worthit.lab.experiments.kv_quantization:EXPERIMENT",
    is_present=is_present,
    remove=remove,
    adoption="drop-in",
    cost_of_adoption=(
        "One engine flag for 8 bits; 4 bits need per-channel scales for keys, a window of recent "
        "tokens in 16 bits, and a check of perplexity and retrieval on your own prompts."
    ),
    nothing_when=(
        "The cache is a small share of the bytes of a decode step (below about 30 % on an H100, "
        "where fp8 attention at batch 1 and 4096 tokens measures slower than bf16), or the model "
        "keeps a fixed state instead of a growing cache."
    ),
    pitfalls=(
        "Keys have outlier channels: one scale a token ruins them at 4 and 2 bits, one scale a "
        "channel does not.",
        "Quantize keys after the rotary embedding consistently, and never re-quantize what is "
        "quantized already.",
        "A kernel that dequantizes the whole cache before attending reads and writes more bytes "
        "than it saves; scales belong inside the attention kernel.",
        "Few engines combine it with every drafter, eviction policy and prefix cache: test the "
        "combination you run.",
    ),
    module="worthit.decode.cache.quantized:QuantizedKV",
    parity=(
        "group by group, the nearest of written-down levels; half a step at most; any chunks, "
        "the same bits "
        "(tests/decode/cache/test_quantized.py)",
        "bytes that `cost` predicts (tests/decode/cache/test_bridge.py)",
        "the engine's tokens are those of a plain loop over the same cache "
        "(tests/decode/engine/test_caches.py)",
    ),
    sources=(LIU_2024, HOOPER_2024),
    evidence=(
        Evidence(
            claim="At 2 bits with per-channel keys and per-token values, Llama, Falcon and "
            "Mistral models keep almost the same quality, peak memory falls 2.6 times (weights "
            "included) and throughput rises 2.35 to 3.47 times with batches 4 times larger.",
            source=LIU_2024,
        ),
    ),
    orientation={
        "en": "While a model decodes, the keys and values of every past token wait in memory and "
        "are read again for each new token. Storing them in 8 bits halves both the space and the "
        "traffic; 4 bits quarter them, if keys get one scale per channel and values one per token, "
        "because a few key channels are far larger than the rest. What it buys is more sequences "
        "in the same memory, and faster steps only where the cache, not the weights, is most of "
        "what a step reads.",
        "es": "Mientras un modelo decodifica, las claves y los valores de cada token pasado "
        "esperan en memoria y se releen con cada token nuevo. Guardarlos en 8 bits reduce a la "
        "mitad el espacio y el tráfico; en 4 bits, a la cuarta parte, si las claves llevan una "
        "escala por canal y los valores una por token, porque unos pocos canales de las claves son "
        "mucho mayores que el resto. Lo que se gana son más secuencias en la misma memoria, y "
        "pasos más rápidos solo cuando la caché, y no los pesos, es lo que más se lee.",
    },
    diagram=(
        "x",
        "q_proj, k_proj, v_proj, rotary",
        "+quantize k (scale a channel), v (scale a token)",
        "~cache: 16 bits => 8 or 4 bits an element, plus scales",
        "~softmax(q k) v: scales folded in => no dequantized copy",
        "o_proj",
    ),
)
