"""The kinds by name."""

from __future__ import annotations

from typing import Any

from worthit.errors import InputError, unknown_name
from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.sae.batchtopk import BatchTopKSae
from worthit.interp.sae.gated import GatedSae
from worthit.interp.sae.jumprelu import JumpReluSae
from worthit.interp.sae.standard import StandardSae
from worthit.interp.sae.topk import TopKSae

KINDS: dict[str, type[SparseAutoencoder]] = {
    cls.kind: cls for cls in (StandardSae, TopKSae, JumpReluSae, GatedSae, BatchTopKSae)
}


def make_sae(kind: str, **options: Any) -> SparseAutoencoder:
    """A fresh autoencoder.

    Args:
        kind: `standard`, `topk`, `jumprelu`, `gated` or `batchtopk`.
        options: fields of the kind's config; `d_in` and `width` at least.

    Raises:
        InputError: a kind or an option that there is not, or a value that cannot be.
    """
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    made = KINDS[kind]
    known = made.config_class.__dataclass_fields__
    strange = [name for name in options if name not in known]
    if strange:
        raise InputError(
            f"{', '.join(strange)}: {kind} has no such option; it has {', '.join(known)}"
        )
    return made(made.config_class(**options))
