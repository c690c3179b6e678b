"""Weights in and out: safetensors and GGUF, every family's names mapped to ours."""
