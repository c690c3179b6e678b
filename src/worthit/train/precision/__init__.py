"""Number formats for training: what fp8, MX, NVFP4 and BitNet round to, and products in them."""

from worthit.train.precision.apply import PRECISIONS, apply_precision
from worthit.train.precision.linear import Narrow, NarrowExperts, NarrowLinear, narrow_linear

__all__ = [
    "PRECISIONS",
    "Narrow",
    "NarrowExperts",
    "NarrowLinear",
    "apply_precision",
    "narrow_linear",
]
