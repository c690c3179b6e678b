"""`/metrics`: the engine's counts for Prometheus, under the names that vLLM's dashboards know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from worthit.decode.engine import Engine, Histogram

PREFIX = "vllm:"
# Name, what it says, the attribute of `Stats`.
GAUGES = (
    ("num_requests_running", "Sequences in the batch.", "n_running"),
    ("num_requests_waiting", "Sequences that wait.", "n_waiting"),
    ("kv_cache_usage_perc", "Share of the cache's blocks that are held, 0 to 1.", "share_held"),
    ("last_step_seconds", "Time of the last step.", "step_s"),
)
COUNTERS = (
    ("num_preemptions", "Sequences put back to be computed again.", "n_preemptions"),
    ("prompt_tokens", "Tokens of prompts.", "n_prompt_tokens"),
    ("generation_tokens", "Tokens said.", "n_generation_tokens"),
    ("engine_steps", "Passes through the model.", "n_steps"),
    ("engine_step_tokens", "Tokens that went through it.", "n_step_tokens"),
    ("engine_errors", "Steps that failed.", "n_errors"),
    ("prefix_cache_queries", "Tokens of prompts looked up in the prefix cache.", "n_prefix_asked"),
    ("prefix_cache_hits", "Tokens of prompts found in the prefix cache.", "n_prefix_found"),
    ("spec_decode_num_drafts", "Drafts that were verified.", "n_drafts"),
    ("spec_decode_num_draft_tokens", "Tokens in them.", "n_draft_tokens"),
    ("spec_decode_num_accepted_tokens", "Tokens of them that were right.", "n_accepted_tokens"),
)
HISTOGRAMS = (
    ("time_to_first_token_seconds", "From arrival to the first token.", "ttft_s"),
    ("inter_token_latency_seconds", "Between two tokens of a sequence.", "itl_s"),
    ("e2e_request_latency_seconds", "From arrival to the last token.", "e2e_s"),
)


class EngineCollector(Collector):
    """Reads the engine when it is asked; nothing is counted twice."""

    def __init__(self, engine: Engine, model: str) -> None:
        self.engine, self.model = engine, model

    def collect(self) -> Iterator[Any]:
        """Every metric with its value now."""
        stats, label = self.engine.stats, [self.model]
        for name, text, attribute in GAUGES:
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
            gauge.add_metric(label, float(getattr(stats, attribute)))
            yield gauge
        for name, text, attribute in COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
            counter.add_metric(label, float(getattr(stats, attribute)))
            yield counter
        finished = CounterMetricFamily(
            PREFIX + "request_success",
            "Finished samples by reason.",
            labels=["model_name", "finished_reason"],
        )
        for reason, n in dict(stats.finished).items():
            finished.add_metric([self.model, reason], n)
        yield finished
        accepted = CounterMetricFamily(
            PREFIX + "spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens by their place in the draft.",
            labels=["model_name", "position"],
        )
        for place, n in sorted(dict(stats.accepted_at).items()):
            accepted.add_metric([self.model, str(place)], n)
        yield accepted
        for name, text, attribute in HISTOGRAMS:
            yield _histogram(PREFIX + name, text, getattr(stats, attribute), label)


def _histogram(name: str, text: str, values: Histogram, label: list[str]) -> Any:
    family = HistogramMetricFamily(name, text, labels=["model_name"])
    below, buckets = 0, []
    for bound, n in zip((*values.bounds, "+Inf"), values.counts, strict=True):
        below += n
        buckets.append((str(bound), float(below)))
    family.add_metric(label, buckets, values.total)
    return family


class Metrics:
    """The page of an engine."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine, model: str) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine, model))

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
