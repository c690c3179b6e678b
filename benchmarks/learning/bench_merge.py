"""Time merging beside `mergekit`: seconds, GB/s and peak memory, each run in its own process.

    python benchmarks/learning/bench_merge.py --mergekit PYTHON
    python benchmarks/learning/bench_merge.py --mergekit PYTHON --quick      # a try

PYTHON is an interpreter whose environment has mergekit 0.1.5 and torch (`MERGEKIT_PYTHON` says the
same): it asks for other versions than the rest of the references, so it needs its own environment.
Without it nothing is measured, which is said.

Three checkpoints of one model (a base and two fine-tunes) are merged by each method. Both sides
must write the same tensors before either is timed (of equal magnitudes at the cut of TIES each
keeps its own choice), and the same shapes where entries are dropped by chance. Rounds are
interleaved, and the disk is idle when a run begins. Told are the merge alone, imports left out, and
the process from start to end; memory is the peak of the whole process (resident pages, mapped files
included), with what the merge added to it beside. GB are bytes of inputs and output. The limit is
what reading the same bytes once and writing as many as the output takes, a megabyte at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from comparison import about, parser, ratios, summary, write
from noise import Others

METHODS = {
    "linear": "parameters: {weight: 0.5}",
    "slerp": "parameters: {t: 0.4}",
    "task_arithmetic": "parameters: {weight: 0.5}",
    "ties": "parameters: {weight: 0.5, density: 0.3}",
    "dare_ties": "parameters: {weight: 0.5, density: 0.3}",
    "passthrough": "",
    "dare_linear": "parameters: {weight: 0.5, density: 0.3}",
    "breadcrumbs": "parameters: {weight: 0.5, density: 0.3}",
    "model_stock": "",
    "della": "parameters: {weight: 0.5, density: 0.3}",
}
USUAL = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties", "passthrough")
BY_CHANCE = ("dare_ties", "dare_linear", "della")
# Entries that may differ: those equal in magnitude to the one at the cut.
MAX_DIFFERENT = 1e-4
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Size:
    """Checkpoints to merge.

    Attributes:
        shard_bytes: of their files at most.
        methods: that are timed on them unless others are asked for.
        rounds: at most.
    """

    dtype: str
    layers: int
    hidden: int
    middle: int
    heads: int
    kv_heads: int
    vocab: int
    shard_bytes: int = 5 * 10**9
    methods: tuple[str, ...] = USUAL
    rounds: int = 100


SIZES = {
    "135M fp32": Size("float32", 30, 576, 1536, 9, 3, 49152),
    "135M bf16": Size("bfloat16", 30, 576, 1536, 9, 3, 49152),
    "1.1B bf16": Size(
        "bfloat16", 22, 2048, 5632, 32, 4, 32000, 10**9, ("linear", "ties", "passthrough"), 3
    ),
}
TINY = Size("float32", 2, 64, 128, 4, 2, 512)

PEAK = """
import pathlib, re, sys, time
def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
def timed(run):
    before, start = peak(), time.perf_counter()
    run()
    print("RESULT", time.perf_counter() - start, before, peak())
import torch
torch.set_num_threads(int(sys.argv[3]))
recipe, out = sys.argv[1:3]
"""
OURS = PEAK + "from worthit.merge.run import merge\ntimed(lambda: merge(recipe, out))\n"
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


# --- checkpoints and recipes ---------------------------------------------------------------------


def config_of(size: Size) -> dict[str, Any]:
    """Of a Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.middle,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": size.dtype,
    }


def shapes_of(size: Size) -> dict[str, tuple[int, ...]]:
    """Of all tensors of a Llama with a tied head."""
    hidden, kv = size.hidden, size.hidden // size.heads * size.kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size.vocab, hidden)}
    for i in range(size.layers):
        at = f"model.layers.{i}."
        shapes |= {
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
            f"{at}self_attn.q_proj.weight": (hidden, hidden),
            f"{at}self_attn.k_proj.weight": (kv, hidden),
            f"{at}self_attn.v_proj.weight": (kv, hidden),
            f"{at}self_attn.o_proj.weight": (hidden, hidden),
            f"{at}mlp.gate_proj.weight": (size.middle, hidden),
            f"{at}mlp.up_proj.weight": (size.middle, hidden),
            f"{at}mlp.down_proj.weight": (hidden, size.middle),
        }
    return shapes | {"model.norm.weight": (hidden,)}


