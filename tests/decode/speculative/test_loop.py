"""The loop of one sequence says what plain decoding says, whatever is guessed, on every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decode.engine.test_engine import model_of
from decode.speculative.drafters import Bush, Oracle, Random
from nn.test_ragged import MODELS, VOCAB
from scipy import stats

from worthit.decode.sampling import Sampling
from worthit.decode.speculative.control import Control, Costs
from worthit.decode.speculative.draft_model import DraftModel, require_same_vocabulary
from worthit.decode.speculative.drafter import Drafter
from worthit.decode.speculative.lookahead import Lookahead
from worthit.decode.speculative.lookup import PromptLookup
from worthit.decode.speculative.loop import Tally, speculate
from worthit.decode.speculative.shallow import SharedExit, until, without
from worthit.errors import InputError
from worthit.nn.decoder import Decoder, build
from worthit.nn.inference import optimize
from worthit.spec.model import Attention, FeedForward, Layer, ModelSpec, Position

N = 24
REFUSED = {"longrope": "old rotation", "expert choice": "choose among all", "capacity": "choose"}


def prompt(seed: int = 0, n: int = 11) -> list[int]:
    return torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def alone(model: Decoder, ids: list[int], n: int = N) -> list[int]:
    """Plain greedy text, a token a pass over everything: no cache."""
    known = list(ids)
    for _ in range(n):
        known.append(int(model(torch.tensor([known]))[0, -1].argmax()))
    return known[len(ids) :]


def fast(model: Decoder, ids: list[int], drafter: Drafter, n: int = N, **options: object):
    tally = Tally()
    said = list(speculate(model, ids, drafter, max_tokens=n, tally=tally, **options))
    return said, tally


@pytest.mark.parametrize("name", MODELS)
def test_text_is_that_of_plain_decoding(name: str) -> None:
    model, ids = model_of(name), prompt()
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            fast(model, ids, PromptLookup())
        return
    want = alone(model, ids)
    for drafter in (Random(VOCAB), Oracle([ids + want], errs=True), PromptLookup()):
        got, tally = fast(model, ids, drafter, most=5)
        assert got == want, drafter
    assert tally.n_passes <= N
    _, tally = fast(model, ids, Oracle([ids + want]), most=5)
    assert tally.acceptance == 1.0
    assert tally.n_passes == 1 + -(-(N - 1) // 6)


@pytest.mark.parametrize("name", ["grouped", "latent", "window", "alibi", "relative bias"])
def test_trees_find_what_is_said_among_siblings(name: str) -> None:
    model, ids = model_of(name), prompt(1)
    want = alone(model, ids)
    got, tally = fast(model, ids, Bush([ids + want], VOCAB), most=8)
    assert got == want
    assert tally.n_accepted > 0.4 * tally.n_drafted


def test_trees_are_refused_where_memory_is_a_chain() -> None:
    with pytest.raises(InputError, match="draft chains"):
        fast(model_of("mamba2"), prompt(), Bush([], VOCAB))


@pytest.mark.parametrize("name", ["grouped", "window", "latent"])
@pytest.mark.parametrize("kind", ["exit", "skip", "until", "lookahead", "model"])
def test_every_drafter_of_itself_is_exact(kind: str, name: str) -> None:
    model, ids = deeper(name), prompt(2)
    made = {
        "exit": lambda: SharedExit(model, 1),
        "skip": lambda: DraftModel(without(model, 1, ids), VOCAB),
        "until": lambda: DraftModel(until(model, 1), VOCAB),
        "lookahead": lambda: Lookahead(width=4, n_gram=3, n_verified=3),
        "model": lambda: DraftModel(model, VOCAB),
    }
    got, tally = fast(model, ids, made[kind](), most=40 if kind == "lookahead" else 4)
    assert got == alone(model, ids)
    if kind == "model":
        assert tally.acceptance == 1.0  # it is its own best draft
    assert tally.n_drafted > 0


def deeper(name: str) -> Decoder:
    """Twice as many layers: there is something between the first and the last."""
    torch.manual_seed(1)
    spec = MODELS[name]
    model = build(replace(spec, layers=spec.layers * 2)).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("kind", ["exit", "skip", "until"])
def test_layers_that_are_compiled_draft_as_well(kind: str) -> None:
    """Where there is a compiler; elsewhere this is the same as above, laid out otherwise."""
    torch.manual_seed(2)
    attention = Attention(n_heads=2, n_kv_heads=1, head_dim=32, rotary_dim=32)
    layer = Layer(mixers=(attention,), ffn=FeedForward(d_ff=128))
    spec = ModelSpec(
        name="m",
        d_model=64,
        vocab_size=64,
        context_len=128,
        layers=(layer,) * 4,
        position=Position(kind="rope"),
    )
    model = build(spec).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.2)
    ids = prompt(8)
    want = alone(model, ids)
    model = optimize(model)
    made = {
        "exit": lambda: SharedExit(model, 2),
        "skip": lambda: DraftModel(without(model, 1, ids), 64),
        "until": lambda: DraftModel(until(model, 2), 64),
    }[kind]
    got, tally = fast(model, ids, made(), most=3)
    assert got == want
    assert tally.n_drafted > 0
    # Turned off in between: the halves of the cache go on together.
    dear = Control(Costs(rows=(1, 2, 8), seconds=(1.0, 1.9, 7.0)))
    got, _ = fast(model, ids, made(), most=3, control=dear)
    assert got == want


def test_an_exit_computes_on_the_targets_own_cache_and_runs_no_layer_twice() -> None:
    model, ids = model_of("grouped"), prompt(3)
    n_layers = len(model.layers)
    seen = [0] * n_layers
    for i, block in enumerate(model.layers):
        block.register_forward_hook(
            lambda _m, args, _o, i=i: seen.__setitem__(i, seen[i] + args[0].shape[1])
        )
    tally = Tally()
    said = list(speculate(model, ids, SharedExit(model, 1), max_tokens=N, most=3, tally=tally))
    # Each token of each pass goes through each layer once: the prompt, and 1 + guesses a pass.
    n_tokens = len(ids) + (tally.n_passes - 1) + tally.n_drafted
    assert seen == [n_tokens] * n_layers
    for block in model.layers:
        block._forward_hooks.clear()
    assert said == alone(model, ids)


@pytest.mark.parametrize("name", ["mamba2", "hybrid", "delta", "rwkv"])
def test_states_go_back_to_before_the_guess(name: str) -> None:
    if name not in MODELS:
        name = next(n for n in MODELS if n.startswith(name))
    model, ids = model_of(name), prompt(4)
    other = model_of(name)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.02 * torch.randn_like(p))
    want = alone(model, ids)
    got, tally = fast(model, ids, DraftModel(other, VOCAB), most=4)
    assert got == want
    assert 0 < tally.n_accepted < tally.n_drafted
    with pytest.raises(InputError, match="layers:N"):
        SharedExit(model, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["random drawn", "random picked", "model", "exit", "lookahead", "lookup"]
)
def test_drawn_text_has_the_law_of_the_target(kind: str) -> None:
    """The second and third token, jointly, against the exact law; penalties included."""
    model, ids = model_of("grouped"), prompt(5, n=6)
    settings = Sampling(temperature=0.6, top_k=4, presence_penalty=0.8)
    law = exact_pairs(model, ids, settings)
    small = without_noise(model)
    counts = dict.fromkeys(law, 0)
    n = 1500
    made = {
        "random drawn": lambda i: Random(VOCAB, i, is_drawn=True),
        "random picked": lambda i: Random(VOCAB, i),
        "model": lambda i: DraftModel(small, VOCAB),
        "exit": lambda i: SharedExit(model, 1),
        "lookahead": lambda i: Lookahead(width=2, n_gram=3, n_verified=2),
        "lookup": lambda i: PromptLookup(),
    }[kind]
    for seed in range(n):
        said, _ = fast(model, ids, made(seed), n=3, most=8, sampling=settings, seed=seed)
        counts[tuple(said[:3])] += 1
    kept = {k: p for k, p in law.items() if p * n >= 5}
    rest = 1 - sum(kept.values())
    found = [counts[k] for k in kept] + [n - sum(counts[k] for k in kept)]
    want = [p * n for p in kept.values()] + [rest * n]
    assert stats.chisquare(found, want).pvalue > 1e-4


def without_noise(model: Decoder) -> Decoder:
    other = model_of("grouped")
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.9)
    return other


@torch.inference_mode()
def exact_pairs(model: Decoder, ids: list[int], s: Sampling) -> dict[tuple[int, ...], float]:
    """The probability of each run of three tokens, by the definition of the settings."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer: dict[tuple[int, ...], float] = {}
        for said, p in found.items():
            row = model(torch.tensor([ids + list(said)]))[0, -1].double()
            row = row - s.presence_penalty * torch.tensor([float(t in said) for t in range(VOCAB)])
            row = row / s.temperature
            row[row < row.topk(s.top_k).values[-1]] = -torch.inf
            for token, chance in enumerate(row.softmax(0).tolist()):
                if chance:
                    longer[(*said, token)] = p * chance
        found = longer
    return found


