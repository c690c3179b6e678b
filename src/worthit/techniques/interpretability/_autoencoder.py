"""What the records of sparse autoencoders share: sources, and who they are for."""

from __future__ import annotations

from worthit.techniques._record import Source

HUBEN_2023 = Source(
    cite="Cunningham et al. 2023",
    title="Sparse Autoencoders Find Highly Interpretable Features in Language Models",
    id="arXiv:2309.08600",
)
BRICKEN_2023 = Source(
    cite="Bricken et al. 2023",
    title="Towards Monosemanticity: Decomposing Language Models With Dictionary Learning",
    id="https://transformer-circuits.pub/2023/monosemantic-features",
)
GAO_2024 = Source(
    cite="Gao et al. 2024",
    title="Scaling and evaluating sparse autoencoders",
    id="arXiv:2406.04093",
    where="sections 2.3 and 3",
)
RAJAMANOHARAN_GATED = Source(
    cite="Rajamanoharan et al. 2024",
    title="Improving Dictionary Learning with Gated Sparse Autoencoders",
    id="arXiv:2404.16014",
    where="sections 3 and 4",
)
RAJAMANOHARAN_JUMP = Source(
    cite="Rajamanoharan et al. 2024",
    title="Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders",
    id="arXiv:2407.14435",
    where="sections 3 and 5",
)
BUSSMANN_2024 = Source(
    cite="Bussmann et al. 2024",
    title="BatchTopK Sparse Autoencoders",
    id="arXiv:2412.06410",
    where="sections 3 and 4",
)
CHANIN_2024 = Source(
    cite="Chanin et al. 2024",
    title="A is for Absorption: Studying Feature Splitting and Absorption in Sparse Autoencoders",
    id="arXiv:2409.14507",
)
PAULO_2025 = Source(
    cite="Paulo and Belrose 2025",
    title="Sparse Autoencoders Trained on the Same Data Learn Different Features",
    id="arXiv:2501.16615",
)
KANTAMNENI_2025 = Source(
    cite="Kantamneni et al. 2025",
    title="Are Sparse Autoencoders Useful? A Case Study in Sparse Probing",
    id="arXiv:2502.16681",
)

# What holds for all of them.
NOTHING_WHEN = (
    "You can name the property and label a few hundred texts: a linear probe is cheaper and at "
    "least as good (Kantamneni et al. 2025, arXiv:2502.16681)."
)
COST = (
    "Activations of millions of tokens (hundreds of gigabytes for large models, streamed here), "
    "and minutes to days of training a layer; the model is not changed."
)
PITFALLS = (
    "The first token of a sequence is an attention sink with a norm many times all others: leave "
    "it out, or it is all that the error sees.",
    "Another initialisation finds another set of latents: one decomposition of several, not "
    "the model's own alphabet.",
    "A latent that looks like a feature misses its inputs where a more special latent took them "
    "over (absorption): check recall, not only the top examples.",
    "Explained variance is not enough: report the loss of the model through the reconstruction.",
)
