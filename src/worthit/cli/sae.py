"""`worthit sae`: sparse autoencoders of a model, from training to steering."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worthit.cli import _terminal
from worthit.cli._case import Name, Size
from worthit.cli._progress import Progress, size_text, time_text
from worthit.errors import InputError, MissingCapability

if TYPE_CHECKING:
    from torch import Tensor

    from worthit.decode.tokenizer import Tokenizer
    from worthit.interp.sae.plan import Plan, Settings
    from worthit.nn.decoder import Decoder

# Sequences of running text that features are looked for in, unless more are asked for.
N_SHOWN, LENGTH = 96, 128
KINDS = ("standard", "topk", "jumprelu", "gated", "batchtopk")
DTYPE = click.option(
    "--dtype",
    type=click.Choice(("fp32", "bf16")),
    default="bf16",
    show_default=True,
    help="Weights of the model.",
)
MODEL = click.option("--model", help="The model that it reads; default: the one it was trained on.")
AT = click.option("--at", help="The point that it reads; default: as its folder says.")
TEXT = click.option(
    "--text",
    "text_file",
    type=click.Path(path_type=Path),
    help="A file of text; default: the standard library's source and reference pages.",
)
JSON = click.option("--json", "is_json", is_flag=True, help="Print one record.")


@click.group("sae")
def command() -> None:
    """Train sparse autoencoders on a model, and look and steer through them.

    \b
    worthit sae train smollm2-135m-instruct ./sae --at layers.15.resid_post --minutes 10
    worthit sae find ./sae "The weather in Paris is lovely"
    worthit sae show ./sae 1234 --html feature.html
    worthit sae steer smollm2-135m-instruct ./sae 1234 --strength 0.5 "Tell me a story."
    """


@command.command("train")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--at", required=True, metavar="POINT", help="Such as layers.15.resid_post.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    default=("topk",),
    help="Repeatable: several are trained on the same activations (default topk).",
)
@click.option("--width", type=Size(), default=4096, show_default=True, help="Latents.")
@click.option(
    "--k",
    type=float,
    default=32,
    show_default=True,
    help="Latents a token: counted out, or what the penalty is turned to.",
)
@click.option("--penalty", type=float, help="A fixed one instead, of standard, gated, jumprelu.")
@click.option(
    "--minutes",
    type=float,
    help="For everything, loading included; speeds are measured first, and it ends by then.",
)
@click.option("--tokens", type=Size(), help="To capture, in place of half of the time.")
@click.option("--steps", type=Size(), help="Updates, in place of the rest of the time.")
@click.option("--batch", type=Size(), default=1024, show_default=True, help="Rows of an update.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Of Adam.")
@click.option("--seed", type=int, default=0, show_default=True)
@TEXT
@DTYPE
@click.option("--keep", is_flag=True, help="Keep the captured activations.")
@click.option("--plan", "is_plan", is_flag=True, help="Say what it would take, and stop.")
@JSON
def train(
    model: str,
    out: Path,
    at: str,
    kinds: tuple[str, ...],
    width: int,
    k: float,
    penalty: float | None,
    minutes: float | None,
    tokens: int | None,
    steps: int | None,
    batch: int,
    lr: float,
    seed: int,
    text_file: Path | None,
    dtype: str,
    keep: bool,
    is_plan: bool,
    is_json: bool,
) -> None:
    """Train autoencoders on the activations of a model over text.

    What it takes is said first, and --minutes is kept where the machine turns out slower: loading
    and evaluation are in it. OUT gets the layout of sae_lens, one folder a kind where there are
    several. The same command continues an interrupted run.
    """
    started = time.monotonic()
    _need_torch()
    from worthit.interp.sae.plan import N_EVALUATED, Settings, agree, plan_run
    from worthit.interp.sae.session import ACTIVATIONS, run

    ends = None if minutes is None else started + 60 * minutes
    loaded, tokenizer, path = _load(model, dtype)
    settings = Settings(
        at=at,
        kinds={kind: _options(kind, k, penalty) for kind in dict.fromkeys(kinds)},
        width=width,
        batch=batch,
        length=LENGTH,
        target_l0=k if penalty is None else None,
        lr=lr,
        seed=seed,
    )
    ids = _ids(tokenizer, 1_000_000, text_file, part="calibration")
    held_out = _ids(tokenizer, N_EVALUATED, text_file, part="held-out")
    if text_file is not None:
        # One file is both: its last part is held out.
        n = max(min(N_EVALUATED, len(ids) // 8), 1)
        ids, held_out = ids[:-n], ids[-n:]

    def make() -> Plan:
        return plan_run(
            loaded,
            ids,
            settings,
            seconds=None if ends is None else ends - time.monotonic(),
            n_tokens=tokens,
            steps=steps,
            n_held_out=len(held_out),
        )

    text = "the standard library" if text_file is None else str(text_file)
    plan = make() if is_plan else agree(out, settings, make, text)
    _say_plan(plan, settings)
    if is_plan:
        return
    progress = Progress()
    try:
        record = run(
            loaded,
            ids,
            held_out,
            settings,
            plan,
            out,
            about={"model": str(path), "text": text},
            on_progress=progress,
            ends=ends,
        )
    except KeyboardInterrupt:
        _terminal.note("the same command goes on from here")
        raise
    if not keep:
        shutil.rmtree(out / ACTIVATIONS)
    if is_json:
        _terminal.show_json(record)
        return
    _terminal.show(_metric_lines(record["saes"]))


@command.command("eval")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@MODEL
@AT
@TEXT
@click.option("--sequences", type=Size(), default=64, show_default=True, help="Of held-out text.")
@DTYPE
@JSON
def evaluate(
    folder: Path,
    model: str | None,
    at: str | None,
    text_file: Path | None,
    sequences: int,
    dtype: str,
    is_json: bool,
) -> None:
    """Measure an autoencoder on text: what it explains, and what the model loses by it."""
    _need_torch()
    from worthit.interp.sae.files import load_sae
    from worthit.interp.sae.metrics import fit_of, loss_recovered
    from worthit.interp.stream import Source

    sae = load_sae(folder)
    loaded, tokenizer, at = _of_folder(folder, model, at, dtype)
    ids = _ids(tokenizer, sequences, text_file, part="held-out")
    chunks = (chunk[at] for chunk in Source(loaded, ids, (at,)).chunks())
    record = {
        "schema": "worthit.sae-eval/1",
        "folder": str(folder),
        "at": at,
        "kind": sae.kind,
        **fit_of(sae, chunks).to_json(),
        **loss_recovered(loaded, sae, at, ids).to_json(),
    }
    if is_json:
        _terminal.show_json(record)
        return
    _terminal.show(_metric_lines({folder.name: record}))


@command.command("find")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.argument("text", metavar="TEXT")
@click.option("-n", "n", type=Size(), default=10, show_default=True, help="Latents.")
@MODEL
@AT
@DTYPE
@JSON
def find(
    folder: Path, text: str, n: int, model: str | None, at: str | None, dtype: str, is_json: bool
) -> None:
    """Find the latents that a text is about: on in it more than elsewhere."""
    _need_torch()
    import torch

    from worthit.interp.sae.examples import tokens_of_direction
    from worthit.interp.sae.files import load_sae
    from worthit.interp.sae.find import features_in

    sae = load_sae(folder)
    loaded, tokenizer, at = _of_folder(folder, model, at, dtype)
    ids = torch.tensor(tokenizer.encode(text))
    if len(ids) < 2:
        raise InputError("TEXT: must be two tokens at least; the first is left out")
    found = features_in(loaded, sae, at, ids, density=_density(folder), n=n)
    records = []
    for one in found:
        up, _ = tokens_of_direction(loaded, sae.directions()[one.feature], 6)
        records.append({**one.to_json(), "promotes": [tokenizer.decode([i]) for i, _ in up]})
    if is_json:
        _terminal.show_json({"schema": "worthit.sae-find/1", "features": records})
        return
    if not records:
        _terminal.show(["no latent stands out in this text"])
    for r in records:
        rare = "" if r["density"] is None else f", {100 * r['density']:.2g} % of all text"
        promoted = " ".join(repr(token) for token in r["promotes"])
        _terminal.show(
            [
                f"{r['feature']:>6}  mean {r['mean']:.2f}, on in {100 * r['share']:.0f} % of it"
                f"{rare}; promotes {promoted}"
            ]
        )


@command.command("show")
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.argument("feature", metavar="FEATURE", type=int)
@click.option("--html", "page", metavar="FILE", help="Also write its page, one offline file.")
@MODEL
@AT
@TEXT
@click.option(
    "--sequences", type=Size(), default=N_SHOWN, show_default=True, help="Looked through."
)
@DTYPE
@JSON
def show(
    folder: Path,
    feature: int,
    page: str | None,
    model: str | None,
    at: str | None,
    text_file: Path | None,
    sequences: int,
    dtype: str,
    is_json: bool,
) -> None:
    """Show a latent: where it is on, how often, and which tokens it promotes."""
    if page is not None:
        from worthit.report.write import check_target

        check_target(page)
    _need_torch()
    from worthit.interp.sae.examples import features_of
    from worthit.interp.sae.files import load_sae
    from worthit.interp.stream import Source

    sae = load_sae(folder)
    _in_range(feature, sae.config.width)
    loaded, tokenizer, at = _of_folder(folder, model, at, dtype)
    ids = _ids(tokenizer, sequences, text_file, part="held-out")
    (found,) = features_of(sae, Source(loaded, ids, (at,)), [feature], tokenizer.decode)
    record = {
        "schema": "worthit.sae-feature/1",
        "folder": str(folder),
        "model": loaded.spec.name,
        "at": at,
        "kind": sae.kind,
        "width": sae.config.width,
        **found.to_json(),
    }
    if page is not None:
        from worthit.report.feature import write_feature

        size = write_feature(record, page)
        _terminal.note(f"wrote {page} ({size / 1e3:.0f} kB, opens offline)")
    if is_json:
        _terminal.show_json(record)
        return
    _terminal.show(_feature_lines(record))


@command.command("steer")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.argument("feature", metavar="FEATURE", type=int)
@click.argument("prompt", metavar="PROMPT")
@click.option(
    "--strength",
    type=float,
    default=0.5,
    show_default=True,
    help="In mean lengths of the stream; negative suppresses.",
)
@AT
@click.option("--max-tokens", type=Size(), default=60, show_default=True)
@click.option("--chat/--raw", "is_chat", default=None, help="Use the chat template or not.")
@DTYPE
@JSON
def steer(
    model: str,
    folder: Path,
    feature: int,
    prompt: str,
    strength: float,
    at: str | None,
    max_tokens: int,
    is_chat: bool | None,
    dtype: str,
    is_json: bool,
) -> None:
    """Write with a latent pushed, beside what the model writes without."""
    _need_torch()
    from worthit.decode.generate import generate
    from worthit.interp.sae.files import load_sae
    from worthit.interp.sae.steer import mean_length, steered

    sae = load_sae(folder)
    _in_range(feature, sae.config.width)
    loaded, tokenizer, at = _of_folder(folder, model, at, dtype)
    is_chat = tokenizer.chat_template is not None if is_chat is None else is_chat
    ids = (
        tokenizer.encode_chat([{"role": "user", "content": prompt}])
        if is_chat
        else tokenizer.encode(prompt)
    )
    length = mean_length(loaded, _ids(tokenizer, 16, None, part="held-out"), at)

    def write() -> str:
        return generate(loaded, ids, max_tokens=max_tokens, tokenizer=tokenizer)[0].text or ""

    before = write()
    with steered(loaded, sae, feature, at, strength, length=length):
        after = write()
    record = {
        "schema": "worthit.sae-steer/1",
        "feature": feature,
        "at": at,
        "strength": strength,
        "mean_length": length,
        "prompt": prompt,
        "before": before,
        "after": after,
    }
    if is_json:
        _terminal.show_json(record)
        return
    terminal = _terminal.of_stdout()
    _terminal.show([terminal.paint("without", "bold"), *terminal.wrap(before, indent=2), ""])
    _terminal.show(
        [
            terminal.paint(f"latent {feature} by {strength:+g} lengths at {at}", "bold"),
            *terminal.wrap(after, indent=2),
        ]
    )


def _options(kind: str, k: float, penalty: float | None) -> dict[str, Any]:
    """The options of a kind, of what was asked for."""
    if kind == "topk":
        if k != int(k):
            raise InputError(f"--k: topk takes a whole number, got {k}; batchtopk takes a mean")
        return {"kind": kind, "k": int(k)}
    if kind == "batchtopk":
        return {"kind": kind, "k": k}
    if kind == "jumprelu":
        found = {"kind": kind, "penalty": 0.3 if penalty is None else penalty}
        # Inputs have a mean length of sqrt(d_in): pre-activations are of order 1.
        return {**found, "bandwidth": 0.2, "init_threshold": 0.1, "revive": 1e-3}
    found = {"kind": kind, "penalty": 1.0 if penalty is None else penalty}
    return {**found, "has_unit_decoder": True} if kind == "gated" else found


def _load(model: str, dtype: str) -> tuple[Decoder, Tokenizer, Path]:
    from worthit.decode.tokenizer import load_tokenizer
    from worthit.nn.inference import optimize
    from worthit.nn.load import checkpoint_path, load_model

    path = checkpoint_path(model)
    tokenizer = load_tokenizer(path)
    return optimize(load_model(path, dtype=dtype, packed=False).eval()), tokenizer, path


def _of_folder(
    folder: Path, model: str | None, at: str | None, dtype: str
) -> tuple[Decoder, Tokenizer, str]:
    """The model and the point that a folder's autoencoder reads."""
    from worthit.interp.points import width
    from worthit.interp.sae.files import point_of, read_config

    config = read_config(folder)
    name = model or config.get("metadata", {}).get("model_name")
    if not name:
        raise InputError(f"{folder}: does not say which model it reads; give --model")
    point = at or point_of(folder)
    loaded, tokenizer, _ = _load(str(name), dtype)
    if width(loaded, point) != config.get("d_in"):
        raise InputError(
            f"{point}: has {width(loaded, point)} channels, and the autoencoder reads "
            f"{config.get('d_in')}; it belongs to another model or point"
        )
    return loaded, tokenizer, point


