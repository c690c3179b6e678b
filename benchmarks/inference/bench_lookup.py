"""Time prompt look-up beside greedy decoding by the same model: copying, summing up, a chat.

    python benchmarks/inference/bench_lookup.py

Guesses are what followed the last two or three tokens before; how many are made follows from the
cost of verifying them, measured on this machine, and from how earlier ones fared. Both must say the
same tokens before either is timed. A chat repeats little: there, not to lose is the aim.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
import time
from itertools import islice
from typing import Any

from sides import Ours, Side, interleaved, parser, run, summary

from worthit.decode import load_tokenizer
from worthit.decode.corpus import documents
from worthit.decode.generate import tokens_of
from worthit.decode.speculative.control import Control
from worthit.decode.speculative.costs import costs_of_model
from worthit.decode.speculative.lookup import PromptLookup
from worthit.decode.speculative.loop import Tally, speculate
from worthit.nn.decoder import Decoder

SIDES = ("worthit fp32", "worthit bf16", "worthit q4_1")
MOST = 10


def asked() -> dict[str, str]:
    """What is asked; the texts are the standard library's."""
    code = inspect.getsource(textwrap.indent)
    *_, prose = islice(documents("held-out"), 2)
    return {
        "copy": f"Repeat the following code exactly as it is.\n\n```python\n{code}```",
        "summarise": f"Summarise the following text.\n\n{prose[:1500]}",
        "chat": "Tell me about a walk through a town by the sea, in three short paragraphs.",
    }


def greedy(model: Decoder, ids: list[int], n: int) -> list[int]:
    return [token for (token,) in tokens_of(model, [ids], max_tokens=n)]


def looked_up(
    model: Decoder, ids: list[int], n: int, control: Control, tally: Tally | None = None
) -> list[int]:
    drafter = PromptLookup()
    made = speculate(model, ids, drafter, max_tokens=n, most=MOST, control=control, tally=tally)
    return list(made)


def seconds_of(run_: Any) -> float:
    """From the first token on: both compute the prompt alike."""
    started = time.perf_counter()
    run_()
    return time.perf_counter() - started


def measure(sides: list[Side], options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    print(f"\n{'':14}{'':12}{'tokens a pass':>14}{'kept':>7}{'x greedy':>10}{'same':>6}")
    for side in sides:
        assert isinstance(side, Ours)
        model = side.model
        tokenizer = load_tokenizer(model.source)
        control = Control(costs_of_model(model))
        for case, text in asked().items():
            ids = tokenizer.encode_chat([{"role": "user", "content": text}])
            n = 8 if options.quick else options.tokens
            said, tally = greedy(model, ids, n), Tally()
            same = looked_up(model, ids, n, control, tally) == said
            if side.is_native or side.name.endswith("fp32"):
                assert same, f"{side.name}, {case}: with look-up other tokens are said"
            ways = {
                "greedy": lambda m=model, i=ids, k=n: seconds_of(lambda: greedy(m, i, k)),
                "lookup": lambda m=model, i=ids, k=n, c=control: seconds_of(
                    lambda: looked_up(m, i, k, c)
                ),
                # The prompt alone, which both times hold.
                "prompt": lambda m=model, i=ids: seconds_of(lambda: greedy(m, i, 1)),
            }
            times = interleaved(ways, options.rounds)
            own = {
                way: [t - p for t, p in zip(times[way], times["prompt"], strict=True)]
                for way in ("greedy", "lookup")
            }
            one = summary(own["lookup"], {"greedy": own["greedy"]})
            one |= {
                "n_tokens": n,
                "n_prompt": len(ids),
                "n_passes": tally.n_passes,
                "acceptance": tally.acceptance,
                "says_the_same": same,
                "with_prompt": summary(times["lookup"], {"greedy": times["greedy"]}),
            }
            results.setdefault(case, {})[side.name] = one
            kept = "" if tally.acceptance is None else f"{tally.acceptance:.0%}"
            print(
                f"{side.name:14}{case:12}{n / tally.n_passes:>14.2f}{kept:>7}"
                f"{one['speedup_over']['greedy']['median']:>10.2f}{same!s:>6}",
                flush=True,
            )
        rows, seconds = control.costs.rows, control.costs.seconds
        results.setdefault("costs", {})[side.name] = dict(zip(map(str, rows), seconds, strict=True))
    return {"most_drafted": MOST, "cases": results}


def main() -> int:
    options = parser(__doc__, rounds=5)
    options.add_argument("--tokens", type=int, default=128)
    return run(options.parse_args(), "worthit.bench-inference-lookup/1", measure, sides=SIDES)


if __name__ == "__main__":
    sys.exit(main())
