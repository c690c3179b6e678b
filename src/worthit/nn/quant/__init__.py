"""Weights in few bits: formats, methods that choose the codes, kernels, files.

`quantize` changes a loaded model in place; `worthit quantize` is the verb around it.
"""
