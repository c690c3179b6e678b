"""Time each mixer beside what a user would pick, in one run.

    python benchmarks/models/bench_mixers.py --all --out benchmarks/results/mixers.json

The others: transformers' own CPU path, `mambapy`'s parallel scan, `x-transformers`' attention, a
plain loop over tokens. All hold the same weights (x-transformers' attention its own) and read the
same input, and must agree before any is timed. Runs are interleaved, so that a busy machine slows
all; times are medians with their 20th and 80th percentiles, and what is reported are ratios to
ours. A side that takes longer than the budget for one pass is timed once; when that took `PATIENCE`
budgets, greater lengths are not tried. `--clock cpu` counts the processor's time, which on one
thread is not moved by what else the machine does.

Mixers of the same width spend equal time in equal projections; `mamba-scan` and `mamba2-scan` are
the scans without them. Three lengths by default; `--all` takes every power of two to 8192.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from worthit.nn.mixer import module_for
from worthit.nn.tokens import tokens_of
from worthit.spec import model as spec

D_MODEL = 256
PATIENCE = 4
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
QUICK = (256, 1024, 2048)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Forward = Callable[[Tensor], Tensor]


class Scan(nn.Module):
    """A scan of inputs that all follow from one: `(batch, n, width)` and parts of `(..., n, k)`."""

    def __init__(self, run: Callable[[Tensor, list[Tensor]], Tensor], parts: list[Tensor]) -> None:
        super().__init__()
        self.run = run
        self.parts = [part.requires_grad_() for part in parts]

    def forward(self, x: Tensor, tokens: object = None) -> Tensor:
        return self.run(x, [part[:, : x.shape[1]] for part in self.parts])


@dataclass
class Rivals:
    """One mixer and its others by name; those in `own_weights` do not hold ours."""

    ours: nn.Module
    others: dict[str, Forward]
    own_weights: tuple[str, ...] = ()

    def forwards(self) -> dict[str, Forward]:
        def ours(x: Tensor) -> Tensor:
            y: Tensor = self.ours(x, tokens_of(x[..., 0], past=0, attention_mask=None))
            return y

        return {"ours": ours, **self.others}


def built(part: spec.Mixer) -> nn.Module:
    layer = spec.Layer(mixers=(part,), ffn=None)
    model = spec.ModelSpec(
        name="bench", d_model=D_MODEL, vocab_size=8, layers=(layer,), context_len=8192
    )
    return module_for(part, model)


def copied(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Give `theirs` the weights of `ours`; `names` maps beginnings of names."""
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    with torch.no_grad():
        for name, p in mine.items():
            stem = next(s for s in names if name == s or name.startswith((f"{s}.", f"{s}_")))
            target = other[names[stem] + name.removeprefix(stem)]
            target.copy_(p.view_as(target))


def mamba() -> Rivals:
    from transformers.models.mamba.modeling_mamba import MambaMixer

    part = spec.Mamba(d_inner=2 * D_MODEL, d_state=16, d_conv=4, dt_rank=16)
    config = transformers.MambaConfig(hidden_size=D_MODEL, state_size=16, time_step_rank=16)
    ours, theirs = built(part), MambaMixer(config, layer_idx=0)
    names = {"in_proj": "in_proj", "conv": "conv1d", "select": "x_proj", "step_proj": "dt_proj"}
    names |= {"log_a": "A_log", "skip": "D", "out_proj": "out_proj"}
    copied(ours, theirs, names)
    others: dict[str, Forward] = {"transformers": theirs}
    if importlib.util.find_spec("mambapy"):
        from mambapy.mamba import MambaBlock, MambaConfig

        block = MambaBlock(MambaConfig(D_MODEL, 1, dt_rank=16, d_state=16))
        copied(ours, block, names)
        others["mambapy"] = block
    return Rivals(ours, others)


def mamba2() -> Rivals:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    part = spec.Mamba2(n_heads=8, head_dim=64, d_state=128, n_groups=1, d_conv=4)
    config = transformers.Mamba2Config(
        hidden_size=D_MODEL, num_heads=8, head_dim=64, state_size=128, n_groups=1
    )
    ours, theirs = built(part), Mamba2Mixer(config, layer_idx=0)
    names = {"in_proj": "in_proj", "conv": "conv1d", "step_bias": "dt_bias", "norm": "norm"}
    copied(ours, theirs, names | {"log_a": "A_log", "skip": "D", "out_proj": "out_proj"})
    return Rivals(ours, {"transformers": theirs})


