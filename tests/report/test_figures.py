"""Figures that belong to the page: its colours, its ids, no namespaces, nothing left over."""

from __future__ import annotations

from worthit.judge.judge import CurvePoint
from worthit.report.diagram import block_diagram
from worthit.report.figures import COLORS, adopt, flip_plot

WORDS = {"added": "added", "removed": "removed", "changed": "changed", "speedup": "speed-up"}


def points(*ratios: float) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(value=2.0**i, ratio=r, low=r * 0.9, high=r * 1.1, becomes="defer")
        for i, r in enumerate(ratios)
    )


def draw() -> str:
    curves = {"prompt": points(1.0, 0.8, 0.5), "devices": points(1.0, float("inf"), 0.0, 0.7)}
    return flip_plot(curves, {"prompt": 2.0, "devices": 1.0}, ident="f", title="a<b", labels=WORDS)


def test_a_plot_is_the_pages_own() -> None:
    svg = draw()
    assert svg == draw()
    assert svg.startswith("<svg")
    assert "a&lt;b" in svg
    for left in ("http", "xmlns", "xlink", "<?xml", "DOCTYPE", "DejaVu", "nan", *COLORS):
        assert left not in svg, left
    for variable in ("--ink", "--accent", "--band"):
        assert f"var({variable})" in svg


def test_adopt_renames_what_is_used_and_drops_the_rest() -> None:
    svg = (
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
        '<metadata>x</metadata><defs><path id="m1" d="M0 0"/><clipPath id="c"/></defs>'
        '<g id="unused"><use xlink:href="#m1" clip-path="url(#c)"/></g></svg>'
    )
    adopted = adopt(svg, ident="p", title="t")
    assert 'id="p-m1"' in adopted
    assert 'href="#p-m1"' in adopted
    assert "url(#p-c)" in adopted
    assert "unused" not in adopted
    assert "metadata" not in adopted


def test_a_diagram_marks_by_shape_word_and_class() -> None:
    svg = block_diagram(("x", "+new <part>", "-old", "~other"), ident="d", title="t", words=WORDS)
    assert "new &lt;part&gt;" in svg
    for word, sign in (("added", "+"), ("removed", "−"), ("changed", "~")):
        assert f"{sign} {word}</text>" in svg
        assert f"box {word}" in svg
    assert svg.count('class="arrow"') == 3
