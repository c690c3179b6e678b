"""Patching and circuits: against a loop, in the limits, and on circuits that were planted."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close

from worthit.errors import InputError
from worthit.interp.circuit import (
    acdc,
    best_edges,
    contrast,
    edge_attribution,
    edge_effects,
    faithfulness,
)
from worthit.interp.graph import Graph
from worthit.interp.hooks import capture, intervene
from worthit.interp.patch import attribute, logit_difference, patch
from worthit.lab import models
from worthit.nn import build
from worthit.spec.load import load_preset


def model_of(seed: int = 0, std: float = 0.3, **changes):
    torch.manual_seed(seed)
    spec = models.decoder(24, n_layers=2, vocab_size=30, mixers=models.attention(24, 8), **changes)
    model = build(spec).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.normal_(std=std)
    return model


def prompts(n: int = 3, length: int = 6):
    g = torch.Generator().manual_seed(1)
    clean, corrupt = (torch.randint(30, (n, length), generator=g) for _ in range(2))
    corrupt[:, 3:] = clean[:, 3:]
    return clean, corrupt, logit_difference([1] * n, [2] * n)


@pytest.mark.parametrize("kind", ["denoising", "noising"])
def test_as_a_loop_over_positions_and_heads(kind: str) -> None:
    model = model_of()
    clean, corrupt, metric = prompts()
    base, other = (corrupt, clean) if kind == "denoising" else (clean, corrupt)
    found = patch(
        model, clean, corrupt, metric, ["layers.0.heads", "layers.1.resid_pre"], kind=kind, batch=7
    )
    with torch.no_grad():
        with capture(model, ["layers.0.heads", "layers.1.resid_pre"]) as seen:
            end = metric(model(other))
        start = metric(model(base))
        for position, head in itertools.product(
            range(6), range(found.effects["layers.0.heads"].shape[1])
        ):

            def put(value, position=position, head=head):
                value = value.clone()
                value[:, position, head] = seen["layers.0.heads"][:, position, head]
                return value

            with intervene(model, {"layers.0.heads": put}):
                share = ((metric(model(base)) - start) / (end - start)).mean()
            assert_close(
                found.effects["layers.0.heads"][position, head], share, atol=1e-5, rtol=1e-4
            )
    # The stream at all positions at once is the other run; at 3 and later only what was mixed in.
    assert found.n_passes == 2 + 6 * found.effects["layers.0.heads"].shape[1] + 6


def test_the_stream_at_the_last_token_of_the_last_layer_is_everything() -> None:
    model = model_of()
    clean, corrupt, metric = prompts()
    found = patch(model, clean, corrupt, metric, "layers.1.resid_post")
    assert_close(
        found.effects["layers.1.resid_post"], torch.tensor([0.0, 0, 0, 0, 0, 1]), atol=1e-5, rtol=0
    )
    assert found.strongest(1) == [("layers.1.resid_post", (5,), pytest.approx(1, abs=1e-4))]


def test_attribution_is_exact_where_the_metric_is_linear() -> None:
    # No norm after the last layer, no head of its own: logits are linear in the last stream.
    model = model_of(has_final_norm=False)
    clean, corrupt, metric = prompts()
    names = ["layers.1.ffn_out", "layers.1.resid_post"]
    exact, estimated = (f(model, clean, corrupt, metric, names) for f in (patch, attribute))
    for name in names:
        assert_close(estimated.effects[name], exact.effects[name], atol=1e-4, rtol=1e-3)
    assert estimated.n_passes == 3
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_attribution_ranks_as_patching_does_before_nonlinear_parts() -> None:
    model = model_of(std=0.1)
    clean, corrupt, metric = prompts()
    exact, estimated = (
        f(model, clean, corrupt, metric, ["layers.0.mixer_out", "layers.1.mixer_out"])
        for f in (patch, attribute)
    )
    a, b = (torch.cat([e.flatten() for e in r.effects.values()]) for r in (exact, estimated))
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.7


def test_prompts_that_do_not_fit_are_refused() -> None:
    model = model_of()
    clean, corrupt, metric = prompts()
    with pytest.raises(InputError, match="as long, token by token"):
        patch(model, clean, corrupt[:, :-1], metric, "embed")
    with pytest.raises(InputError, match="nothing to explain"):
        patch(model, clean, clean, metric, "embed")


# --- the graph -------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["decoder", "grouped", "grammar-tutor"])
def test_unpatched_the_graph_is_the_model(preset: str) -> None:
    torch.manual_seed(0)
    if preset == "grammar-tutor":
        model = build(load_preset(preset)).eval()
    elif preset == "grouped":
        mixer = models.attention(32, 8, n_kv_heads=2)
        model = build(models.decoder(32, mixers=mixer, vocab_size=30)).eval()
    else:
        model = model_of()
    ids = torch.randint(30, (2, 7))
    logits, sent = Graph(model).run(ids)
    assert_close(logits, model(ids), atol=1e-4, rtol=1e-4)
    with capture(model, "layers.0.mixer_out") as seen:
        model(ids)
    heads = sum(v for k, v in sent.items() if k.startswith("layers.0.head"))
    bias = model.layers[0].mixers[0].o_proj.bias
    assert_close(
        heads + (0 if bias is None else bias), seen["layers.0.mixer_out"], atol=1e-4, rtol=1e-4
    )


def test_all_edges_patched_is_the_other_run() -> None:
    model = model_of()
    clean, corrupt, metric = prompts()
    graph = Graph(model)
    c = contrast(graph, clean, corrupt, metric)
    assert c.share(()) == pytest.approx(1, abs=1e-4)
    assert c.share(graph.edges) == pytest.approx(0, abs=1e-4)
    assert faithfulness(c, graph.edges) == pytest.approx(1, abs=1e-4)
    n_heads = model.layers[0].mixers[0].spec.n_heads
    # By hand: q, k and v of each head and a feed-forward hear all before; the head all.
    first, second = 1, 1 + n_heads + 1
    assert len(graph.edges) == (
        3 * n_heads * first
        + (first + n_heads)
        + 3 * n_heads * second
        + (second + n_heads)
        + 2 * n_heads
        + 3
    )


def test_an_edge_into_the_logits_is_a_path_by_hand() -> None:
    model = model_of()
    clean, corrupt, metric = prompts()
    graph = Graph(model)
    c = contrast(graph, clean, corrupt, metric)
    names = ["layers.1.resid_post", "layers.0.ffn_out"]
    with torch.no_grad(), capture(model, names) as now:
        model(clean)
    with torch.no_grad(), capture(model, names) as then:
        model(corrupt)
    # The feed-forward's word to the output alone, everything between as it was.
    x = now["layers.1.resid_post"] + then["layers.0.ffn_out"] - now["layers.0.ffn_out"]
    want = float(metric(model.logits(x)).detach().mean())
    assert c.value([("layers.0.ffn", "logits")]) == pytest.approx(want, abs=1e-4)


def test_edge_attribution_is_the_derivative_of_patching() -> None:
    model = model_of()
    clean, corrupt, metric = prompts()
    graph = Graph(model)
    c = contrast(graph, clean, corrupt, metric)
    scores = edge_attribution(c)
    assert set(scores) == set(graph.edges)
    # A small step along (other - sent), by finite differences, in double precision.
    double = Graph(model.double())
    exact = contrast(double, clean, corrupt, metric)
    with torch.no_grad():
        _, sent = double.run(clean)
    for edge in [
        ("embed", "layers.0.v.1"),
        ("layers.0.head.0", "layers.1.k.0"),
        ("embed", "logits"),
    ]:
        ends = []
        for step in (-1e-2, 1e-2):
            near = {name: v + step * (exact.other[name] - v) for name, v in sent.items()}
            with torch.no_grad():
                logits, _ = double.run(clean, patched=[edge], other=near)
            ends.append(float(metric(logits).mean()))
        slope = (ends[0] - ends[1]) / 2e-2 / (exact.top - exact.bottom)
        assert scores[edge] == pytest.approx(slope, rel=2e-2, abs=1e-4)


def planted():
    """One layer, two heads: head 0 alone reads the first token's colour; the rest is silent."""
    mixer = models.attention(16, 8)
    spec = models.decoder(
        16,
        n_layers=1,
        mixers=mixer,
        has_ffn=False,
        vocab_size=16,
        position="nope",
        has_final_norm=False,
        has_tied_embeddings=False,
    )
    model = build(spec).eval()
    attention = model.layers[0].mixers[0]
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.zero_()
        model.embedding.weight.copy_(torch.eye(16))
        attention.v_proj.weight[:8, :8] = torch.eye(8)  # head 0 carries the first half
        attention.o_proj.weight[8:, :8] = torch.eye(8)  # into the second
        model.head.weight[:8, 8:] = torch.eye(8)  # where the output reads it
    return model


