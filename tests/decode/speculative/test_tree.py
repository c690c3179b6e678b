"""Trees: every node as if alone, the cache as if nothing else was tried, the target's own law."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from worthit.decode.speculative.accept import pick
from worthit.decode.speculative.tree import (
    ROOT,
    Tree,
    ancestors,
    commit,
    require_trees,
    tree_pass,
)
from worthit.errors import InputError
from worthit.nn import build
from worthit.nn.decoder import Decoder
from worthit.spec.model import (
    Attention,
    FeedForward,
    LatentAttention,
    Layer,
    Mamba2,
    ModelSpec,
    Position,
)

VOCAB = 32
Follow = Callable[[Tensor, Tree, Callable[[], float]], tuple[list[int], int]]
GQA = Attention(n_heads=4, n_kv_heads=2, head_dim=8)
MLA = LatentAttention(
    n_heads=4,
    q_lora_rank=None,
    kv_lora_rank=8,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=8,
)


def tiny(mixer: object = GQA, position: str = "rope") -> Decoder:
    torch.manual_seed(0)
    layer = Layer(mixers=(mixer,), ffn=FeedForward(d_ff=48))  # type: ignore[arg-type]
    spec = ModelSpec(
        name="tiny",
        d_model=32,
        vocab_size=VOCAB,
        context_len=64,
        layers=(layer, layer),
        position=Position(kind=position),  # type: ignore[arg-type]
    )
    model = build(spec).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


MODELS = {"gqa": tiny(), "mla": tiny(MLA), "alibi": tiny(position="alibi")}
PROMPT = [3, 17, 9, 28, 5]
LAST = 11


@st.composite
def trees(draw: st.DrawFn, most: int = 9) -> Tree:
    n = draw(st.integers(1, most))
    parents = tuple(draw(st.integers(ROOT, i - 1)) for i in range(n))
    tokens: list[int] = []
    for i, parent in enumerate(parents):
        taken = {tokens[j] for j in range(i) if parents[j] == parent}
        tokens.append(draw(st.integers(0, VOCAB - 1).filter(lambda t, taken=taken: t not in taken)))
    return Tree(tuple(tokens), parents)


def path_ids(tree: Tree, node: int) -> list[int]:
    return [] if node == ROOT else [tree.tokens[i] for i in tree.path(node)]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_node_is_what_its_own_path_gives(name: str) -> None:
    model = MODELS[name]

    @settings(max_examples=10)
    @given(trees())
    def check(tree: Tree) -> None:
        cache = model.new_cache()
        model(torch.tensor([PROMPT]), cache=cache)
        logits = tree_pass(model, cache, LAST, tree)
        for node in range(ROOT, len(tree)):
            alone = model(torch.tensor([[*PROMPT, LAST, *path_ids(tree, node)]]))[0, -1]
            torch.testing.assert_close(logits[node + 1], alone, rtol=1e-10, atol=1e-10)

    with torch.no_grad():
        check()


@pytest.mark.parametrize("name", MODELS)
def test_after_a_commit_the_cache_is_that_of_a_prefill(name: str) -> None:
    model = MODELS[name]

    @settings(max_examples=10)
    @given(trees(), st.data())
    def check(tree: Tree, data: st.DataObject) -> None:
        node = data.draw(st.integers(ROOT, len(tree) - 1))
        path = [] if node == ROOT else tree.path(node)
        cache, fresh = model.new_cache(), model.new_cache()
        model(torch.tensor([PROMPT]), cache=cache)
        tree_pass(model, cache, LAST, tree)
        commit(cache, tree, path)
        said = [*PROMPT, LAST, *path_ids(tree, node)]
        model(torch.tensor([said]), cache=fresh)
        assert cache.length == fresh.length == len(said)
        for mine, theirs in zip(tensors(cache), tensors(fresh), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        assert cache.nbytes == fresh.nbytes

    with torch.no_grad():
        check()


def tensors(cache: object) -> list[Tensor]:
    found = []
    for one in cache:  # type: ignore[attr-defined]
        for name in ("keys", "values", "latents", "rotary_keys"):
            if hasattr(one, name):
                found.append(getattr(one, name).value)
    return found


@torch.no_grad()
def test_a_window_counts_places_and_not_slots() -> None:
    """Two branches of three: the slots of the second are far from the root, its places are not."""
    model = tiny(Attention(n_heads=4, n_kv_heads=2, head_dim=8, window=4))
    tree = Tree((1, 2, 3, 4, 5, 6), (ROOT, 0, 1, ROOT, 3, 4))
    cache = model.new_cache()
    model(torch.tensor([PROMPT]), cache=cache)
    logits = tree_pass(model, cache, LAST, tree)
    for node in range(ROOT, len(tree)):
        alone = model(torch.tensor([[*PROMPT, LAST, *path_ids(tree, node)]]))[0, -1]
        torch.testing.assert_close(logits[node + 1], alone, rtol=1e-10, atol=1e-10)
    with pytest.raises(InputError, match="a window of 4 tokens that spares 0 cannot drop"):
        commit(cache, tree, [3, 4])


def test_what_sees_what() -> None:
    # root - 0 - 1, root - 2
    assert ancestors((ROOT, 0, ROOT)).tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, False, False, True],
    ]


def test_a_tree_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="node 0 has parent 0"):
        Tree((1,), (0,))
    with pytest.raises(InputError, match="a parent a token"):
        Tree((1, 2), (ROOT,))


def test_states_hold_no_tree() -> None:
    mamba = Mamba2(n_heads=4, head_dim=16, d_state=8, n_groups=1, d_conv=4)
    with pytest.raises(InputError, match="layer 0 is a Mamba2Mixer"):
        require_trees(tiny(mamba))
    require_trees(MODELS["gqa"])


# The law of what is said. A toy target over 6 tokens whose next distribution depends on the token
# before, and trees of depth two; counts of pairs (x1, x2), since a wrong state after an acceptance
# shows in the second.

V = 6
N = 6_000


def toy(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(V + 1, V, generator=generator)).double().softmax(dim=-1)


def next_row(p: Tensor, token: int | None) -> Tensor:
    return p[V if token is None else token]


def drafted(q: Tensor, kind: str, generator: torch.Generator) -> Tree:
    """Two siblings below the root, two below each of them."""
    tokens: list[int] = []
    parents: list[int] = []
    rows: list[Tensor] = []
    for parent in (ROOT, 0, 1):
        row = next_row(q, None if parent == ROOT else tokens[parent]).clone()
        if kind == "picked":
            for token in row.topk(2).indices.tolist():
                tokens.append(token)
                parents.append(parent)
            continue
        for _ in range(2):
            token = int(torch.multinomial(row, 1, generator=generator))
            tokens.append(token)
            parents.append(parent)
            rows.append(row)
            if kind == "without replacement":
                row = row.clone()
                row[token] = 0
                row = row / row.sum()
    return Tree(tuple(tokens), tuple(parents), torch.stack(rows) if rows else None)


def follow(p: Tensor, tree: Tree, uniform: Callable[[], float]) -> tuple[list[int], int]:
    path: list[int] = []
    node = ROOT
    while True:
        token, node = pick(p[node + 1], tree, node, uniform)
        if node == ROOT:
            return path, token
        path.append(node)


def pairs_of(kind: str, follow: Follow = follow, n: int = N) -> Tensor:
    p, q = toy(1), toy(2)
    generator = torch.Generator().manual_seed(3)
    uniform = iter(torch.rand(10 * n, dtype=torch.float64, generator=generator).tolist())
    counts = torch.zeros(V, V, dtype=torch.float64)
    for _ in range(n):
        tree = drafted(q, kind, generator)
        rows = torch.stack([next_row(p, None), *(next_row(p, t) for t in tree.tokens)])
        path, last = follow(rows, tree, lambda: next(uniform))
        said = [*(tree.tokens[i] for i in path), last]
        if len(said) == 1:
            # What was not drafted is drawn from the target itself.
            said.append(int(torch.multinomial(p[said[0]], 1, generator=generator)))
        counts[said[0], said[1]] += 1
    return counts


def p_value(counts: Tensor) -> float:
    p = toy(1)
    expected = (p[V][:, None] * p[:V]).flatten() * counts.sum()
    return float(chisquare(counts.flatten().numpy(), expected.numpy()).pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["picked", "with replacement", "without replacement"])
def test_sampled_trees_keep_the_targets_distribution(kind: str) -> None:
    assert p_value(pairs_of(kind)) > 1e-4


def test_the_check_finds_a_rule_that_forgets_the_elder_sibling() -> None:
    """The control: the younger sibling tried against p itself, and not against what is left."""

    def wrong(p: Tensor, tree: Tree, uniform: Callable[[], float]) -> tuple[list[int], int]:
        path, node = [], ROOT
        while True:
            row = p[node + 1]
            for child in tree.children(node):
                if uniform() < float(row[tree.tokens[child]]):
                    node = child
                    path.append(child)
                    break
            else:
                return path, int(torch.searchsorted(row.cumsum(0), uniform()))

    assert p_value(pairs_of("picked", wrong, 2000)) < 1e-6
