"""All metrics and their labels, on the default registry (docs/metrics.md).

Callers count once a batch. No tenant, resource or request id is a label. Known label sets exist from the start with 0,
so that `rate()` sees the first error too.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, product
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

from simplu_worker import vocabulary

# A `_created` series beside each counter and histogram would double the scraped data; no rule reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped in prometheus_client

LOG_STREAMS = ("stdout", "stderr")
OTHER = "other"
FINDING_PATHS_MAX, FINDING_SERIES_MAX = 100, 200

# From a commit right after the arrival, over a noticeable lag, to the wait for an unregistered tenant.
LATENCY_BUCKETS_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 120.0, 300.0, 900.0),
)
# One request to a service near by; no client waits much longer than 10 s for an answer.
REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# A Postgres shard answers a probe within a millisecond or two.
SHARD_BUCKETS_S = (0.001, 0.0025, *REQUEST_BUCKETS_S)


class BatchHistogram(Collector):
    """A histogram of one label that observes a whole batch in one call.

    It has no lock: observe in the event loop's thread only.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        *,
        label: str,
        label_values: Iterable[str] = (),
        buckets: Sequence[float],
        registry: CollectorRegistry | None = REGISTRY,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._bounds = tuple(buckets)
        self._counts: dict[str, list[int]] = {value: self._no_counts() for value in label_values}
        self._sums: dict[str, float] = dict.fromkeys(self._counts, 0.0)
        if registry is not None:
            registry.register(self)

    def observe_many(self, source: str, observed: Iterable[tuple[float, int]]) -> None:
        """Count pairs of seconds and their number; a negative time, of clock skew, is 0."""
        counts = self._counts.setdefault(source, self._no_counts())
        total = 0.0
        for seconds, times in observed:
            at_least_0 = max(seconds, 0.0)  # the sum of a histogram must never fall
            counts[bisect_left(self._bounds, at_least_0)] += times
            total += at_least_0 * times
        self._sums[source] = self._sums.get(source, 0.0) + total

    def bucket_counts(self) -> list[int]:
        """Return the count of each bucket over all labels, that beyond the last bound last."""
        return [sum(counts) for counts in zip(*self._counts.values(), strict=True)] or self._no_counts()

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return the family without samples."""
        return [HistogramMetricFamily(self._name, self._documentation, labels=[self._label])]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return the family with its series."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        names = [*map(repr, self._bounds), "+Inf"]
        for value, counts in list(self._counts.items()):
            cumulative = [float(count) for count in accumulate(counts)]
            family.add_metric([value], list(zip(names, cumulative, strict=True)), sum_value=self._sums.get(value, 0.0))
        return [family]

    def _no_counts(self) -> list[int]:
        return [0] * (len(self._bounds) + 1)


OPERATIONS = Counter("simplu_operations_total", "Operations decided.", ["source", "operation", "outcome"])
OPERATION_LATENCY = BatchHistogram(
    "simplu_operation_latency_seconds",
    "Time from the arrival of an operation at its source until its commit.",
    label="source",
    label_values=vocabulary.Source,
    buckets=LATENCY_BUCKETS_S,
)
RETRIES = Counter("simplu_retries_total", "Batches, messages and requests tried again.", ["source", "reason"])
DEAD_LETTERS = Counter("simplu_dead_letters_total", "Records and messages stored as dead letters.", ["reason"])
SCHEMA_FINDINGS = Counter(
    "simplu_schema_findings_total",
    "Operations whose document does not fit its JSON Schema, by the place in the schema; beyond 100 places `other`.",
    ["business_type", "resource_type", "schema_path", "validation"],
)

HELD_TARGETS = Gauge("simplu_held_targets", "Postgres shards and tenants with held operations.", ["reason"])
HELD_AGE = Gauge(
    "simplu_held_age_seconds",
    "Time since the oldest held operation arrived at its source; 0 when none is held.",
    ["reason"],
)
HELD_RETENTION = Gauge(
    "simplu_held_retention_ratio",
    "Age of the oldest held operation of a stream shard, divided by the stream's retention; at 1 it is lost.",
    ["stream_shard"],
)
CATCH_UP_LAG = Gauge(
    "simplu_catch_up_lag_seconds",
    "Lag of the slowest catch-up of a stream shard behind its main reader; 0 when none runs.",
    ["stream_shard"],
)
PREFETCH_BYTES = Gauge("simplu_prefetch_bytes", "Memory of operations read and not yet applied.")
PREFETCH_MAX_BYTES = Gauge("simplu_prefetch_max_bytes", "Limit of simplu_prefetch_bytes: PREFETCH_MAX_BYTES.")

KINESIS_LAG = Gauge(
    "simplu_kinesis_lag_seconds",
    "Age of the oldest record that the main reader of a stream shard has in memory, or its distance from the tip,"
    " without held operations.",
    ["stream_shard"],
)
KINESIS_LAG_RETENTION = Gauge(
    "simplu_kinesis_lag_retention_ratio",
    "Lag of the main reader of a stream shard, divided by the stream's retention; at 1 records are lost.",
    ["stream_shard"],
)
KINESIS_LEASES = Gauge("simplu_kinesis_leases", "Leases of the stream, as this replica sees them.", ["state"])
KINESIS_EXPIRED = Counter(
    "simplu_kinesis_expired_positions_total",
    "Stream shards read too late: records between the checkpoint and the oldest retained one are lost.",
)
KINESIS_GET_RECORDS = Histogram(
    "simplu_kinesis_get_records_seconds", "Time of a GetRecords call.", buckets=REQUEST_BUCKETS_S
)
KINESIS_READ_RECORDS = Counter(
    "simplu_kinesis_read_records_total", "Records in replies of GetRecords, and in pushed events.", ["reader"]
)
KINESIS_STREAM_SHARD_BYTES = Counter(
    "simplu_kinesis_stream_shard_bytes_total",
    "Bytes, partition keys included, that the main reader has read, each once.",
    ["stream_shard"],
)
KINESIS_STREAM_SHARD_RECORDS = Counter(
    "simplu_kinesis_stream_shard_records_total",
    "Records that the main reader has read, each once; an aggregate is one.",
    ["stream_shard"],
)
KINESIS_WRONG_KEYS = Counter(
    "simplu_kinesis_wrong_partition_keys_total",
    "Operations with a wrong partition key: applied, perhaps not in order.",
)
KINESIS_THROTTLED = Counter("simplu_kinesis_throttled_total", "Kinesis calls refused for exceeding a limit.")

SQS_MESSAGES = Counter("simplu_sqs_messages_total", "Messages decided.", ["queue", "outcome"])
SQS_IN_FLIGHT = Gauge("simplu_sqs_in_flight", "Messages received and not yet decided.", ["queue"])
SQS_QUEUE_DEPTH = Gauge(
    "simplu_sqs_queue_depth", "Messages waiting in the queue, as SQS estimates every 30 s.", ["queue"]
)
SQS_OLDEST_MESSAGE = Gauge(
    "simplu_sqs_oldest_message_age_seconds",
    "Age of the oldest message in flight or received in the last two minutes; 0 without one.",
    ["queue"],
)
REPETITIONS_LATE = Counter(
    "simplu_repetitions_late_total",
    "Order events dropped because an event sent over five minutes before had their deduplicationId;"
    " without redeliveries and replays.",
)

SHARD_RESPONSE = Histogram(
    "simplu_shard_response_seconds",
    "Time of a transaction on a Postgres shard, or of its answer to a probe.",
    ["shard_id"],
    buckets=SHARD_BUCKETS_S,
)
SHARD_ERRORS = Counter("simplu_shard_errors_total", "Errors of a Postgres shard.", ["shard_id", "kind"])
SHARD_BACKFILLS = Counter(
    "simplu_shard_backfills_total",
    "Backfills: a stream shard is read again for a Postgres shard whose stream position is old or missing.",
    ["shard_id"],
)
SHARD_CONNECTIONS = Gauge("simplu_shard_connections", "Connections to a Postgres shard.", ["shard_id", "state"])
SHARD_HEALTHY = Gauge(
    "simplu_shard_healthy",
    "1 while a Postgres shard takes operations, by its last use or probe, otherwise 0.",
    ["shard_id"],
)
SHARD_TENANTS = Gauge("simplu_shard_tenants", "Tenants on a Postgres shard, counted each minute.", ["shard_id"])
SHARD_USAGE = Gauge(
    "simplu_shard_usage_ratio",
    "Businesses on a Postgres shard, divided by the number that Citrus allows; absent without such a limit.",
    ["shard_id"],
)
SHARD_CONNECTIONS_RATIO = Gauge(
    "simplu_shard_connections_ratio",
    "Connections of all clients to a Postgres shard, divided by the nearest limit of server, database or role.",
    ["shard_id"],
)
SHARD_BUSINESS_SECONDS = Gauge(
    "simplu_shard_business_seconds",
    "Seconds of the last minute that this replica's transactions took for one business, by its rank: 1 took most. "
    "Use max over replicas, not sum.",
    ["shard_id", "rank"],
)
SHARD_REPLICATION_LAG = Gauge(
    "simplu_shard_replication_lag_seconds",
    "Lag of the slowest standby, or of the shard if it is a standby; needs pg_monitor.",
    ["shard_id"],
)
SHARD_PROBLEMS = Gauge("simplu_shard_problems", "Postgres shards with a problem, as last seen.", ["problem"])
SHARD_COMMIT_SAFETY = Gauge(
    "simplu_shard_commit_safety",
    "1 for the safety of the last commit for which SQS messages were deleted, otherwise 0.",
    ["shard_id", "safety"],
)
SHARD_COMMIT_WAIT = Histogram(
    "simplu_shard_commit_wait_seconds",
    "Time from such a commit until it was that safe.",
    ["shard_id"],
    buckets=SHARD_BUCKETS_S,
)

CITRUS_REQUEST = Histogram(
    "simplu_citrus_request_seconds",
    "Time of a request to Citrus; each try counts.",
    ["endpoint", "outcome"],
    buckets=REQUEST_BUCKETS_S,
)
DYNAMODB_REQUEST = Histogram(
    "simplu_dynamodb_request_seconds",
    "Time of a request to DynamoDB. The outcome is `ok` or `error`; `condition_failed` and `missing` are ordinary.",
    ["operation", "outcome"],
    buckets=REQUEST_BUCKETS_S,
)
SHARD_MAP_RELOADS = Counter("simplu_shard_map_reloads_total", "Reloads of SHARD_MAP_FILE at a SIGHUP.", ["outcome"])
FEED_FILE_RELOADS = Counter("simplu_feed_file_reloads_total", "Reloads of FEED_FILE at a SIGHUP.", ["outcome"])
PROVISIONING = Counter("simplu_provisioning_total", "Tries to create a tenant on a Postgres shard.", ["outcome"])
TENANTS_SPLIT = Gauge("simplu_tenants_split", "Tenants that this replica found on two Postgres shards.")
# Every replica sees all moves, in the journals of the shards: add nothing up over replicas.
MOVES = Counter(
    "simplu_moves_total",
    "Moves of tenants that ended. Every replica counts all: use max, not sum.",
    ["outcome"],
)
MOVE_PAUSE = Histogram(
    "simplu_move_pause_seconds",
    "Time from the fence to the activation of a moving tenant, for moves by one command.",
    buckets=SHARD_BUCKETS_S,
)
MOVE_ROWS = Counter("simplu_move_rows_total", "Rows copied by these moves.")
MOVE_STANDING = Gauge(
    "simplu_move_standing_seconds",
    "Time since the last progress of the slowest unfinished move; 0 without one.",
)

CACHE_INVALIDATIONS = Counter(
    "simplu_cache_invalidations_total", "Changed resources to be invalidated in Redis.", ["outcome"]
)
CACHE_WAITING = Gauge("simplu_cache_waiting", "Changed resources not yet invalidated in Redis.")
CACHE_UNREACHABLE = Gauge(
    "simplu_cache_unreachable_seconds", "Time since Redis became unreachable; 0 while it is reachable or not used."
)
FEED_LAG = Gauge(
    "simplu_feed_lag_seconds",
    "Age of the oldest event that the destination lacks, on the shards that this replica publishes.",
    ["destination"],
)
FEED_DELIVERIES = Counter(
    "simplu_feed_deliveries_total", "Answers of destinations to events.", ["destination", "outcome"]
)
FEED_STOPPED_SHARDS = Gauge(
    "simplu_feed_stopped_shards", "Postgres shards whose feed has stopped and waits for a person.", ["destination"]
)

BUILD_INFO = Gauge("simplu_build_info", "Always 1; the labels name the running version.", ["version", "python"])
INTERNAL_ERRORS = Counter(
    "simplu_internal_errors_total", "Defects of the worker that stopped a target, by its kind.", ["target"]
)
UNREADY = Gauge(
    "simplu_unready", "1 for the reason in `/readyz` why this replica does no work, otherwise 0.", ["reason"]
)
CERTIFICATE_END = Gauge(
    "simplu_http_certificate_end_seconds",
    "When the certificate of HTTP_TLS_CERT_FILE expires, in seconds since 1970; 0 without one.",
)
EVENT_LOOP_LAG = Gauge("simplu_event_loop_lag_seconds", "Delay of a timer of the event loop, measured twice a second.")
LOG_LINES_DROPPED = Counter(
    "simplu_log_lines_dropped_total",
    "Log lines that stdout or stderr did not take: disk full, pipe closed, or too much unread.",
    ["stream"],
)


def set_build_info(version: str) -> None:
    """Publish *version* and the version of Python."""
    BUILD_INFO.labels(version, platform.python_version()).set(1)


def start_queue_at_zero(queue: str) -> None:
    """Create the series of a queue."""
    _start_at_zero(SQS_MESSAGES, [queue], vocabulary.MessageOutcome)
    for metric in (SQS_IN_FLIGHT, SQS_OLDEST_MESSAGE):
        _start_at_zero(metric, [queue])


_FEED_GAUGES = (FEED_LAG, FEED_STOPPED_SHARDS)


def start_feed_at_zero(destinations: Iterable[str]) -> None:
    """Create the series of the feed's destinations."""
    for name in destinations:
        _start_at_zero(FEED_DELIVERIES, [name], vocabulary.FeedDelivery)
        for metric in _FEED_GAUGES:
            _start_at_zero(metric, [name])


