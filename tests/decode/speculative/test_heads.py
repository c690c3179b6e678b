"""Heads that were trained: what they compute, what they draft, and that it changes no word."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worthit.decode.engine import Engine, EngineConfig, Request
from worthit.decode.generate import tokens_of
from worthit.decode.sampling import Sampling
from worthit.decode.speculative.drafter import NOTHING, Asked, Drafter, Plain, Verified
from worthit.decode.speculative.eagle import Eagle
from worthit.decode.speculative.exit_head import ExitHead
from worthit.decode.speculative.feature_drafter import FeatureDrafter, Node, TreeShape, reranked
from worthit.decode.speculative.head_losses import seen_in_step, unrolled, warm_start
from worthit.decode.speculative.heads import (
    Heads,
    HeadsConfig,
    head_weight,
    likely_tokens,
    load_heads,
    make_heads,
    save_heads,
    spread_taps,
    target_facts,
)
from worthit.decode.speculative.loop import Tally, speculate
from worthit.decode.speculative.medusa import Medusa, MedusaDrafter, likeliest_tree
from worthit.decode.speculative.taps import Taps
from worthit.decode.speculative.tree import ROOT, Tree
from worthit.errors import InputError, UnknownName
from worthit.nn import build
from worthit.nn.decoder import Decoder
from worthit.nn.tokens import Tokens
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec

VOCAB = 40
PROMPT = [3, 17, 9, 28, 5, 31]


def tiny(dtype: torch.dtype = torch.float64) -> Decoder:
    torch.manual_seed(0)
    layer = Layer(
        mixers=(Attention(n_heads=4, n_kv_heads=2, head_dim=8),), ffn=FeedForward(d_ff=48)
    )
    spec = ModelSpec(name="tiny", d_model=32, vocab_size=VOCAB, context_len=96, layers=(layer,) * 4)
    model = build(spec).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(requires_grad=False)


MODEL = tiny()
IDS = torch.arange(0, VOCAB, 2)  # half of the tokens can be drafted


def random_heads(kind: str, model: Decoder = MODEL, std: float = 0.3) -> Heads:
    taps = {"medusa": (3,), "eagle": (0, 1, 3), "exit": (1,)}[kind]
    config = HeadsConfig(
        kind=kind,  # type: ignore[arg-type]
        taps=taps,
        draft_vocab=len(IDS),
        n_heads=3 if kind == "medusa" else 1,
        target=target_facts(model),
    )
    torch.manual_seed(1)
    heads = make_heads(config, model).to(model.dtype)
    heads.take_head(model, IDS)
    for parameter in heads.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=std)
    return heads.eval().requires_grad_(requires_grad=False)


def eagle() -> Eagle:
    heads = random_heads("eagle")
    assert isinstance(heads, Eagle)
    return heads


def features_of(heads: Heads, ids: list[int]) -> Tensor:
    taps = Taps(MODEL, heads.config.taps)
    MODEL(torch.tensor([ids]))
    found = taps.features()
    taps.close()
    assert found is not None
    return found[0]


def asked(ids: list[int], most: int = 4) -> Asked:
    return Asked(ids=ids, n_prompt=len(ids), sampling=Sampling(), chance=lambda: 0.5, most=most)


# What is drafted.


@torch.no_grad()
def slow_outputs(heads: Eagle, ids: list[int], drafted: list[int]) -> Tensor:
    """The layer over the whole sequence at once: true features, then its own outputs, one by one.

    `ids` end with the token said last. Row i is the output of pair (feature of i, token i + 1).
    """
    true = heads.fused(features_of(heads, ids[:-1]))
    following = [*ids[1:], *drafted]
    outputs = None
    for n in range(len(true), len(following) + 1):
        n_own = n - len(true)
        own = [] if outputs is None else [outputs[len(true) - 1 : len(true) - 1 + n_own]]
        features = torch.cat([true, *own])[None]
        embedded = heads.embedded(torch.tensor([following[:n]]))
        places = torch.arange(n)[None]
        outputs = heads.layer(embedded, features, Tokens(n=n, past=0, positions=places), None)[0]
    assert outputs is not None
    return outputs


@torch.no_grad()
def test_a_chain_is_the_layer_over_everything_again_and_again() -> None:
    heads = eagle()
    drafter = FeatureDrafter(heads, floor=0.0)
    one = asked([*PROMPT, 12], 4)
    drafter.observe(one, Verified(start=0, n=len(PROMPT), features=features_of(heads, PROMPT)))
    (tree,) = drafter.propose([one])
    want: list[int] = []
    for _ in range(4):
        logits = heads.logits(slow_outputs(heads, one.ids, want)[-1])
        want.append(int(heads.ids[logits.argmax()]))
    assert tree == Tree.chain(want)


@torch.no_grad()
def test_a_tree_is_the_beam_that_a_slow_one_finds() -> None:
    """Three paths a level go on, each from all of its own past; every child of theirs is a node."""
    heads = eagle()
    drafter = FeatureDrafter(heads, shape=TreeShape(depth=3, width=3), floor=0.0)
    one = asked([*PROMPT, 12], 21)
    drafter.observe(one, Verified(start=0, n=len(PROMPT), features=features_of(heads, PROMPT)))
    (tree,) = drafter.propose([one])
    found: list[tuple[float, list[int]]] = []
    frontier: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(3):
        grown = []
        for value, path in frontier:
            logps = heads.logits(slow_outputs(heads, one.ids, path)[-1]).log_softmax(-1)
            best = logps.topk(3)
            grown += [
                (value + float(v), [*path, int(heads.ids[column])])
                for v, column in zip(best.values, best.indices, strict=True)
            ]
        found += grown
        frontier = sorted(grown, reverse=True)[:3]
    paths = [[tree.tokens[i] for i in tree.path(node)] for node in range(len(tree))]
    assert sorted(paths) == sorted(path for _, path in found)
    one.most = 5
    (few,) = drafter.propose([one])
    paths = [[few.tokens[i] for i in few.path(node)] for node in range(len(few))]
    assert sorted(paths) == sorted(path for _, path in sorted(found, reverse=True)[:5])


@torch.no_grad()
def test_the_cache_after_a_draft_is_that_of_true_features_alone() -> None:
    heads = eagle()
    drafter = FeatureDrafter(heads, shape=TreeShape(depth=3, width=2), floor=0.0)
    ids = [*PROMPT, 12, 20, 7]
    one, fresh = asked([*PROMPT, 12]), asked(ids)
    features = features_of(heads, ids[:-1])
    n = len(PROMPT)
    drafter.observe(one, Verified(start=0, n=n, features=features[:n]))
    drafter.propose([one])
    one.ids += [20, 7]
    drafter.observe(one, Verified(start=n, n=2, features=features[n:]))
    drafter.propose([one])
    drafter.observe(fresh, Verified(start=0, n=n + 2, features=features))
    drafter.propose([fresh])
    for mine, theirs in zip(one.state.cache, fresh.state.cache, strict=True):
        torch.testing.assert_close(mine.keys.value, theirs.keys.value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.state.output, fresh.state.output, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_chains_of_many_are_those_of_each() -> None:
    heads = eagle()
    drafter = FeatureDrafter(heads, floor=0.02)
    texts = [[*PROMPT, 12], [4, 8], [*PROMPT, *PROMPT, 1], [7, 7, 7]]
    many = [asked(list(ids), most) for ids, most in zip(texts, (4, 2, 5, 0), strict=True)]
    alone = [asked(list(ids), one.most) for ids, one in zip(texts, many, strict=True)]
    for one in (*many, *alone):
        n = len(one.ids) - 1
        drafter.observe(one, Verified(start=0, n=n, features=features_of(heads, one.ids[:-1])))
    together = drafter.propose(many)
    assert together == [drafter.propose([one])[0] for one in alone]
    assert together[3] == NOTHING
    assert [len(tree) > 0 for tree in together] == [True, True, True, False]


@torch.no_grad()
def test_what_was_known_twice_is_read_once_and_a_gap_begins_anew() -> None:
    heads = eagle()
    drafter = FeatureDrafter(heads)
    ids = [*PROMPT, 12]
    features = features_of(heads, PROMPT)
    one = asked(list(ids))
    drafter.observe(one, Verified(start=0, n=4, features=features[:4]))
    # Computed again after a preemption: the first four are known.
    drafter.observe(one, Verified(start=0, n=6, features=features))
    want = asked(list(ids))
    drafter.observe(want, Verified(start=0, n=6, features=features))
    assert drafter.propose([one]) == drafter.propose([want])
    # A prefix that the engine knew: no features of its tokens.
    late = asked(list(ids))
    drafter.observe(late, Verified(start=4, n=2, features=features[4:]))
    (tree,) = drafter.propose([late])
    assert len(tree)
    assert late.state.first == 4
    # Features that end before the last token but one are none to draft from.
    early = asked(list(ids))
    drafter.observe(early, Verified(start=0, n=4, features=features[:4]))
    assert drafter.propose([early]) == [NOTHING]


def test_a_path_that_is_unlikely_ends() -> None:
    nodes = [
        Node(-0.1, 1, 5, ROOT, 0),
        Node(-2.0, 1, 6, ROOT, 0),
        Node(-0.2, 2, 7, 0, 0),
        Node(-3.0, 2, 8, 0, 0),
    ]
    assert reranked(nodes, 3) == Tree((5, 6, 7), (ROOT, ROOT, 0))
    assert reranked(nodes, 3, -1.0) == Tree((5, 7), (ROOT, 0))
    assert reranked(nodes, 3, 0.0) == Tree((5,), (ROOT,))
    # Of two as likely the shallower, so that no child stands without its parent.
    even = [Node(-1.0, 1, 5, ROOT, 0), Node(-1.0, 2, 7, 0, 0), Node(-1.0, 1, 6, ROOT, 0)]
    assert reranked(even, 2) == Tree((5, 6), (ROOT, ROOT))


def test_the_likeliest_tree_of_independent_heads() -> None:
    """Every path of every length by its product, and the largest of them."""
    torch.manual_seed(0)
    odds = torch.rand(3, 5, dtype=torch.float64)
    odds = odds / odds.sum(dim=1, keepdim=True)
    ids = torch.tensor([10, 11, 12, 13, 14])
    paths = {
        tuple(path): float(torch.stack([odds[d, c] for d, c in enumerate(path)]).prod())
        for n in (1, 2, 3)
        for path in itertools.product(range(5), repeat=n)
    }
    want = sorted(paths, key=lambda path: -paths[path])[:9]
    tree = likeliest_tree(odds, ids, 9)
    mine = [tuple(tree.tokens[i] - 10 for i in tree.path(node)) for node in range(9)]
    assert sorted(mine) == sorted(want)
    best = paths[want[0]]
    cut = likeliest_tree(odds, ids, 9, floor=best * 0.6)
    assert len(cut) == sum(value >= best * 0.6 for value in paths.values())
    assert likeliest_tree(odds, ids, 3, most_children=1).is_chain


@torch.no_grad()
def test_a_head_of_medusa_is_its_equation() -> None:
    heads = random_heads("medusa")
    assert isinstance(heads, Medusa)
    features = features_of(heads, PROMPT)
    h = MODEL.final_norm(features)
    logits = heads(heads.states(features))
    assert logits.shape == (3, len(PROMPT), len(IDS))
    w = heads.wide.weight.chunk(3)
    for k in range(3):
        inner = h @ w[k].T
        turned = h + (inner * torch.sigmoid(inner)) @ heads.narrow[k].weight.T
        torch.testing.assert_close(logits[k], turned @ head_weight(MODEL)[IDS].T)


# Training's passes are drafting's.


def test_what_a_step_of_training_sees() -> None:
    # Place 3 of step 2: true keys up to 1, step 1's at 2, its own at 3.
    seen = seen_in_step(5, 2)[3].view(3, 5)
    assert seen.tolist() == [
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, False, True, False],
    ]


@torch.no_grad()
def test_unrolled_steps_are_those_of_drafts_begun_earlier() -> None:
    heads = eagle()
    ids = [*PROMPT, 12, 20, 7, 33]
    features = features_of(heads, ids[:-1])
    steps = unrolled(heads, features[None], torch.tensor([ids[1:]]), 3)
    for place in range(3, len(ids) - 1):
        for step in range(3):
            begun = place - step
            known, drafted = ids[: begun + 2], ids[begun + 2 : place + 2]
            want = slow_outputs(heads, known, drafted)[place]
            torch.testing.assert_close(steps[step][0, place], want, rtol=1e-10, atol=1e-10)


def test_a_warm_start_gives_the_layer_the_targets_last_weights() -> None:
    heads = eagle()
    warm_start(heads, MODEL)
    for name, mine in heads.layer.block.state_dict().items():
        torch.testing.assert_close(mine, MODEL.layers[-1].state_dict()[name])


# Exactness, through the loop.


class Oracle(Plain):
    """Knows what will be said."""

    name = "oracle"
    has_trees = True

    def __init__(self, text: list[int]) -> None:
        self.text = text

    def propose(self, asked: list[Asked]) -> list[Tree]:  # type: ignore[override]
        """The next tokens, each beside a wrong sibling that comes first."""
        one = asked[0]
        right = self.text[len(one.ids) : len(one.ids) + one.most // 2]
        tokens: list[int] = []
        parents: list[int] = []
        parent = ROOT
        for token in right:
            tokens += [(token + 1) % VOCAB, token]
            parents += [parent, parent]
            parent = len(tokens) - 1
        return [Tree(tuple(tokens), tuple(parents))]


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "medusa tree": lambda: MedusaDrafter(random_heads("medusa"), floor=0.0),  # type: ignore[arg-type]
    "medusa chain": lambda: MedusaDrafter(random_heads("medusa"), has_trees=False),  # type: ignore[arg-type]
    "eagle chain": lambda: FeatureDrafter(eagle(), floor=0.0),
    "eagle tree": lambda: FeatureDrafter(eagle(), shape=TreeShape(3, 3), floor=0.0),
}


def plainly(n: int, sampling: Sampling | None = None) -> list[int]:
    return [row[0] for row in tokens_of(MODEL, [PROMPT], max_tokens=n, sampling=sampling)]


@pytest.mark.parametrize("name", DRAFTERS)
def test_random_heads_change_no_word(name: str) -> None:
    tally = Tally()
    said = list(speculate(MODEL, PROMPT, DRAFTERS[name](), max_tokens=40, most=6, tally=tally))
    assert said == plainly(40)
    assert tally.n_drafted > 40


def test_an_oracles_trees_are_kept_whole() -> None:
    want = plainly(40)
    tally = Tally()
    oracle = Oracle([*PROMPT, *want])
    said = list(speculate(MODEL, PROMPT, oracle, max_tokens=40, most=6, tally=tally))
    assert said == want
    assert tally.n_accepted == tally.n_drafted // 2
    assert tally.lengths[:-1] == [3] * 9
    assert tally.n_passes <= 12


# In the engine.


@pytest.mark.parametrize("name", DRAFTERS)
def test_heads_in_a_crowd_change_no_word(name: str) -> None:
    """Chains and trees beside one another, prompts in chunks, known prefixes, few places."""
    prompts = [PROMPT, [4, 8], [*PROMPT, *PROMPT, 1], [7, 7, 7], [*PROMPT, 9]]
    want = [[row[0] for row in tokens_of(MODEL, [p], max_tokens=12)] for p in prompts]
    config = EngineConfig(
        max_batch_tokens=12, max_sequences=3, block_tokens=4, n_blocks=40, has_draft_control=False
    )
    engine = Engine(MODEL, config=config, drafter=DRAFTERS[name]())
    got = engine.generate([Request(prompt=p, max_tokens=12) for p in prompts])
    assert [one.samples[0].error for one in got] == [None] * len(prompts)
    assert [one.ids for one in got] == want
    assert engine.stats.n_draft_tokens > 20
    # Again, when prefixes are known and their features are not.
    again = engine.generate([Request(prompt=p, max_tokens=12) for p in prompts])
    assert [one.ids for one in again] == want
    assert engine.memory.n_held == 0


# On disk.


@pytest.mark.parametrize("kind", ["medusa", "eagle", "exit"])
def test_heads_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    heads = random_heads(kind)
    save_heads(heads, tmp_path / "heads")
    back = load_heads(tmp_path / "heads", MODEL)
    assert back.config == heads.config
    assert type(back) is type(heads)
    for name, tensor in heads.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    with pytest.raises(InputError, match="is there already"):
        save_heads(heads, tmp_path / "heads")


def test_heads_of_another_model_are_refused(tmp_path: Path) -> None:
    heads = random_heads("medusa")
    save_heads(heads, tmp_path / "heads")
    spec = replace(MODEL.spec, layers=MODEL.spec.layers[:2])
    with pytest.raises(InputError, match="heads for n_layers=4, and the model has 2"):
        load_heads(tmp_path / "heads", build(spec))
    with pytest.raises(InputError, match="`worthit train-heads` writes them"):
        load_heads(tmp_path, MODEL)
    config = tmp_path / "heads" / "heads.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "version": 9}))
    with pytest.raises(InputError, match="heads of version 9"):
        load_heads(tmp_path / "heads", MODEL)
    with pytest.raises(UnknownName, match="hydra"):
        HeadsConfig(kind="hydra", taps=(1,), draft_vocab=4)  # type: ignore[arg-type]


def test_the_draft_vocabulary_is_what_was_said_and_then_the_first() -> None:
    said = torch.tensor([9, 9, 7, 7, 7, 3])
    assert likely_tokens(said, 12, 2).tolist() == [7, 9]
    assert likely_tokens(said, 12, 5).tolist() == [0, 1, 3, 7, 9]
    assert spread_taps(MODEL) == (1, 2, 3)
    assert spread_taps(MODEL, 1) == (3,)


@torch.no_grad()
def test_an_exit_begins_as_the_models_own_head() -> None:
    heads = random_heads("exit")
    assert isinstance(heads, ExitHead)
    torch.nn.init.zeros_(heads.narrow.weight)
    stream = features_of(heads, PROMPT)
    heads.norm.load_state_dict(MODEL.final_norm.state_dict())
    torch.testing.assert_close(heads(stream), MODEL.logits(stream)[..., IDS])