def test_a_control_that_sees_no_gain_stops_guessing() -> None:
    model, ids = model_of("grouped"), prompt(6)
    dear = Control(Costs(rows=(1, 2, 8), seconds=(1.0, 1.9, 7.0)))
    free = Control(Costs(rows=(1, 2, 8), seconds=(1.0, 1.0, 1.0)))
    want = alone(model, ids, 40)
    got, off = fast(model, ids, Random(VOCAB), n=40, control=dear)
    assert got == want
    got, on = fast(model, ids, Oracle([ids + want]), n=40, control=free)
    assert got == want
    assert off.n_drafted < 12
    assert on.acceptance == 1.0
    assert on.n_passes < 10


def test_what_is_out_of_range_is_said() -> None:
    model = model_of("grouped")
    n = len(model.layers)
    with pytest.raises(InputError, match="from 1 to 64"):
        fast(model, prompt(), PromptLookup(), most=0)
    with pytest.raises(InputError, match=f"after 1 to {n - 1} of {n} layers, got {n}"):
        until(model, n)
    with pytest.raises(InputError, match="first and the last stay"):
        without(model, n - 1, prompt())
    with pytest.raises(InputError, match="width"):
        Lookahead(width=0)
    with pytest.raises(InputError, match="shortest"):
        PromptLookup(longest=2, shortest=3)
    other = model_of("grouped")
    require_same_vocabulary(model, other)