def make_models(folder: Path, size: Size) -> None:
    """A base and two fine-tunes of made-up numbers, shard by shard."""
    import torch
    from safetensors.torch import save_file

    dtype = getattr(torch, size.dtype)
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in shapes_of(size).items():
        n_bytes = torch.Size(shape).numel() * dtype.itemsize
        if groups[-1] and held + n_bytes > size.shard_bytes:
            groups.append({})
            held = 0
        groups[-1][name] = shape
        held += n_bytes
    for seed, model in enumerate(("base", "a", "b")):
        (folder / model).mkdir(parents=True)
        where = {}
        for i, group in enumerate(groups, 1):
            same = torch.Generator().manual_seed(i)
            own = torch.Generator().manual_seed(1000 * seed + i)
            tensors = {}
            for name, shape in group.items():
                tensor = 0.04 * torch.randn(shape, generator=same)
                if seed:
                    tensor += 1e-3 * torch.randn(shape, generator=own)
                tensors[name] = tensor.to(dtype)
            file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
            file = "model.safetensors" if len(groups) == 1 else file
            save_file(tensors, folder / model / file, metadata={"format": "pt"})
            where |= dict.fromkeys(group, file)
        if len(groups) > 1:
            index = {"metadata": {}, "weight_map": where}
            (folder / model / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / model / "config.json").write_text(json.dumps(config_of(size)))


def recipe_of(method: str, dtype: str, n_layers: int) -> str:
    """The recipe of one method over `a` and `b`."""
    if method == "passthrough":
        first, last = 2 * n_layers // 3, n_layers // 3
        slices = (("a", 0, first), ("b", last, n_layers))
        sources = ", ".join(
            f"{{sources: [{{model: ./{m}, layer_range: [{i}, {j}]}}]}}" for m, i, j in slices
        )
        return f"merge_method: passthrough\nslices: [{sources}]\ndtype: {dtype}\n"
    bases = {"linear": "", "slerp": "base_model: ./a\n"}
    base = bases.get(method, "base_model: ./base\n")
    models = "models: [{model: ./a}, {model: ./b}]"
    return f"merge_method: {method}\n{base}{models}\n{METHODS[method]}\ndtype: {dtype}\n"


def weights_in(folder: Path) -> list[Path]:
    """The files of a checkpoint."""
    return sorted(folder.glob("*.safetensors"))


# --- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One merge in a process of its own."""

    seconds: float
    whole_s: float
    peak_bytes: int
    added_bytes: int


def run(python: str, code: str, recipe: Path, out: Path, threads: int) -> Run:
    """Merge, and say what that took."""
    shutil.rmtree(out, ignore_errors=True)
    # What others wrote is on the disk, and is not waited for by whoever writes next.
    os.sync()
    source = str(Path(__file__).resolve().parents[2] / "src")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if code is OURS:
        environment["PYTHONPATH"] = source
    started = time.perf_counter()
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code, str(recipe), str(out), str(threads)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    whole = time.perf_counter() - started
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(f"{recipe.name}: {done.stderr[-2000:]}")
    _, seconds, before, peak = lines[0].split()
    return Run(float(seconds), whole, int(peak), int(peak) - int(before))


def copied(inputs: list[Path], n_read: int, out: Path, n_written: int) -> float:
    """Seconds to read `n_read` bytes and write `n_written` of them."""
    out.unlink(missing_ok=True)
    os.sync()
    buffer = memoryview(bytearray(COPY_BYTES))
    started = time.perf_counter()
    with ExitStack() as stack:
        target = stack.enter_context(out.open("wb", buffering=0))
        for path in inputs:
            source = stack.enter_context(path.open("rb", buffering=0))
            while n_read > 0 and (got := source.readinto(buffer)):
                n_read -= got
                if n_written > 0:
                    n_written -= target.write(buffer[: min(got, n_written)])
    seconds = time.perf_counter() - started
    out.unlink()
    return seconds


def share_of_difference(one: Path, two: Path, limit: float) -> float:
    """The share of entries that differ by more than `limit`; names, shapes, formats must agree."""
    n_differ = n_all = 0
    found = dict(tensors_in(one))
    for name, y in tensors_in(two):
        x = found.pop(name)()
        y = y()
        assert x.shape == y.shape, name
        assert x.dtype == y.dtype, name
        n_differ += int(((x.float() - y.float()).abs() > limit).sum())
        n_all += x.numel()
    assert not found, f"not in {two}: {sorted(found)}"
    return n_differ / n_all


def tensors_in(folder: Path) -> Iterator[tuple[str, Any]]:
    """Names of a checkpoint's tensors, and what reads each."""
    from functools import partial

    from safetensors import safe_open

    for path in weights_in(folder):
        file = safe_open(path, "pt").__enter__()
        for name in file.keys():  # noqa: SIM118 - a handle, which is not iterable
            yield name, partial(file.get_tensor, name)