def end_feed_gauges(destinations: Iterable[str]) -> None:
    """Remove the gauges of destinations that have left the file."""
    for name in destinations:
        for metric in _FEED_GAUGES:
            metric.remove(name)


_finding_labels: set[tuple[str, str, str, str]] = set()


def count_finding(business_type: str, resource_type: str, schema_path: str, validation: str) -> None:
    """Count a finding; beyond FINDING_PATHS_MAX new ones have the path `other`, at last the types too."""
    labels = (business_type, resource_type, schema_path, validation)
    of_type, of_any = (business_type, resource_type, OTHER, validation), (OTHER, OTHER, OTHER, validation)
    if labels not in _finding_labels and len(_finding_labels) >= FINDING_PATHS_MAX:
        has_room = len(_finding_labels) < FINDING_SERIES_MAX - 2  # for those of `of_any`
        labels = of_type if of_type in _finding_labels or has_room else of_any
    _finding_labels.add(labels)
    SCHEMA_FINDINGS.labels(*labels).inc()


def total_of(metric: Counter | Gauge) -> int:
    """Return the sum of all values of *metric*."""
    return int(sum(sample.value for family in metric.collect() for sample in family.samples))


def totals_by(counter: Counter, label: str) -> dict[str, int]:
    """Return the values of *counter* by one label, without zeros."""
    sums: dict[str, int] = {}
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.value:
                sums[sample.labels[label]] = sums.get(sample.labels[label], 0) + int(sample.value)
    return sums


