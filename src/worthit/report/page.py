"""The offline page: one HTML file with everything in it."""

from __future__ import annotations

from html import escape

from worthit.judge.judge import Judgement


def page(judgement: Judgement, *, command: str, lang: str = "en") -> str:
    """The report on `judgement` as one HTML document."""
    rows = "".join(
        f"<tr><td>{v.decision}</td><td>{v.technique.id}</td><td>{escape(v.reason)}</td></tr>"
        for v in judgement.verdicts
    )
    return (
        f'<!doctype html><html lang="{lang}"><meta charset="utf-8"><title>worthit</title>'
        f"<table>{rows}</table><pre>{escape(command)}</pre></html>"
    )
