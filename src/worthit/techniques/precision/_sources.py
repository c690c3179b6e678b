"""Sources that several records of this family cite."""

from __future__ import annotations

from worthit.techniques._record import Source

MICIKEVICIUS_2022 = Source(
    cite="Micikevicius et al. 2022",
    title="FP8 Formats for Deep Learning",
    id="arXiv:2209.05433",
    where="sections 3 and 4",
)
DEEPSEEK_2024 = Source(
    cite="DeepSeek-AI 2024",
    title="DeepSeek-V3 Technical Report",
    id="arXiv:2412.19437",
    where="section 3.3",
)
GPT_FAST_2023 = Source(
    cite="PyTorch team 2023",
    title="gpt-fast",
    id="github.com/pytorch-labs/gpt-fast",
    where="README, single-device results on A100",
)
