from __future__ import annotations

from collections import Counter

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics import exposition as openmetrics

from simplu_worker import instruments
from simplu_worker.instruments import BatchHistogram
from simplu_worker.vocabulary import ConnectionState

CONTRACT = {
    "simplu_build_info": ("gauge", ["version", "python"]),
    "simplu_operations": ("counter", ["source", "operation", "outcome"]),
    "simplu_retries": ("counter", ["source", "reason"]),
    "simplu_kinesis_lag_seconds": ("gauge", ["stream_shard"]),
    "simplu_kinesis_leases": ("gauge", ["state"]),
    "simplu_kinesis_get_records_seconds": ("histogram", []),
    "simplu_kinesis_throttled": ("counter", []),
    "simplu_held_targets": ("gauge", ["reason"]),
    "simplu_sqs_messages": ("counter", ["queue", "outcome"]),
    "simplu_sqs_in_flight": ("gauge", ["queue"]),
    "simplu_sqs_queue_depth": ("gauge", ["queue"]),
    "simplu_dead_letters": ("counter", ["reason"]),
    "simplu_shard_response_seconds": ("histogram", ["shard_id"]),
    "simplu_shard_errors": ("counter", ["shard_id", "kind"]),
    "simplu_shard_connections": ("gauge", ["shard_id", "state"]),
    "simplu_shard_healthy": ("gauge", ["shard_id"]),
    "simplu_shard_usage_ratio": ("gauge", ["shard_id"]),
    "simplu_shard_tenants": ("gauge", ["shard_id"]),
    "simplu_citrus_request_seconds": ("histogram", ["endpoint", "outcome"]),
    "simplu_dynamodb_request_seconds": ("histogram", ["operation", "outcome"]),
    "simplu_shard_map_reloads": ("counter", ["outcome"]),
    "simplu_provisioning": ("counter", ["outcome"]),
    "simplu_cache_invalidations": ("counter", ["outcome"]),
    "simplu_event_loop_lag_seconds": ("gauge", []),
    "simplu_moves": ("counter", ["outcome"]),
}


def openmetrics_of(registry: CollectorRegistry) -> str:
    exposed: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]  # untyped vendor code
    return exposed.decode()


def test_metrics_have_the_names_types_and_labels_of_the_contract() -> None:
    defined = {
        metric._name: (metric._type, list(metric._labelnames))
        for metric in vars(instruments).values()
        if isinstance(metric, MetricWrapperBase)
    }
    assert CONTRACT.items() <= defined.items()


def test_findings_have_a_bounded_number_of_series(monkeypatch: pytest.MonkeyPatch) -> None:
    names = instruments.SCHEMA_FINDINGS._labelnames
    counter = prometheus_client.Counter("of_this_test", "Of this test.", names, registry=None)
    monkeypatch.setattr(instruments, "SCHEMA_FINDINGS", counter)
    monkeypatch.setattr(instruments, "_finding_labels", set())
    for _ in range(2):
        for number in range(300):
            instruments.count_finding("dental", f"t{number}", "#/required", "warn")
        instruments.count_finding("dental", "t0", "#/type", "enforce")

    values = {tuple(one.labels.values()): one.value for metric in counter.collect() for one in metric.samples}

    assert len(values) <= instruments.FINDING_SERIES_MAX
    assert values["dental", "t0", "#/required", "warn"] == 2
    assert values["dental", "t150", "other", "warn"] == 2
    assert values["other", "other", "other", "warn"] == 2 * 102
    assert values["other", "other", "other", "enforce"] == 2


def test_remove_stream_shard_drops_every_series_that_names_one() -> None:
    by_stream_shard = [
        metric
        for metric in vars(instruments).values()
        if isinstance(metric, MetricWrapperBase) and metric._labelnames == ("stream_shard",)
    ]
    for metric in by_stream_shard:
        for name in ("shardId-test-3", "shardId-test-4"):
            metric.labels(name)
    instruments.remove_stream_shard("shardId-test-3")
    instruments.remove_stream_shard("shardId-test-3")
    shown = generate_latest().decode()
    assert ("shardId-test-3" in shown, "shardId-test-4" in shown, "_created" in shown) == (False, True, False)
    instruments.remove_stream_shard("shardId-test-4")


def test_remove_shard_drops_every_series_that_names_it() -> None:
    by_shard = [
        metric
        for metric in vars(instruments).values()
        if isinstance(metric, MetricWrapperBase) and metric._labelnames[:1] == ("shard_id",)
    ]
    for shard_id in ("removed-1", "removed-2"):
        for metric in by_shard:
            metric.labels(shard_id, *[ConnectionState.IDLE for _ in metric._labelnames[1:]])
    instruments.remove_shard("removed-1")
    instruments.remove_shard("removed-1")
    shown = generate_latest().decode()
    assert ("removed-1" in shown, "removed-2" in shown) == (False, True)
    instruments.remove_shard("removed-2")


@given(batches=st.lists(st.lists(st.sampled_from([0.0, 0.0625, 0.5, 0.75, 1.0, 1.5, 2.0, 64.0])), max_size=5))
def test_batch_histogram_shows_what_the_clients_own_shows(batches: list[list[float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batch_histogram = BatchHistogram(
        "t_seconds", "Time.", label="source", label_values=["a"], buckets=(0.5, 1.0, 2.0), registry=ours
    )
    one_by_one = Histogram("t_seconds", "Time.", ["source"], buckets=(0.5, 1.0, 2.0), registry=theirs)
    one_by_one.labels("a")
    for batch in batches:
        batch_histogram.observe_many("a", Counter(batch).items())
        for value in batch:
            one_by_one.labels("a").observe(value)
    assert generate_latest(theirs) == generate_latest(ours)
    assert openmetrics_of(theirs) == openmetrics_of(ours)