def mamba_scan() -> Rivals:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    from worthit.nn.ssm.mamba import selective_scan, selective_scan_in_order

    a = -torch.arange(1.0, 17).repeat(D_MODEL, 1)
    parts = [torch.randn(1, max(LENGTHS), width) for width in (16, 16)]
    step = torch.rand(1, max(LENGTHS), D_MODEL) * 0.1

    def ours(x: Tensor, parts: list[Tensor]) -> Tensor:
        return selective_scan(x, parts[2], a, parts[0], parts[1])[0]

    def theirs(x: Tensor, parts: list[Tensor]) -> Tensor:
        b, c, step = (part.transpose(1, 2) for part in parts)
        return mamba_selective_scan(x.transpose(1, 2), step, a, b, c).transpose(1, 2)

    def in_order(x: Tensor, parts: list[Tensor]) -> Tensor:
        return selective_scan_in_order(x, parts[2], a, parts[0], parts[1])[0]

    parts.append(step)
    others: dict[str, Forward] = {
        "transformers": Scan(theirs, parts),
        "loop": Scan(in_order, parts),
    }
    if importlib.util.find_spec("mambapy"):
        from mambapy.mamba import MambaBlock, MambaConfig

        block = MambaBlock(MambaConfig(D_MODEL, 1, dt_rank=16, d_state=16))
        zeros = torch.zeros(D_MODEL)

        def mambapys(x: Tensor, parts: list[Tensor]) -> Tensor:
            y: Tensor = block.selective_scan(x, parts[2], a, parts[0], parts[1], zeros)
            return y

        others["mambapy"] = Scan(mambapys, parts)
    return Rivals(Scan(ours, parts), others)


def mamba2_scan() -> Rivals:
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    from worthit.nn.ssm.ssd import ssd, ssd_in_order

    heads, d_state = D_MODEL // 64, 128
    a = -torch.linspace(1.0, 16.0, heads)
    parts = [torch.randn(1, max(LENGTHS), d_state) * d_state**-0.5 for _ in range(2)]
    parts.append(torch.rand(1, max(LENGTHS), heads) * 0.1)

    def ours(x: Tensor, parts: list[Tensor]) -> Tensor:
        b, c, step = parts
        return ssd(x.unflatten(2, (heads, 64)), step, a, b[:, :, None], c[:, :, None])[0].flatten(2)

    def theirs(x: Tensor, parts: list[Tensor]) -> Tensor:
        b, c, step = parts
        x = x.unflatten(2, (heads, 64))
        y = mamba2_chunk_scan(x, step, a, b[:, :, None], c[:, :, None], chunk_size=256)
        return y.flatten(2)

    def in_order(x: Tensor, parts: list[Tensor]) -> Tensor:
        b, c, step = parts
        x = x.unflatten(2, (heads, 64))
        return ssd_in_order(x, step, a, b[:, :, None], c[:, :, None])[0].flatten(2)

    others = {"transformers": Scan(theirs, parts), "loop": Scan(in_order, parts)}
    return Rivals(Scan(ours, parts), others)


def rwkv() -> Rivals:
    from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

    ours = built(spec.Rwkv(d_attention=D_MODEL))
    theirs = RwkvSelfAttention(transformers.RwkvConfig(hidden_size=D_MODEL))
    parts = ("key", "value", "receptance", "output")
    names = {"log_decay": "time_decay", "bonus": "time_first", "mix": "time_mix"}
    copied(ours, theirs, names | dict(zip(parts, parts, strict=True)))
    return Rivals(ours, {"transformers": lambda x: theirs(x)[0]})


def gated_delta() -> Rivals:
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    part = spec.LinearAttention(
        kind="gated-delta", n_key_heads=4, n_value_heads=4, key_dim=64, value_dim=64, d_conv=4
    )
    config = transformers.Qwen3NextConfig(
        hidden_size=D_MODEL,
        num_hidden_layers=1,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
    )
    ours, theirs = built(part), Qwen3NextGatedDeltaNet(config, layer_idx=0)
    own = {name: p.detach() for name, p in ours.named_parameters()}

    def by_head(*names: str) -> Tensor:
        parts = [own[f"{name}_proj.weight"].unflatten(0, (4, -1)) for name in names]
        return torch.cat(parts, dim=1).flatten(0, 1)

    theirs.load_state_dict(
        {
            "in_proj_qkvz.weight": by_head("q", "k", "v", "gate"),
            "in_proj_ba.weight": by_head("strength", "step"),
            "conv1d.weight": own["conv.weight"][:, None],
            "dt_bias": own["step_bias"],
            "A_log": own["log_a"],
            "norm.weight": own["norm.weight"],
            "out_proj.weight": own["o_proj.weight"],
        }
    )
    return Rivals(ours, {"transformers": theirs})


