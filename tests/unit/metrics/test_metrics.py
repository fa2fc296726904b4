from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics import exposition as openmetrics
from support.metrics_page import AREAS, PAGE, WORDS, Defined, defined_metrics, render_page

import simplu_worker
from simplu_worker import (
    business_info,  # noqa: F401 - starts series of DynamoDB at zero
    instruments,
    vocabulary,
)
from simplu_worker.consumers.kinesis.leases import lease_table  # noqa: F401 - as above
from simplu_worker.instruments import BatchHistogram
from simplu_worker.status.replica import RANK_COUNT
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


PACKAGE = Path(simplu_worker.__file__).parent
MONITORING_PAGE = PACKAGE.parent / "docs" / "monitoring.md"
BASE_UNITS = ("seconds", "bytes", "ratio")
OTHER_UNITS = {
    *("ms", "millis", "milliseconds", "us", "s", "minutes", "hours", "days"),
    *("kb", "mb", "kib", "mib", "percent"),
}
# Labels whose values come and go are counted for one of them.
BY_INSTANCE = ("shard_id", "stream_shard", "queue", "destination")
# The most values of each label without a closed set of words; with a metric's name, those it has there.
LABEL_VALUES_MAX = {
    **dict.fromkeys(("version", "python", *BY_INSTANCE), 1),
    "rank": RANK_COUNT,
    "stream": len(instruments.LOG_STREAMS),
    "simplu_retries_total source": 2,  # those of Citrus have one
    "simplu_dynamodb_request_seconds operation": 8,
    "simplu_dynamodb_request_seconds outcome": 4,
    # Of all four labels together.
    **dict.fromkeys(("business_type", "resource_type", "validation"), 1),
    "schema_path": instruments.FINDING_SERIES_MAX,
}
METRICS = defined_metrics()


def value_count(metric: Defined, label: str) -> int | None:
    key = f"{metric.name} {label}"
    if key in WORDS:
        return sum(map(len, WORDS[key]))
    return LABEL_VALUES_MAX.get(key, LABEL_VALUES_MAX.get(label))


def series_max(metric: Defined) -> int:
    values = [value_count(metric, label) or 0 for label in metric.labels]
    return math.prod(values) * (len(metric.buckets) + 3 if metric.buckets else 1)


def fixed_label_sets() -> Iterator[tuple[str, tuple[str, ...]]]:
    texts = (path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    for text in (text for text in texts if ".labels(" in text):  # parsing costs more than searching
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "labels":
                name = ast.unparse(node.func.value).rpartition(".")[2]
                values = [word_of(one) for one in node.args]
                if name.isupper() and all(values):
                    yield name, tuple(map(str, values))


def word_of(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and hasattr(vocabulary, node.value.id):
        return str(getattr(getattr(vocabulary, node.value.id), node.attr))
    return None


def test_names_have_the_prefix_and_end_with_their_unit() -> None:
    for metric in METRICS:
        name = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
        assert re.fullmatch(r"simplu(_[a-z]+)+", name)
        words = name.split("_")[1:]
        assert not OTHER_UNITS & set(words), name
        assert [word for word in words[:-1] if word in BASE_UNITS] == [], name
        assert metric.kind != "histogram" or words[-1] in BASE_UNITS, name
        assert words[-1] not in {"total", "count", "sum", "bucket"}, name  # the client adds those


def test_labels_have_few_values() -> None:
    for metric in METRICS:
        assert [label for label in metric.labels if value_count(metric, label) is None] == [], metric.name
        assert 0 < series_max(metric) <= 600, metric.name


def test_fixed_label_values_exist_from_the_start() -> None:
    found = set(fixed_label_sets())
    metrics = {name: metric for name, metric in vars(instruments).items() if isinstance(metric, MetricWrapperBase)}
    assert len(found) >= 5
    series = {(one.name, tuple(sorted(one.labels.items()))) for family in REGISTRY.collect() for one in family.samples}
    suffixes = {"counter": "_total", "histogram": "_count", "gauge": ""}
    absent = [
        (name, values)
        for name, values in sorted(found)
        for metric in [metrics[name]]
        for labels in [tuple(sorted(zip(metric._labelnames, values, strict=True)))]
        if (f"{metric._name}{suffixes[str(metric._type)]}", labels) not in series
    ]
    assert absent == []


def test_page_has_the_number_of_series() -> None:
    def most(by: str | None) -> int:
        own = [one for one in METRICS if (set(one.labels) & set(BY_INSTANCE)) == ({by} if by else set())]
        step = 10 if by else 100
        return math.ceil(sum(map(series_max, own)) / step) * step

    counts = {by or "replica": most(by) for by in (None, *BY_INSTANCE)}
    text = (
        f"at most {counts['replica']:,} series, and {counts['shard_id']} more for each Postgres shard, "
        f"{counts['queue']} for each queue, {counts['stream_shard']} for each stream shard that it reads and "
        f"{counts['destination']} for each destination of the feed"
    )
    assert text in " ".join(MONITORING_PAGE.read_text(encoding="utf-8").split())


def test_page_of_metrics_is_the_generated_one() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render_page(page) == page
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == list(AREAS.values())


def test_words_are_those_of_labels_that_exist() -> None:
    labels = {f"{metric.name} {label}" for metric in METRICS for label in metric.labels}
    assert WORDS.keys() - labels == set()