def compare(
    folder: Path, method: str, n_layers: int, dtype: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Both sides on one method: outputs compared, then rounds interleaved; a case."""
    recipe = folder / f"{method}.yml"
    recipe.write_text(recipe_of(method, dtype, n_layers))
    sides = {"worthit": (sys.executable, OURS), "mergekit": (options.mergekit, THEIRS)}
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    copies: list[float] = []
    share, n_written = None, 0
    models = ("a", "b") if method in ("linear", "slerp", "passthrough") else ("base", "a", "b")
    inputs = [path for model in models for path in weights_in(folder / model)]
    for i in range(options.rounds + 1):
        for side in sorted(sides, reverse=bool(i % 2)):
            python, code = sides[side]
            done = run(python, code, recipe, folder / side, options.threads)
            if i:  # the first round warms files and is compared, not counted
                runs[side].append(done)
        if i == 0:
            limit = 1e-5 if dtype == "float32" else 2e-3
            share = share_of_difference(folder / "worthit", folder / "mergekit", limit)
            assert method in BY_CHANCE or share <= MAX_DIFFERENT, f"{method}: {share} differ"
            n_written = sum(path.stat().st_size for path in weights_in(folder / "worthit"))
        shutil.rmtree(folder / "mergekit")
        n_read = n_written if method == "passthrough" else sum(p.stat().st_size for p in inputs)
        if i:
            copies.append(copied(inputs, n_read, folder / "copy", n_written))
    case: dict[str, Any] = {}
    for side, own in runs.items():
        seconds = [r.seconds for r in own]
        others = {base: found for base, found in runs.items() if base != side}
        whole, peaks = [r.whole_s for r in own], [float(r.peak_bytes) for r in own]
        case[side] = {
            **summary(seconds, {b: [r.seconds for r in found] for b, found in others.items()}),
            "gb_per_s": (n_read + n_written) / 1e9 / statistics.median(seconds),
            "limit_s": statistics.median(copies),
            "whole_s": statistics.median(whole),
            "whole_speedup_over": {
                b: ratios([r.whole_s for r in found], whole) for b, found in others.items()
            },
            "peak_bytes": statistics.median(peaks),
            "added_bytes": statistics.median(r.added_bytes for r in own),
            "less_memory_than": {
                b: ratios([float(r.peak_bytes) for r in found], peaks)
                for b, found in others.items()
            },
        }
    case["worthit"]["share_different"] = None if method in BY_CHANCE else share
    return case


def main() -> int:
    made = parser(__doc__, rounds=5)
    made.add_argument(
        "--mergekit",
        default=os.environ.get("MERGEKIT_PYTHON", sys.executable),
        help="an interpreter with mergekit",
    )
    made.add_argument("--methods", nargs="*", choices=list(METHODS), help="default: the usual ones")
    made.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    made.add_argument(
        "--models", type=Path, help="a folder with base, a and b, in place of --sizes"
    )
    made.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    options = made.parse_args()
    others = Others()
    probe = [options.mergekit, "-c", "import mergekit"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        print(
            f"bench_merge: NOT MEASURED, {options.mergekit} has no mergekit. Make an environment "
            "with mergekit==0.1.5 and torch, and name its python: --mergekit or MERGEKIT_PYTHON"
        )
        return 0
    record: dict[str, Any] = {
        "schema": "worthit.bench-merge/2",
        "about": {**about(options, "torch"), "mergekit": _version(options.mergekit)},
        "checkpoint_bytes": {},
        "cases": {},
    }
    sizes = {"tiny": TINY} if options.quick else {name: SIZES[name] for name in options.sizes}
    all_rounds = options.rounds
    for label, size in ({"given": None} if options.models else sizes).items():
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            if size is None:
                for model in ("base", "a", "b"):
                    (folder / model).symlink_to((options.models / model).resolve())
            else:
                make_models(folder, size)
            config = json.loads((folder / "base" / "config.json").read_text())
            dtype = config.get("torch_dtype") or config["dtype"]
            n_bytes = sum(path.stat().st_size for path in weights_in(folder / "base"))
            record["checkpoint_bytes"][label] = n_bytes
            options.rounds = min(all_rounds, all_rounds if size is None else size.rounds)
            print(f"{label}: checkpoints of {n_bytes / 1e6:.0f} MB, {options.threads} thread(s)")
            for method in options.methods or (USUAL if size is None else size.methods):
                case = compare(folder, method, config["num_hidden_layers"], dtype, options)
                record["cases"][f"{method}, {label}"] = case
                print(*lines_of(method, case), sep="\n", flush=True)
    options.rounds = all_rounds
    write(record, options, "merge", others)
    return 0


def lines_of(method: str, case: dict[str, Any]) -> Iterator[str]:
    """For people."""
    for side, one in case.items():
        yield (
            f"  {method:16}{side:9}{one['median_s']:8.2f} s {one['gb_per_s']:5.2f} GB/s"
            f"{one['limit_s'] / one['median_s']:6.0%} of a copy's;"
            f"{one['whole_s']:7.2f} s start to end;"
            f"{one['peak_bytes'] / 1e6:7.0f} MB, {one['added_bytes'] / 1e6:.0f} of them the merge's"
        )
    ours = case["worthit"]
    speed, memory = ours["speedup_over"]["mergekit"], ours["less_memory_than"]["mergekit"]
    yield (
        f"  {method:16}{speed['median']:.2f} times as fast [{speed['p20']:.2f}, "
        f"{speed['p80']:.2f}], {ours['whole_speedup_over']['mergekit']['median']:.2f} from start "
        f"to end; {memory['median']:.1f} times less memory"
    )


def _version(python: str) -> str:
    code = "from importlib.metadata import version; print(version('mergekit'))"
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
