"""Sources that several records of this family cite."""

from __future__ import annotations

from worthit.techniques._record import Source

RAPOSO_2024 = Source(
    cite="Raposo et al. 2024",
    title="Mixture-of-Depths: Dynamically allocating compute in transformer-based language models",
    id="arXiv:2404.02258",
    where="section 3, equation 1",
)
DEHGHANI_2018 = Source(
    cite="Dehghani et al. 2018",
    title="Universal Transformers",
    id="arXiv:1807.03819",
    where="section 2",
)
BAE_2024 = Source(
    cite="Bae et al. 2024",
    title="Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA",
    id="arXiv:2410.20672",
    where="section 2",
)
BAE_2025 = Source(
    cite="Bae et al. 2025",
    title="Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level "
    "Computation",
    id="arXiv:2507.10524",
    where="section 2",
)
