"""The draft-and-verify loop of the experiment: the text is the target's, whatever drafts say."""

from __future__ import annotations

import pytest

from worthit.decode.generate import tokens_of
from worthit.lab.experiment import Budget
from worthit.lab.experiments.speculative_decoding import answer, questions
from worthit.lab.models import tutor
from worthit.lab.tasks.grammar_tutor import END
from worthit.train import seeded

SMALL = Budget(n_seeds=1, sizes={"d_model": 64})


def plain(prompt: list[int]) -> list[int]:
    """Greedy decoding by `worthit.decode`, up to `END` or the end of the context."""
    model = seeded(tutor(SMALL))(0).eval()
    said = []
    for (token,) in tokens_of(model, [prompt], max_tokens=32 - len(prompt)):
        said.append(token)
        if token == END:
            break
    return said


@pytest.mark.parametrize("draft_len", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("draft_seed", [0, 1])
def test_the_text_is_the_targets(draft_len: int, draft_seed: int) -> None:
    target = seeded(tutor(SMALL))(0).eval()
    draft = seeded(tutor(SMALL))(draft_seed).eval()
    prompts = questions(0, 4)
    found = answer(target, draft if draft_len else None, prompts, draft_len)
    assert found.ids == [plain(prompt) for prompt in prompts]
    if draft_len and draft_seed == 0:
        # The target drafts for itself: every draft is right, and passes are as few as can be.
        assert found.n_accepted == found.n_drafted
        assert found.n_passes < found.n_tokens
    if not draft_len:
        assert found.n_passes == found.n_tokens
