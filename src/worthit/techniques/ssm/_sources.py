"""Papers that several records of this family cite."""

from __future__ import annotations

from worthit.techniques._record import Source

GU_2023 = Source(
    cite="Gu and Dao 2023",
    title="Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    id="arXiv:2312.00752",
    where="section 3, algorithm 2",
)
DAO_2024 = Source(
    cite="Dao and Gu 2024",
    title="Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured "
    "State Space Duality",
    id="arXiv:2405.21060",
    where="sections 5 to 7",
)
WALEFFE_2024 = Source(
    cite="Waleffe et al. 2024",
    title="An Empirical Study of Mamba-based Language Models",
    id="arXiv:2406.07887",
    where="abstract",
)
JELASSI_2024 = Source(
    cite="Jelassi et al. 2024",
    title="Repeat After Me: Transformers are Better than State Space Models at Copying",
    id="arXiv:2402.01032",
    where="sections 2 and 4",
)