def test_a_planted_circuit_is_found_and_nothing_else() -> None:
    graph = Graph(planted())
    clean, corrupt = torch.tensor([[1, 9, 9]]), torch.tensor([[2, 9, 9]])
    c = contrast(graph, clean, corrupt, logit_difference([1], [2]))
    truth = {("embed", "layers.0.v.0"), ("layers.0.head.0", "logits")}
    assert acdc(c, threshold=0.01) == truth
    assert best_edges(edge_attribution(c), 2) == truth
    assert best_edges(edge_effects(c), 2) == truth
    assert faithfulness(c, truth) == pytest.approx(1, abs=1e-5)
    assert faithfulness(c, {("embed", "logits")}) == pytest.approx(0, abs=1e-5)


def test_models_that_are_no_sums_are_refused() -> None:
    with pytest.raises(InputError, match="layer 0: only blocks with norms before"):
        Graph(build(models.decoder(16, placement="post")))


def test_places_where_both_runs_are_the_same_are_not_run() -> None:
    model = model_of()
    clean, corrupt = torch.tensor([[3, 5, 7, 9, 2]]), torch.tensor([[3, 5, 8, 9, 2]])
    metric = logit_difference([1], [2])
    found = patch(model, clean, corrupt, metric, ["embed", "layers.0.heads"])
    n_heads = model.layers[0].mixers[0].spec.n_heads
    # The embedding differs in one place, heads from there on.
    assert found.n_passes == 2 + 1 + 3 * n_heads
    assert found.effects["embed"].tolist() == [0, 0, pytest.approx(1, abs=1e-4), 0, 0]
    assert found.effects["layers.0.heads"][:2].abs().max() == 0
    assert (found.effects["layers.0.heads"][2:] != 0).all()
