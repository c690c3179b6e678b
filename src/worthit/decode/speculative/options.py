"""`--draft`: from what is written on a command line to a drafter of a loaded model.

none                 no drafts
lookup               what followed the same tokens before (`lookup`)
MODEL                a smaller model of the same vocabulary (`draft_model`)
layers:N             the model without N of its layers (`shallow`)
exit:N               the model's first N layers (`shallow`)
lookahead            the model's own guesses at its future, in parallel (`lookahead`)
heads:FOLDER         heads that `worthit train-heads` trained (`heads`)
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, get_args

from worthit.errors import InputError

if TYPE_CHECKING:
    from worthit.decode.speculative.control import Control
    from worthit.decode.speculative.drafter import Drafter
    from worthit.decode.tokenizer import Tokenizer
    from worthit.nn.decoder import Decoder

Kind = Literal["none", "lookup", "model", "layers", "exit", "lookahead", "heads"]
# Tokens of a draft where nobody says: up to here verifying costs little on a CPU in bf16.
DEFAULT_TOKENS = 7
# Of a tree of heads.
DEFAULT_NODES = 16


@dataclass(frozen=True)
class DraftChoice:
    """What `--draft` says.

    Attributes:
        value: the number or the name that stands behind the kind; empty for those without.
    """

    kind: Kind
    value: str = ""

    @property
    def n(self) -> int:
        """The number of `layers` and `exit`."""
        return int(self.value)


def parse_draft(text: str) -> DraftChoice:
    """Read the option.

    Raises:
        InputError: something that is none of the forms above.
    """
    head, colon, rest = text.partition(":")
    if text in ("none", "lookup", "lookahead"):
        return DraftChoice(text)  # type: ignore[arg-type]  # the three of them are kinds
    if head in ("layers", "exit") and colon:
        if not rest.isdecimal() or int(rest) < 1:
            raise InputError(f"--draft {head}:N: N must be a whole number from 1, got {rest!r}")
        return DraftChoice(head, rest)  # type: ignore[arg-type]
    if head == "heads" and colon:
        if not rest:
            raise InputError("--draft heads:FOLDER: which folder? `worthit train-heads` writes one")
        return DraftChoice("heads", rest)
    if not text or text in get_args(Kind):
        raise InputError(
            f"--draft: must be none, lookup, lookahead, layers:N, exit:N, heads:FOLDER or a "
            f"model, got {text!r}"
        )
    return DraftChoice("model", text)


def make_drafter(
    choice: DraftChoice,
    target: Decoder,
    *,
    tokenizer: Tokenizer | None = None,
    is_alone: bool = False,
) -> Drafter | None:
    """The drafter, for `target`; None for `none`.

    Args:
        tokenizer: the target's, whose ids a draft model must share.
        is_alone: for the loop of one sequence, in which an exit computes on the target's cache.

    Raises:
        InputError: it does not fit this model.
    """
    from worthit.decode.speculative.draft_model import DraftModel
    from worthit.decode.speculative.lookahead import Lookahead
    from worthit.decode.speculative.lookup import PromptLookup

    vocab = target.spec.vocab_size
    if choice.kind == "none":
        return None
    if choice.kind == "lookup":
        return PromptLookup()
    if choice.kind == "lookahead":
        return Lookahead()
    if choice.kind == "heads":
        # By name: heads are a subject of their own, which look-up and the like do without.
        heads = import_module("worthit.decode.speculative.heads")
        drafter: Drafter = heads.load_drafter(choice.value, target)
        return drafter
    if choice.kind == "model":
        return DraftModel(_loaded(choice.value, target, tokenizer), vocab)
    from worthit.decode.speculative.shallow import CALIBRATION, SharedExit, until, without

    if choice.kind == "exit":
        if is_alone:
            return SharedExit(target, choice.n)
        return DraftModel(until(target, choice.n), vocab, name="exit")
    ids = list(range(min(64, vocab))) if tokenizer is None else tokenizer.encode(CALIBRATION)
    return DraftModel(without(target, choice.n, ids), vocab, name="layers")


def n_draft_tokens(drafter: Drafter, wanted: int | None) -> int:
    """Tokens of a draft: what is wanted, or what suits the drafter."""
    from worthit.decode.speculative.lookahead import Lookahead

    if wanted is not None:
        return wanted
    if isinstance(drafter, Lookahead):
        return drafter.n_nodes
    return DEFAULT_NODES if drafter.has_trees else DEFAULT_TOKENS


def make_control(drafter: Drafter, target: Decoder, most: int) -> Control:
    """Decides how much to guess, by what verifying costs `target` here: for the loop."""
    from worthit.decode.speculative.control import Control
    from worthit.decode.speculative.costs import costs_of_model

    return Control(costs_of_model(target), fixed=most if drafter.has_trees else None)


def _loaded(name: str, target: Decoder, tokenizer: Tokenizer | None) -> Decoder:
    from worthit.decode.speculative.draft_model import require_same_vocabulary
    from worthit.decode.tokenizer import load_tokenizer
    from worthit.nn.inference import optimize
    from worthit.nn.load import checkpoint_path, load_model, packing_pays

    path = checkpoint_path(name)
    if tokenizer is not None:
        theirs = load_tokenizer(path)
        sample = "def f(x):\n    return 3 * x  # naïve façade, 你好, 12345"
        if theirs.encode(sample) != tokenizer.encode(sample):
            raise InputError(
                f"--draft {name}: its tokenizer gives other ids than the target's; a draft model "
                "must share the vocabulary"
            )
    draft = load_model(path, packed=packing_pays(path))
    require_same_vocabulary(target, draft)
    optimize(draft)
    return draft
