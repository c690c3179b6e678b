"""A decoder's pass in one compiled call, where the machine has a compiler and AVX-512 with bf16.

`build` compiles and loads, `layout` and `linear` say how matrices stand, `decoder` runs a pass. The
reference is `worthit.nn.decoder` in plain PyTorch, which takes over wherever this does not apply.
"""
