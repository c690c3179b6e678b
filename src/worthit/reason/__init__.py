"""More compute at test time: many answers instead of one, and ways to choose among them.

    generator = Generator(Engine(model, tokenizer), tokenizer.decode, tokenizer.stop_ids)
    chosen = best_of_n(generator, questions, score=exact(last_number), n=8, max_tokens=32)

`generator` draws texts and counts tokens; `verify` scores them; `choose`, `search`, `think` and
`revise` are the strategies, each a function from questions to one chosen text a question;
`estimate` says from n samples what k of them would have given; `curve` puts accuracy against tokens
and finds the strategy to take at each budget.
"""

from __future__ import annotations

from worthit.reason.choose import best_of_n, once, self_consistency, vote
from worthit.reason.generator import Draft, Generator, Spent
from worthit.reason.question import Chosen, Question
from worthit.reason.revise import revise
from worthit.reason.search import beam_search, tree_search
from worthit.reason.think import Thinking, budget_forcing

__all__ = [
    "Chosen",
    "Draft",
    "Generator",
    "Question",
    "Spent",
    "Thinking",
    "beam_search",
    "best_of_n",
    "budget_forcing",
    "once",
    "revise",
    "self_consistency",
    "tree_search",
    "vote",
]
