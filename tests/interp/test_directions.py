"""Directions: by hand, and through a file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from worthit.errors import InputError
from worthit.interp.directions import (
    Direction,
    cosines,
    difference_in_means,
    from_pairs,
    from_sae,
    load_direction,
    random_like,
)


def test_the_difference_and_the_middle_by_hand() -> None:
    positive = torch.tensor([[3.0, 1.0], [5.0, 1.0]])
    negative = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(difference_in_means(positive, negative), torch.tensor([3.0, 0.0]))
    found = from_pairs(positive, negative, "layers.0.resid_post")
    assert found.middle == pytest.approx(2.5)
    assert found.norm == pytest.approx(3.0)


def test_a_file_gives_it_back(tmp_path) -> None:
    path = tmp_path / "warm.safetensors"
    said = Direction(torch.randn(7), "layers.3.resid_post", "random", middle=0.25, note="of tests")
    said.save(path)
    read = load_direction(path)
    torch.testing.assert_close(read.vector, said.vector)
    assert (read.point, read.method, read.middle, read.note) == (
        "layers.3.resid_post",
        "random",
        0.25,
        "of tests",
    )


def test_another_file_is_refused(tmp_path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, path)
    with pytest.raises(InputError, match="is no direction, got a safetensors file of a, b"):
        load_direction(path)
    path.write_bytes(b"not at all")
    with pytest.raises(InputError, match="no safetensors file"):
        load_direction(path)
    with pytest.raises(InputError, match="there is no such file"):
        load_direction(tmp_path / "none")


def test_all_problems_of_pairs_are_said_at_once() -> None:
    with pytest.raises(InputError, match="positive: must be") as caught:
        difference_in_means(torch.ones(0, 3), torch.tensor([[1.0, torch.nan]]))
    assert "negative: holds numbers that are not finite" in str(caught.value)
    with pytest.raises(InputError, match="points nowhere"):
        Direction(torch.zeros(3), "embed", "random")


def test_controls_have_the_length_and_no_other_likeness() -> None:
    v = torch.randn(2000)
    r = random_like(v, seed=1)
    torch.testing.assert_close(r.norm(), v.norm())
    assert abs(cosines({"a": v, "b": r})["a", "b"]) < 0.1
    torch.testing.assert_close(r, random_like(v, seed=1))


def test_a_latent_is_its_row() -> None:
    class Sae:
        W_dec = torch.tensor([[3.0, 4.0], [1.0, 0.0]])

    torch.testing.assert_close(from_sae(Sae, 0, "embed").vector, torch.tensor([0.6, 0.8]))
    with pytest.raises(InputError, match="from 0 to 1, got 2"):
        from_sae(Sae, 2, "embed")
