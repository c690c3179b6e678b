"""Every architecture as a module: `build(spec)` turns a `ModelSpec` into a decoder.

One technique a file, under the family's folder; each opens with its paper's symbols mapped to ours.
"""

from __future__ import annotations

from worthit.nn.cache import Cache
from worthit.nn.decoder import Decoder, build

__all__ = ["Cache", "Decoder", "build"]
