"""`worthit reason`: several answers for one, and what they buy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from worthit.cli import _terminal
from worthit.cli._case import Name
from worthit.cli._progress import Progress, time_text
from worthit.errors import InputError, MissingCapability

if TYPE_CHECKING:
    from worthit.decode.tokenizer import Tokenizer
    from worthit.reason import Chosen, Generator, Question
    from worthit.reason.verify import Score

STRATEGIES = ("once", "best-of-n", "self-consistency", "beam", "tree", "revise", "budget-forcing")
CHECKS = ("arithmetic", "probability")
# Sums, differences, products: as `arithmetic` asks them.
SIGNS = "+-*"
SHOWN = 60


@click.command("reason")
@click.argument("model", metavar="MODEL", type=Name("model", "MODEL", is_path=True))
@click.argument("prompt", metavar="[PROMPT|-]", required=False)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="best-of-n",
    show_default=True,
    help="How one answer is come to.",
)
@click.option("--n", type=int, default=8, show_default=True, help="Samples, beams or revisions.")
@click.option(
    "--check",
    type=click.Choice(CHECKS),
    help="What scores answers; default: arithmetic where the prompt has some.",
)
@click.option("--task", type=click.Choice(("arithmetic",)), help="Many questions with a check.")
@click.option("--curve", "is_curve", is_flag=True, help="All strategies: accuracy against tokens.")
@click.option("--questions", type=int, default=40, show_default=True, help="Of a task.")
@click.option(
    "--signs", default="+", show_default=True, metavar="+-*", help="Operations of arithmetic."
)
@click.option("--revisions", type=int, default=4, show_default=True, help="Of a curve.")
@click.option("--temperature", type=float, default=0.8, show_default=True, help="Of samples.")
@click.option("--max-tokens", type=int, help="Of an answer; default 24 for a task, else 256.")
@click.option("--end-of-thinking", metavar="TEXT", default="</think>", help="One token; forced.")
@click.option("--wait", metavar="TEXT", default="Wait", show_default=True, help="In its place.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of chance.")
@click.option(
    "--dtype", type=click.Choice(("fp32", "bf16")), default="bf16", show_default=True,
    help="Weights.",
)  # fmt: skip
@click.option("--html", "page", metavar="FILE", help="Of a curve: a page, or the figure as .svg.")
@click.option("--json", "is_json", is_flag=True, help="Print one record.")
def command(
    model: str,
    prompt: str | None,
    strategy: str,
    n: int,
    check: str | None,
    task: str | None,
    is_curve: bool,
    questions: int,
    signs: str,
    revisions: int,
    temperature: float,
    max_tokens: int | None,
    end_of_thinking: str,
    wait: str,
    seed: int,
    dtype: str,
    page: str | None,
    is_json: bool,
) -> None:
    """Spend more tokens on an answer: sample, vote, search, think longer, revise.

    With PROMPT, one question; with --task, many with an exact check, by one strategy or, with
    --curve, by all of them, accuracy against tokens.

    \b
    worthit reason smollm2-135m-instruct "What is 7 + 8?" --n 8
    worthit reason smollm2-135m-instruct --task arithmetic --curve --html curve.html
    """
    if (prompt is None) == (task is None):
        raise click.UsageError("Give PROMPT or --task, one of them.")
    if is_curve and task is None:
        raise click.UsageError("--curve needs --task: one question has no accuracy.")
    if page is not None:
        from worthit.report.write import check_target

        if not is_curve:
            raise click.UsageError("--html draws a curve: add --curve.")
        check_target(page)
    bad = sorted(set(signs) - set(SIGNS)) if signs else ["nothing"]
    problems = [
        f"--{name}: must be at least 1, got {value}"
        for name, value in (("n", n), ("questions", questions), ("max-tokens", max_tokens or 1))
        if value < 1
    ]
    if bad:
        problems.append(f"--signs: of {', '.join(SIGNS)}, got {bad[0]!r}")
    if problems:
        raise InputError(*problems)
    _need_torch()
    from worthit.cli.generate import read_prompt
    from worthit.decode.engine import Engine, EngineConfig
    from worthit.decode.sampling import Sampling
    from worthit.decode.tokenizer import load_tokenizer
    from worthit.lab import reasoning
    from worthit.nn.inference import optimize
    from worthit.nn.load import checkpoint_path, load_model
    from worthit.reason import Generator

    sampling = Sampling(temperature=temperature)
    text = None if prompt is None else read_prompt(prompt)
    path = checkpoint_path(model)
    tokenizer = load_tokenizer(path)
    if text is None:
        kind = reasoning.arithmetic(questions, tokenizer, seed=seed, signs=signs)
    else:
        kind = reasoning.one(text, tokenizer, is_checked=check == "arithmetic")
    kind = reasoning.limited(kind, max_tokens)
    loaded = load_model(path, dtype=dtype, packed=False)
    seconds = _seconds(loaded, kind, n, revisions if is_curve else 0)
    optimize(loaded)
    engine = Engine(loaded, tokenizer, EngineConfig(max_sequences=32))
    generator = Generator(engine, tokenizer.decode, tokenizer.stop_ids, sampling=sampling)
    record: dict[str, Any] = {
        "schema": "worthit.reason/1",
        "model": model,
        "path": str(path),
        "dtype": dtype,
        "task": task,
        "temperature": temperature,
        "seed": seed,
    }
    tries = n + 1 + (revisions if is_curve else 0)
    _terminal.note(
        f"{len(kind.questions)} x at most {tries} answers of {kind.max_tokens} tokens: at most "
        f"about {time_text(seconds)}"
    )
    started = time.perf_counter()
    if is_curve:
        from worthit.lab.reason_curve import curve

        record |= curve(generator, kind, n=n, n_revisions=revisions, seed=seed, on_group=Progress())
    else:
        score, name = _score(kind, check)
        chosen = _answer(
            strategy, generator, tokenizer, kind, n, seed, score, end_of_thinking, wait
        )
        record |= _answers(strategy, n, name, chosen, generator)
    record["seconds"] = time.perf_counter() - started
    if page is not None:
        from worthit.report.reason import write_reason

        size = write_reason(record, page)
        _terminal.note(f"wrote {page} ({size / 1e3:.0f} kB, opens offline)")
    if is_json:
        _terminal.show_json(record)
    else:
        _terminal.show(_curve_lines(record) if is_curve else _answer_lines(record))


def _need_torch() -> None:
    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError:
        raise MissingCapability(
            "running a model needs the extra 'torch'", "pip install 'worthit[torch]'"
        ) from None


def _seconds(model: Any, kind: Any, n: int, revisions: int) -> float:
    """From the FLOPs of all tokens at most and a product timed now."""
    from worthit.decode.quantize import product_rate

    prompts = sum(len(q.prompt) for q in kind.questions)
    said = len(kind.questions) * kind.max_tokens * (n + 1 + revisions)
    # A revision reads the answers before it.
    read = prompts * (2 + revisions) + len(kind.questions) * kind.max_tokens * revisions**2 / 2
    per_token = 2 * sum(p.numel() for p in model.parameters())
    return float((said + read) * per_token / product_rate(model.spec.d_model))


def _score(kind: Any, check: str | None) -> tuple[Score, str]:
    """What scores answers, and what it is called."""
    from worthit.reason.verify import by_logprob, exact

    if check == "arithmetic" or (check is None and kind.is_checked):
        return exact(kind.read_answer), "arithmetic"
    return by_logprob, "probability"


def _answer(
    strategy: str,
    generator: Generator,
    tokenizer: Tokenizer,
    kind: Any,
    n: int,
    seed: int,
    score: Score,
    end_of_thinking: str,
    wait: str,
) -> list[Chosen]:
    """Every question, answered by one strategy."""
    from worthit import reason
    from worthit.reason.search import by_steps
    from worthit.reason.verify import by_logprob

    asked: tuple[Question, ...] = kind.questions
    shared: dict[str, Any] = {"read_answer": kind.read_answer, "seed": seed}
    whole = {**shared, "max_tokens": kind.max_tokens}
    if strategy == "once":
        return reason.once(generator, asked, **whole)
    if strategy == "best-of-n":
        return reason.best_of_n(generator, asked, score=score, n=n, **whole)
    if strategy == "self-consistency":
        return reason.self_consistency(generator, asked, n=n, **whole)
    if strategy == "revise":
        return reason.revise(generator, asked, again=kind.again, n=n, **whole)
    if strategy == "budget-forcing":
        thinking = _thinking(tokenizer, end_of_thinking, wait)
        return reason.budget_forcing(
            generator,
            asked,
            thinking=thinking,
            n_waits=n - 1,
            max_thinking=kind.max_tokens * n,
            max_answer=kind.max_tokens,
            **shared,
        )
    # A step is a line; of lines that are not whole answers nothing is known but their probability.
    lines = [i for i in range(tokenizer.backend.get_vocab_size()) if _ends_line(tokenizer, i)]
    expand = by_steps(generator, stops=lines, max_tokens=kind.max_tokens, max_len=kind.max_tokens)
    if strategy == "beam":
        width = max(1, round(n**0.5))
        return reason.beam_search(
            asked,
            expand=expand,
            score=by_logprob,
            final=score,
            width=width,
            branch=max(1, n // width),
            max_steps=kind.max_tokens,
            **shared,
        )
    return reason.tree_search(
        asked,
        expand=expand,
        score=by_logprob,
        final=score,
        branch=2,
        n_whole=n,
        max_tokens=kind.max_tokens * n,
        **shared,
    )


def _ends_line(tokenizer: Tokenizer, token: int) -> bool:
    return tokenizer.decode([token]).endswith("\n")


def _thinking(tokenizer: Tokenizer, end: str, wait: str) -> Any:
    from worthit.reason import Thinking

    ids = tokenizer.encode(end.encode().decode("unicode_escape"), has_special=False)
    if len(ids) != 1:
        raise InputError(
            f"--end-of-thinking: must be one token of this model, and {end!r} is {len(ids)}; name "
            r"what ends its thinking, such as </think>, or \n for a model that has no such token"
        )
    return Thinking(
        ends=tuple(ids), close=tuple(ids), wait=tuple(tokenizer.encode(wait, has_special=False))
    )


def _answers(
    strategy: str, n: int, check: str, chosen: list[Chosen], generator: Generator
) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "strategy": strategy,
        "n": n,
        "check": check,
        "accuracy": sum(one.is_right for one in chosen) / len(chosen),
        "n_tokens": sum(one.n_said for one in chosen) / len(chosen),
        "answers": [
            {
                "question": one.question.text,
                "answer": one.answer,
                "text": None if one.draft is None else one.draft.text,
                "is_right": one.is_right if one.question.is_checked else None,
                "n_said": one.n_said,
                "texts": [d.text for d in one.drafts],
                "scores": list(one.scores),
            }
            for one in chosen
        ],
        "spent": asdict(generator.spent),
    }


def _answer_lines(record: dict[str, Any]) -> list[str]:
    answers = record["answers"]
    if record["task"] is not None:
        return [
            f"{record['strategy']}: {100 * record['accuracy']:.1f} % of {len(answers)} questions, "
            f"{record['n_tokens']:.1f} tokens a question"
        ]
    (one,) = answers
    lines = [one["text"] if one["text"] is not None else "no text came to an end", ""]
    scores = one["scores"] or [None] * len(one["texts"])
    for text, score in zip(one["texts"], scores, strict=True):
        shown = " ".join(text.split())
        shown = shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."
        lines.append(f"  {'' if score is None else f'{score:.3g}':>8}  {shown}")
    verdict = {True: "right", False: "wrong", None: "not checked"}[one["is_right"]]
    lines.append(f"{one['n_said']} tokens said; answer {one['answer']}, {verdict}")
    return lines


def _curve_lines(record: dict[str, Any]) -> list[str]:
    lines = []
    width = max(len(p["strategy"]) for p in record["points"])
    for p in record["points"]:
        lines.append(
            f"{p['strategy']:<{width}}  {p['setting']:>3}  {p['n_tokens']:>7.1f} tokens  "
            f"{100 * p['accuracy']:>5.1f} %  [{100 * p['low']:.0f}, {100 * p['high']:.0f}]"
        )
    lines.append("")
    lines.append("Without a check take, from so many tokens a question on:")
    lines += [
        f"  {p['n_tokens']:>7.1f}  {p['strategy']} ({p['setting']}): {100 * p['accuracy']:.1f} %"
        for p in record["optimal"]
    ]
    return lines