def message_outcomes(queue: str) -> dict[str, int]:
    """Return how many messages of a queue had each outcome."""
    samples = [sample for metric in SQS_MESSAGES.collect() for sample in metric.samples]
    return {one.labels["outcome"]: int(one.value) for one in samples if one.labels["queue"] == queue}


_OF_STREAM_SHARD = (
    *(KINESIS_LAG, KINESIS_LAG_RETENTION, HELD_RETENTION, CATCH_UP_LAG),
    *(KINESIS_STREAM_SHARD_BYTES, KINESIS_STREAM_SHARD_RECORDS),
)
_OF_SHARD = (
    *(SHARD_RESPONSE, SHARD_HEALTHY, SHARD_CONNECTIONS_RATIO, SHARD_REPLICATION_LAG, SHARD_CONNECTIONS, SHARD_ERRORS),
    *(SHARD_BUSINESS_SECONDS, SHARD_BACKFILLS, SHARD_COMMIT_SAFETY, SHARD_COMMIT_WAIT),
    *(SHARD_USAGE, SHARD_TENANTS),
)


def remove_stream_shard(stream_shard_id: str) -> None:
    """Remove the series of a stream shard that is no longer read here. Idempotent."""
    for metric in _OF_STREAM_SHARD:
        metric.remove(stream_shard_id)


