"""`worthit serve`: a model behind an OpenAI-compatible interface."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from worthit.cli import _terminal
from worthit.cli._case import Name, Size
from worthit.errors import MissingCapability

MIB = 2**20


@click.command("serve")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes a free one.")
@click.option("--name", help="What clients call the model; default: MODEL's own name.")
@click.option(
    "--api-key", envvar="WORTHIT_API_KEY", help="What clients must send; also WORTHIT_API_KEY."
)
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
    help="Guess what follows and verify it in one pass, if it pays: lookup, lookahead, layers:N, "
    "exit:N, heads:FOLDER, or a smaller MODEL of the same vocabulary.",
)
@click.option("--draft-tokens", type=Size(), metavar="K", help="Of a draft, at most.")
@click.option("--max-sequences", type=Size(), default=16, show_default=True, help="At once.")
@click.option(
    "--max-batch-tokens", type=Size(), default=256, show_default=True, help="Tokens of a step."
)
@click.option(
    "--max-waiting", type=Size(), default=256, show_default=True, help="One more gets a 429."
)
@click.option("--cache-mib", type=Size(), help="Memory for the cache; default: four contexts.")
@click.option(
    "--request-timeout", type=float, default=600.0, show_default=True, help="Seconds an answer has."
)
@click.option(
    "--drain", type=float, default=30.0, show_default=True, help="Seconds to finish after SIGTERM."
)
@click.option(
    "--log",
    type=click.Choice(("text", "json", "none")),
    default="text",
    show_default=True,
    help="One line a request, on stderr; never its text.",
)
@click.option("--json", "is_json", is_flag=True, help="Say where it listens as one JSON record.")
def command(
    model: str,
    host: str,
    port: int,
    name: str | None,
    api_key: str | None,
    weights: str | None,
    rope: str | None,
    dtype: str | None,
    draft: str,
    draft_tokens: int | None,
    max_sequences: int,
    max_batch_tokens: int,
    max_waiting: int,
    cache_mib: int | None,
    request_timeout: float,
    drain: float,
    log: Literal["text", "json", "none"],
    is_json: bool,
) -> None:
    """Serve a model to clients of OpenAI's interface.

    Many requests run side by side on a paged cache; prompts that begin alike share it. SIGTERM
    finishes what is under way and takes nothing more; a second one ends everything.

    \b
    worthit serve smollm2-135m-instruct
    curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
      -d '{"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Hi"}]}'
    """
    _need_extras()
    from worthit.decode.engine import Engine, EngineConfig
    from worthit.decode.speculative import options
    from worthit.decode.tokenizer import load_tokenizer
    from worthit.nn.inference import optimize
    from worthit.nn.load import checkpoint_path, load_model, packing_pays
    from worthit.serve.server import ServerConfig, serve

    config = ServerConfig(
        names=(name or _name_of(model),),
        host=host,
        port=port,
        api_key=api_key,
        request_timeout_s=request_timeout,
        drain_s=drain,
        log=log,
    )
    wanted = options.parse_draft(draft)
    limits = EngineConfig(
        max_sequences=max_sequences,
        max_batch_tokens=max(max_batch_tokens, max_sequences),
        max_waiting=max_waiting,
        cache_bytes=None if cache_mib is None else cache_mib * MIB,
    )
    path = checkpoint_path(model)
    tokenizer = load_tokenizer(path)
    packed = weights != "dense" if weights else packing_pays(path, dtype)
    loaded = load_model(path, dtype=dtype, packed=packed, rope=rope)
    optimize(loaded, has_wide_copies=weights == "both")
    drafter = options.make_drafter(wanted, loaded, tokenizer=tokenizer)
    if drafter is not None:
        limits = replace(limits, draft_tokens=options.n_draft_tokens(drafter, draft_tokens))
    engine = Engine(loaded, tokenizer, limits, drafter=drafter)

    def say(address: str) -> None:
        record: dict[str, Any] = {
            "schema": "worthit.serve/1",
            "url": f"{address}/v1",
            "model": config.names[0],
            "weights": weights or ("packed" if packed else "dense"),
            "context_len": engine.runner.context_len,
            "cache_blocks": engine.memory.n_blocks,
            "draft": draft,
            "has_api_key": api_key is not None,
        }
        if is_json:
            _terminal.show_json(record)
        else:
            _terminal.note(f"serving {record['model']} on {record['url']} (Ctrl-C ends it)")

    serve(engine, config, on_ready=say)


def _name_of(model: str) -> str:
    """A path's last part, or the name as it was given."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else (path.name if path.exists() else model)


def _need_extras() -> None:
    try:
        import prometheus_client  # noqa: F401 - only whether they are there
        import starlette  # noqa: F401
        import torch  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingCapability(
            f"serving a model needs the extra 'serve' ({error.name} is missing)",
            "pip install 'worthit[serve]'",
        ) from None
