"""An exit: what the target would say next, guessed from the stream after one of its early layers.

Elhoushi et al. 2024, "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding",
arXiv:2404.16710, section 3: the first layers draft, the rest verify. A model that was not trained
for it says nothing sensible there; a block in front of its own head is (Bae et al. 2023, "FREE",
arXiv:2310.05424, in kind), which takes minutes and leaves the model alone.

    softmax(head(norm(x_E + W2 SiLU(W1 rms(x_E)))))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worthit.decode.speculative.draft_model import DraftModel
from worthit.decode.speculative.heads import Heads, HeadsConfig, rms_normed
from worthit.decode.speculative.shallow import until
from worthit.nn.decoder import Decoder
from worthit.nn.norm import norm_for


class ExitHead(Heads):
    """A residual block and a norm between layer `taps[0]` and rows of the output head."""

    def __init__(self, config: HeadsConfig, model: Decoder) -> None:
        d = model.spec.d_model
        super().__init__(config, d)
        hidden = config.shape.get("hidden", 4 * d)
        self.wide = nn.Linear(d, hidden, bias=False)
        self.narrow = nn.Linear(hidden, d, bias=False)
        self.norm = norm_for(model.spec.norm, d)
        nn.init.zeros_(self.narrow.weight)
        if model.final_norm is not None:
            self.norm.load_state_dict(model.final_norm.state_dict())

    @property
    def layer(self) -> int:
        """After which layer it reads."""
        return self.config.taps[0]

    def forward(self, stream: Tensor) -> Tensor:
        """Logits over the draft vocabulary, of the stream `(..., d_model)`."""
        inner = functional.silu(self.wide(rms_normed(stream)))
        return self.read(self.norm(stream + self.narrow(inner)))


def exit_drafter(heads: ExitHead, model: Decoder) -> DraftModel:
    """The first layers of `model` with `heads` at their end, as a model that drafts."""
    view = until(model, heads.layer + 1)
    vocab_size = model.spec.vocab_size

    def logits(x: Tensor) -> Tensor:
        said = heads(x)
        # What the heads do not know is never drafted.
        wide = said.new_full((*said.shape[:-1], vocab_size), -torch.inf)
        return wide.index_copy_(-1, heads.ids, said)

    view.logits = logits  # type: ignore[method-assign]  # the only thing in which it differs
    return DraftModel(view, vocab_size, name="exit")
