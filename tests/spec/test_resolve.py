"""From what a person types for MODEL to a model: order, hub cache, and what each miss says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from worthit.errors import MissingCapability, SpecError, UnknownName
from worthit.spec.codec import to_json
from worthit.spec.resolve import find_snapshot, hub_cache, resolve, resolve_model

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 64,
}
COMMIT, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with two revisions of `acme/tiny`, main being the first."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "hub" / "models--acme--tiny"
    for commit, n_layers in ((COMMIT, 2), (OTHER, 5)):
        snapshot = home / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": n_layers}))
    (home / "refs" / "pr").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    (home / "refs" / "pr" / "1").write_text(OTHER)
    return tmp_path


def test_a_preset_by_name_and_by_alias() -> None:
    assert resolve_model("llama-3.1-8b").n_layers == 32
    assert resolve_model(" Llama-3.1-8B ").name == "llama-3.1-8b"
    assert resolve_model("state-spaces/mamba-130m-hf").name == "mamba-130m"
    assert resolve_model("grammar-tutor").n_layers == 1


def test_a_preset_wins_over_a_folder_unless_spelt_as_a_path(cache: Path) -> None:
    (cache / "mamba-130m").mkdir()
    (cache / "mamba-130m" / "config.json").write_text(json.dumps(CONFIG))
    assert resolve_model("mamba-130m").n_layers == 24
    assert resolve_model("./mamba-130m").n_layers == 2


def test_a_file_and_a_folder(cache: Path) -> None:
    (cache / "mine").mkdir()
    (cache / "mine" / "config.json").write_text(json.dumps(CONFIG))
    for text in ("mine", "mine/config.json", str(cache / "mine")):
        assert resolve_model(text).n_layers == 2
        assert resolve_model(text).name == "mine"


def test_a_model_in_our_own_form(cache: Path) -> None:
    spec = resolve_model("grammar-tutor")
    (cache / "own.json").write_text(json.dumps(to_json(spec)))
    assert resolve_model("own.json") == spec


def test_the_hub_cache_by_branch_commit_and_pull_request(cache: Path) -> None:
    assert resolve_model("acme/tiny").n_layers == 2
    assert resolve_model("acme/tiny").name == "acme/tiny"
    assert resolve_model("acme/tiny@main").n_layers == 2
    assert resolve_model(f"acme/tiny@{OTHER}").n_layers == 5
    assert resolve_model("acme/tiny@fedcba98").n_layers == 5
    assert resolve_model("acme/tiny@pr/1").n_layers == 5


def test_one_snapshot_needs_no_branch(cache: Path) -> None:
    home = cache / "hub" / "models--acme--tiny"
    (home / "refs" / "main").unlink()
    assert find_snapshot("acme/tiny") is None
    (home / "snapshots" / OTHER / "config.json").unlink()
    (home / "snapshots" / OTHER).rmdir()
    assert resolve_model("acme/tiny").n_layers == 2


def test_a_revision_does_not_lead_out_of_the_cache(cache: Path) -> None:
    (cache / "hub" / "models--acme--tiny" / "secret").write_text(COMMIT)
    assert find_snapshot("acme/tiny", "../secret") is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_where_the_hub_cache_is(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_cache() == Path(expected)


def test_a_hub_id_that_is_not_here_names_the_command(cache: Path) -> None:
    with pytest.raises(MissingCapability, match=r"hf download acme/other$") as caught:
        resolve_model("acme/other")
    assert caught.value.exit_code == 3
    with pytest.raises(MissingCapability, match=r"hf download acme/tiny --revision v9$"):
        resolve_model("acme/tiny@v9")
    with pytest.raises(MissingCapability, match=r"near it: llama-3.1-8b"):
        resolve_model("meta/Llama-3.1-8B-Extra")


def test_a_name_nobody_knows_suggests_presets(cache: Path) -> None:
    with pytest.raises(UnknownName, match=r"did you mean .*llama-3.1-8b") as caught:
        resolve_model("lama-3.1-8b")
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownName, match="unknown model 'no such model'"):
        resolve_model("no such model")
    with pytest.raises(UnknownName, match="unknown model"):
        resolve_model("x" * 5000)


MISSES = {
    "": "needs a name or a path",
    "./nowhere": "nowhere: no such file or folder",
    "config.json": "config.json: no such file",
    "model.gguf": "model.gguf: no such file",
    "weights.pt": "weights.pt: no such file",
    "./" + "x" * 5000: "cannot be read: File name too long",
}


@pytest.mark.parametrize("text", MISSES)
def test_a_miss_says_what_is_missing(text: str, cache: Path) -> None:
    with pytest.raises(SpecError, match=MISSES[text]):
        resolve_model(text)


def test_what_is_there_and_no_model(cache: Path) -> None:
    for name, content, message in (
        ("broken.json", b'{"model_type": ', r"broken.json, line 1, column \d+: broken JSON"),
        ("binary.json", b"\xff\xfe\x00", "binary.json: broken JSON"),
        ("deep.json", b"[" * 90_000, "deep.json: broken JSON: nested too deeply"),
        ("list.json", b"[]", "must hold a JSON object, got list"),
        ("weights.bin", b"\x80", r"pickle \(weights.bin\) run code"),
        ("model.safetensors", b"", "holds tensors and not their model; give its folder"),
        ("case.toml", b"", "a TOML file holds a case"),
    ):
        (cache / name).write_bytes(content)
        with pytest.raises(SpecError, match=message):
            resolve_model(name)
    (cache / "empty").mkdir()
    with pytest.raises(SpecError, match=r"no config.json in this folder"):
        resolve_model("empty")


def test_warnings_about_the_files_come_along(cache: Path) -> None:
    assert resolve("acme/tiny").warnings == ()


def test_a_preset_costs_no_heavy_import() -> None:
    heavy = ["pydantic", "numpy", "torch", "transformers", "gguf", "safetensors"]
    code = (
        "import sys\n"
        "from worthit.spec.resolve import resolve_model\n"
        "resolve_model('llama-3.1-8b'); resolve_model('grammar-tutor')\n"
        f"assert not (found := set({heavy}) & set(sys.modules)), found"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
