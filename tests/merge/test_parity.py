"""Every recipe gives the tensors that `mergekit` 0.1.5 gives: as frozen data, and live where it is
installed (`make_expected.py` runs it)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from merge.make_expected import EXPECTED, run_reference
from merge.tiny import RECIPES, SEEDS, tensors, write, write_all
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from worthit.merge.run import merge

# fp32 sums in another order differ by a few units in the last place of numbers around 1.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
recipes = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("checkpoints"))


def expected(name: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(EXPECTED, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - a handle, which is not iterable
            recipe, _, tensor = key.partition("/")
            if recipe == name:
                yield tensor, file.get_tensor(key)


def merged(text: str, folder: Path, out: Path, **options: int) -> dict[str, Tensor]:
    path = folder / f"{out.name}.yml"
    path.write_text(text)
    merge(path, out, **options)
    return load_file(out / "model.safetensors")


@recipes
def test_the_tensors_of_the_reference(name: str, folder: Path, tmp_path: Path) -> None:
    found = merged(RECIPES[name], folder, tmp_path / name)
    wanted = dict(expected(name))
    assert found.keys() == wanted.keys()
    assert wanted
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, **CLOSE, msg=lambda m, k=key: f"{k}: {m}")


@recipes
def test_a_few_rows_at_a_time_make_no_difference(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = merged(RECIPES[name], folder, tmp_path / "whole")
    monkeypatch.setattr("worthit.merge.run.PIECE", 20)
    monkeypatch.setattr("worthit.merge.magnitude.FEW", 0)
    pieces = merged(RECIPES[name], folder, tmp_path / "pieces")
    for key, value in whole.items():
        torch.testing.assert_close(pieces[key], value, **CLOSE)


@pytest.mark.parametrize("name", [n for n in RECIPES if n != "formats"])
def test_live(name: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mergekit", reason="mergekit is not installed")
    wanted = run_reference(RECIPES[name], folder, tmp_path / "reference")
    found = merged(RECIPES[name], folder, tmp_path / name)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, **CLOSE)


def test_live_in_sixteen_bits(tmp_path: Path) -> None:
    """Theirs subtracts and adds in bf16; ours rounds once, at the end."""
    pytest.importorskip("mergekit", reason="mergekit is not installed")
    write_all(tmp_path, torch.bfloat16)
    text = RECIPES["ties"]
    wanted = run_reference(text, tmp_path, tmp_path / "reference")
    found = merged(text, tmp_path, tmp_path / "ours")
    for name in SEEDS:
        exact = {k: v.bfloat16().float() for k, v in tensors(name).items()}
        write(tmp_path / "wide" / name, exact)
    truth = merged(text, tmp_path / "wide", tmp_path / "truth")
    for key, value in truth.items():
        assert found[key].dtype == wanted[key].dtype == torch.bfloat16
        torch.testing.assert_close(found[key], value.bfloat16(), rtol=0, atol=0)
        theirs = (wanted[key].float() - value).abs().mean()
        ours = (found[key].float() - value).abs().mean()
        assert ours <= theirs
