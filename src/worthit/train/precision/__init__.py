"""Number formats for training: what fp8, MX, NVFP4 and BitNet round to, and products in them."""

from worthit.train.precision.apply import PRECISIONS, Narrowed, apply_precision, narrowed
from worthit.train.precision.linear import Narrow, NarrowExperts, NarrowLinear, narrow_linear
from worthit.train.precision.store import store_bitnet

__all__ = [
    "PRECISIONS",
    "Narrow",
    "NarrowExperts",
    "NarrowLinear",
    "Narrowed",
    "apply_precision",
    "narrow_linear",
    "narrowed",
    "store_bitnet",
]
