"""`worthit quantize`: a model's weights in few bits, and what that costs in quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from worthit.cli import _terminal
from worthit.cli._case import Name, Size
from worthit.cli._progress import Progress, size_text, time_text
from worthit.errors import InputError, MissingCapability

# Of `--bits` and `--group`: the format, by its name in `worthit.spec.formats`.
FORMATS = {
    ("8", None): "int8",
    ("8", 32): "int8-g32",
    ("4", None): "int4-g32",
    ("4", 32): "int4-g32",
    ("4", 64): "int4-g64",
    ("4", 128): "int4-g128",
    ("fp8", None): "fp8",
    ("ternary", None): "ternary",
}


@click.command("quantize")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--bits",
    type=click.Choice(("8", "4", "fp8", "ternary")),
    default="4",
    show_default=True,
    help="Of the layers' matrices.",
)
@click.option(
    "--group",
    type=click.Choice(("32", "64", "128")),
    help="Columns a scale; default of 4 bits: 32.",
)
@click.option(
    "--method",
    type=click.Choice(("rtn", "awq", "gptq")),
    help="Default: gptq for 4 bits, rtn (round to nearest, no text needed) for others.",
)
@click.option(
    "--head",
    type=click.Choice(("8", "keep")),
    default="8",
    show_default=True,
    help="Bits of embedding and output head.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Text for awq and gptq; default: the standard library's.",
)
@click.option("--sequences", type=Size(), default=32, show_default=True, help="Of that text.")
@click.option("--length", type=Size(), default=512, show_default=True, help="Tokens of a sequence.")
@click.option(
    "--act-order/--in-order",
    default=True,
    help="gptq: the largest inputs first, or columns in order.",
)
@click.option(
    "--eval-tokens",
    type=Size(),
    default=6144,
    show_default=True,
    help="Of perplexity before and after, on text not calibrated on; 0 leaves it out.",
)
@click.option("--json", "is_json", is_flag=True, help="Print one record.")
def command(
    model: str,
    out: Path,
    bits: str,
    group: str | None,
    method: Literal["rtn", "awq", "gptq"] | None,
    head: str,
    calibration: Path | None,
    sequences: int,
    length: int,
    act_order: bool,
    eval_tokens: int,
    is_json: bool,
) -> None:
    """Quantize a model: its weights in few bits, into a new folder.

    The folder is one that `worthit generate` and `worthit serve` take; matrices stay packed in
    memory, and the products of PyTorch that read them so are used where this CPU has them.

    \b
    worthit quantize smollm2-135m-instruct ./smol-int4
    worthit quantize ./model ./model-int8 --bits 8
    worthit quantize ./model ./model-awq --method awq --group 64 --calibration mine.txt
    """
    _need_torch()
    from worthit.decode import quantize

    name = _format(bits, group)
    method = method or ("gptq" if bits == "4" else "rtn")
    if calibration is not None and method == "rtn":
        raise InputError("--calibration: rtn reads no text; leave it out, or use --method gptq")
    job = quantize.Job(
        source=model,
        out=out,
        weights=name,
        embeddings="int8" if head == "8" else None,
        method=method,
        act_order=act_order,
        n_sequences=sequences,
        length=length,
        calibration=calibration,
        n_eval=eval_tokens,
    )
    prepared = quantize.prepare(job)
    predicted = _predicted_bytes(prepared.model.spec, job)
    e = prepared.estimate
    memory = size_text(e.memory_bytes)
    _terminal.note(
        f"{name} by {method}: about {time_text(e.seconds)} and {memory} of memory; "
        f"{size_text(predicted)} to write"
    )
    record = quantize.run(prepared, on_work=Progress())
    record["bytes_predicted"] = predicted
    if is_json:
        _terminal.show_json(record)
        return
    _terminal.show(_lines(record))


def _format(bits: str, group: str | None) -> str:
    key = (bits, None if group is None else int(group))
    if key not in FORMATS:
        groups = [str(g) for b, g in FORMATS if b == bits and g is not None]
        known = f"pick one of {', '.join(groups)}" if groups else "leave it out"
        raise InputError(f"--group: {bits} has no groups of {group}; {known}")
    return FORMATS[key]


def _need_torch() -> None:
    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingCapability(
            "quantizing a model needs the extra 'torch'", "pip install 'worthit[torch]'"
        ) from None


def _predicted_bytes(spec: Any, job: Any) -> float:
    """What `worthit cost` says of the weights in these formats."""
    from dataclasses import replace

    from worthit.cost.memory import Split, weight_bytes

    p = spec.precision
    stored = replace(
        p, weights=job.weights, experts=None, embeddings=job.embeddings or p.activations
    )
    return float(weight_bytes(replace(spec, precision=stored), Split()))


def _lines(record: dict[str, Any]) -> list[str]:
    before, after = record["bytes_before"], record["bytes_after"]
    lines = [
        f"wrote {record['out']}: {record['quantization']['weights']}, "
        f"{record['n_matrices_stored']} matrices",
        f"size        {size_text(before)} -> {size_text(after)}, {before / after:.2f} times "
        f"smaller (predicted {size_text(record['bytes_predicted'])})",
    ]
    found = record["perplexity"]
    if found is not None:
        change = f"{found['before']:.4g} -> {found['after']:.4g} ({100 * found['increase']:+.2f} %)"
        lines.append(f"perplexity  {change} on {found['n_tokens']} tokens, {found['text']}")
    if record["kept"]:
        lines.append(f"kept        {len(record['kept'])} matrices as they were: see --json")
    lines += [f"note        {note}" for note in record["notes"]]
    if not record["has_tokenizer"]:
        lines.append("note        MODEL has no tokenizer.json: give ids, or copy its tokenizer")
    return lines
