"""What every offline page is made of: its frame, its sections, tables and figures.

One HTML file with everything in it, readable without scripts or a network. Every figure has a table
beside it; every text from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

HOME = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
Words = Mapping[str, str]


def document(
    t: Words,
    *,
    lang: str,
    title: str,
    heading: str,
    links: Iterable[tuple[str, str]],
    skip_to: str,
    head: str,
    body: str,
) -> str:
    """A page: a bar of `links` (section and name), `heading` (HTML), `head` under it, sections.

    `t` has the words of the theme's button and of the link that skips the bar.
    """
    nav = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in links)
    return f"""<!doctype html>
<html lang="{lang}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{asset("page.css")}</style>
</head>
<body>
<a class="skip" href="#{skip_to}">{escape(t["skip"])}</a>
<header>
<div class="bar"><nav aria-label="{escape(t["case"])}">{nav}</nav>
<button type="button" id="theme" class="js" data-auto="{escape(t["theme_auto"])}" \
data-light="{escape(t["theme_light"])}" data-dark="{escape(t["theme_dark"])}">\
{escape(t["theme"])}: <span>{escape(t["theme_auto"])}</span></button></div>
<h1>{heading}</h1>
{head}
</header>
<main>
{body}
</main>
<script>
{asset("page.js")}</script>
</body>
</html>
"""


def asset(name: str) -> str:
    """A file of this package."""
    return (HOME / name).read_text(encoding="utf-8")


def section(key: str, title: str, body: str) -> str:
    """A section with its heading."""
    return (
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(title)}</h2>\n'
        f"{body}\n</section>\n"
    )


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    label: str,
    numbers: Iterable[int] = (),
    kind: str = "",
) -> str:
    """A table of cells that are already HTML; wide ones scroll inside their own box."""
    right = set(numbers)

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=num' if i in right else ''}>{cell}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f'<table class="{kind}"><thead><tr>{cells([escape(h) for h in heads], "th scope=col")}'
        f"</tr></thead>\n<tbody>{body}</tbody></table></div>"
    ).replace("</th scope=col>", "</th>")


def figure(drawing: str, caption: str, twin: str, t: Words, *, label: str = "") -> str:
    """A drawing, what it shows, and its table folded beneath it."""
    if 'class="plot"' in drawing:
        drawing = (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
            f"{drawing}</div>"
        )
    return (
        f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption>"
        f'<details class="data"><summary>{escape(t["table"])}</summary>{twin}</details></figure>'
    )


def facts(entries: Mapping[str, str]) -> str:
    """A list of names and texts; what is empty is left out."""
    rows = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>"
        for key, value in entries.items()
        if value
    )
    return f'<dl class="facts">{rows}</dl>'
