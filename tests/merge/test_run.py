"""A merge as a process: it goes on after a kill, appears at once or not at all, and stays small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from merge.tiny import CONFIG, RECIPES, shapes, tensors, write, write_all
from safetensors.torch import load_file, save_file

import worthit
from worthit.cli.main import run
from worthit.errors import InputError, WorthitError
from worthit.merge.output import JOURNAL, lay_out
from worthit.merge.plan import Plan, plan_merge
from worthit.merge.run import merge

DARE = "dare_ties"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path)


def recipe(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yml"
    path.write_text(RECIPES[name])
    return path


def partial(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


# --- what is written ----------------------------------------------------------------------------


def test_everything_a_folder_needs(folder: Path) -> None:
    (folder / "base" / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    (folder / "base" / "generation_config.json").write_text("{}")
    out = folder / "out"
    done = merge(recipe(folder, "ties"), out)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "merge_recipe.yml",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (out / "merge_recipe.yml").read_text() == RECIPES["ties"]
    card = (out / "README.md").read_text()
    assert RECIPES["ties"].strip() in card
    assert "TIES (arXiv:2306.01708)" in card
    assert not partial(out).exists()
    record = done.to_json()
    assert record["n_params"] == sum(torch.Size(s).numel() for s in shapes().values())
    assert record["n_bytes"] == 4 * record["n_params"]
    assert record["n_resumed"] == 0
    model = worthit.load_model(out)
    ids = torch.arange(5)[None]
    assert torch.isfinite(model(ids)).all()


def test_inputs_are_not_touched(folder: Path) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    merge(recipe(folder, "slerp"), folder / "out")
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize("name", ["ties", DARE, "slerp"])
def test_workers_hold_the_same(folder: Path, name: str) -> None:
    """Which tensor is merged by whom, and when, makes no difference to any byte."""
    n_threads = torch.get_num_threads()
    path = recipe(folder, name)
    done: list[int] = []
    merge(path, folder / "one", n_workers=1)
    merge(path, folder / "three", n_workers=3, on_progress=lambda n, _: done.append(n))
    assert_same(folder / "one", folder / "three")
    assert done == sorted(done)
    assert len(done) == len(tensors("a"))
    assert torch.get_num_threads() == n_threads


def test_a_worker_that_fails_ends_the_merge(folder: Path) -> None:
    bad = tensors("b")
    bad["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    write(folder / "b", bad)
    with pytest.raises(InputError, match=r"up_proj\.weight: nan at row 3, column 5"):
        merge(recipe(folder, "ties"), folder / "out", n_workers=3)
    assert not partial(folder / "out").exists()


def test_shards_hold_the_same(folder: Path) -> None:
    path = recipe(folder, "linear")
    merge(path, folder / "one")
    done = merge(path, folder / "many", max_shard_bytes=1500)
    whole = load_file(folder / "one" / "model.safetensors")
    index = json.loads((folder / "many" / "model.safetensors.index.json").read_text())
    assert done.n_shards == len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == done.n_bytes
    for name, file in index["weight_map"].items():
        assert (folder / "many" / file).stat().st_size < 1500 + 2000
        assert torch.equal(load_file(folder / "many" / file)[name], whole[name])
    # A merge of shards reads them too.
    (folder / "again.yml").write_text(
        "merge_method: linear\nmodels: [many]\nparameters: {weight: 1}"
    )
    merge(folder / "again.yml", folder / "again")
    back = load_file(folder / "again" / "model.safetensors")
    assert all(torch.equal(back[name], value) for name, value in whole.items())


def test_layers_are_counted_and_lists_of_layers_follow(folder: Path) -> None:
    kinds = ["full", "sliding", "full"]
    for name in ("a", "b"):
        changes: dict[str, Any] = {"layer_types": kinds, "eos_token_id": [1, 2, 3]}
        write(folder / name, tensors(name), **changes)
    merge(recipe(folder, "passthrough"), folder / "out")
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    assert config["layer_types"] == ["full", "sliding", "sliding", "full"]
    assert config["eos_token_id"] == [1, 2, 3]
    found = load_file(folder / "out" / "model.safetensors")
    ours, theirs = "model.layers.3.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(found[ours], tensors("b")[theirs])


def test_a_merged_head_is_no_longer_the_embedding(folder: Path) -> None:
    tied = {k: v for k, v in tensors("a").items() if k != "lm_head.weight"}
    write(folder / "tied", tied, tie_word_embeddings=True)
    (folder / "r.yml").write_text(
        "merge_method: linear\nmodels: [tied, base]\nparameters: {weight: 1}"
    )
    merge(folder / "r.yml", folder / "out")
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    found = load_file(folder / "out" / "model.safetensors")["lm_head.weight"]
    wanted = (tensors("a")["model.embed_tokens.weight"] + tensors("base")["lm_head.weight"]) / 2
    torch.testing.assert_close(found, wanted)


def test_what_is_no_number_is_copied_or_refused(folder: Path) -> None:
    for name, value in (("a", 3), ("b", 3), ("c", 4)):
        extra = {"model.steps": torch.tensor([value, 5])}
        write(folder / name, tensors(name) | extra)
    text = "merge_method: linear\nmodels: [a, {}]\nparameters: {{weight: 1}}"
    (folder / "same.yml").write_text(text.format("b"))
    (folder / "other.yml").write_text(text.format("c"))
    merge(folder / "same.yml", folder / "out")
    assert load_file(folder / "out" / "model.safetensors")["model.steps"].tolist() == [3, 5]
    with pytest.raises(InputError, match=r"model\.steps: stored as I64, .* different in a and c"):
        merge(folder / "other.yml", folder / "out2")
    assert not partial(folder / "out2").exists()


def test_chat_template(folder: Path) -> None:
    config = {"chat_template": "{{ old }}", "x": 1}
    (folder / "a" / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "b" / "chat_template.jinja").write_text("{{ new }}")
    (folder / "c" / "chat_template.jinja").write_text("{{ new }}")
    names = "models: [a, b, c]\nparameters: {weight: 1}\nchat_template: "
    (folder / "auto.yml").write_text("merge_method: linear\n" + names + "auto")
    merge(folder / "auto.yml", folder / "auto")
    assert (folder / "auto" / "chat_template.jinja").read_text() == "{{ new }}"
    written = json.loads((folder / "auto" / "tokenizer_config.json").read_text())
    assert written == {"x": 1}


# --- what cannot go on --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_weight_is_named_and_nothing_stays(folder: Path, value: float) -> None:
    bad = tensors("b")
    bad["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    write(folder / "b", bad)
    said = rf"b: tensor model\.layers\.1\.mlp\.up_proj\.weight: {value} at row 3, column 5"
    with pytest.raises(InputError, match=said):
        merge(recipe(folder, "ties"), folder / "out")
    assert not (folder / "out").exists()
    assert not partial(folder / "out").exists()


def test_a_target_that_is_there_is_left_alone(folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    merge(recipe(folder, "linear"), out)  # empty is fine
    mine = (out / "config.json").read_bytes()
    with pytest.raises(InputError, match="is there and not empty; remove it"):
        merge(recipe(folder, "linear"), out)
    with pytest.raises(InputError, match="is there and no folder"):
        merge(recipe(folder, "linear"), folder / "linear.yml")
    assert (out / "config.json").read_bytes() == mine


def test_too_little_room_is_said_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr("worthit.merge.output.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(WorthitError, match=r"GB are needed and 1e-07 GB are free; make room"):
        merge(recipe(folder, "linear"), folder / "out")
    assert not (folder / "out").exists()
    assert not partial(folder / "out").exists()


def test_a_disk_that_fills_up_leaves_what_can_go_on(folder: Path) -> None:
    code = f"""
        import errno
        from worthit.merge import output
        from worthit.merge.run import merge
        real, n = output.Output.write, 0
        def write(self, slot, pieces):
            global n
            n += 1
            if n == 8:
                pieces = full(pieces)
            real(self, slot, pieces)
        def full(pieces):
            yield from pieces
            raise OSError(errno.ENOSPC, "No space left on device")
        output.Output.write = write
        try:
            merge({str(recipe(folder, DARE))!r}, {str(folder / "out")!r}, n_workers=1)
        except Exception as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "WorthitError" in done.stdout
    assert "the disk is full" in done.stdout
    assert "run the same command: it goes on from here" in done.stdout
    assert not (folder / "out").exists()
    assert merge(folder / f"{DARE}.yml", folder / "out").n_resumed == 7
    merge(folder / f"{DARE}.yml", folder / "fresh")
    assert_same(folder / "out", folder / "fresh")