def remove_shard(shard_id: str) -> None:
    """Remove every series of a Postgres shard. Idempotent."""
    for metric in _OF_SHARD:
        metric.remove_by_labels({"shard_id": shard_id})


def set_or_remove(gauge: Gauge, label: str, value: float | None) -> None:
    """Set a gauge of one label; without a value remove its series."""
    if value is None:
        gauge.remove(label)
    else:
        gauge.labels(label).set(value)


def _start_at_zero(metric: Counter | Gauge | Histogram, *label_values: Iterable[str]) -> None:
    for labels in product(*label_values):
        metric.labels(*labels)


KNOWN_LABELS: Final[dict[Counter | Gauge | Histogram, tuple[Iterable[str], ...]]] = {
    OPERATIONS: (vocabulary.Source, vocabulary.OperationKind, vocabulary.OperationOutcome),
    RETRIES: (vocabulary.Source, vocabulary.Retry),
    DEAD_LETTERS: (vocabulary.DeadLetterReason,),
    HELD_TARGETS: (vocabulary.HoldReason,),
    HELD_AGE: (vocabulary.HoldReason,),
    SHARD_PROBLEMS: (vocabulary.ShardProblem,),
    KINESIS_READ_RECORDS: (vocabulary.StreamReader,),
    KINESIS_LEASES: (vocabulary.LeaseState,),
    CITRUS_REQUEST: (vocabulary.CitrusEndpoint, vocabulary.CitrusOutcome),
    PROVISIONING: (vocabulary.ProvisioningOutcome,),
    SHARD_MAP_RELOADS: (vocabulary.ReloadOutcome,),
    FEED_FILE_RELOADS: (vocabulary.ReloadOutcome,),
    CACHE_INVALIDATIONS: (vocabulary.CacheOutcome,),
    MOVES: (vocabulary.MoveOutcome,),
    LOG_LINES_DROPPED: (LOG_STREAMS,),
    INTERNAL_ERRORS: (vocabulary.TargetKind,),
}
for _metric, _words in KNOWN_LABELS.items():
    _start_at_zero(_metric, *_words)
_start_at_zero(RETRIES, ["citrus"], vocabulary.CitrusEndpoint)
