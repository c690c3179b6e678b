"""What is read of checkpoints, against sums by hand, whole and sampled; and what follows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from merge.tiny import tensors, write, write_all
from torch import Tensor

from worthit.cli.main import run
from worthit.errors import InputError
from worthit.merge import advice as rules
from worthit.merge.advice import advise, recipe_text
from worthit.merge.plan import plan_text
from worthit.merge.reading import Reading, part_of, read_checkpoints

TWO = "base_model: base\nmodels: [a, b]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("checkpoints"))


def matrices(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([w.flatten() for w in weights.values() if w.ndim == 2]).double()


def small(seed: int, scale: float, **shapes: tuple[int, int]) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.0.{name}.weight": scale * torch.randn(shape, generator=chance)
        for name, shape in shapes.items()
    }


SHAPES = {"self_attn.q_proj": (300, 200), "mlp.up_proj": (500, 200)}


def made(folder: Path, **changes: dict[str, Tensor]) -> Path:
    """A base, and checkpoints that are the base plus a change each."""
    base = small(0, 1.0, **SHAPES)
    write(folder / "base", base, num_hidden_layers=1)
    for name, change in changes.items():
        write(folder / name, {k: base[k] + change[k] for k in base}, num_hidden_layers=1)
    return folder


def times(vector: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {k: factor * v for k, v in vector.items()}


def plus(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: one[k] + two[k] for k in one}


def read(folder: Path, *models: str, base: str = "base_model: base\n", **options: int) -> Reading:
    return read_checkpoints(f"{base}models: [{', '.join(models)}]", folder=folder, **options)


# --- numbers ------------------------------------------------------------------------------------


def test_lengths_angles_and_conflicts_by_hand(folder: Path) -> None:
    found = read_checkpoints(TWO, folder=folder)
    base, one, two = (matrices(tensors(name)) for name in ("base", "a", "b"))
    tau = {"a": one - base, "b": two - base}
    assert found.share == 1
    for vector in found.vectors:
        delta = tau[vector.model]
        assert vector.length == pytest.approx(float(delta.norm() / base.norm()), rel=1e-5)
        assert vector.changed == 1
    (pair,) = found.pairs
    assert pair.cosine == pytest.approx(
        float(tau["a"] @ tau["b"] / (tau["a"].norm() * tau["b"].norm())), abs=1e-6
    )
    assert pair.of_weights == pytest.approx(float(one @ two / (one.norm() * two.norm())), abs=1e-6)
    assert found.to_base["a"] == pytest.approx(
        float(one @ base / (one.norm() * base.norm())), abs=1e-6
    )


def test_quantiles_by_sorting(tmp_path: Path) -> None:
    change = small(5, 0.01, **SHAPES)
    found = read(made(tmp_path, a=change), "a").vectors[0]
    size = matrices(change).abs().sort(descending=True).values
    energy = size.square().cumsum(0)
    density = int((energy < 0.9 * energy[-1]).sum() + 1) / size.numel()
    assert found.density == pytest.approx(density, abs=2e-3)
    assert found.p99 == pytest.approx(float(size[size.numel() // 100]), rel=0.01)


def test_signs_among_the_large(tmp_path: Path) -> None:
    one = {
        k: torch.full(s, 0.01)
        for k, s in ((f"model.layers.0.{k}.weight", s) for k, s in SHAPES.items())
    }
    for value in one.values():
        value[:, :20] = 1.0  # a tenth, well inside the largest fifth
    two = {k: v.clone() for k, v in one.items()}
    for value in two.values():
        value[:, :5] *= -1  # a quarter of the tenth
        value[:, 20:] = 0.0
    (pair,) = read(made(tmp_path, a=one, b=two), "a", "b").pairs
    assert pair.conflict == pytest.approx(0.25)
    # The fifth of `a` is a tie of small entries beyond the tenth; all that `b` has is large in it.
    assert pair.overlap == pytest.approx(1.0)


def test_a_sample_tells_nearly_the_same(tmp_path: Path) -> None:
    base = small(0, 1.0, w=(4000, 250))
    write(tmp_path / "base", base, num_hidden_layers=1)
    shared = small(1, 0.02, w=(4000, 250))
    for i, name in enumerate(("a", "b")):
        own = plus(base, plus(shared, small(2 + i, 0.02, w=(4000, 250))))
        write(tmp_path / name, own, num_hidden_layers=1)
    whole = read(tmp_path, "a", "b")
    part = read(tmp_path, "a", "b", sample=100_000)
    assert whole.share == 1
    assert part.share == pytest.approx(0.1, abs=0.02)
    assert whole.pairs[0].cosine == pytest.approx(0.5, abs=0.01)
    assert part.pairs[0].cosine == pytest.approx(0.5, abs=0.02)
    assert part.vectors[0].length == pytest.approx(whole.vectors[0].length, rel=0.02)
    assert part.vectors[0].density == pytest.approx(whole.vectors[0].density, abs=0.02)


def test_parts() -> None:
    assert part_of("lm_head.weight") == "embeddings"
    assert part_of("model.layers.0.mlp.experts.0.w1.weight") == "feed-forward"
    assert part_of("backbone.layers.0.mixer.in_proj.weight") == "attention"


# --- what stands in the way ---------------------------------------------------------------------


def test_shapes_and_tokens_that_differ_are_told(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "base", tensors("base"))
    write(tmp_path / "wide", tensors("a", vocab=14), vocab_size=14)
    found = read(tmp_path, "wide")
    assert set(found.problems) == {
        "model.embed_tokens.weight: [12, 8] in base, [14, 8] in wide",
        "lm_head.weight: [12, 8] in base, [14, 8] in wide",
    }
    given = advise(found)
    assert given.verdict == "never"
    assert "passthrough" in given.others
    assert recipe_text(found, given) == ""
    for name, swapped in (("base", False), ("wide", True)):
        ids = {"x": 0, "y": 1} if not swapped else {"x": 1, "y": 0}
        write(tmp_path / name, tensors("a"))
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": ids}}))
    found = read(tmp_path, "wide")
    assert "2 of 2 ids stand for other tokens in wide than in base" in found.problems[0]
    assert "tables of tokens are left out" in found.warnings[0]


def test_nothing_to_compare(folder: Path) -> None:
    with pytest.raises(InputError, match="nothing to compare it with"):
        read_checkpoints("models: [a]", folder=folder)
    with pytest.raises(InputError, match="nobody: no such file or folder"):
        read_checkpoints("models: [a, ./nobody]", folder=folder)
    with pytest.raises(InputError, match="either models or slices"):
        read_checkpoints("base_model: a", folder=folder)


# --- advice -------------------------------------------------------------------------------------


def test_another_start_is_never_merged(tmp_path: Path) -> None:
    for i, name in enumerate(("base", "a", "b")):
        write(tmp_path / name, small(i, 1.0, **SHAPES), num_hidden_layers=1)
    without = advise(read(tmp_path, "a", "b", base=""))
    assert without.verdict == "never"
    assert "Trained from different starts" in without.reasons[0]
    with_base = advise(read(tmp_path, "a", "b"))
    assert with_base.verdict == "never"
    assert "was not fine-tuned from base" in with_base.reasons[0]


def test_without_a_base_only_means(tmp_path: Path) -> None:
    changes = {name: small(i, 0.05, **SHAPES) for i, name in enumerate("abc", 1)}
    folder = made(tmp_path, **changes)
    two = advise(read(folder, "a", "b", base=""))
    assert (two.verdict, two.method) == ("defer", "slerp")
    assert "Name the base_model" in two.cautions[0]
    assert advise(read(folder, "a", "b", "c", base="")).method == "linear"


def test_one_direction_is_a_soup(tmp_path: Path) -> None:
    shared = small(9, 0.02, **SHAPES)
    changes = {n: plus(shared, small(i, 0.01, **SHAPES)) for i, n in enumerate("ab", 1)}
    found = read(made(tmp_path, **changes), "a", "b")
    given = advise(found)
    assert given.method == "linear"
    assert "cosine 0.80, above 0.5" in given.reasons[0]
    assert "model_stock" in given.others


def test_right_angles_add(tmp_path: Path) -> None:
    changes = {n: small(i, 0.001, **SHAPES) for i, n in enumerate("ab", 1)}
    found = read(made(tmp_path, **changes), "a", "b")
    given = advise(found)
    assert given.method == "task_arithmetic"
    # Two vectors of one length at right angles: their sum is sqrt(2) times as long.
    assert given.parameters["lambda"] == pytest.approx(1 / math.sqrt(2), abs=0.01)
    assert "most can be dropped" in given.others["dare_ties"]
    assert given.evidence == "predicted"


def test_large_steps_are_not_for_dare(tmp_path: Path) -> None:
    changes = {n: small(i, 0.2, **SHAPES) for i, n in enumerate("ab", 1)}
    given = advise(read(made(tmp_path, **changes), "a", "b"))
    assert "dare_ties" not in given.others
    assert any("dropping entries at random (DARE) is expected to fail" in c for c in given.cautions)


def test_three_that_conflict_are_elected(tmp_path: Path) -> None:
    changes = {n: small(i, 0.01, **SHAPES) for i, n in enumerate("abc", 1)}
    given = advise(read(made(tmp_path, **changes), "a", "b", "c"))
    assert given.method == "ties"
    # A normal distribution has 90 % of its squared length in its largest 44.5 %.
    assert given.parameters["density"]["a"] == pytest.approx(0.445, abs=0.01)


def test_uneven_lengths_are_weighed(tmp_path: Path) -> None:
    folder = made(tmp_path, a=small(1, 0.01, **SHAPES), b=small(2, 0.05, **SHAPES))
    given = advise(read(folder, "a", "b"))
    assert given.parameters["weight"]["a"] == pytest.approx(
        5 * given.parameters["weight"]["b"], rel=0.02
    )
    assert any("b moved 5.0 times as far as a" in c for c in given.cautions)


def test_a_copy_of_the_base_adds_nothing(tmp_path: Path) -> None:
    nothing = times(small(1, 1.0, **SHAPES), 0.0)
    given = advise(read(made(tmp_path, a=small(1, 0.01, **SHAPES), b=nothing), "a", "b"))
    assert given.verdict == "defer"
    assert "b equals the base" in given.reasons[0]
    one = advise(read(tmp_path, "a"))
    assert one.method == "linear"
    assert one.parameters["weight"] == {"base": 0.5, "a": 0.5}


@pytest.mark.parametrize("models", [["a"], ["a", "b"], ["a", "b", "c"]])
@pytest.mark.parametrize("base", ["", "base_model: base\n"])
def test_the_recipe_that_is_advised_can_be_run(folder: Path, models: list[str], base: str) -> None:
    if len(models) == 1 and not base:
        pytest.skip("nothing to compare")
    found = read(folder, *models, base=base)
    text = recipe_text(found, advise(found))
    assert plan_text(text, folder=folder).recipe.method.id == advise(found).method


def test_thresholds_are_ordered() -> None:
    assert 0 < rules.UNRELATED < rules.RELATED < 1
    assert 0 < rules.SEPARATE < rules.SAME < 1
    assert 0 < rules.DARE_SMALL < rules.DARE_LARGE
    assert rules.CONFLICT < 0.5


# --- the command --------------------------------------------------------------------------------


def test_the_command_tells(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "j.yml"
    path.write_text(TWO)
    assert run(["judge", "--merge", str(path)]) == 0
    out = capsys.readouterr().out
    for word in ("MOVED BY", "COSINE", "SIGNS DIFFER", "merge_method:", "provisional"):
        assert word in out
    assert run(["judge", "--merge", str(path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "worthit.judge-merge/1"
    assert record["reading"]["share_read"] == 1
    assert record["advice"]["method"] in record["recipe"]
    assert run(["judge", "llama-2-7b", "--merge", str(path)]) == 2
    assert "not both" in capsys.readouterr().err
    assert run(["judge", "--merge", str(path), "--on", "h100"]) == 2
    assert run(["judge"]) == 2
    assert "Missing argument 'MODEL|CASE.toml'" in capsys.readouterr().err
