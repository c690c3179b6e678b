"""Hugging Face `config.json` and `ModelSpec`: the one border where foreign names are translated.

Each file of this package reads the model types of one family: its `READERS` maps a type to a
function from `Fields` to `ModelSpec`. Unknown types are refused with the nearest known ones.
`to_config` is the way back, for the types that most tools read.
"""

from __future__ import annotations

from worthit.spec.hf._read import from_config, known_model_types
from worthit.spec.hf.write import to_config

__all__ = ["from_config", "known_model_types", "to_config"]
