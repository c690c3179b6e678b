"""A server that drafts: the same answers, and clients and dashboards are told how drafts fared."""

from __future__ import annotations

from pathlib import Path

import httpx2
from serve.running import NAME, engine_of, running

from worthit.decode.speculative.lookup import PromptLookup

PROMPT = "the cat sat on the mat and the cat sat on the mat and the cat sat"


def test_acceptance_is_in_the_usage_and_in_the_metrics(tmp_path: Path) -> None:
    plain, drafting = engine_of(tmp_path / "a"), engine_of(tmp_path / "b", PromptLookup())
    said = []
    for engine in (plain, drafting):
        with running(engine) as server:
            got = server.client().completions.create(
                model=NAME, prompt=PROMPT, max_tokens=24, temperature=0
            )
            text = httpx2.get(f"http://127.0.0.1:{server.port}/metrics").text
            said.append((got.choices[0].text, got.usage, text))
    assert said[0][0] == said[1][0]
    assert said[0][1].completion_tokens_details is None
    details = said[1][1].completion_tokens_details
    stats = drafting.stats
    assert details.accepted_prediction_tokens == stats.n_accepted_tokens
    assert details.rejected_prediction_tokens == stats.n_draft_tokens - stats.n_accepted_tokens
    assert stats.n_draft_tokens > 0
    line = next(
        x for x in said[1][2].splitlines() if "num_draft_tokens" in x and not x.startswith("#")
    )
    assert float(line.split()[-1]) == stats.n_draft_tokens
