"""Papers that several records of this family cite."""

from __future__ import annotations

from worthit.techniques._record import Source

VASWANI_2017 = Source(
    cite="Vaswani et al. 2017",
    title="Attention Is All You Need",
    id="arXiv:1706.03762",
    where="section 3.2.2",
)
SHAZEER_2019 = Source(
    cite="Shazeer 2019",
    title="Fast Transformer Decoding: One Write-Head is All You Need",
    id="arXiv:1911.02150",
    where="section 3, table 1",
)
AINSLIE_2023 = Source(
    cite="Ainslie et al. 2023",
    title="GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
    id="arXiv:2305.13245",
    where="section 2.2, table 1",
)
DEEPSEEK_V2 = Source(
    cite="DeepSeek-AI 2024",
    title="DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
    id="arXiv:2405.04434",
    where="section 2.1",
)
KATHAROPOULOS_2020 = Source(
    cite="Katharopoulos et al. 2020",
    title="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
    id="arXiv:2006.16236",
    where="section 3.4",
)
ARORA_2023 = Source(
    cite="Arora et al. 2023",
    title="Zoology: Measuring and Improving Recall in Efficient Language Models",
    id="arXiv:2312.04927",
    where="section 3",
)
YANG_2023 = Source(
    cite="Yang et al. 2023",
    title="Gated Linear Attention Transformers with Hardware-Efficient Training",
    id="arXiv:2312.06635",
    where="section 4, table 2",
)
YANG_2024_GATED = Source(
    cite="Yang, Kautz and Hatamizadeh 2024",
    title="Gated Delta Networks: Improving Mamba2 with Delta Rule",
    id="arXiv:2412.06464",
    where="section 3",
)
CHILD_2019 = Source(
    cite="Child et al. 2019",
    title="Generating Long Sequences with Sparse Transformers",
    id="arXiv:1904.10509",
    where="section 4",
)
