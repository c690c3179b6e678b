"""Time merging beside `mergekit`: seconds, GB/s and peak memory, each run in its own process.

    python benchmarks/learning/bench_merge.py --reference PYTHON --out benchmarks/results/merge.json

PYTHON is an interpreter whose environment has mergekit and torch. Three checkpoints of one model
(a base and two fine-tunes, made up unless --models names folders) are merged by each method. Both
sides must write the same tensors before either is timed (of equal magnitudes at the cut of TIES
each keeps its own choice), and the same shapes where entries are dropped by chance. Rounds are
interleaved; a time is that of the merge alone, imports left out; memory is the peak of the process
above what it had when the merge began. GB are bytes of inputs and output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

METHODS = {
    "linear": "parameters: {weight: 0.5}",
    "task_arithmetic": "parameters: {weight: 0.5}",
    "slerp": "parameters: {t: 0.4}",
    "ties": "parameters: {weight: 0.5, density: 0.3}",
    "dare_ties": "parameters: {weight: 0.5, density: 0.3}",
    "dare_linear": "parameters: {weight: 0.5, density: 0.3}",
    "breadcrumbs": "parameters: {weight: 0.5, density: 0.3}",
    "model_stock": "",
    "della": "parameters: {weight: 0.5, density: 0.3}",
}
BY_CHANCE = ("dare_ties", "dare_linear", "della")
# Entries that may differ: those equal in magnitude to the one at the cut.
MAX_DIFFERENT = 1e-4
# Shapes of SmolLM2-135M.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
PEAK = """
import pathlib, re, sys, time
def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
def timed(run):
    before, start = peak(), time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    print("RESULT", seconds, peak() - before)
import torch
torch.set_num_threads(int(sys.argv[3]))
recipe, out = sys.argv[1:3]
"""
OURS = (
    PEAK + "from worthit.merge.run import merge\nimport yaml\ntimed(lambda: merge(recipe, out))\n"
)
THEIRS = (
    PEAK
    + """
import os, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
os.chdir(pathlib.Path(recipe).parent)
made = MergeConfiguration.model_validate(yaml.safe_load(open(recipe)))
options = MergeOptions(
    copy_tokenizer=False, write_model_card=False, random_seed=0, lazy_unpickle=True, quiet=True
)
timed(lambda: run_merge(made, out, options))
"""
)


def make_models(folder: Path, dtype: str) -> None:
    """A base and two fine-tunes of made-up numbers."""
    import torch
    from safetensors.torch import save_file

    hidden, middle, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 192
    shapes = {"model.embed_tokens.weight": (CONFIG["vocab_size"], hidden)}
    for i in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes |= {
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
            f"{at}self_attn.q_proj.weight": (hidden, hidden),
            f"{at}self_attn.k_proj.weight": (kv, hidden),
            f"{at}self_attn.v_proj.weight": (kv, hidden),
            f"{at}self_attn.o_proj.weight": (hidden, hidden),
            f"{at}mlp.gate_proj.weight": (middle, hidden),
            f"{at}mlp.up_proj.weight": (middle, hidden),
            f"{at}mlp.down_proj.weight": (hidden, middle),
        }
    shapes["model.norm.weight"] = (hidden,)
    chance = torch.Generator().manual_seed(0)
    base = {name: 0.04 * torch.randn(shape, generator=chance) for name, shape in shapes.items()}
    for model in ("base", "a", "b"):
        made = base
        if model != "base":
            made = {k: v + 1e-3 * torch.randn(v.shape, generator=chance) for k, v in base.items()}
        (folder / model).mkdir()
        tensors = {k: v.to(getattr(torch, dtype)) for k, v in made.items()}
        save_file(tensors, folder / model / "model.safetensors", metadata={"format": "pt"})
        (folder / model / "config.json").write_text(json.dumps(CONFIG | {"torch_dtype": dtype}))


def recipe_of(method: str, rest: str, dtype: str) -> str:
    """The recipe of one method over `a` and `b`."""
    base = (
        ""
        if method == "linear"
        else "base_model: ./a"
        if method == "slerp"
        else "base_model: ./base"
    )
    models = "models: [{model: ./a}, {model: ./b}]"
    return f"merge_method: {method}\n{base}\n{models}\n{rest}\ndtype: {dtype}\n"


def run(python: str, code: str, recipe: Path, out: Path, threads: int) -> tuple[float, int]:
    """Seconds and bytes of one merge in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    source = str(Path(__file__).resolve().parents[2] / "src")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if code is OURS:
        environment["PYTHONPATH"] = source
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code, str(recipe), str(out), str(threads)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(f"{recipe.name}: {done.stderr[-2000:]}")
    _, seconds, n_bytes = lines[0].split()
    return float(seconds), int(n_bytes)


