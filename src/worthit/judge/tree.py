"""Which architecture for which situation: a decision tree grown from the judge's own verdicts.

Two designs, a 7B served by a node of GPUs and a 1.4B on a laptop, are judged over a grid of prompt
lengths and concurrencies, with plain multi-head attention in both. The tree asks, at each step, the
question that best separates the situations by which techniques are worth it (the sum over
techniques of the Gini impurity, Breiman et al. 1984); nobody wrote its thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from worthit._record import record
from worthit.cost.bottleneck import TITLES
from worthit.judge.judge import judge_case
from worthit.judge.words import count
from worthit.spec.load import load_case

ARCHITECTURES = (
    "gqa",
    "mla",
    "sliding-window",
    "linear-attention",
    "hybrid",
    "mamba2",
    "topk-moe",
    "early-exit",
)
# Where a design would run, the preset whose shape it has, devices, their number.
DESIGNS = (
    ("a node of GPUs", "llama-2-7b", "h100", 8),
    ("a laptop", "pythia-1.4b", "laptop-cpu", 1),
)
PROMPTS = (500, 4000, 32_000, 128_000)
CONCURRENCIES = (1, 8, 64)
OUTPUT = 500
MAX_DEPTH = 3
# A design is not bound by what the preset it borrows was trained for.
CONTEXT_LEN = 1_000_000


@record
class Situation:
    """One point of the grid: where, how long, how many, what binds, and what is worth it."""

    hardware: str
    prompt: int
    concurrency: int
    binds: str
    gains: dict[str, float]


@record
class Node:
    """A question with the situations that answer yes and no to it, or a leaf of both None."""

    situations: tuple[Situation, ...]
    question: str = ""
    yes: Node | None = None
    no: Node | None = None

    @property
    def always(self) -> tuple[str, ...]:
        """What is worth it in every situation here, the largest mean gain first."""
        shared = set.intersection(*(set(s.gains) for s in self.situations))
        return tuple(sorted(shared, key=lambda name: (-self.mean_gain(name), name)))

    @property
    def sometimes(self) -> tuple[str, ...]:
        """What is worth it in some situations here and not in all."""
        some = set.union(*(set(s.gains) for s in self.situations)) - {*self.always}
        return tuple(sorted(some))

    def mean_gain(self, name: str) -> float:
        """The mean predicted speed-up of a technique over the situations where it applies."""
        gains = [s.gains[name] for s in self.situations if name in s.gains]
        return sum(gains) / len(gains)


def survey() -> tuple[Situation, ...]:
    """Judge every point of the grid."""
    return tuple(
        _judged(*design, prompt, concurrency)
        for design, prompt, concurrency in product(DESIGNS, PROMPTS, CONCURRENCIES)
    )


def _judged(
    where: str, preset: str, device: str, n_devices: int, prompt: int, concurrency: int
) -> Situation:
    case = load_case(
        {
            "model": {"preset": preset, "context_len": CONTEXT_LEN},
            "hardware": {"device": device, "n_devices": n_devices},
            "workload": {"prompt": prompt, "output": OUTPUT, "concurrency": concurrency},
            "stage": "design",
        }
    )
    judgement = judge_case(case, only=ARCHITECTURES)
    gains = {
        v.technique.id: 1 / v.predicted.ratio
        for v in judgement.verdicts
        if v.decision == "apply" and not v.is_present and v.predicted and v.predicted.ratio > 0
    }
    binding = [b.id for b in judgement.bottlenecks if TITLES[b.id][0] == "time"]
    return Situation(
        hardware=where,
        prompt=prompt,
        concurrency=concurrency,
        binds=binding[0] if binding else "",
        gains=gains,
    )


def grow(situations: Sequence[Situation], depth: int = MAX_DEPTH) -> Node:
    """The tree over `situations`, of at most `depth` questions from root to leaf."""
    here = tuple(situations)
    best: tuple[float, str, list[Situation], list[Situation]] | None = None
    for question, answers in _questions(here) if depth else ():
        yes = [s for s, answer in zip(here, answers, strict=True) if answer]
        no = [s for s, answer in zip(here, answers, strict=True) if not answer]
        if yes and no:
            left = impurity(yes) * len(yes) + impurity(no) * len(no)
            if best is None or left < best[0] - 1e-9:
                best = (left, question, yes, no)
    if best is None or best[0] > impurity(here) * len(here) - 1e-9:
        return Node(situations=here)
    _, question, yes, no = best
    return Node(
        situations=here, question=question, yes=grow(yes, depth - 1), no=grow(no, depth - 1)
    )


def impurity(situations: Sequence[Situation]) -> float:
    """Sum over techniques of 2 p (1 - p), p the share of situations where it is worth it."""
    total = 0.0
    for name in ARCHITECTURES:
        p = sum(name in s.gains for s in situations) / len(situations)
        total += 2 * p * (1 - p)
    return total


def _questions(situations: Sequence[Situation]) -> Iterator[tuple[str, list[bool]]]:
    """Every question that the grid can ask, with the answer of each situation."""
    for where in dict.fromkeys(s.hardware for s in situations):
        yield f"on {where}?", [s.hardware == where for s in situations]
    for name, sizes in (("prompt", PROMPTS), ("concurrency", CONCURRENCIES)):
        for size in sizes[1:]:
            answers = [getattr(s, name) >= size for s in situations]
            yield f"{name} of {count(size)} or more?", answers


def mermaid(root: Node) -> list[str]:
    """The tree as a Mermaid flowchart, which GitHub draws."""
    lines = ["flowchart TD"]
    for name, node in _walk(root, "n"):
        if node.yes is None or node.no is None:
            lines.append(f'  {name}["{_leaf(node)}"]')
            continue
        lines.append(f'  {name}{{"{node.question}"}}')
        lines.append(f"  {name} -->|yes| {name}y")
        lines.append(f"  {name} -->|no| {name}n")
    return lines


def outline(root: Node, indent: int = 0) -> list[str]:
    """The same tree as indented text."""
    pad = "  " * indent
    if root.yes is None or root.no is None:
        return [f"{pad}-> {_leaf(root).replace('<br>', '; ')}"]
    return [
        f"{pad}{root.question}",
        f"{pad}yes:",
        *outline(root.yes, indent + 1),
        f"{pad}no:",
        *outline(root.no, indent + 1),
    ]


def _walk(node: Node, name: str) -> Iterator[tuple[str, Node]]:
    yield name, node
    if node.yes is not None and node.no is not None:
        yield from _walk(node.yes, f"{name}y")
        yield from _walk(node.no, f"{name}n")


def _leaf(node: Node) -> str:
    if not node.always:
        first = "keep plain attention"
    else:
        first = ", ".join(f"{name} {node.mean_gain(name):.1f}x" for name in node.always)
    rest = f"<br>sometimes {', '.join(node.sometimes)}" if node.sometimes else ""
    return first + rest
