"""Write the tables of docs/metrics.md from the metrics and the vocabulary: `python -m support.metrics_page`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, cast

from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase
from support.requires import ROOT

from simplu_worker import instruments, vocabulary
from simplu_worker.instruments import KNOWN_LABELS, BatchHistogram
from simplu_worker.status import words
from simplu_worker.status.words import UnreadyReason

PAGE: Final = ROOT / "docs" / "metrics.md"
AREAS: Final = {  # by the first metric of each
    "simplu_operations_total": "Operations",
    "simplu_held_targets": "Holding and memory",
    "simplu_kinesis_lag_seconds": "Stream",
    "simplu_sqs_messages_total": "Queues",
    "simplu_shard_response_seconds": "Postgres shards",
    "simplu_citrus_request_seconds": "Finding and moving tenants",
    "simplu_cache_invalidations_total": "Cache",
    "simplu_feed_lag_seconds": "Feed",
    "simplu_build_info": "Process",
}
# The words of each label that has a closed set of them, by metric and label.
WORDS: Final[dict[str, tuple[type[StrEnum], ...]]] = {
    f"{metric._name}{'_total' if metric._type == 'counter' else ''} {label}": (cast("type[StrEnum]", words),)
    for metric, known in KNOWN_LABELS.items()
    for label, words in zip(metric._labelnames, known, strict=True)
    if isinstance(words, type) and label != "source"
} | {
    "simplu_operations_total source": (vocabulary.Source,),
    "simplu_operation_latency_seconds source": (vocabulary.Source,),
    "simplu_retries_total reason": (vocabulary.Retry, vocabulary.CitrusEndpoint),
    "simplu_sqs_messages_total outcome": (vocabulary.MessageOutcome,),
    "simplu_shard_errors_total kind": (vocabulary.ShardErrorKind,),
    "simplu_shard_connections state": (vocabulary.ConnectionState,),
    "simplu_unready reason": (UnreadyReason,),
    "simplu_shard_commit_safety safety": (vocabulary.CommitSafety,),
    "simplu_feed_deliveries_total outcome": (vocabulary.FeedDelivery,),
}
EXPLAINED_ELSEWHERE: Final = {  # the page that has more to say about each word
    vocabulary.HoldReason: "holding.md#holding",
    vocabulary.DeadLetterReason: "dead-letters.md#reasons",
    vocabulary.OperationKind: "sending.md",
    vocabulary.CitrusEndpoint: "shard-manager.md",
    vocabulary.CommitSafety: "failover.md#how-safe-a-commit-is",
    UnreadyReason: "operating.md#health",
}
_CLASS: Final = re.compile(r"class (\w+)\(StrEnum\)")
_COMMENTED: Final = re.compile(r"    ([A-Z_]+) = .+?  # (.+)")


class Defined(NamedTuple):
    """A metric as it is defined."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]


def defined_metrics() -> list[Defined]:
    found = []
    for metric in vars(instruments).values():
        if isinstance(metric, BatchHistogram):
            (family,) = metric.describe()
            found.append(Defined(family.name, "histogram", metric._documentation, (metric._label,), metric._bounds))
        elif isinstance(metric, MetricWrapperBase):
            bounds: Sequence[float] = metric._upper_bounds[:-1] if isinstance(metric, Histogram) else ()
            kind = str(metric._type)
            name = f"{metric._name}_total" if kind == "counter" else metric._name
            found.append(Defined(name, kind, metric._documentation, tuple(metric._labelnames), tuple(bounds)))
    return found


def render_page(page: str) -> str:
    """Return *page* with its sections, which are the tables, made anew; the text before them is written by hand."""
    page = page.partition("\n## ")[0]
    comments = _comments()
    shown: set[type[StrEnum]] = set()
    for metric in defined_metrics():
        if metric.name in AREAS:
            page += f"\n## {AREAS[metric.name]}\n\n| metric | meaning | labels |\n|---|---|---|\n"
        labels = "; ".join(_label(metric.name, label, comments, shown) for label in metric.labels)
        page += f"| `{metric.name}` | {metric.help} |" + (f" {labels} |\n" if labels else "\n")
    return page


def _label(metric: str, label: str, comments: dict[str, dict[str, str]], shown: set[type[StrEnum]]) -> str:
    sets = WORDS.get(f"{metric} {label}", ())
    if sets and shown.issuperset(sets):
        return f"`{label}` as above"
    texts = [
        f"[values]({EXPLAINED_ELSEWHERE[one]})" if one in EXPLAINED_ELSEWHERE else ", ".join(_words(one, comments))
        for one in sets
    ]
    shown.update(sets)
    return f"`{label}`" + (f": {', '.join(texts)}" if texts else "")


def _words(words: type[StrEnum], comments: dict[str, dict[str, str]]) -> Iterator[str]:
    for name, word in words.__members__.items():
        comment = comments.get(words.__name__, {}).get(name)
        yield f"`{word}`" + (f" ({comment})" if comment else "")


def _comments() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    texts = (Path(str(one.__file__)).read_text(encoding="utf-8") for one in (vocabulary, words))
    for line in "".join(texts).splitlines():
        if opened := _CLASS.match(line):
            members = found.setdefault(opened[1], {})
        elif commented := _COMMENTED.fullmatch(line):
            members[commented[1]] = commented[2]
    return found


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