def share_of_difference(one: Path, two: Path, limit: float) -> float:
    """The share of entries that differ by more than `limit`; names, shapes, formats must agree."""
    from safetensors import safe_open

    with (
        safe_open(one / "model.safetensors", "pt") as a,
        safe_open(two / "model.safetensors", "pt") as b,
    ):
        names = set(a.keys())
        assert names == set(b.keys()), names ^ set(b.keys())
        n_differ = n_all = 0
        for name in names:
            x, y = a.get_tensor(name), b.get_tensor(name)
            assert x.shape == y.shape, name
            assert x.dtype == y.dtype, name
            n_differ += int(((x.float() - y.float()).abs() > limit).sum())
            n_all += x.numel()
    return n_differ / n_all


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reference", default=sys.executable, help="an interpreter with mergekit")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--models", type=Path, help="a folder with base, a and b; default: made up")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    probe = subprocess.run([options.reference, "-c", "import mergekit"], capture_output=True)
    if probe.returncode:
        print(f"bench_merge: mergekit is not installed in {options.reference}; skipped")
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.models is None:
            make_models(folder, options.dtype)
        else:
            for model in ("base", "a", "b"):
                (folder / model).symlink_to((options.models / model).resolve())
        size = (folder / "base" / "model.safetensors").stat().st_size
        record = {
            "schema": "worthit.bench-merge/1",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": platform.processor() or platform.machine(),
            "n_cpus": os.cpu_count(),
            "threads": options.threads,
            "rounds": options.rounds,
            "dtype": options.dtype,
            "checkpoint_bytes": size,
            "methods": {},
        }
        print(f"checkpoints of {size / 1e6:.0f} MB, {options.dtype}, {options.threads} thread(s)")
        print(
            f"{'method':16}{'ours':>18}{'mergekit':>18}{'faster':>8}{'memory, MB':>22}{'less':>7}"
        )
        for method in options.methods:
            row = compare(folder, method, size, options)
            record["methods"][method] = row
            ours, theirs = row["ours"], row["mergekit"]
            print(
                f"{method:16}"
                f"{ours['seconds']:8.2f} s {ours['gb_per_s']:5.2f} GB/s"
                f"{theirs['seconds']:8.2f} s {theirs['gb_per_s']:5.2f} GB/s"
                f"{row['faster']:7.1f}x"
                f"{ours['peak_bytes'] / 1e6:11.0f}{theirs['peak_bytes'] / 1e6:9.0f}"
                f"{row['less_memory']:7.0f}x",
                flush=True,
            )
        if options.out is not None:
            options.out.write_text(json.dumps(record, indent=2) + "\n")


def compare(folder: Path, method: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides on one method: outputs compared, then rounds interleaved."""
    recipe = folder / f"{method}.yml"
    recipe.write_text(recipe_of(method, METHODS[method], options.dtype))
    sides = {"ours": (sys.executable, OURS), "mergekit": (options.reference, THEIRS)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    peaks: dict[str, list[int]] = {side: [] for side in sides}
    share = None
    for i in range(options.rounds + 1):
        for side, (python, code) in sides.items():
            seconds, n_bytes = run(python, code, recipe, folder / side, options.threads)
            if i:  # the first round warms files and is compared, not counted
                times[side].append(seconds)
                peaks[side].append(n_bytes)
        if i == 0:
            limit = 1e-5 if options.dtype == "float32" else 2e-3
            share = share_of_difference(folder / "ours", folder / "mergekit", limit)
            assert method in BY_CHANCE or share <= MAX_DIFFERENT, f"{method}: {share} differ"
    n_inputs = 2 if method in ("linear", "slerp") else 3
    row: dict[str, Any] = {"share_different": None if method in BY_CHANCE else share}
    for side in sides:
        middle = statistics.median(times[side])
        row[side] = {
            "seconds": middle,
            "all_seconds": times[side],
            "gb_per_s": (n_inputs + 1) * size / 1e9 / middle,
            "peak_bytes": statistics.median(peaks[side]),
        }
    row["faster"] = row["mergekit"]["seconds"] / row["ours"]["seconds"]
    row["less_memory"] = row["mergekit"]["peak_bytes"] / max(row["ours"]["peak_bytes"], 1)
    return row


if __name__ == "__main__":
    main()
