"""The offline page: asks no network, is well formed, says everything twice, and escapes."""

from __future__ import annotations

import re
import stat
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from worthit.cli.main import run
from worthit.errors import InputError
from worthit.judge.judge import Judgement, judge_case
from worthit.report.page import page, roofline_points
from worthit.report.write import check_target, write_page
from worthit.spec import build_case, load_preset

VOID = {"meta", "link", "input", "br", "img", "hr"}
HOSTILE = '<script>alert("x")</script>&\'" onload=x'


class Reader(HTMLParser):
    """Collects ids, links and words, and holds every element to be closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.labelled_by: list[str] = []
        self.text: list[str] = []
        self.figures: list[Counter[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), f"<{tag}> states an attribute twice"
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        if tag == "figure":
            self.figures.append(Counter())
        if "figure" in self.open:
            self.figures[-1][tag] += 1
        if given.get("id"):
            self.ids[str(given["id"])] += 1
        for name in ("href", "src", "xlink:href", "action", "srcset", "data", "poster"):
            if given.get(name):
                self.links.append(str(given[name]))
        if given.get("aria-labelledby"):
            self.labelled_by.append(str(given["aria-labelledby"]))
        assert not any(name.startswith("on") for name in given), f"<{tag}> has a handler inline"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def judged(model: str, **flags: object) -> Judgement:
    case = build_case(load_preset(model), **flags)  # type: ignore[arg-type]  # sizes and names
    return judge_case(case, with_curves=True)


@pytest.fixture(scope="module")
def judgement() -> Judgement:
    return judged("llama-2-7b", on="h100", prompt=4000, output=500, concurrency=16)


@pytest.fixture(scope="module")
def small(judgement: Judgement) -> Judgement:
    """The same with one verdict of each kind: a page in a moment."""
    kinds = {(v.decision, v.is_applicable): v for v in judgement.verdicts if v.share != 1.0}
    return replace(judgement, verdicts=tuple(kinds.values()))


@pytest.fixture(scope="module")
def html(judgement: Judgement) -> str:
    return page(judgement, command="worthit judge llama-2-7b --on h100 --html report.html")


def test_asks_no_network(html: str) -> None:
    reader = read(html)
    assert reader.links
    assert all(link.startswith("#") or link == "data:," for link in reader.links)
    style = "".join(re.findall(r"<style>.*?</style>", html, flags=re.DOTALL))
    script = "".join(re.findall(r"<script>.*?</script>", html, flags=re.DOTALL))
    svg = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert style
    assert script
    assert svg
    for part in (style, script, svg):
        assert "http" not in part
        assert "@import" not in part
    assert not re.search(r"url\((?!#)", html)
    assert "default-src 'none'" in html


def test_is_well_formed_with_unique_ids(html: str) -> None:
    reader = read(html)
    assert [name for name, n in reader.ids.items() if n > 1] == []
    for link in reader.links:
        assert not link.startswith("#") or link[1:] in reader.ids, link
    for ids in reader.labelled_by:
        assert set(ids.split()) <= set(reader.ids)
    assert reader.tags["h1"] == 1
    assert reader.tags["main"] == 1


def test_every_figure_has_a_table(html: str) -> None:
    figures = read(html).figures
    assert sum(figure["svg"] for figure in figures) > 20  # roofline, flip plots, block diagrams
    for figure in figures:
        assert figure["table"] == 1
    drawings = len(re.findall(r"<svg", html))
    assert drawings == sum(figure["svg"] for figure in figures)


def test_says_every_verdict_and_ends_with_the_command(html: str, judgement: Judgement) -> None:
    text = " ".join(" ".join(read(html).text).split())
    for v in judgement.verdicts:
        assert v.technique.id in text
        assert " ".join(v.reason.split()) in text
    for b in judgement.bottlenecks:
        assert b.statement in text
    assert text.rpartition("worthit judge llama-2-7b --on h100 --html report.html")[2].startswith(
        " worthit "
    )


def test_is_small_and_the_same_every_time(html: str, small: Judgement) -> None:
    assert len(html.encode()) < 1_500_000
    assert page(small, command="x") == page(small, command="x")


@pytest.mark.parametrize("lang", ["en", "es"])
def test_speaks_the_language(lang: str, small: Judgement) -> None:
    text = page(small, command="x", lang=lang)
    assert f'<html lang="{lang}">' in text
    words = " ".join(read(text).text)
    chosen = next(v.technique for v in small.verdicts if "es" in v.technique.orientation)
    assert chosen.orientation[lang] in words
    assert ("Veredictos" in words) == (lang == "es")


def test_texts_have_the_same_keys() -> None:
    from worthit.report._text import EN, ES

    assert EN.keys() == ES.keys()


def test_escapes_hostile_names(small: Judgement) -> None:
    case = replace(
        small.case,
        name=HOSTILE,
        model=replace(small.case.model, name=HOSTILE),
        warnings=(HOSTILE,),
    )
    text = page(replace(small, case=case), command=f"worthit judge '{HOSTILE}'")
    reader = read(text)
    assert reader.tags["script"] == 1
    assert HOSTILE in "".join(reader.text)
    assert "<script>alert" not in text


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("grammar-tutor", {}),
        ("mamba-2.8b", {}),
        ("llama-3.1-70b", {"on": "rtx-4090"}),
        ("llama-3.1-8b", {"on": "h100", "train_tokens": 10**9, "seq": 4096}),
    ],
)
def test_every_kind_of_case_has_a_page(model: str, flags: dict[str, object]) -> None:
    judgement = judged(model, **flags)
    shown = [v for v in judgement.verdicts if v.technique.family in ("attention", "parallel")]
    html = page(replace(judgement, verdicts=tuple(shown)), command="x")
    assert ('role="alert"' in html) == (not bool(judgement.cost.fits[0]))
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))
    read(html)


def test_no_operation_is_above_its_roof(judgement: Judgement) -> None:
    from worthit.cost.record import ledger_json

    device = judgement.case.hardware.device
    points = roofline_points(ledger_json(judgement.cost))
    assert {p.phase for p in points if p.is_total} == {"prefill", "decode"}
    for p in points:
        roof = min(device.peak("bf16"), p.intensity * device.mem_bytes_per_s)
        assert p.flops_per_s <= roof * 1.001, p


# --- writing -------------------------------------------------------------------------------------


def test_html_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "r.html"
    assert run(["judge", "grammar-tutor", "--only", "gqa", "--html", str(target)]) == 0
    assert "gqa" in capsys.readouterr().out
    read(target.read_text(encoding="utf-8"))
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]
    assert stat.S_IMODE(target.stat().st_mode) & 0o400


def test_html_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for bad, says in ((tmp_path, "is a folder"), (tmp_path / "no" / "r.html", "no folder")):
        assert run(["judge", "grammar-tutor", "--html", str(bad)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert says in captured.err


def test_a_folder_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not bind every user that runs tests: let the check itself say no.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match="permission denied"):
        check_target(tmp_path / "r.html")


def test_a_failed_write_leaves_the_old_page(
    tmp_path: Path, small: Judgement, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "r.html"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="no space left on device"):
        write_page(small, target, command="x")
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]
