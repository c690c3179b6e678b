"""Runs that are stopped, killed or damaged continue as if nothing had happened, or say why not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import Addition, tiny

from worthit.errors import InputError, WorthitError
from worthit.train.batch import Batch
from worthit.train.checkpoint import NEWEST, PREVIOUS, load_checkpoint, save_checkpoint
from worthit.train.history import METRICS, History, read_metrics
from worthit.train.init import seeded
from worthit.train.loop import train
from worthit.train.recipe import Recipe

BUILD = seeded(tiny())
DATA = Addition()
OPTIMIZERS = ("adamw", "muon", "shampoo", "soap")


class Dropping(nn.Module):
    """A model whose passes draw random numbers of their own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.dropout = model, nn.Dropout(0.1)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.dropout(self.model(input_ids))
        return logits


class StopAfter:
    """Raises in the middle of a run, after update `step`."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, model: nn.Module) -> None:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("stopped")


def recipe(**fields: Any) -> Recipe:
    every_update = {"log_every": 1, "checkpoint_every_s": 1e-9}
    return Recipe(**{"n_steps": 12, "batch_size": 8, "lr": 1e-2, **every_update, **fields})


def run(folder: Path | None, chosen: Recipe, **options: Any) -> tuple[nn.Module, History]:
    model = Dropping(BUILD(0))
    return model, train(model, DATA, chosen, seed=0, folder=folder, **options)


def without_seconds(history: History) -> list[dict[str, float]]:
    return [
        {name: value for name, value in entry.items() if name != "elapsed_s"}
        for entry in [*history.steps, *history.evaluations]
    ]


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_continued_run_is_the_same_run(tmp_path: Path, optimizer: Any) -> None:
    chosen = recipe(optimizer=optimizer, eval_every=5, ema_decay=0.9, warmup_steps=3)
    whole, expected = run(None, chosen)
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, chosen, after_step=StopAfter(7))
    continued, history = run(tmp_path, chosen)
    assert_equal(continued, whole)
    assert without_seconds(history) == without_seconds(expected)
    steps = [line["step"] for line in read_metrics(tmp_path) if line["kind"] == "step"]
    assert steps == list(range(1, 13))


def test_another_start_gives_another_run() -> None:
    """The control of the test above: what is compared can differ."""
    one, _ = run(None, recipe())
    model = Dropping(BUILD(0))
    train(model, DATA, recipe(), seed=1)
    with pytest.raises(AssertionError):
        assert_equal(one, model)


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_checkpoint import BUILD, DATA, Dropping, recipe
from worthit.train.loop import train

def killed(update):
    if update.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)

train(Dropping(BUILD(0)), DATA, recipe(ema_decay=0.9), seed=0, folder=sys.argv[2], progress=killed)
"""


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(tmp_path: Path) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([*sys.path, str(here.parent)])
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(here), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    assert saved["step"] == 6
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        continued, history = run(tmp_path, recipe(ema_decay=0.9))
        whole, expected = run(None, recipe(ema_decay=0.9))
    finally:
        torch.set_num_threads(threads)
    assert_equal(continued, whole)
    assert without_seconds(history) == without_seconds(expected)


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    whole, expected = run(tmp_path, recipe(ema_decay=0.9))
    lines = (tmp_path / METRICS).read_text()

    def never(model: nn.Module) -> None:
        raise AssertionError("trained again")

    again, history = run(tmp_path, recipe(ema_decay=0.9), after_step=never)
    assert_equal(again, whole)
    assert history == expected
    assert (tmp_path / METRICS).read_text() == lines


def test_a_truncated_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    whole, _ = run(None, recipe())
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, recipe(), after_step=StopAfter(7))
    newest = tmp_path / NEWEST
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged .*continuing from checkpoint.previous") as seen:
        continued, _ = run(tmp_path, recipe())
    assert len(seen) == 1
    assert_equal(continued, whole)


