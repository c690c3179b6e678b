"""Records and their modules: every path imports, cites a source, and says what decided parity."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from worthit.docs import source_of
from worthit.techniques import Technique, catalogue

ROOT = Path(__file__).resolve().parents[2]
WITH_MODULE = [t for t in catalogue().values() if t.module is not None]
# The house around all techniques: its sources are those of the records.
HOUSE = {"worthit.nn.decoder"}
# Where what techniques do is tested.
HOMES = {"align", "decode", "interp", "merge", "nn", "reason", "train"}
records = pytest.mark.parametrize("t", WITH_MODULE, ids=lambda t: t.id)


@pytest.mark.parametrize(
    "family", ["attention", "position", "norm", "ssm", "moe", "depth", "optimizer", "cache"]
)
def test_every_record_of_an_implemented_family_has_a_module(family: str) -> None:
    assert [t.id for t in catalogue().values() if t.family == family and not t.module] == []


@records
def test_the_path_imports(t: Technique) -> None:
    path, _, name = str(t.module).partition(":")
    found = getattr(importlib.import_module(path), name)
    assert callable(found)
    assert found.__module__ == path, "defined elsewhere: name that file"


@records
def test_the_module_cites_a_source(t: Technique) -> None:
    path = str(t.module).partition(":")[0]
    text = ast.get_docstring(ast.parse((ROOT / source_of(path)).read_text(encoding="utf-8")))
    assert text
    assert path in HOUSE or re.search(r"arXiv:\d{4}\.\d{4,5}|, \d+\(\d+\),|\b(19|20)\d\d, \"", text)


@records
def test_parity_names_what_decided_and_test_files_that_exist(t: Technique) -> None:
    assert t.parity
    assert len(set(t.parity)) == len(t.parity)
    for entry in t.parity:
        match = re.fullmatch(r"(?P<what>[^()].*) \((?P<files>tests/[^()]+)\)", entry)
        assert match, entry
        for file in match["files"].split(", "):
            source = ROOT / file
            assert source.is_file(), file
            assert file.split("/")[1] in HOMES, file
            if "transformers" in match["what"]:
                assert "transformers" in source.read_text(encoding="utf-8"), entry
                names = re.findall(r"`(\w+)`", match["what"])
                missing = [n for n in names if n not in source.read_text(encoding="utf-8")]
                assert missing == [], entry


def test_without_a_module_nothing_is_claimed() -> None:
    assert [t.id for t in catalogue().values() if t.parity and not t.module] == []


ARCHITECTURE = [
    t for t in WITH_MODULE if t.family in ("attention", "position", "norm", "ssm", "moe", "depth")
]


@pytest.mark.parametrize("t", ARCHITECTURE, ids=lambda t: t.id)
def test_the_page_shows_equations_symbols_diagram_and_parity(t: Technique) -> None:
    page = (ROOT / f"docs/techniques/{t.id}.md").read_text(encoding="utf-8")
    drawn, _, code = page.partition("## In code")
    assert "## What changes\n\n```text" in drawn
    explained, _, parity = code.partition("Parity was checked against:")
    assert re.search(r"\n\n {4}\S", explained), "no equation"
    assert re.search(r"^\| (paper|symbol) \| here \|$", explained, re.MULTILINE), "no symbols"
    assert "(../../tests/" in parity
