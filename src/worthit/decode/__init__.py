"""From logits to text: tokenizers, sampling, and the loop that feeds a model its own tokens."""

from __future__ import annotations

from worthit.decode.generate import Generation, generate
from worthit.decode.sampling import Sampling
from worthit.decode.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Generation", "Sampling", "Tokenizer", "generate", "load_tokenizer"]