def _ids(tokenizer: Tokenizer, n: int, file: Path | None, *, part: Any) -> Tensor:
    from worthit.decode.corpus import sequences

    return sequences(tokenizer, n, LENGTH, part=part, file=file)


def _density(folder: Path) -> Tensor | None:
    from safetensors.torch import load_file

    path = folder / "sparsity.safetensors"
    if not path.exists():
        return None
    found: Tensor = load_file(path)["sparsity"]
    return 10.0**found


def _in_range(feature: int, width: int) -> None:
    if not 0 <= feature < width:
        raise InputError(f"FEATURE: must be between 0 and {width - 1}, got {feature}")


def _say_plan(plan: Plan, settings: Settings) -> None:
    _terminal.note(
        f"{plan.n_rows:,} tokens captured ({time_text(plan.capture_s)}, "
        f"{size_text(plan.disk_bytes)} on disk), then {plan.steps:,} steps of {settings.batch:,} "
        f"({time_text(plan.train_s)}, {size_text(plan.train_bytes)} of memory), then evaluation on "
        f"{plan.n_evaluated} sequences ({time_text(plan.evaluate_s)}): "
        f"{time_text(plan.seconds)} in all"
    )


def _metric_lines(saes: dict[str, Any]) -> list[str]:
    lines = []
    for name, m in saes.items():
        lines += [
            f"{name}: explains {100 * m['explained_variance']:.1f} % of the variance with "
            f"{m['l0']:.1f} latents a token; {100 * m['dead']:.1f} % never on",
            f"  loss {m['loss']:.3f}, through it {m['loss_sae']:.3f} (+{m['delta']:.3f}), without "
            f"the point {m['loss_ablated']:.3f}: {100 * m['recovered']:.1f} % recovered",
        ]
    return lines


def _feature_lines(r: dict[str, Any]) -> list[str]:
    lines = [
        f"latent {r['feature']} of {r['width']}, {r['kind']} at {r['at']}: on at "
        f"{r['n_on']:,} of {r['n_rows']:,} tokens, up to {r['largest']:.2f}",
        "promotes   " + " ".join(repr(token) for token, _ in r["promoted"]),
        "suppresses " + " ".join(repr(token) for token, _ in r["suppressed"]),
        "like       " + " ".join(f"{i} ({cosine:.2f})" for i, cosine in r["alike"]),
    ]
    for example in r["examples"]:
        text = "".join(
            f"[{token}]" if i == example["at"] else token
            for i, token in enumerate(example["tokens"])
        )
        lines.append(f"{example['value']:>8.2f}  {' '.join(text.split())}")
    return lines


def _need_torch() -> None:
    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingCapability(
            "sparse autoencoders need the extra 'torch'", "pip install 'worthit[torch]'"
        ) from None
