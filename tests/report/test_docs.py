"""Generated documents: fresh, complete, and each made from what it is about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from worthit import docs
from worthit.cli._group import VERBS
from worthit.spec import device_names, preset_names
from worthit.techniques import catalogue


def test_what_is_stale_is_found_and_mended(tmp_path: Path) -> None:
    assert set(docs.stale(tmp_path)) == set(docs.documents())
    docs.write(tmp_path)
    assert docs.stale(tmp_path) == []
    (tmp_path / "docs" / "cli.md").write_text("changed by hand")
    (tmp_path / "docs" / "techniques" / "gone.md").write_text("of a record that was removed")
    assert docs.stale(tmp_path) == ["docs/cli.md", "docs/techniques/gone.md"]
    docs.write(tmp_path)
    assert docs.stale(tmp_path) == []


def test_pages_name_what_there_is() -> None:
    pages = docs.documents()
    for verb in VERBS:
        assert f"## worthit {verb}\n" in pages["docs/cli.md"]
    for name in device_names():
        assert f"`{name}`" in pages["docs/devices.md"]
    for name in preset_names():
        assert f"`{name}`" in pages["docs/models.md"]
    for t in catalogue().values():
        page = pages[f"docs/techniques/{t.id}.md"]
        for text in (t.bottleneck, t.nothing_when, *t.pitfalls, *(e.claim for e in t.evidence)):
            assert text.replace("|", "\\|") in page or text in page
        assert all(source.cite in page for source in t.sources)
        assert f"[{t.id}]({t.id}.md)" in pages["docs/techniques/index.md"]


@pytest.mark.parametrize("arguments", [["--chek"], ["a", "b"]])
def test_unknown_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(arguments) == 2
    assert "--check" in capsys.readouterr().err


def test_a_page_shows_the_code_of_its_technique() -> None:
    page = docs.documents()["docs/techniques/mla.md"]
    section = page.split("## In code\n")[1].split("\n## ")[0]
    assert "[src/worthit/nn/attention/mla.py](../../src/worthit/nn/attention/mla.py)" in section
    assert "    c_t^KV = W^DKV h_t   " in section
    assert "| c_t^KV, d_c | `latents`, `kv_lora_rank`: normalised, then cached |" in section
    assert "transformers 5.23 `DeepseekV3Attention`" in section
    assert "(../../tests/nn/attention/test_mla.py)" in section
    for t in catalogue().values():
        has = "## In code\n" in docs.technique_page(t)
        assert has == (t.module is not None)
        # Every link of the section leads to a file.
        for target in re.findall(r"\]\(\.\./\.\./([^)]+)\)", docs.technique_page(t)):
            assert (docs.ROOT / target).is_file()
