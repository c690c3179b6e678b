"""Number formats: how many bits a stored element takes, scales included, and what computes on it.

`bits` counts group scales and zero points (int4 in groups of 32 with a 16-bit scale is 4.5 bits);
`math` is the arithmetic that an operand of this format can take part in when both operands have
it; a narrow format beside a wider one is widened first (weight-only quantization).
"""

from __future__ import annotations

from functools import cache

from worthit._record import record
from worthit.errors import unknown_name


@record
class Format:
    """One storage format; `bits` per element, scales included."""

    bits: float
    math: str
    source: str

    @property
    def bytes(self) -> float:
        """Bytes per element, scales included."""
        return self.bits / 8


_IEEE = "IEEE 754-2019"
_OCP_FP8 = "OCP 8-bit floating point specification, revision 1.0, 2023"
_OCP_MX = "OCP Microscaling formats specification, version 1.0, 2023: 32-element blocks, E8M0 scale"
_GGML = "ggml block layouts, ggml-common.h"

FORMATS: dict[str, Format] = {
    "fp32": Format(bits=32, math="fp32", source=_IEEE),
    "bf16": Format(bits=16, math="bf16", source="Kalamkar et al. 2019, arXiv:1905.12322"),
    "fp16": Format(bits=16, math="fp16", source=_IEEE),
    "fp8": Format(bits=8, math="fp8", source=_OCP_FP8 + ", one scale per tensor or row"),
    "fp8-block": Format(
        bits=8 + 32 / (128 * 128), math="fp8", source="DeepSeek-V3, arXiv:2412.19437, 128 x 128"
    ),
    "int8": Format(bits=8, math="int8", source="one scale per output channel"),
    "int8-g32": Format(bits=8.5, math="int8", source=_GGML + ": Q8_0"),
    "int4-g128": Format(
        bits=4.25, math="int4", source="AWQ, arXiv:2306.00978: 16-bit scale, 16-bit zero per 128"
    ),
    "int4-g64": Format(bits=4.5, math="int4", source="16-bit scale and 16-bit zero per 64"),
    "int4-g32": Format(bits=4.5, math="int4", source="16-bit scale per 32 elements"),
    "q4_1": Format(bits=5.0, math="int4", source=_GGML + ": Q4_1, scale and minimum per 32"),
    "q4_k": Format(bits=4.5, math="int4", source=_GGML + ": Q4_K super-blocks of 256"),
    "q5_k": Format(bits=5.5, math="int4", source=_GGML + ": Q5_K"),
    "q6_k": Format(bits=6.5625, math="int4", source=_GGML + ": Q6_K"),
    "q5_0": Format(bits=5.5, math="int4", source=_GGML + ": Q5_0, 22 bytes per 32"),
    "q5_1": Format(bits=6.0, math="int4", source=_GGML + ": Q5_1, 24 bytes per 32"),
    "q8_1": Format(bits=10.0, math="int8", source=_GGML + ": Q8_1, 40 bytes per 32"),
    "q2_k": Format(bits=2.625, math="int4", source=_GGML + ": Q2_K, 84 bytes per 256"),
    "q3_k": Format(bits=3.4375, math="int4", source=_GGML + ": Q3_K, 110 bytes per 256"),
    "q8_k": Format(bits=9.125, math="int8", source=_GGML + ": Q8_K, 292 bytes per 256"),
    "iq1_s": Format(bits=1.5625, math="int4", source=_GGML + ": IQ1_S, 50 bytes per 256"),
    "iq1_m": Format(bits=1.75, math="int4", source=_GGML + ": IQ1_M, 56 bytes per 256"),
    "iq2_xxs": Format(bits=2.0625, math="int4", source=_GGML + ": IQ2_XXS, 66 bytes per 256"),
    "iq2_xs": Format(bits=2.3125, math="int4", source=_GGML + ": IQ2_XS, 74 bytes per 256"),
    "iq2_s": Format(bits=2.5625, math="int4", source=_GGML + ": IQ2_S, 82 bytes per 256"),
    "iq3_xxs": Format(bits=3.0625, math="int4", source=_GGML + ": IQ3_XXS, 98 bytes per 256"),
    "iq3_s": Format(bits=3.4375, math="int4", source=_GGML + ": IQ3_S, 110 bytes per 256"),
    "iq4_nl": Format(bits=4.5, math="int4", source=_GGML + ": IQ4_NL, 18 bytes per 32"),
    "iq4_xs": Format(bits=4.25, math="int4", source=_GGML + ": IQ4_XS, 136 bytes per 256"),
    "tq1_0": Format(bits=1.6875, math="int8", source=_GGML + ": TQ1_0, 54 bytes per 256"),
    "tq2_0": Format(bits=2.0625, math="int8", source=_GGML + ": TQ2_0, 66 bytes per 256"),
    "mxfp8": Format(bits=8.25, math="fp8", source=_OCP_MX),
    "mxfp6": Format(bits=6.25, math="fp8", source=_OCP_MX),
    "mxfp4": Format(bits=4.25, math="fp4", source=_OCP_MX),
    "nvfp4": Format(bits=4.5, math="fp4", source="NVFP4: 16-element blocks, E4M3 scale"),
    "ternary": Format(bits=2.0, math="int8", source="BitNet b1.58, arXiv:2402.17764, packed 2 bit"),
}


def format_of(name: str) -> Format:
    """Return the format called `name`.

    Raises:
        UnknownName: no such format; the nearest names are suggested.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise unknown_name("number format", name, FORMATS) from None


def group_of(name: str) -> int:
    """Elements that share a scale, where the format's name says so; else 1.

    >>> group_of("int4-g64"), group_of("int8")
    (64, 1)
    """
    _, _, group = name.rpartition("-g")
    return int(group) if group.isdigit() else 1


@cache
def arithmetic(storage: str, activations: str) -> str:
    """What a product of stored weights and activations computes in: the wider of the two."""
    a, b = format_of(storage).math, format_of(activations).math
    order = ("int4", "fp4", "int8", "fp8", "fp16", "bf16", "fp32")
    # Integer and floating formats of one width do not meet in a matrix unit.
    if {a, b} in ({"int4", "fp4"}, {"int8", "fp8"}):
        return "bf16"
    return max(a, b, key=order.index)
