"""Number formats for training: what fp8, MX, NVFP4 and BitNet round to, and products in them."""

from worthit.train.precision.apply import PRECISIONS, apply_precision
from worthit.train.precision.linear import Narrow, NarrowExperts, NarrowLinear, narrow_linear
from worthit.train.precision.store import store_bitnet

__all__ = [
    "PRECISIONS",
    "Narrow",
    "NarrowExperts",
    "NarrowLinear",
    "apply_precision",
    "narrow_linear",
    "store_bitnet",
]
