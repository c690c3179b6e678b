"""Activations of text: mixed in bounded memory, on disk whole or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from interp.tiny import VOCAB, D, ids_of, model_of
from torch.testing import assert_close

from worthit.errors import InputError
from worthit.interp.hooks import capture
from worthit.interp.shards import Store, write_activations
from worthit.interp.stream import Source, mixed, usual

AT = ("layers.0.resid_post", "layers.1.ffn_hidden")


def source_of(n: int = 12, **options: object) -> Source:
    return Source(model_of("attention", "attention"), ids_of(n, 7), AT, batch=2, **options)


def test_rows_are_those_of_the_model_without_first_tokens() -> None:
    source = source_of()
    with capture(source.model, AT) as seen, torch.no_grad():
        source.model(source.ids)
    rows = {name: torch.cat([c[name] for c in source.chunks()]) for name in AT}
    for name in AT:
        assert_close(rows[name], seen[name][:, 1:].flatten(0, 1), atol=1e-5, rtol=1e-5)
    sequence, position = source.token_of(20)
    assert_close(rows[AT[0]][20], seen[AT[0]][sequence, position], atol=1e-5, rtol=1e-5)
    assert source.n_bytes() == 12 * 6 * (D + 24) * 4


@pytest.mark.parametrize("buffer", [1, 16, 1000])
def test_mixing_gives_every_row_once_in_bounded_memory(buffer: int) -> None:
    chunks = [
        {"a": torch.arange(i, i + 8.0)[:, None], "b": -torch.arange(i, i + 8.0)[:, None]}
        for i in range(0, 80, 8)
    ]
    given = list(mixed(iter(chunks), 4, buffer=buffer, seed=1))
    rows = torch.cat([g["a"] for g in given])
    assert_close(rows.sort(dim=0).values, torch.arange(80.0)[:, None])
    assert_close(torch.cat([g["b"] for g in given]), -rows)
    assert not torch.equal(rows, rows.sort(dim=0).values)
    assert max(len(g["a"]) for g in given) == 4


def test_written_and_read(tmp_path) -> None:
    source = source_of()
    told = []
    store = write_activations(
        source,
        tmp_path,
        dtype="fp32",
        shard_bytes=2_000,
        on_progress=lambda done, of: told.append((done, of)),
    )
    want = {name: torch.cat([c[name] for c in source.chunks()]) for name in AT}
    for seed in (None, 3):
        chunks = list(store.chunks(rows=5, seed=seed))
        for name in AT:
            rows = torch.cat([c[name] for c in chunks])
            assert len(rows) == store.n_rows == 72
            if seed is None:
                assert_close(rows, want[name])
            else:
                assert_close(rows.sum(0), want[name].sum(0))
                assert not torch.equal(rows, want[name])
    assert len(store.paths) > 1
    assert told[-1] == (12, 12)
    assert abs(store.n_bytes - source.n_bytes()) < 1_000 * len(store.paths)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch) -> None:
    source = source_of()

    def stop(done: int, of: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_activations(source, tmp_path, shard_bytes=1_000, on_progress=stop)
    with pytest.raises(InputError, match="shards are missing, first 0000"):
        Store(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    assert before
    store = write_activations(source, tmp_path, shard_bytes=1_000)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert sum(len(c[AT[0]]) for c in store.chunks()) == 72
    assert not list(tmp_path.glob("*.part"))


def test_enough_is_the_first_shards(tmp_path) -> None:
    source = source_of()
    store = write_activations(source, tmp_path, shard_bytes=1_000, is_enough=lambda i, of: i >= 2)
    assert len(store.paths) == 2
    want = torch.cat([c[AT[0]] for c in source.chunks()])[: store.n_rows]
    got = torch.cat([c[AT[0]] for c in store.chunks()])
    assert_close(got, want, atol=0.02, rtol=0.02)
    assert len(Store(tmp_path, n_shards=2).paths) == 2
    with pytest.raises(InputError, match="shards are missing"):
        Store(tmp_path)
    assert write_activations(source, tmp_path, shard_bytes=1_000).n_rows == 72


def test_other_text_and_damage_are_noticed(tmp_path) -> None:
    write_activations(source_of(), tmp_path)
    with pytest.raises(InputError, match=r"something else \(digest, n_rows"):
        write_activations(source_of(10), tmp_path)
    path = tmp_path / "00000.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="damaged"):
        list(Store(tmp_path).chunks())
    (tmp_path / "activations.json").unlink()
    with pytest.raises(InputError, match="holds no activations"):
        Store(tmp_path)


def test_values_that_no_file_can_hold(tmp_path) -> None:
    source = source_of()
    with torch.no_grad():
        source.model.embedding.weight[:] = float("nan")
    with pytest.raises(InputError, match=r"layers.0.resid_post: activations are not finite"):
        write_activations(source, tmp_path)
    assert json.loads((tmp_path / "activations.json").read_text())["n_rows"] == 72
    with pytest.raises(InputError, match="dtype: pick one of fp32, bf16, fp16, got int8"):
        write_activations(source, tmp_path, dtype="int8")


def test_a_point_of_heads_is_refused() -> None:
    with pytest.raises(InputError, match="several vectors a token"):
        Source(model_of("attention"), ids_of(), ("layers.0.heads",))
    with pytest.raises(InputError, match="skip: must leave a token of a sequence of 7, got 7"):
        Source(model_of("attention"), ids_of(), ("embed",), skip=7)
    assert VOCAB == 23


def test_sinks_are_told_by_their_length() -> None:
    rows = torch.ones(9, 4)
    rows[3] *= 7.9
    rows[5] *= 8.1
    assert usual(rows).tolist() == [True] * 5 + [False] + [True] * 3
