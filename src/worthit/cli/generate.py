"""`worthit generate`: what a model says to a prompt."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worthit.cli import _terminal
from worthit.cli._case import Name, Size
from worthit.errors import InputError, MissingCapability

if TYPE_CHECKING:
    from worthit.decode.generate import Generation
    from worthit.decode.sampling import Sampling
    from worthit.decode.speculative.control import Control
    from worthit.decode.speculative.loop import Tally
    from worthit.decode.tokenizer import Tokenizer


@click.command("generate")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("prompt", metavar="PROMPT|-")
@click.option("--max-tokens", type=Size(), default=256, show_default=True, help="At most so many.")
@click.option("--temperature", type=float, default=0.0, help="0, the default, is greedy.")
@click.option("--top-k", type=Size(), default=0, help="Draw from the k likeliest.")
@click.option("--top-p", type=float, default=1.0, help="Draw from the fewest that reach p.")
@click.option("--min-p", type=float, default=0.0, help="Draw from those this near the likeliest.")
@click.option("--repetition-penalty", type=float, default=1.0, help="Above 1: repeat less.")
@click.option("--seed", type=int, help="Of the draw; the same seed says the same.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@click.option(
    "--chat/--raw", "is_chat", default=None, help="Use the chat template (default: if any) or not."
)
@click.option("--system", metavar="TEXT", help="The system message of a chat.")
@click.option(
    "--weights",
    type=click.Choice(("packed", "dense", "both")),
    help="Few bits as they are stored, widened, or packed with a wide copy for prompts; default: "
    "packed where this CPU multiplies so.",
)
@click.option("--rope", metavar="METHOD:FACTOR", help="Stretch the context: yarn:4, linear:2.")
@click.option(
    "--dtype", type=click.Choice(("fp32", "bf16", "fp16")), help="Of the weights; default: stored."
)
@click.option(
    "--draft",
    default="none",
    show_default=True,
    metavar="HOW",
    help="Guess what follows and verify it in one pass: lookup, lookahead, layers:N, exit:N, "
    "heads:FOLDER, or a smaller MODEL of the same vocabulary.",
)
@click.option("--draft-tokens", type=Size(), metavar="K", help="Of a draft, at most.")
@click.option("--json", "is_json", is_flag=True, help="Print one record, with ids and timings.")
def command(
    model: str,
    prompt: str,
    max_tokens: int,
    seed: int | None,
    stop: tuple[str, ...],
    is_chat: bool | None,
    system: str | None,
    weights: str | None,
    rope: str | None,
    dtype: str | None,
    draft: str,
    draft_tokens: int | None,
    is_json: bool,
    **choice: Any,
) -> None:
    """Generate text with a model, token by token as it comes.

    MODEL is a checkpoint folder, a .gguf, or a model of the local hub cache. PROMPT - reads the
    prompt from stdin.

    \b
    worthit generate smollm2-135m-instruct "Why is the sky blue?"
    worthit generate ./model.gguf - --temperature 0.8 --top-p 0.95 --seed 1 < prompt.txt
    worthit generate smollm2-135m-instruct - --draft lookup < to_edit.txt
    """
    text = read_prompt(prompt)
    _need_torch()
    from worthit.decode.generate import generate
    from worthit.decode.sampling import Sampling
    from worthit.decode.speculative import options
    from worthit.decode.tokenizer import load_tokenizer
    from worthit.nn.inference import optimize, products
    from worthit.nn.load import checkpoint_path, load_model, packing_pays

    sampling = Sampling(**choice)
    wanted = options.parse_draft(draft)
    path = checkpoint_path(model)
    tokenizer = load_tokenizer(path)
    ids = _prompt_ids(tokenizer, text, is_chat=is_chat, system=system)
    started = time.perf_counter()
    packed = weights != "dense" if weights else packing_pays(path, dtype)
    loaded = load_model(path, dtype=dtype, packed=packed, rope=rope)
    optimize(loaded, has_wide_copies=weights == "both")
    drafter = options.make_drafter(wanted, loaded, tokenizer=tokenizer, is_alone=True)
    control, most = None, options.DEFAULT_TOKENS
    if drafter is not None:
        most = options.n_draft_tokens(drafter, draft_tokens)
        control = options.make_control(drafter, loaded, most)
    load_s = time.perf_counter() - started
    say = None if is_json else _say
    found = generate(
        loaded,
        ids,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=stop,
        seed=seed,
        tokenizer=tokenizer,
        on_text=say,
        drafter=drafter,
        draft_tokens=most,
        control=control,
    )[0]
    if is_json:
        record = _record(model, path, found, sampling, load_s=load_s, seed=seed)
        record["weights"] = {
            "form": weights or ("packed" if packed else "dense"),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "products": products(loaded),
            "rope": rope,
        }
        if found.tally is not None:
            record["draft"] = _draft_record(draft, most, found.tally, control)
        _terminal.show_json(record)
        return
    _say("\n")
    rate = found.tokens_per_s
    speed = "" if rate is None else f" at {rate:.3g} tokens/s"
    drafts = ""
    if found.tally is not None and found.tally.n_drafted:
        tally = found.tally
        drafts = (
            f" in {tally.n_passes} passes ({tally.n_accepted} of {tally.n_drafted} drafted tokens "
            "kept)"
        )
    _terminal.note(
        f"{found.n_prompt_tokens} prompt tokens, {len(found.ids)} tokens{drafts}{speed}; ended by "
        + ("a stop" if found.finish_reason == "stop" else "the limit (--max-tokens, context)")
    )


def _draft_record(draft: str, most: int, tally: Tally, control: Control | None) -> dict[str, Any]:
    """How drafts fared, and what verifying costs here."""
    costs = None
    if control is not None:
        costs = [[n, control.costs.of(n)] for n in control.costs.rows]
    return {
        "how": draft,
        "most": most,
        "n_passes": tally.n_passes,
        "n_drafts": tally.n_drafts,
        "n_drafted": tally.n_drafted,
        "n_accepted": tally.n_accepted,
        "acceptance": tally.acceptance,
        "verify_cost": costs,
    }


def read_prompt(argument: str) -> str:
    """The prompt: the argument, or stdin where that is `-`.

    Raises:
        InputError: nothing, or bytes that are not UTF-8.
    """
    if argument == "-":
        raw = sys.stdin.buffer.read()
    else:
        # What a shell handed over and is not UTF-8 arrives as lone surrogates.
        raw = argument.encode("utf-8", "surrogateescape")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"prompt: must be UTF-8 text, got the byte 0x{raw[error.start]:02x} at {error.start}"
        ) from None
    if not text:
        raise InputError("prompt: must not be empty")
    return text


def _need_torch() -> None:
    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingCapability(
            "generating text needs the extra 'torch'", "pip install 'worthit[torch]'"
        ) from None


def _prompt_ids(
    tokenizer: Tokenizer, text: str, *, is_chat: bool | None, system: str | None
) -> list[int]:
    if is_chat is None:
        is_chat = tokenizer.chat_template is not None
    if not is_chat:
        if system is not None:
            raise InputError("--system: only a chat has a system message; leave out --raw")
        return tokenizer.encode(text)
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.encode_chat(messages)


def _say(text: str) -> None:
    """A piece of text at once; a character that the encoding lacks becomes a question mark."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _record(
    model: str,
    path: Path,
    found: Generation,
    sampling: Sampling,
    *,
    load_s: float,
    seed: int | None,
) -> dict[str, Any]:
    from dataclasses import asdict

    prefill = found.n_prompt_tokens / found.prefill_s if found.prefill_s else None
    return {
        "schema": "worthit.generate/1",
        "model": model,
        "path": str(path),
        "sampling": {**asdict(sampling), "seed": seed},
        "n_prompt_tokens": found.n_prompt_tokens,
        "ids": found.ids,
        "text": found.text,
        "finish_reason": found.finish_reason,
        "timings": {
            "load_s": load_s,
            "prefill_s": found.prefill_s,
            "decode_s": found.decode_s,
            "prefill_tokens_per_s": prefill,
            "tokens_per_s": found.tokens_per_s,
        },
    }
