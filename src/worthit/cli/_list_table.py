"""What ships, as one line an entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worthit.cli._terminal import Terminal
from worthit.judge.words import count, three

Entry = dict[str, Any]


def list_lines(kind: str, entries: list[Entry], terminal: Terminal) -> list[str]:
    """A heading, the rows, and how many there are."""
    heads, row = _KINDS[kind]
    rows = [row(entry) for entry in entries]
    widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads) - 1)]

    def fit(cells: tuple[str, ...]) -> str:
        left = "  ".join(
            cell.rjust(width) if head.startswith(">") else cell.ljust(width)
            for cell, width, head in zip(cells, widths, heads, strict=False)
        )
        room = terminal.width - len(left) - 2
        last = terminal.plain(cells[-1])
        if len(last) > room:
            last = last[: max(room - 3, 0)].rstrip() + "..." if room > 8 else ""
        return f"{left}  {last}"

    head = fit(tuple(h.lstrip(">") for h in heads))
    body = [fit(cells) for cells in rows]
    if kind == "techniques":
        body = _by_family(entries, body, terminal)
    return [terminal.paint(head, "bold"), *body, "", f"{len(entries)} {kind}"]


def _by_family(entries: list[Entry], lines: list[str], terminal: Terminal) -> list[str]:
    found: list[str] = []
    family = ""
    for entry, line in zip(entries, lines, strict=True):
        if entry["family"] != family:
            family = entry["family"]
            found += ["", terminal.paint(family, "bold", "cyan")]
        found.append(line)
    return found


def _model(entry: Entry) -> tuple[str, ...]:
    n = entry["counted_params"]
    aliases = ", ".join(entry["aliases"] or ())
    name = entry["name"] or ""
    return entry["id"], count(n) if n else "", f"{name} ({aliases})" if aliases else name


def _device(entry: Entry) -> tuple[str, ...]:
    flops = entry["flops_per_s"].get("bf16") or entry["flops_per_s"].get("fp16")
    flops = flops or entry["flops_per_s"].get("fp32")
    price = entry["price_usd_per_hour"]
    return (
        entry["id"],
        f"{entry['mem_bytes'] / 1e9:.0f} GB",
        f"{three(entry['mem_bytes_per_s'] / 1e9)} GB/s",
        f"{three(flops / 1e12)} TFLOP/s" if flops else "",
        f"${price:.2f}/h" if price else "",
        entry["name"],
    )


def _technique(entry: Entry) -> tuple[str, ...]:
    return entry["id"], entry["adoption"], ", ".join(entry["relieves"]), entry["name"]


def _workload(entry: Entry) -> tuple[str, ...]:
    if entry["kind"] == "serve":
        prompt, output = (
            entry.get(key, entry.get(f"{key}_tokens")) for key in ("prompt", "output")
        )
        sizes = f"prompt {prompt}, output {output}, concurrency {entry.get('concurrency', 1)}"
    else:
        tokens = entry["tokens"] if "tokens" in entry else entry["train_tokens"]
        seq = entry.get("seq", entry.get("seq_tokens"))
        sizes = f"{count(tokens)} tokens, seq {seq}, batch {count(entry['batch_tokens'])} tokens"
    return entry["id"], entry["kind"], sizes, entry["name"]


def _experiment(entry: Entry) -> tuple[str, ...]:
    return entry["id"], entry["technique"], entry["measured"], entry["title"]


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[Entry], tuple[str, ...]]]] = {
    "models": (("MODEL", ">PARAMS", "NAME"), _model),
    "devices": (("DEVICE", ">MEMORY", ">BANDWIDTH", ">16-BIT PEAK", ">PRICE", "NAME"), _device),
    "techniques": (("TECHNIQUE", "ADOPTION", "RELIEVES", "NAME"), _technique),
    "experiments": (("EXPERIMENT", "TECHNIQUE", "MEASURED", "TITLE"), _experiment),
    "workloads": (("WORKLOAD", "KIND", "SIZES", "NAME"), _workload),
}
