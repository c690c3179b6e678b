"""The judge's table at 80 and at 140 columns, on verdicts whose numbers are made up and fixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from worthit.cli import _terminal
from worthit.cli._judge_table import judgement_lines
from worthit.cli._terminal import Terminal
from worthit.cli.main import run
from worthit.judge.judge import Judgement, Predicted, Verdict, judge_case
from worthit.judge.verdict import Flip
from worthit.spec import build_case, load_preset
from worthit.techniques import technique

GOLDEN = Path(__file__).parent / "golden"


def predicted(ratio: float, low: float, high: float, metric: str = "s_per_token") -> Predicted:
    return Predicted(metric=metric, before=1.0, after=ratio, ratio=ratio, low=low, high=high)


def verdict(name: str, decision: Any, reason: str, **more: Any) -> Verdict:
    return Verdict(technique=technique(name), decision=decision, reason=reason, **more)


LONG = (
    "Reading the cache of keys, values or states takes 55 % of the time. It takes time per output "
    "token of the service from 10 ms to 7.4 ms: 1.35x [1.15x, 1.4x]."
)
VERDICTS = (
    verdict(
        "gqa",
        "apply",
        LONG,
        share=0.55,
        has_bottleneck=True,
        predicted=predicted(1 / 1.35, 1 / 1.40, 1 / 1.15),
        flips=(Flip(axis="prompt", value=32000.0, becomes="never", factor=8.0),),
    ),
    verdict(
        "kv-quantization",
        "apply",
        LONG,
        share=0.55,
        bottleneck="decode-cache",
        has_bottleneck=True,
        predicted=predicted(0.5, 0.45, 0.55),
        evidence="calibrated",
    ),
    verdict(
        "rope",
        "apply",
        "In place; no number.",
        is_present=True,
        bottleneck="quality",
        predicted=predicted(1.0, 1.0, 1.0),
    ),
    verdict(
        "speculative-decoding",
        "defer",
        "Reading the weights takes 45 % of the time. The interval straddles the threshold of 10 %.",
        share=0.45,
        bottleneck="decode-weights",
        has_bottleneck=True,
        predicted=predicted(0.9, 0.6, 1.4),
        flips=(Flip(axis="devices", value=2.0, becomes="apply", factor=0.25),),
    ),
    verdict(
        "mla",
        "never",
        "Reading the cache of keys, values or states takes 0.2 % of the time. Even for free it "
        "could win at most 1x; here starting kernels takes 91 % of the time.",
        share=0.002,
        ceiling=1.002,
        bottleneck="decode-cache",
        predicted=predicted(1.18, 1.1, 1.2),
    ),
    verdict(
        "paged-attention",
        "never",
        "The cache is 2.7 % of the memory.",
        share=0.027,
        bottleneck="cache-reservation",
        predicted=predicted(0.99, 0.99, 0.99, "memory_bytes"),
    ),
    verdict("muon", "never", "Muon acts when a model is trained.", is_applicable=False),
    verdict("soap", "never", "Soap acts when a model is trained.", is_applicable=False),
)


@pytest.fixture(scope="module")
def judgement() -> Judgement:
    real = judge_case(build_case(load_preset("grammar-tutor")), only=["gqa"])
    return replace(real, verdicts=VERDICTS)


def table(lines: list[str]) -> str:
    """From the heading of the verdicts on: what stands above it are the real case's numbers."""
    start = next(i for i, line in enumerate(lines) if line.startswith("VERDICT"))
    return "\n".join(line.rstrip() for line in lines[start:]) + "\n"


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("is_full", [False, True], ids=["short", "all"])
def test_golden(width: int, is_full: bool, judgement: Judgement) -> None:
    """Regenerate by deleting the files; read the difference before committing it."""
    found = table(judgement_lines(judgement, Terminal(width=width), is_full=is_full))
    golden = GOLDEN / f"judge-{width}{'-all' if is_full else ''}.txt"
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(found, encoding="utf-8")
        pytest.fail(f"wrote {golden.name}; read it, then run again")
    assert found == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 100, 140, 160])
