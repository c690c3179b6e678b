"""Write `expected.safetensors`: losses and gradients of sae_lens' training classes."""

from __future__ import annotations

from pathlib import Path

import torch
from interp.sae.reference import NAMES, OURS, WIDTH, sae_of, some_inputs, step, theirs_of
from safetensors.torch import save_file


def main() -> None:
    """All kinds, with dead latents and without."""
    found = {}
    for kind in OURS:
        for way, dead in (("live", None), ("dead", torch.arange(WIDTH) % 5 == 0)):
            theirs = theirs_of(sae_of(kind))
            made = step(theirs, some_inputs(), kind, dead)
            made.loss.backward()
            found[f"{kind}.{way}.loss"] = made.loss.detach()
            for name, p in theirs.named_parameters():
                grad = p.grad.T if name == "W_enc" else p.grad
                found[f"{kind}.{way}.{NAMES.get(name, name)}"] = grad.contiguous()
    save_file(found, Path(__file__).parent / "expected.safetensors")


if __name__ == "__main__":
    main()