# --- going on -----------------------------------------------------------------------------------


def assert_same(one: Path, two: Path) -> None:
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in two.iterdir())
    for name in names:
        if name != "README.md":  # it has the folder's name
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


def killed(path: Path, out: Path, n_before: int, *, sync_bytes: int) -> None:
    """Run a merge in a process that kills itself in the middle of a tensor."""
    code = f"""
        import os, signal
        from worthit.merge import output, run
        output.SYNC_BYTES = {sync_bytes}
        real, n = run.merged_pieces, 0
        def pieces(*args, **kwargs):
            global n
            n += 1
            for piece in real(*args, **kwargs):
                yield piece
                if n > {n_before}:
                    os.kill(os.getpid(), signal.SIGKILL)
        run.merged_pieces = pieces
        run.merge({str(path)!r}, {str(out)!r}, seed=7, n_workers=1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_merge_goes_on_where_it_was(folder: Path) -> None:
    path, out = recipe(folder, DARE), folder / "out"
    killed(path, out, 9, sync_bytes=1)
    assert not out.exists()
    assert partial(out).is_dir()
    done = merge(path, out, seed=7)
    assert done.n_resumed == 9
    assert not partial(out).exists()
    merge(path, folder / "fresh", seed=7)
    assert_same(out, folder / "fresh")


@pytest.mark.parametrize("change", ["seed", "recipe", "input", "journal"])
def test_what_another_merge_left_is_not_used(folder: Path, change: str) -> None:
    path, out = recipe(folder, DARE), folder / "out"
    killed(path, out, 9, sync_bytes=1)
    seed = 7
    if change == "seed":
        seed = 8
    elif change == "recipe":
        path.write_text(RECIPES[DARE] + "# a thought\n")
    elif change == "input":
        write(folder / "a", {k: v + 1 for k, v in tensors("a").items()})
        os.utime(folder / "a" / "model.safetensors", ns=(1, 1))
    else:
        journal = partial(out) / JOURNAL
        journal.write_text("x" + journal.read_text())
    assert merge(path, out, seed=seed).n_resumed == 0
    merge(path, folder / "fresh", seed=seed)
    assert_same(out, folder / "fresh")


def test_a_line_cut_off_in_the_journal_is_done_again(folder: Path) -> None:
    path, out = recipe(folder, DARE), folder / "out"
    killed(path, out, 9, sync_bytes=1)
    journal = partial(out) / JOURNAL
    journal.write_text(journal.read_text()[:-5])
    assert merge(path, out, seed=7).n_resumed == 8
    merge(path, folder / "fresh", seed=7)
    assert_same(out, folder / "fresh")


def test_two_merges_do_not_write_one_folder(folder: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path, out = recipe(folder, "linear"), folder / "out"
    partial(out).mkdir()
    with (partial(out) / JOURNAL).open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(WorthitError, match="another merge is writing it"):
            merge(path, out)


def test_interrupted_by_hand(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = recipe(folder, "linear"), folder / "out"
    real = worthit.merge.run.merged_pieces
    n = 0

    def pieces(*args: Any, **kwargs: Any) -> Iterator[torch.Tensor]:
        nonlocal n
        n += 1
        if n == 5:
            raise KeyboardInterrupt
        yield from real(*args, **kwargs)

    monkeypatch.setattr("worthit.merge.run.merged_pieces", pieces)
    monkeypatch.setattr("worthit.merge.run.n_workers_by_default", lambda: 1)
    assert run(["merge", str(path), str(out)]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.undo()
    assert run(["merge", str(path), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_resumed"] == 4


# --- layout and memory --------------------------------------------------------------------------


def test_shards_are_laid_out_by_size(folder: Path) -> None:
    plan: Plan = plan_merge(recipe(folder, "formats"))
    shards, slots = lay_out(plan.jobs, 600)
    assert [slot.job.name for slot in slots] == [job.name for job in plan.jobs]
    for shard in shards:
        assert int.from_bytes(shard.header[:8], "little") == len(shard.header) - 8
        assert len(shard.header) % 8 == 0
    assert max(shard.n_bytes - len(shard.header) for shard in shards) <= 600


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize(
    "method",
    [
        "ties",
        pytest.param("dare_ties", marks=pytest.mark.slow),
        pytest.param("slerp", marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_the_checkpoints(tmp_path: Path, method: str) -> None:
    """Three checkpoints of 64 MB in one tensor each, merged in a few MB."""
    chance = torch.Generator().manual_seed(0)
    base = torch.randn(4096, 4096, generator=chance)
    for name in ("base", "a", "b"):
        if name != "base":
            base = base + 0.01 * torch.randn(4096, 4096, generator=chance)
        (tmp_path / name).mkdir()
        save_file({"model.layers.0.w.weight": base}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 1}))
    n_bytes = base.nbytes
    text = {
        "ties": "models: [a, b]\nparameters: {weight: 1, density: 0.3}",
        "dare_ties": "models: [a, b]\nparameters: {weight: 1, density: 0.3}",
        "slerp": "models: [base, a]\nparameters: {t: 0.4}",
    }[method]
    (tmp_path / "r.yml").write_text(f"merge_method: {method}\nbase_model: base\n{text}")
    code = f"""
        import pathlib, re, torch
        from worthit.merge.run import merge
        torch.set_num_threads(1)
        def peak():
            status = pathlib.Path("/proc/self/status").read_text()
            return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
        before = peak()
        merge({str(tmp_path / "r.yml")!r}, {str(tmp_path / "out")!r})
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    grown = int(done.stdout)
    assert 0 < grown < n_bytes // 2, f"{grown / 1e6:.0f} MB for tensors of {n_bytes / 1e6:.0f} MB"
