"""The page of `worthit sae show`: one latent, where it is on, and what it promotes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from typing import Any

from worthit.report import pieces
from worthit.report._text import EN
from worthit.report.figures import ACCENT, SETTINGS, drawn, quiet
from worthit.report.write import write_text

Record = Mapping[str, Any]
WORDS = {**EN, "skip": "Skip to the examples"}


def write_feature(record: Record, path: str | os.PathLike[str]) -> int:
    """Write the page and return its size in bytes.

    Raises:
        InputError: `path` cannot be written.
    """
    return write_text(feature_page(record), path)


def feature_page(record: Record) -> str:
    """One offline page from the record alone."""
    sections = {
        "use": ("How often, how strongly", _use(record)),
        "examples": ("Where it is on most", _examples(record)),
        "tokens": ("What it does to the next token", _tokens(record)),
        "alike": ("Latents that point the same way", _alike(record)),
        "reproduce": ("Reproduce", _reproduce(record)),
    }
    name = f"latent {record['feature']}"
    return pieces.document(
        WORDS,
        lang="en",
        title=f"{name} of {record['folder']}",
        heading=f'{name.capitalize()} <span class="model">{escape(str(record["at"]))}</span>',
        links=[(key, title) for key, (title, _) in sections.items()],
        skip_to="examples",
        head=f"<p>One of {record['width']:,} of a {escape(record['kind'])} sparse autoencoder of "
        f"{escape(str(record['model']))}. What it means is for the reader of its examples to "
        "say; nothing on this page was named by a machine.</p>",
        body="".join(pieces.section(key, title, part) for key, (title, part) in sections.items()),
    )


def _use(r: Record) -> str:
    shown = pieces.facts(
        {
            "on": f"{r['n_on']:,} of {r['n_rows']:,} tokens ({100 * r['density']:.3g} %)",
            "mean where on": f"{r['mean_on']:.3g}",
            "largest": f"{r['largest']:.3g}",
        }
    )
    if not r["n_on"]:
        return shown
    step = r["largest"] / len(r["histogram"])
    rows = [
        (f"{i * step:.3g} to {(i + 1) * step:.3g}", f"{n:,}") for i, n in enumerate(r["histogram"])
    ]
    twin = pieces.table(("Value", "Tokens"), rows, label="Histogram", numbers=(1,))
    caption = "Tokens by the latent's value, where it is on."
    return shown + pieces.figure(
        _histogram(r["histogram"], step), caption, twin, WORDS, label="Histogram of values"
    )


def _histogram(counts: list[int], step: float) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with quiet(), rc_context(SETTINGS):
        figure = Figure(figsize=(7.0, 2.2), layout="constrained")
        ax = figure.add_subplot()
        places = [(i + 0.5) * step for i in range(len(counts))]
        ax.bar(places, counts, width=0.9 * step, color=ACCENT)
        ax.set_xlabel("value")
        ax.set_ylabel("tokens")
        return drawn(figure, ident="histogram", title="Histogram of values")


def _examples(r: Record) -> str:
    if not r["examples"]:
        return "<p>It is on nowhere in this text.</p>"
    rows = [(f"{e['value']:.3g}", _marked(e, r["largest"])) for e in r["examples"]]
    return (
        "<p>One place a sequence, strongest first. The darker a token, the larger the value at "
        "it; the value stands in its title.</p>"
        + pieces.table(("Value", "Text"), rows, label="Examples", numbers=(0,))
    )


def _marked(example: Record, largest: float) -> str:
    parts = []
    for i, (token, value) in enumerate(zip(example["tokens"], example["values"], strict=True)):
        text = escape(token).replace("\n", "↵ ")
        if value > 0:
            share = 15 + 60 * value / largest
            text = (
                f'<span title="{value:.3g}" style="background:rgba(214,120,30,{share / 100:.2f})">'
                f"{text}</span>"
            )
        parts.append(f"<strong>{text}</strong>" if i == example["at"] else text)
    return "".join(parts)


def _tokens(r: Record) -> str:
    rows = [
        (
            f"<code>{escape(repr(up))}</code>",
            f"{u:+.2f}",
            f"<code>{escape(repr(down))}</code>",
            f"{d:+.2f}",
        )
        for (up, u), (down, d) in zip(r["promoted"], r["suppressed"], strict=True)
    ]
    return (
        "<p>Its direction read by the output head, without the layers between (logit lens): at a "
        "late layer a forecast, at an early one a hint.</p>"
        + pieces.table(
            ("Promotes", "Logit", "Suppresses", "Logit"), rows, label="Tokens", numbers=(1, 3)
        )
    )


def _alike(r: Record) -> str:
    rows = [(str(i), f"{cosine:.3f}") for i, cosine in r["alike"]]
    return pieces.table(("Latent", "Cosine"), rows, label="Alike", numbers=(0, 1))


def _reproduce(r: Record) -> str:
    command = f"worthit sae show {r['folder']} {r['feature']} --html feature.html"
    return f"<pre><code>{escape(command)}</code></pre>"