@pytest.mark.parametrize("content", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", b"x" * 5000])
def test_checkpoints_that_are_all_damaged_are_one_clear_error(
    tmp_path: Path, content: bytes
) -> None:
    for name in (NEWEST, PREVIOUS):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="damaged") as caught:
        load_checkpoint(tmp_path)
    assert "remove these files to start the run over" in str(caught.value)


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / NEWEST).replace(tmp_path / PREVIOUS)
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_nothing_written_is_nothing_found(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


def test_trees_come_back_as_they_were(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    tree = {
        "views": [base[0], base[1], base.T],
        "by number": {0: {"step": torch.tensor(3.0)}, 7: torch.tensor([4])},
        "kinds": [torch.tensor([1, 2]), torch.tensor([True]), torch.tensor([1.0]).bfloat16()],
    }
    plain = [1, 0.1, float("inf"), "x", True, None, [], {}]
    save_checkpoint(tmp_path, {**tree, "plain": plain})
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.pop("plain") == plain
    torch.testing.assert_close(loaded, tree, rtol=0, atol=0)


def test_tensors_keep_how_they_lie_in_memory(tmp_path: Path) -> None:
    """A product sums in another order when its operand lies otherwise: resuming would show it."""
    laid_out = torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)
    save_checkpoint(tmp_path, {"x": laid_out})
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded["x"].stride() == laid_out.stride()
    torch.testing.assert_close(loaded["x"], laid_out)


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    """Its first eight bytes say how long the JSON is that follows, and tensors fill the rest."""
    run(tmp_path, recipe())
    content = (tmp_path / NEWEST).read_bytes()
    length = int.from_bytes(content[:8], "little")
    import json

    header = json.loads(content[8 : 8 + length])
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    assert max(entry["data_offsets"][1] for entry in tensors) == len(content) - 8 - length


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, recipe())
    with pytest.raises(InputError) as caught:
        train(Dropping(BUILD(0)), Addition(5), recipe(lr=0.5), seed=3, folder=tmp_path)
    message = str(caught.value)
    for part in ("holds another run", "recipe.lr: 0.01 there, 0.5 here", "seed: 0 there, 3 here"):
        assert part in message
    wider = Dropping(seeded(tiny(d_model=24))(0))
    with pytest.raises(InputError, match=r"model\.model\.embedding\.weight: \[8, 16\] there"):
        train(wider, DATA, recipe(), seed=0, folder=tmp_path)


def test_a_checkpoint_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worthit.train.checkpoint.VERSION", 99)
    save_checkpoint(tmp_path, {"step": 1})
    monkeypatch.undo()
    with pytest.raises(InputError, match="a checkpoint of version 99"):
        load_checkpoint(tmp_path)


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, {"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worthit.train.checkpoint.os.fsync", full)
    with pytest.raises(WorthitError, match=r"No space left on device.*make room"):
        save_checkpoint(tmp_path, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == [NEWEST]


def test_half_a_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, recipe(), after_step=StopAfter(4))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "step", "step": 5, "lo')
    run(tmp_path, recipe())
    assert [line["step"] for line in read_metrics(tmp_path) if line["kind"] == "step"] == list(
        range(1, 13)
    )


def test_metrics_of_a_folder_without_any(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_metrics(tmp_path)


def test_ctrl_c_saves_between_updates(tmp_path: Path) -> None:
    def press(update: Any) -> None:
        if update.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    lazy = recipe(checkpoint_every_s=1e9)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, lazy, progress=press)
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    assert saved["step"] == 5
    continued, _ = run(tmp_path, lazy)
    whole, _ = run(None, lazy)
    assert_equal(continued, whole)


def test_the_time_of_checkpoints_may_change(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, recipe(), after_step=StopAfter(4))
    run(tmp_path, recipe(checkpoint_every_s=5.0))


def test_the_data_stream_is_part_of_the_run(tmp_path: Path) -> None:
    """A stream that looked at global random numbers would not resume: the contract is kept."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)
    one: Batch = DATA.batch(generator, 4)
    generator.manual_seed(3)
    torch.manual_seed(1)
    torch.testing.assert_close(DATA.batch(generator, 4).input_ids, one.input_ids)