@pytest.mark.parametrize("model", ["grammar-tutor", "deepseek-v3", "mamba-2.8b"])
def test_no_line_is_wider_than_the_terminal(width: int, model: str) -> None:
    real = judge_case(build_case(load_preset(model)))
    for is_full in (False, True):
        for line in judgement_lines(real, Terminal(width=width), is_full=is_full):
            assert len(line) <= width, line


def test_what_does_not_fit_is_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["judge", "llama-3.1-70b", "--on", "rtx-4090", "--only", "gqa"]) == 0
    assert capsys.readouterr().out.startswith("DOES NOT FIT")


def test_rows_are_sorted_and_marked(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--on", "h100", "--prompt", "8k", "--output", "200", "--concurrency", "32"]
    assert run(["judge", "llama-3.1-8b", *flags]) == 0
    out = capsys.readouterr().out
    marks = [line.split()[:2] for line in out.splitlines() if line[:1] in "△▲◆■" and line[:1]]
    order = {"apply?": 0, "apply": 0, "keep?": 0, "keep": 0, "defer": 1, "never": 2}
    ranks = [order[word] for _, word in marks]
    assert ranks == sorted(ranks)
    assert {0, 2} <= set(ranks)
    shapes = {("△", "apply?"), ("△", "keep?"), ("◆", "defer"), ("■", "never")}
    assert {tuple(mark) for mark in marks} <= shapes


def test_no_color_in_a_pipe_and_ascii_where_glyphs_are_missing() -> None:
    plain = Terminal(width=80, has_glyphs=False)
    real = judge_case(build_case(load_preset("grammar-tutor")))
    text = "\n".join(judgement_lines(real, plain))
    assert text.isascii()
    assert "\x1b" not in text
    colored = "\n".join(judgement_lines(real, Terminal(width=80, has_color=True)))
    assert "\x1b[" in colored


@pytest.mark.parametrize(
    ("environment", "has_color"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_what_the_terminal_is_taken_for(
    environment: dict[str, str], has_color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Screen:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            raise OSError

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", Screen())
    monkeypatch.setenv("COLUMNS", "90")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _terminal.of_stdout() == Terminal(width=90, has_color=has_color, has_glyphs=True)
    Screen.encoding = "ascii"
    assert not _terminal.of_stdout().has_glyphs


@pytest.mark.parametrize("lang", ["en", "es"])
def test_explain_says_everything(lang: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"explain gqa --lang {lang} --for llama-2-7b --on h100 --prompt 8k --concurrency 16"
    assert run(line.split()) == 0
    out = capsys.readouterr().out
    t = technique("gqa")
    said = " ".join(out.split())
    assert " ".join(t.orientation[lang].split()) in said
    for text in (t.bottleneck, t.nothing_when, t.cost_of_adoption, *t.pitfalls):
        assert " ".join(text.split()) in said
    for source in t.sources:
        assert source.id in said
    for word in (
        "Because",
        "Bottleneck",
        "Ceiling",
        "Predicted",
        "Effect",
        "Would change",
        "Basis",
    ):
        assert word in out


def test_the_hint_is_the_whole_command(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--on", "h100:8", "--prompt", "4k", "--only", "gqa"]
    assert run(["judge", "llama-3.1-70b", *flags]) == 0
    hint = next(x for x in capsys.readouterr().err.splitlines() if x.startswith("Next"))
    command = hint.removeprefix("Next").partition("#")[0].split()
    assert command[:2] == ["worthit", "explain"]
    assert run(command[1:]) == 0


@pytest.mark.parametrize(
    "line",
    [
        "explain muon --for grammar-tutor",
        "explain gqa --for deepseek-v3",
        "explain mla --for llama-3.1-70b --on rtx-4090",
        "explain fsdp --for llama-3.1-8b --on h100:8 --train-tokens 1G --seq 4096",
        "judge jamba-v0.1 --all",
        "judge llama-3.1-8b --on h100:8 --train-tokens 1G --seq 4096 --weights fp8",
        "cost llama-3.1-8b --on h100:8 --train-tokens 1G --seq 4096 --all",
        "cost llama-3.1-70b --on rtx-4090",
    ],
)
def test_every_kind_of_case_is_told(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 0
    out = capsys.readouterr().out
    assert out.strip()
    assert " nan" not in out
