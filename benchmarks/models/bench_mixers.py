"""Time each mixer beside what a user would pick: transformers' own CPU path, in one run.

    python benchmarks/models/bench_mixers.py --out benchmarks/results/mixers.json

Both sides hold the same weights and read the same input, and must agree before either is timed.
Runs are interleaved, so that a busy machine slows both; times are medians with their 20th and 80th
percentiles, and what is reported is the ratio. A side that takes longer than the budget for one
pass is timed once; when that took `PATIENCE` budgets, greater lengths are not tried.

Mixers of the same width spend equal time in equal projections; `mamba-scan` and `mamba2-scan` are
the scans without them.
"""

from __future__ import annotations

import argparse
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
    """One mixer twice, with equal weights."""

    ours: nn.Module
    theirs: nn.Module
    run_theirs: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x)

    def forwards(self) -> dict[str, Forward]:
        def ours(x: Tensor) -> Tensor:
            return self.ours(x, tokens_of(x[..., 0], past=0, attention_mask=None))

        return {"ours": ours, "theirs": lambda x: self.run_theirs(self.theirs, x)}


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
    copied(ours, theirs, names | {"log_a": "A_log", "skip": "D", "out_proj": "out_proj"})
    return Rivals(ours, theirs)


def mamba2() -> Rivals:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    part = spec.Mamba2(n_heads=8, head_dim=64, d_state=128, n_groups=1, d_conv=4)
    config = transformers.Mamba2Config(
        hidden_size=D_MODEL, num_heads=8, head_dim=64, state_size=128, n_groups=1
    )
    ours, theirs = built(part), Mamba2Mixer(config, layer_idx=0)
    names = {"in_proj": "in_proj", "conv": "conv1d", "step_bias": "dt_bias", "norm": "norm"}
    copied(ours, theirs, names | {"log_a": "A_log", "skip": "D", "out_proj": "out_proj"})
    return Rivals(ours, theirs)


def mamba_scan() -> Rivals:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    from worthit.nn.ssm.mamba import selective_scan

    a = -torch.arange(1.0, 17).repeat(D_MODEL, 1)
    parts = [torch.randn(1, max(LENGTHS), width) for width in (16, 16)]
    step = torch.rand(1, max(LENGTHS), D_MODEL) * 0.1

    def ours(x: Tensor, parts: list[Tensor]) -> Tensor:
        return selective_scan(x, parts[2], a, parts[0], parts[1])[0]

    def theirs(x: Tensor, parts: list[Tensor]) -> Tensor:
        b, c, step = (part.transpose(1, 2) for part in parts)
        return mamba_selective_scan(x.transpose(1, 2), step, a, b, c).transpose(1, 2)

    parts.append(step)
    return Rivals(Scan(ours, parts), Scan(theirs, parts))


def mamba2_scan() -> Rivals:
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    from worthit.nn.ssm.ssd import ssd

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

    return Rivals(Scan(ours, parts), Scan(theirs, parts))


def rwkv() -> Rivals:
    from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

    ours = built(spec.Rwkv(d_attention=D_MODEL))
    theirs = RwkvSelfAttention(transformers.RwkvConfig(hidden_size=D_MODEL))
    parts = ("key", "value", "receptance", "output")
    names = {"log_decay": "time_decay", "bonus": "time_first", "mix": "time_mix"}
    copied(ours, theirs, names | dict(zip(parts, parts, strict=True)))
    return Rivals(ours, theirs, lambda module, x: module(x)[0])


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
    return Rivals(ours, theirs)


MIXERS: dict[str, Callable[[], Rivals]] = {
    "mamba2": mamba2,
    "mamba2-scan": mamba2_scan,
    "gated-delta": gated_delta,
    "rwkv": rwkv,
    "mamba": mamba,
    "mamba-scan": mamba_scan,
}


def once(forward: Forward, x: Tensor, *, with_gradients: bool) -> float:
    begin = time.perf_counter()
    if with_gradients:
        forward(x).sum().backward()
    else:
        with torch.no_grad():
            forward(x)
    return time.perf_counter() - begin


def agree(forwards: dict[str, Forward]) -> float:
    """The largest difference over the largest output, on a short input."""
    x = torch.randn(1, 100, D_MODEL)
    with torch.no_grad():
        got, want = forwards["ours"](x), forwards["theirs"](x)
    error = ((got - want).abs().max() / want.abs().max()).item()
    if error > 1e-4:
        raise SystemExit(f"the two sides differ by {error:.1e}: nothing is timed")
    return error


def measure(
    forwards: dict[str, Forward], n: int, too_slow: set[str], args: argparse.Namespace, **mode: bool
) -> dict[str, Any]:
    x = torch.randn(1, n, D_MODEL, requires_grad=mode["with_gradients"])
    times: dict[str, list[float]] = {side: [] for side in forwards if side not in too_slow}
    slow = {}
    for side in times:  # warm up, and find out who is slow
        first = once(forwards[side], x, **mode)
        if first > args.budget:
            slow[side] = first
    for _ in range(args.repeats):
        for side in times:
            if side not in slow:
                times[side].append(once(forwards[side], x, **mode))
    too_slow.update(side for side, first in slow.items() if first > PATIENCE * args.budget)
    record: dict[str, Any] = {"length": n}
    for side in forwards:
        runs = [slow[side]] if side in slow else sorted(times.get(side, []))
        if not runs:
            record[side] = None
            continue
        record[side] = {
            "median_s": statistics.median(runs),
            "p20_s": runs[int(0.2 * (len(runs) - 1))],
            "p80_s": runs[round(0.8 * (len(runs) - 1))],
            "runs": len(runs),
        }
    if record["ours"] and record["theirs"]:
        record["ratio"] = record["theirs"]["median_s"] / record["ours"]["median_s"]
    return record


def line(name: str, mode: str, record: dict[str, Any]) -> str:
    def shown(side: str) -> str:
        found = record[side]
        return "too slow" if found is None else f"{found['median_s'] * 1e3:.1f} ms"

    ratio = f"x{record['ratio']:.1f}" if "ratio" in record else "-"
    times = f"{shown('ours'):>12} {shown('theirs'):>14}"
    return f"{name:12} {mode:17} {record['length']:6} {times} {ratio}"


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
    parser.add_argument("--lengths", nargs="*", type=int, default=list(LENGTHS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds a pass may take")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    results = []
    for name in args.mixers:
        torch.manual_seed(0)
        forwards = MIXERS[name]().forwards()
        error = agree(forwards)
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
