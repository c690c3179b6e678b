"""Sources that several records of this family cite."""

from __future__ import annotations

from worthit.techniques._record import Source

KWON_2023 = Source(
    cite="Kwon et al. 2023",
    title="Efficient Memory Management for Large Language Model Serving with PagedAttention",
    id="arXiv:2309.06180",
    where="sections 3 and 4, figure 2",
)
YU_2022 = Source(
    cite="Yu et al. 2022",
    title="Orca: A Distributed Serving System for Transformer-Based Generative Models",
    id="OSDI 2022",
    where="section 3.1 (iteration-level scheduling)",
)
AGRAWAL_2024 = Source(
    cite="Agrawal et al. 2024",
    title="Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
    id="arXiv:2403.02310",
    where="section 4 (chunked prefills, stall-free batching)",
)
