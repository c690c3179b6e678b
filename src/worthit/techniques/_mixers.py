"""Swap softmax attention for a recurrent mixer and back, at equal parameters.

Two models compare fairly when they hold the same number of parameters, and a recurrent mixer is
seldom as large as the attention it replaces. Each step below says what it moves to stay equal: the
heads of the new mixer, the number of blocks, or the width of the dense feed-forward beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from worthit.cost.params import count_layer, mixer_params
from worthit.errors import NotApplicable
from worthit.spec.case import Case
from worthit.spec.model import (
    S4,
    Attention,
    ChannelMix,
    FeedForward,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mamba2,
    Mixer,
    ModelSpec,
    Position,
    Rwkv,
)
from worthit.techniques._change import with_model

Softmax = Attention | LatentAttention
Recurrent = LinearAttention | Mamba | Mamba2 | Rwkv | S4

# Matrix units and vector lanes want widths that 8 divides; published widths are such multiples.
WIDTH_MULTIPLE = 8
# Below this width a multiple of 8 would be a coarse step.
SMALL_WIDTH = 64
# Heads that share one key/value head in the attention that replaces a recurrent mixer, as in
# today's dense models (Llama 3, Qwen 3), where enough heads are left to group.
USUAL_GROUP = 4
USUAL_MIN_HEADS = 8


def rounded(width: float) -> int:
    """`width` to the nearest multiple of 8, or to the nearest integer when it is small."""
    if width < SMALL_WIDTH:
        return max(1, round(width))
    return WIDTH_MULTIPLE * round(width / WIDTH_MULTIPLE)


def softmax_mixers(case: Case) -> tuple[Softmax, ...]:
    """The different softmax attentions of the model, latent ones included."""
    return tuple(m for m in case.model.mixers if isinstance(m, Softmax))


def has_mixer(case: Case, *kinds: type) -> bool:
    """Whether some layer has a mixer of one of `kinds`."""
    return any(isinstance(m, kinds) for m in case.model.mixers)


def layer_names(model: ModelSpec) -> str:
    """The model's kinds of layer, for messages."""
    return ", ".join(dict.fromkeys(layer.kind for layer, _ in model.layer_kinds))


def require_softmax(case: Case, name: str) -> tuple[Softmax, ...]:
    """The model's softmax attentions, or `NotApplicable` when it has none."""
    found = softmax_mixers(case)
    if not found:
        raise NotApplicable(
            f"{name} acts on softmax attention, and this model has none: its layers are "
            f"{layer_names(case.model)}"
        )
    return found


def require_heads(case: Case, name: str, latent: str) -> tuple[Attention, ...]:
    """The model's attentions with heads of their own, or `NotApplicable`.

    `latent` is what to say where keys and values come from one cached latent vector.
    """
    found = tuple(m for m in require_softmax(case, name) if isinstance(m, Attention))
    if not found:
        raise NotApplicable(f"{name} has nothing to act on in latent attention: {latent}")
    return found


def require_absent(present: bool, name: str, how: str) -> None:
    """Raise `NotApplicable` when the case has the technique already; `how` says in which form."""
    if present:
        raise NotApplicable(f"{name} is in place already: {how}")


def map_softmax(case: Case, change: Callable[[Softmax], Mixer]) -> Case:
    """`case` with `change` applied to every softmax attention; other mixers stay."""
    return with_model(
        case, case.model.map_mixers(lambda m: change(m) if isinstance(m, Softmax) else m)
    )


def regroup(case: Case, change: Callable[[int, tuple[Layer, ...]], tuple[Layer, ...]]) -> Case:
    """`case` with each layer replaced by zero or more; exits follow the layers that they stand on.

    `change(index, layers)` is given the whole stack, so that it can look at the neighbours.
    """
    model = case.model
    groups = [change(index, model.layers) for index in range(model.n_layers)]
    # Equal layers share one object again, so that everything downstream works once per kind.
    shared: dict[Layer, Layer] = {}
    layers = tuple(shared.setdefault(layer, layer) for group in groups for layer in group)
    exits = model.early_exit
    if exits is not None:
        ends = [sum(len(g) for g in groups[: i + 1]) for i in range(len(groups))]
        exits = replace(exits, layers=tuple(max(0, ends[i] - 1) for i in exits.layers))
    return with_model(case, replace(model, layers=layers, early_exit=exits))


def with_ffn_of_equal_size(layer: Layer, mixers: tuple[Mixer, ...], d_model: int) -> Layer:
    """`layer` with other `mixers`; its dense feed-forward widens or narrows to stay equal.

    RWKV's channel mixing becomes a gated feed-forward. A mixture of experts keeps its size: next to
    it a mixer is small.
    """
    ffn = FeedForward(d_ff=layer.ffn.d_ff) if isinstance(layer.ffn, ChannelMix) else layer.ffn
    changed = replace(layer, mixers=mixers, ffn=ffn)
    return _grown(changed, layer, changed, d_model)


def _grown(layer: Layer, was: Layer, now: Layer, d_model: int) -> Layer:
    """`layer` with its dense feed-forward wider by what `now` has fewer parameters than `was`."""
    ffn = layer.ffn
    if not isinstance(ffn, FeedForward):
        return layer
    missing = count_layer(was, d_model).total - count_layer(now, d_model).total
    n_matrices = 3 if ffn.is_gated else 2
    d_ff = max(rounded(ffn.d_ff + missing / (n_matrices * d_model)), WIDTH_MULTIPLE)
    return replace(layer, ffn=replace(ffn, d_ff=d_ff))


