"""Drafting from features, token by token: chains for many sequences at once, or a tree for one.

Li et al. 2024, "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees",
arXiv:2406.16858, section 4; the module that says what follows is a `FeatureHead`, EAGLE's (`eagle`)
or the one of a checkpoint (`mtp`).

| paper | here |
|---|---|
| expand: the k likeliest nodes of the last layer, by path (4.1) | `TreeShape.width` |
| rerank: the m likeliest of all nodes (4.2) | `reranked`; of two as likely the shallower |
| confidence score, value V_i | the head's own odds; of a path, their product |
| (none) | `floor`: no deeper than where the likeliest path falls below it |

A sequence's cache holds keys and values of true features alone. What a draft adds is taken back at
its end, and the target's features of the accepted tokens come in before the next one: left in, they
would cost the later drafts their aim (vLLM lost 8 to 15 % of the accepted length so). Tokens whose
features nobody computed, because a prefix cache knew them, are not seen; the draft is then poorer,
what is said the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from worthit.decode.speculative.drafter import NOTHING, Asked, Plain, Verified
from worthit.decode.speculative.eagle import FeatureHead
from worthit.decode.speculative.tree import ROOT, Tree
from worthit.errors import InputError
from worthit.nn.ragged import Ragged
from worthit.nn.tokens import Tokens

# A path that is less likely by the head's own odds is not worth a step of the drafter and a row of
# the target: about what both cost beside a pass.
FLOOR = 0.15


@dataclass(frozen=True)
class TreeShape:
    """How a tree grows: `width` nodes a level go on, to at most `depth` levels."""

    depth: int = 4
    width: int = 3

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1:
            raise InputError(f"a tree has a depth and a width of 1 or more, got {self}")


@dataclass
class Track:
    """What a drafter keeps of one sequence.

    Attributes:
        cache: of the head's layer.
        first: the place of the first pair (feature of i, token i + 1) that it has seen.
        n_pairs: pairs in the cache.
        waiting: features and the tokens after them that are yet to be read.
        output: `(1, 1, d_model)`, the layer's, of the last pair; None before it is read.
    """

    cache: Any
    first: int = 0
    n_pairs: int = 0
    waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    output: Tensor | None = None

    @property
    def end(self) -> int:
        """The place of the first token whose feature is not known."""
        return self.first + self.n_pairs + sum(len(ids) for _, ids in self.waiting)


class FeatureDrafter(Plain):
    """A `FeatureHead` at work.

    Args:
        shape: draft trees of this shape; None for chains.
        floor: where a path's odds fall below, it is not drafted on.
    """

    def __init__(
        self,
        head: FeatureHead,
        *,
        shape: TreeShape | None = None,
        floor: float = FLOOR,
        name: str = "eagle",
    ) -> None:
        self.head, self.shape, self.floor, self.name = head, shape, floor, name
        self.taps = head.config.taps
        self.has_trees = shape is not None

    def observe(self, one: Asked, verified: Verified) -> None:
        """Note the true features of what was computed; they are read when a draft is asked for."""
        assert verified.features is not None, "it has taps"
        track: Track | None = one.state
        # Compiled layers give out fp32, whatever the model is stored in.
        start, features = verified.start, verified.features.to(self.head.target.dtype)
        if track is None or start > track.end:
            track = one.state = Track(self.head.layer.block.new_caches(), first=start)
        n_known = track.end - start
        if n_known >= verified.n:
            return
        end = start + verified.n
        following = one.ids[track.end + 1 : end + 1]
        ids = torch.tensor(following, device=features.device)
        track.waiting.append((features[n_known : n_known + len(ids)], ids))

    @torch.inference_mode()
    def propose(self, asked: Sequence[Asked]) -> list[Tree]:
        """Chains for all that have features up to their last token, or trees."""
        ready = [
            i
            for i, one in enumerate(asked)
            if one.most > 0 and one.state is not None and one.state.end == len(one.ids) - 1
        ]
        tracks: list[Track] = [asked[i].state for i in ready]
        if not tracks:
            return [NOTHING for _ in asked]
        self.read(tracks)
        most = [asked[i].most for i in ready]
        if self.shape is None:
            found = [Tree.chain(tokens) for tokens, _ in self.chains(tracks, most)]
        else:
            found = [self.tree(track, n, self.shape) for track, n in zip(tracks, most, strict=True)]
        trees = [NOTHING for _ in asked]
        for i, tree in zip(ready, found, strict=True):
            trees[i] = tree
        return trees

    def read(self, tracks: Sequence[Track]) -> None:
        """Read what waits, of all sequences in one pass."""
        new = [track for track in tracks if track.waiting]
        if not new:
            return
        counts = [sum(len(ids) for _, ids in track.waiting) for track in new]
        features = torch.cat([f for track in new for f, _ in track.waiting])
        ids = torch.cat([i for track in new for _, i in track.waiting])
        outputs = self._step(self.head.fused(features[None]), ids[None], new, counts)
        at = 0
        for track, n in zip(new, counts, strict=True):
            at += n
            track.output = outputs[:, at - 1 : at]
            track.n_pairs += n
            track.waiting.clear()

    def chains(
        self, tracks: Sequence[Track], most: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        """For each sequence at most so many likeliest tokens in a row, and their paths' odds.

        The first is always drafted.
        """
        found: list[tuple[list[int], list[float]]] = [([], []) for _ in tracks]
        active = list(range(len(tracks)))
        output = torch.cat([_output(track) for track in tracks], dim=1)  # (1, n, d_model)
        n_steps = 0
        while active:
            best = self.head.logits(output[0]).float().softmax(dim=-1).max(dim=-1)
            tokens, odds = self.head.ids[best.indices], best.values.tolist()
            going = []
            for row, (i, token) in enumerate(zip(active, tokens.tolist(), strict=True)):
                said, paths = found[i]
                path = odds[row] * (paths[-1] if paths else 1.0)
                if said and path < self.floor:
                    continue
                said.append(token)
                paths.append(path)
                if len(said) < most[i]:
                    going.append(row)
            self._stop([tracks[i] for i in set(active) - {active[row] for row in going}], n_steps)
            active = [active[row] for row in going]
            if active:
                own = [tracks[i] for i in active]
                output = self._step(output[:, going], tokens[going][None], own, ahead=n_steps)
                n_steps += 1
        return found

    def tree(self, track: Track, n_tokens: int, shape: TreeShape) -> Tree:
        """The `n_tokens` likeliest nodes of a tree that grew as `shape` says."""
        least = math.log(self.floor) if self.floor > 0 else -math.inf
        nodes: list[Node] = []
        frontier: list[int] = [ROOT]
        grown: list[int] = []
        output = _output(track)
        for level in range(1, shape.depth + 1):
            logps = self.head.logits(output[0]).float().log_softmax(dim=-1)
            best = logps.topk(min(shape.width, logps.shape[-1]), dim=-1)
            values, tokens = best.values.tolist(), self.head.ids[best.indices].tolist()
            first = len(nodes)
            for row, parent in enumerate(frontier):
                path = 0.0 if parent == ROOT else nodes[parent].path
                for value, token in zip(values[row], tokens[row], strict=True):
                    nodes.append(Node(path + value, level, token, parent, row))
            likeliest = sorted(range(first, len(nodes)), key=lambda i: -nodes[i].path)
            frontier = [i for i in likeliest[: shape.width] if nodes[i].path >= least]
            if level == shape.depth or not frontier:
                break
            output = self._grow(track, output, frontier, grown, nodes)
            grown += frontier
        self._stop([track], len(grown))
        return reranked(nodes, n_tokens, least)

    def _grow(
        self,
        track: Track,
        output: Tensor,
        frontier: list[int],
        grown: list[int],
        nodes: list[Node],
    ) -> Tensor:
        """The chosen nodes of a level through the layer, each seeing its ancestors alone."""
        slots = {node: slot for slot, node in enumerate([*grown, *frontier])}
        among = torch.zeros(len(frontier), len(slots), dtype=torch.bool)
        for row, node in enumerate(frontier):
            while node != ROOT:
                among[row, slots[node]] = True
                node = nodes[node].parent
        device = output.device
        # The pair of a node of depth 1 follows the last true one.
        end = track.first + track.n_pairs
        places = torch.tensor([end - 1 + nodes[i].depth for i in slots], device=device)
        tokens = Tokens(
            n=len(frontier),
            past=track.n_pairs + len(grown),
            positions=places[None, len(grown) :],
            slot_positions=torch.cat([torch.arange(track.first, end, device=device), places])[None],
            among=among.to(device),
        )
        ids = torch.tensor([[nodes[i].token for i in frontier]], device=device)
        features = output[:, [nodes[i].row for i in frontier]]
        return self._through(features, ids, tokens, track.cache)

    def _step(
        self,
        features: Tensor,
        ids: Tensor,
        tracks: Sequence[Track],
        counts: Sequence[int] | None = None,
        *,
        ahead: int = 0,
    ) -> Tensor:
        """Some tokens of each sequence through the layer, side by side; one each without counts.

        Args:
            ahead: drafted pairs that stand in the caches.
        """
        counts = [1] * len(tracks) if counts is None else counts
        parts, start = [], 0
        for track, n in zip(tracks, counts, strict=True):
            past = track.n_pairs + ahead
            places = torch.arange(past, past + n, device=ids.device) + track.first
            part = Tokens(n=n, past=past, positions=places[None], start=start)
            if track.first:
                # Slots begin where the cache does.
                slots = torch.arange(past + n, device=ids.device)
                part.slot_positions = (slots + track.first)[None]
            parts.append(part)
            start += n
        if len(parts) == 1:
            return self._through(features, ids, parts[0], tracks[0].cache)
        positions = torch.cat([part.positions for part in parts], dim=1)
        tokens = Tokens(n=start, past=0, positions=positions, parts=parts)
        caches = [Ragged(each) for each in zip(*(t.cache for t in tracks), strict=True)]
        return self._through(features, ids, tokens, caches)

    def _through(self, features: Tensor, ids: Tensor, tokens: Tokens, caches: Any) -> Tensor:
        target = self.head.target
        for described in (tokens, *(tokens.parts or ())):
            described.relative_bias, described.low_rank = target.relative_bias, target.low_rank
        y: Tensor = self.head.layer(self.head.embedded(ids), features, tokens, caches)
        return y

    def _stop(self, tracks: Sequence[Track], n_drafted: int) -> None:
        """Take back what a draft put into the caches."""
        for track in tracks if n_drafted else ():
            for cache in track.cache:
                cache.take_back(n_drafted)


def _output(track: Track) -> Tensor:
    if track.output is None:
        raise InputError("nothing to draft from: the drafter has seen no features")
    return track.output


@dataclass(frozen=True)
class Node:
    """A candidate: its path's log-odds, where it stands, and its parent's row in the last pass."""

    path: float
    depth: int
    token: int
    parent: int
    row: int


def reranked(nodes: Sequence[Node], n_tokens: int, least: float = -math.inf) -> Tree:
    """The likeliest of all nodes, parents before children; the likeliest one in any case.

    A node's path is never likelier than its parent's, and the parent is the shallower of two that
    are as likely: what is kept is connected.
    """
    order = sorted(range(len(nodes)), key=lambda i: (-nodes[i].path, nodes[i].depth, i))
    kept = [i for i in order[:n_tokens] if nodes[i].path >= least] or order[:1]
    kept.sort(key=lambda i: (nodes[i].depth, -nodes[i].path, i))
    number = {ROOT: ROOT} | {node: i for i, node in enumerate(kept)}
    tokens = tuple(nodes[i].token for i in kept)
    return Tree(tokens, tuple(number[nodes[i].parent] for i in kept))
