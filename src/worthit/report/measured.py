"""The page of an outcome and the page of the scorecard, from their records alone."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from worthit.report import pieces
from worthit.report._text import EN
from worthit.report.measured_figures import band_plot, interval_plot, pair_plot
from worthit.report.write import write_text
from worthit.scorecard.words import effect_number, three

Record = Mapping[str, Any]
# The page's colours of a verdict serve for a state too.
CLASSES = {
    "confirmed": "apply",
    "agrees": "apply",
    "refuted": "bad",
    "off": "bad",
    "inconclusive": "defer",
}
SHAPES = {"confirmed": "▲", "refuted": "✖", "inconclusive": "◆", "agrees": "▲", "off": "✖"}
WORDS = {**EN, "skip": "Skip to the outcome"}


def write_outcome(outcome: Record, path: str | Path) -> int:
    """Write the page of an outcome and return its size in bytes.

    Raises:
        InputError: `path` cannot be written.
    """
    return write_text(outcome_page(outcome), path)


def write_scorecard(record: Record, path: str | Path) -> int:
    """Write the page of the scorecard and return its size in bytes; see `write_outcome`."""
    return write_text(scorecard_page(record), path)


def outcome_page(outcome: Record) -> str:
    """One offline page: the verdict, effects, seeds, curves, predictions, configuration."""
    sections = {
        "outcome": ("Outcome", _outcome(outcome)),
        "effects": ("Effects", _effects(outcome)),
        "seeds": ("Seeds", _seeds(outcome)),
        "curves": ("Curves", _curves(outcome)),
        "predicted": ("Predicted beside measured", _predicted(outcome)),
        "arms": ("Arms", _arms(outcome)),
        "reproduce": ("Reproduce", _reproduce(outcome)),
    }
    there = {key: part for key, part in sections.items() if part[1]}
    return pieces.document(
        WORDS,
        lang="en",
        title=f"Measured: {outcome['experiment']}",
        heading=f'Measured: <span class="model">{escape(outcome["experiment"])}</span>',
        links=[(key, title) for key, (title, _) in there.items()],
        skip_to="outcome",
        head=f"<p>{escape(outcome['question'])}</p>{_head(outcome)}",
        body="".join(pieces.section(key, title, body) for key, (title, body) in there.items()),
    )


def _head(outcome: Record) -> str:
    expected = outcome["expectation"]
    return pieces.facts(
        {
            "Expected": f"{expected['statement']} ({expected['source']})",
            "Refuted if": expected["refuted_if"],
            "Budget": f"{outcome['budget']}, {outcome['n_seeds']} seeds",
            "Matched": _matched(outcome),
        }
    )


def _matched(outcome: Record) -> str:
    checks = [f"{c['what']} within {100 * c['spread']:.2g} %" for c in outcome["matched"]["checks"]]
    return "; ".join([*checks, *filter(None, [outcome["matched"]["because"]])])


def _state(word: str) -> str:
    kind = CLASSES.get(word, "never")
    return f'<span class="{kind}">{SHAPES.get(word, "–")} {escape(word)}</span>'


def _outcome(outcome: Record) -> str:
    lines = "".join(f"<p><b>{escape(line)}</b></p>" for line in outcome["verdict"])
    rows = [
        (
            _state(claim["state"]),
            escape(claim["statement"]),
            escape(claim["found"]),
            escape(claim["region"]["text"]),
            escape(change["text"]),
        )
        for claim, change in zip(outcome["claims"], outcome["would_change"], strict=True)
    ]
    heads = ("State", "Claim", "Measured", "Holds if", "Would change")
    notes = "".join(f"<li>{escape(note)}</li>" for note in outcome["notes"])
    return (
        f"<p>{_state(outcome['state'])} {escape(outcome['means'])}</p>{lines}"
        f"{pieces.table(heads, rows, label='Claims')}"
        + (f"<h4>Notes</h4><ul>{notes}</ul>" if notes else "")
    )


def _effects(outcome: Record) -> str:
    """One figure a metric, as units differ."""
    predicted = {
        (p["metric"], p["arm"]): p["value"] for p in outcome["predicted"] if not p["is_value"]
    }
    metrics: dict[str, list[Record]] = {}
    for found in outcome["effects"]:
        metrics.setdefault(found["metric"], []).append(found)
    blocks = []
    for metric, found in metrics.items():
        first = found[0]
        is_ratio = first["scale"] == "ratio"
        against = f"against {first['against']}"
        x = f"{first['name']}: times" if is_ratio else f"{first['name']}: difference"
        x = f"{x} {against}" + (f", {first['unit']}" if first["unit"] and not is_ratio else "")
        rows = [
            {
                "label": e["arm"],
                "estimate": e["measured"]["estimate"],
                "low": e["measured"]["low"],
                "high": e["measured"]["high"],
                "margin": e["margin"],
                "predicted": predicted.get((metric, e["arm"])),
            }
            for e in found
        ]
        title = f"{first['name']}, {against}"
        drawing = interval_plot(rows, ident=f"e-{metric}", title=title, x=x, is_ratio=is_ratio)
        twin = pieces.table(
            ("Arm", "Effect", "In words"),
            [
                (
                    escape(e["arm"]),
                    effect_number(e | e["measured"] | {"is_value": False}, {metric: e}),
                    escape(e["word"]),
                )
                for e in found
            ],
            label=title,
            numbers=(1,),
        )
        caption = (
            "Dot and bar: measured, with the 95 % interval over seeds; diamond: predicted. Shaded: "
            f"changes that do not matter; {first['better']} is better."
        )
        blocks.append(pieces.figure(drawing, caption, twin, WORDS, label=title))
    return "".join(blocks)


def _seeds(outcome: Record) -> str:
    blocks = []
    names = {e["metric"]: e for e in outcome["effects"]}
    for metric, about in names.items():
        values = {
            ident: arm["metrics"][metric]["by_seed"]
            for ident, arm in outcome["arms"].items()
            if metric in arm["metrics"]
        }
        flat = [v for by_seed in values.values() for v in by_seed.values()]
        if len({f"{v:.7g}" for v in flat}) <= len(values):
            continue  # counted, not sampled: the same for every seed
        title = f"{about['name']}, seed by seed"
        unit = f", {about['unit']}" if about["unit"] else ""
        is_log = about["scale"] == "ratio" and min(flat) > 0
        drawing = pair_plot(
            values, ident=f"s-{metric}", title=title, y=f"{about['name']}{unit}", is_log=is_log
        )
        seeds = [str(seed) for seed in outcome["seeds"]]
        rows = [
            (escape(arm), *(three(by_seed[s]) if s in by_seed else "" for s in seeds))
            for arm, by_seed in values.items()
        ]
        heads = ("Arm", *(f"seed {s}" for s in seeds))
        twin = pieces.table(heads, rows, label=title, numbers=range(1, len(heads)))
        caption = "A dot an arm and seed; a line joins the dots of a seed."
        blocks.append(pieces.figure(drawing, caption, twin, WORDS, label=title))
    return "".join(blocks)


def _curves(outcome: Record) -> str:
    names = dict.fromkeys(name for arm in outcome["arms"].values() for name in arm["curves"])
    blocks = []
    for i, name in enumerate(names):
        curves = {
            ident: arm["curves"][name]
            for ident, arm in outcome["arms"].items()
            if name in arm["curves"]
        }
        x = "step" if name.endswith("loss") else "x"
        drawing = band_plot(curves, ident=f"c-{i}", title=name, x=x, y=name)
        rows = []
        for arm, by_seed in curves.items():
            last = [points[-1] for points in by_seed.values() if points]
            ends = ", ".join(three(y) for _, y in last)
            rows.append((escape(arm), three(last[0][0]) if last else "", escape(ends)))
        twin = pieces.table(("Arm", f"Last {x}", "Last value of each seed"), rows, label=name)
        caption = "Line: the median over seeds; band: lowest to highest."
        blocks.append(pieces.figure(drawing, caption, twin, WORDS, label=name))
    return "".join(blocks)


def _predicted(outcome: Record) -> str:
    metrics = {e["metric"]: e for e in outcome["effects"]}
    rows = [
        (
            _state(p["agreement"]),
            escape(p["arm"]),
            escape(metrics[p["metric"]]["name"] if p["metric"] in metrics else p["metric"]),
            escape("" if p["value"] is None else effect_number(p, metrics)),
            escape("" if p["measured"] is None else effect_number(p | p["measured"], metrics)),
            escape("" if p["off_by"] is None else f"{100 * p['off_by']:+.0f} %"),
            escape("; ".join(filter(None, [p["basis"], p["gap"]]))),
        )
        for p in outcome["predicted"]
    ]
    if not rows:
        return ""
    heads = ("Agreement", "Arm", "Metric", "Predicted", "Measured", "Off by", "Basis")
    return pieces.table(heads, rows, label="Predicted beside measured", numbers=(3, 4, 5))


def _arms(outcome: Record) -> str:
    metrics = dict.fromkeys(m for arm in outcome["arms"].values() for m in arm["metrics"])
    heads = ("Arm", "", *metrics, "Learning rate", "Parameters")
    rows = []
    for ident, arm in outcome["arms"].items():
        found = arm["metrics"]
        texts = [escape(found[m]["text"]) if m in found else "" for m in metrics]
        n = arm["counts"].get("parameters")
        rate = "" if arm["tuning"] is None else f"{arm['tuning']['best']:g}"
        about = f"{arm['label']}{', baseline' if arm['is_baseline'] else ''}"
        rows.append((escape(ident), escape(about), *texts, rate, three(n) if n else ""))
    table = pieces.table(heads, rows, label="Arms", numbers=range(2, len(heads)))
    return table + _tuning(outcome)


def _tuning(outcome: Record) -> str:
    rows = [
        (
            escape(ident),
            f"{tried['learning_rate']:g}",
            escape(", ".join("diverged" if x is None else three(x) for x in tried["losses"])),
            "chosen" if tried["learning_rate"] == arm["tuning"]["best"] else "",
        )
        for ident, arm in outcome["arms"].items()
        if arm["tuning"] is not None
        for tried in arm["tuning"]["results"]
    ]
    if not rows:
        return ""
    heads = ("Arm", "Learning rate", "Validation loss of each tuning seed", "")
    return "<h4>Tuning</h4>" + pieces.table(heads, rows, label="Tuning", numbers=(1,))


def _reproduce(outcome: Record) -> str:
    env = outcome["environment"]
    git = env.get("git") or {}
    state = f"{git['commit']}{' with changes' if git['is_dirty'] else ''}" if git else ""
    facts = {
        "Date": outcome["date"],
        "Processor": f"{env['cpu']}, {env['threads']} threads",
        "System": env["os"],
        "Versions": ", ".join(
            f"{name} {env[name]}" for name in ("python", "worthit", "torch", "numpy", "scipy")
        ),
        "Commit": state,
        "Run": outcome["key"],
    }
    return (
        f"<pre><code>{escape(outcome['command'])}</code></pre>{pieces.facts(facts)}"
        "<p>This page is one file and asks no network.</p>"
    )


# --- the scorecard -------------------------------------------------------------------------------


def scorecard_page(record: Record) -> str:
    """Every technique: claimed, predicted, measured; what was not measured is there too."""
    families: dict[str, list[Record]] = {}
    for row in record["rows"]:
        families.setdefault(row["family"], []).append(row)
    heads = ("Technique", "State", "Claimed", "Predicted", "Measured", "So", "On")
    sections = [
        pieces.section(
            family,
            family,
            pieces.table(
                heads, [_row(one) for row in rows for one in (row, *row["others"])], label=family
            ),
        )
        for family, rows in families.items()
    ]
    text = (
        f"{record['n_measured']} of {record['n_techniques']} techniques measured: "
        f"{record['n_confirmed']} expectations confirmed, {record['n_refuted']} refuted, "
        f"{record['n_inconclusive']} inconclusive."
    )
    return pieces.document(
        {**WORDS, "skip": "Skip to the table"},
        lang="en",
        title="Scorecard",
        heading="Scorecard",
        links=[(family, family) for family in families],
        skip_to=next(iter(families)),
        head=f"<p>{escape(text)}</p>",
        body="".join(sections),
    )


def _row(row: Record) -> tuple[str, ...]:
    claimed = row["claimed"][0] if row["claimed"] else None
    said = "" if claimed is None else f"{claimed['claim']} ({claimed['source']})"
    on = "" if row["state"] is None else f"{row['hardware']}, {row['date']}, {row['budget']}"
    origin = " (your run)" if row["origin"] == "yours" else ""
    name, ident = row["technique"], row["experiment"]
    return (
        f"<b>{escape(name)}</b>" + (f": {escape(ident)}" if ident not in (None, name) else ""),
        _state(row["state"] or "not yet"),
        escape(said),
        "<br>".join(map(escape, row["predicted"])),
        "<br>".join(map(escape, row["measured"])),
        escape(row["means"]),
        escape(on + origin),
    )
