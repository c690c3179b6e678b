"""The metrics that most experiments share; `dataclasses.replace` changes a margin.

| id | where from |
|---|---|
| `loss`, `accuracy`, `exact_match` | the test split, once training is done |
| `diverged` | whether training did |
| `step_s`, `token_s` | arms in turns on the clock: a training step; a token, decoded alone |
| `parameters`, `cache_bytes` | the real modules: elements held, bytes of a full sequence's cache |
| `seconds` | what a `Timing` times |
"""

from __future__ import annotations

from worthit.lab.claims import Metric

LOSS = Metric(id="loss", name="test loss", unit="nats", margin=0.02)
ACCURACY = Metric(id="accuracy", name="token accuracy", better="higher", margin=0.02)
EXACT_MATCH = Metric(id="exact_match", name="exact match", better="higher", margin=0.02)
DIVERGED = Metric(id="diverged", name="share of seeds that diverge", margin=0.1)
STEP_SECONDS = Metric(id="step_s", name="training step", unit="s", scale="ratio", margin=0.1)
TOKEN_SECONDS = Metric(id="token_s", name="decoded token", unit="s", scale="ratio", margin=0.1)
SECONDS = Metric(id="seconds", name="time", unit="s", scale="ratio", margin=0.1)
PARAMETERS = Metric(id="parameters", name="parameters", scale="ratio", margin=0.03, is_exact=True)
CACHE_BYTES = Metric(
    id="cache_bytes", name="cache", unit="bytes", scale="ratio", margin=0.03, is_exact=True
)
