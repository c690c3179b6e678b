"""A Mixtral-shaped mixture of experts: ours against transformers' block in each of its ways.

    python benchmarks/models/bench_moe.py [--json FILE] [--threads N] [--backward] [--seconds S]

All take turns on the same inputs and weights; reported are medians, and ours divided by the fastest
of theirs. Below 1 ours is faster. Time is the wall's, or with `--clock cpu` the processor's, which
on one thread says the same and is not moved by what else a machine does.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers.models.mixtral import modeling_mixtral as hf

from worthit.nn.moe.topk_moe import TopKMoE
from worthit.spec.model import FeedForward, Layer, ModelSpec, MoE

D_MODEL = 512
# Experts, experts a token, width: Mixtral's eight, and as many small ones as OLMoE has.
SHAPES = ((8, 2, 1792), (64, 8, 256))
TOKENS = (1, 8, 64, 512, 4096)
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
# batched_mm copies an expert for each pair of token and expert: beyond this many it only swaps.
MOST_BATCHED_TOKENS = 64
LEAST_ROUNDS = 5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def modules(n_experts: int, k: int, d_ff: int) -> dict[str, nn.Module]:
    """The same weights in every implementation."""
    made: dict[str, nn.Module] = {}
    for name in IMPLEMENTATIONS:
        config = hf.MixtralConfig(
            hidden_size=D_MODEL,
            intermediate_size=d_ff,
            num_local_experts=n_experts,
            num_experts_per_tok=k,
        )
        config._experts_implementation = name
        made[name] = hf.MixtralSparseMoeBlock(config)
    first = made["eager"]
    for p in first.parameters():
        nn.init.normal_(p, std=0.02)
    moe = MoE(n_experts=n_experts, n_experts_per_token=k, expert=FeedForward(d_ff=d_ff))
    layer = Layer(mixers=(), ffn=moe)
    ours = TopKMoE(
        moe,
        ModelSpec(name="bench", d_model=D_MODEL, vocab_size=1, layers=(layer,), context_len=1),
    )
    for name in IMPLEMENTATIONS:
        made[name].load_state_dict(first.state_dict())
    state = first.state_dict()
    ours.load_state_dict(
        {
            "router.linear.weight": state["gate.weight"],
            "experts.up": state["experts.gate_up_proj"],
            "experts.down": state["experts.down_proj"],
        }
    )
    return {"ours": ours, **made}


def forward(module: nn.Module, x: Tensor) -> Tensor:
    """One pass without gradients."""
    with torch.no_grad():
        y: Tensor = module(x)
    return y


def forward_backward(module: nn.Module, x: Tensor) -> Tensor:
    """One pass with the gradients of everything."""
    module.zero_grad(set_to_none=True)
    y: Tensor = module(x.clone().requires_grad_())
    y.sum().backward()
    return y.detach()


def medians(
    each: dict[str, nn.Module],
    x: Tensor,
    run: Callable[[nn.Module, Tensor], Tensor],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median time of each, in turns, for about `seconds` in all."""
    outputs = {name: run(module, x) for name, module in each.items()}
    for y in outputs.values():
        torch.testing.assert_close(y, outputs["ours"], rtol=1e-4, atol=1e-5)
    times: dict[str, list[float]] = {name: [] for name in each}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["ours"]) < LEAST_ROUNDS:
        # In a new order each round: what ran before leaves its weights in the cache.
        for name, module in random.sample(list(each.items()), len(each)):
            start = clock()
            run(module, x)
            times[name].append(clock() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    rows = []
    for n_experts, k, d_ff in SHAPES:
        each = modules(n_experts, k, d_ff)
        for n in TOKENS:
            use = {
                name: module
                for name, module in each.items()
                if name != "batched_mm" or n <= MOST_BATCHED_TOKENS
            }
            run = forward_backward if arguments.backward else forward
            found = medians(
                use, torch.randn(1, n, D_MODEL), run, arguments.seconds, CLOCKS[arguments.clock]
            )
            best = min(found[name] for name in use if name != "ours")
            shown = "  ".join(f"{name} {s * 1e3:8.2f} ms" for name, s in found.items())
            ratio = found["ours"] / best
            print(f"E {n_experts:2}  k {k}  tokens {n:4}  {shown}  ours / best {ratio:.2f}")
            rows.append({"n_experts": n_experts, "k": k, "tokens": n, "seconds": found})
    if arguments.json:
        record = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
            "threads": arguments.threads,
            "clock": arguments.clock,
            "pass": "forward+backward" if arguments.backward else "forward",
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