def usual_attention(model: ModelSpec) -> Softmax:
    """The attention to put where a recurrent mixer stood.

    The model's own where it has some (full rather than local); otherwise grouped-query heads that
    span `d_model`, of 128 channels in wide models and 64 or less in narrow ones.
    """
    own = [m for m in model.mixers if isinstance(m, Softmax)]
    if own:
        return next((m for m in own if isinstance(m, LatentAttention) or m.reach is None), own[0])
    d_model = model.d_model
    widths = (128, 64, 32, 16, 8) if d_model >= 2048 else (64, 32, 16, 8)
    head_dim = next((w for w in widths if d_model % w == 0 and d_model > w), d_model)
    n_heads = d_model // head_dim
    is_grouped = n_heads >= USUAL_MIN_HEADS and n_heads % USUAL_GROUP == 0
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_heads // USUAL_GROUP if is_grouped else n_heads,
        head_dim=head_dim,
        # A model without attention gets rotary positions.
        rotary_dim=head_dim if model.position.kind in ("rope", "nope") else None,
    )


def to_attention(case: Case, is_target: Callable[[Mixer], bool]) -> Case:
    """`case` with attention in place of every mixer that `is_target` names, parameters equal.

    Two bare blocks in a row (Mamba) become one layer of attention and gated feed-forward; elsewhere
    the mixer alone is swapped and the dense feed-forward beside it, or in the layer after it
    (Nemotron-H), takes up the difference. Beside a parallel attention (Falcon-H1) the mixer is only
    left out. A model that had no attention and no positions gets rotary ones.
    """
    model = case.model
    attention = usual_attention(model)
    d = model.d_model

    def is_bare(layer: Layer) -> bool:
        return layer.ffn is None and len(layer.mixers) == 1 and is_target(layer.mixers[0])

    # Pairs are counted from the start of each run of bare blocks.
    run, place = 0, []
    for layer in model.layers:
        run = run + 1 if is_bare(layer) else 0
        place.append(run)

    def change(index: int, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        layer = layers[index]
        if not layer.mixers and place[index - 1] % 2 == 1 and index > 0:
            before = layers[index - 1]
            return (_grown(layer, before, replace(before, mixers=(attention,)), d),)
        if not any(is_target(m) for m in layer.mixers):
            return (layer,)
        follows = index + 1 < len(layers) and is_bare(layers[index + 1])
        if is_bare(layer) and place[index] % 2 == 1 and follows:
            return ()
        if is_bare(layer) and place[index] % 2 == 0:
            budget = sum(count_layer(x, d).total for x in layers[index - 1 : index + 1])
            block = replace(layer, mixers=(attention,), ffn=FeedForward(d_ff=WIDTH_MULTIPLE))
            spare = budget - count_layer(block, d).total
            d_ff = max(rounded(WIDTH_MULTIPLE + spare / (3 * d)), WIDTH_MULTIPLE)
            return (replace(block, ffn=FeedForward(d_ff=d_ff)),)
        kept = tuple(m for m in layer.mixers if not is_target(m))
        mixers = kept if any(isinstance(m, Softmax) for m in kept) else (*kept, attention)
        return (with_ffn_of_equal_size(layer, mixers, d),)

    changed = regroup(case, change)
    if not softmax_mixers(case) and model.position.kind == "nope":
        return with_model(changed, replace(changed.model, position=Position()))
    return changed


def to_blocks(case: Case, make: Callable[[float], Mixer]) -> Case:
    """`case` with bare recurrent blocks in place of attention and dense feed-forward.

    `make(width)` builds the mixer of about that inner width. A layer of attention and dense
    feed-forward becomes as many blocks, each a norm and a mixer, as come nearest to its parameters
    at width `2 * d_model`, and the width then moves to meet them (Gu & Dao 2023, section 3.4, put
    two blocks for one such layer). Beside a mixture of experts or another mixer, or where no
    feed-forward stands in the layer, the mixer alone is swapped at width `2 * d_model`.
    """
    d = case.model.d_model

    def change(index: int, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        layer = layers[index]
        if not any(isinstance(m, Softmax) for m in layer.mixers):
            return (layer,)
        wide = make(2.0 * d)
        if len(layer.mixers) > 1 or not isinstance(layer.ffn, FeedForward):
            kept = tuple(m for m in layer.mixers if not isinstance(m, Softmax))
            return (with_ffn_of_equal_size(layer, (*kept, wide), d),)
        bare = replace(
            layer,
            mixers=(wide,),
            ffn=None,
            is_parallel=False,
            has_one_norm=False,
            n_extra_params=0,
        )
        budget = count_layer(layer, d).total
        n_blocks = max(1, round(budget / count_layer(bare, d).total))
        around = count_layer(bare, d).total - mixer_params(wide, d)
        # Parameters of these mixers grow with their width, but for a small constant.
        width = 2.0 * d * (budget / n_blocks - around) / mixer_params(wide, d)
        return (replace(bare, mixers=(make(width),)),) * n_blocks

    return regroup(case, change)


def linear_heads(
    old: Softmax, d_model: int, build: Callable[[int, int], LinearAttention]
) -> LinearAttention:
    """`build(n_heads, head_dim)` with the heads that come nearest to the parameters of `old`."""
    head_dim = old.head_dim if isinstance(old, Attention) else old.v_head_dim
    per_head = mixer_params(build(2, head_dim), d_model) - mixer_params(build(1, head_dim), d_model)
    n_heads = max(1, round(mixer_params(old, d_model) / per_head))
    return build(n_heads, head_dim)
