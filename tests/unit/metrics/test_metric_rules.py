from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from support.metrics_page import AREAS, PAGE, WORDS, Defined, defined_metrics, render_page

import simplu_worker
from simplu_worker import (
    business_info,  # noqa: F401 - starts series of DynamoDB at zero
    instruments,
    vocabulary,
)
from simplu_worker.consumers.kinesis.leases import lease_table  # noqa: F401 - as above
from simplu_worker.fairness import RANK_COUNT

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
        f"at most {counts['replica']:,} series, and {counts['shard_id']} for each Postgres shard, {counts['queue']} "
        f"for each queue, {counts['stream_shard']} for each stream shard that it reads and {counts['destination']} for "
        "each destination of the feed"
    )
    assert text in " ".join(MONITORING_PAGE.read_text(encoding="utf-8").split())


def test_page_of_metrics_is_the_generated_one() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render_page(page) == page
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == list(AREAS.values())


def test_words_are_those_of_labels_that_exist() -> None:
    labels = {f"{metric.name} {label}" for metric in METRICS for label in metric.labels}
    assert WORDS.keys() - labels == set()