def attention() -> Rivals:
    """Softmax attention without positions, which grows with the square of the length."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    ours = built(spec.Attention(n_heads=4, n_kv_heads=4, head_dim=64))
    config = transformers.LlamaConfig(
        hidden_size=D_MODEL, num_attention_heads=4, num_key_value_heads=4, head_dim=64
    )
    config._attn_implementation = "sdpa"
    theirs = LlamaAttention(config, layer_idx=0)
    copied(ours, theirs, {f"{part}_proj": f"{part}_proj" for part in "qkvo"})

    def llamas(x: Tensor) -> Tensor:
        ones = torch.ones(1, x.shape[1], 64)
        y: Tensor = theirs(x, (ones, torch.zeros_like(ones)), None)[0]
        return y

    others: dict[str, Forward] = {"transformers": llamas}
    own: tuple[str, ...] = ()
    if importlib.util.find_spec("x_transformers"):
        from x_transformers import Attention

        others["x-transformers"] = Attention(D_MODEL, heads=4, dim_head=64, causal=True, flash=True)
        own = ("x-transformers",)
    return Rivals(ours, others, own)


MIXERS: dict[str, Callable[[], Rivals]] = {
    "mamba2": mamba2,
    "mamba2-scan": mamba2_scan,
    "gated-delta": gated_delta,
    "rwkv": rwkv,
    "mamba": mamba,
    "mamba-scan": mamba_scan,
    "attention": attention,
}


def once(forward: Forward, x: Tensor, clock: Callable[[], float], *, with_gradients: bool) -> float:
    begin = clock()
    if with_gradients:
        y = forward(x)
        # A gradient as a loss has it: that of a sum alone has no memory of its own.
        y.backward(torch.ones_like(y))
    else:
        with torch.no_grad():
            forward(x)
    return clock() - begin


def agree(rivals: Rivals) -> float:
    """The largest difference from ours over the largest output, on a short input."""
    x, worst = torch.randn(1, 100, D_MODEL), 0.0
    with torch.no_grad():
        outputs = {name: forward(x) for name, forward in rivals.forwards().items()}
    want = outputs["ours"]
    for name, got in outputs.items():
        if name in rivals.own_weights:
            continue
        error = ((got - want).abs().max() / want.abs().max()).item()
        if error > 1e-4:
            raise SystemExit(f"ours and {name} differ by {error:.1e}: nothing is timed")
        worst = max(worst, error)
    return worst


def measure(
    forwards: dict[str, Forward], n: int, too_slow: set[str], args: argparse.Namespace, **mode: bool
) -> dict[str, Any]:
    x = torch.randn(1, n, D_MODEL, requires_grad=mode["with_gradients"])
    clock = CLOCKS[args.clock]
    times: dict[str, list[float]] = {side: [] for side in forwards if side not in too_slow}
    slow = {}
    for side in times:  # warm up, and find out who is slow
        first = once(forwards[side], x, clock, **mode)
        if first > args.budget:
            slow[side] = first
    for _ in range(args.repeats):
        for side in times:
            if side not in slow:
                times[side].append(once(forwards[side], x, clock, **mode))
    too_slow.update(side for side, first in slow.items() if first > PATIENCE * args.budget)
    sides: dict[str, Any] = {}
    for side in forwards:
        runs = [slow[side]] if side in slow else sorted(times.get(side, []))
        if runs:
            sides[side] = {
                "median_s": statistics.median(runs),
                "p20_s": runs[int(0.2 * (len(runs) - 1))],
                "p80_s": runs[round(0.8 * (len(runs) - 1))],
                "runs": len(runs),
            }
    ours = sides.get("ours")
    ratios = {
        side: found["median_s"] / ours["median_s"]
        for side, found in sides.items()
        if ours and side != "ours"
    }
    return {"length": n, "sides": sides, "ratios": ratios}


def line(name: str, mode: str, record: dict[str, Any]) -> str:
    ours = record["sides"].get("ours")
    own = "too slow" if ours is None else f"{ours['median_s'] * 1e3:.1f} ms"
    others = "  ".join(f"{side} x{ratio:.2f}" for side, ratio in record["ratios"].items())
    return f"{name:12} {mode:17} {record['length']:6} {own:>12}  {others}"


def circumstances(args: argparse.Namespace) -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "is_dirty": bool(git("status", "--porcelain", "src")),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": args.threads,
        "clock": args.clock,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "d_model": D_MODEL,
        "batch": 1,
        "dtype": "float32",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [found.split(":", 1)[1].strip() for found in lines if found.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixers", nargs="*", default=list(MIXERS), choices=list(MIXERS))
    parser.add_argument("--lengths", nargs="*", type=int, default=list(QUICK))
    parser.add_argument("--all", action="store_true", help="every length, and more repeats")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds a pass may take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.all:
        args.lengths, args.repeats = list(LENGTHS), max(7, args.repeats)
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    results = []
    for name in args.mixers:
        torch.manual_seed(0)
        rivals = MIXERS[name]()
        forwards, error = rivals.forwards(), agree(rivals)
        for mode, with_gradients in (("forward", False), ("forward+backward", True)):
            too_slow: set[str] = set()
            for n in args.lengths:
                record = measure(forwards, n, too_slow, args, with_gradients=with_gradients)
                results.append({"mixer": name, "mode": mode, "difference": error, **record})
                print(line(name, mode, record))
                sys.stdout.flush()
                if args.out is not None:
                    report = {"circumstances": circumstances(args), "results": results}
                    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
