"""Write what `mergekit` makes of the recipes in `tiny.py`, as test data.

    python tests/merge/make_expected.py        in an environment with mergekit (0.1.5 was used)

Methods that drop entries at random are run with our random numbers in place of torch's: which
entries drop is a matter of generators, and everything else must be the same. `mergekit` is a
reference for tests; nothing of it is copied.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.safetensors"


def run_reference(text: str, folder: Path, out: Path, **options: Any) -> dict[str, Tensor]:
    """The tensors that `mergekit` writes for a recipe whose models are below `folder`."""
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    LoaderCache().loaders = {}
    made = MergeOptions(
        **{"copy_tokenizer": False, "write_model_card": False, "random_seed": 0} | options
    )
    with contextlib.chdir(folder), our_chance():
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), made)
    return load_file(out / "model.safetensors")


@contextlib.contextmanager
def our_chance(seed: int = 0) -> Iterator[None]:
    """Have `mergekit` draw from this project's generators, by tensor and model."""
    from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge

    from worthit.merge.thinning import generator, mask

    plain_merge, plain_bernoulli = GeneralizedTaskArithmeticMerge.merge_group, torch.bernoulli
    place: list[Any] = ["", []]

    def merge_group(self: Any, group: Any, /, **parameters: Any) -> Tensor:
        # Models that keep everything draw nothing.
        kept = [parameters["density"][entry.id] for entry in group.non_base]
        place[:] = [group.metadata.name, [i for i, density in enumerate(kept) if density < 1]]
        return plain_merge(self, group, **parameters)

    def bernoulli(chances: Tensor) -> Tensor:
        name, indices = place
        return mask(chances.shape, chances, generator(seed, name, indices.pop(0)))

    GeneralizedTaskArithmeticMerge.merge_group = merge_group
    torch.bernoulli = bernoulli
    try:
        yield
    finally:
        GeneralizedTaskArithmeticMerge.merge_group = plain_merge
        torch.bernoulli = plain_bernoulli


def main() -> None:
    sys.path.insert(0, str(HERE.parent))
    from merge.tiny import RECIPES, write_all

    found: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_all(Path(name))
        for recipe, text in RECIPES.items():
            made = run_reference(text, folder, folder / "out" / recipe)
            found |= {f"{recipe}/{key}": value for key, value in made.items()}
    save_file(found, EXPECTED, metadata={"source": "mergekit 0.1.5"})


if __name__ == "__main__":
    main()
