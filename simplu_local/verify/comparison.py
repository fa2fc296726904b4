"""Compare the shards and the dead-letter queue with the model: every difference is one readable line. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import TypeVar

from simplu_local.workload.json_values import JsonValue, canonical_text, parse_json
from simplu_local.workload.producer import Position
from simplu_local.workload.reference_model import (
    DERIVED_ID_PREFIX,
    Effect,
    LogEntry,
    ModelRow,
    ReferenceModel,
    TenantModel,
    parse_timestamp,
)
from simplu_local.workload.workload import Item

DEFAULT_ROW = ("settings", "default")  # docs/reading.md: created by provisioning, one per tenant
SHOWN_CHARS = 160
TIME_STEP = timedelta(milliseconds=1)  # SentTimestamp is in whole milliseconds
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row of `resources`; *data* is jsonb's text."""

    tenant_id: str
    business_type: str
    resource_type: str
    resource_id: str
    data: str
    date: datetime
    last_updated: datetime


@dataclass(frozen=True, slots=True)
class StoredOperation:
    """A row of `operations`; *result* is jsonb's text. *latency_s* is arrival → committed."""

    tenant_id: str
    request_id: str
    kind: str
    resource_type: str
    resource_id: str | None
    status: str
    error: str | None
    result: str | None
    requested_at: datetime
    latency_s: float


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version of `resource_history`; *document* is jsonb's text, `None` of a delete."""

    tenant_id: str
    resource_type: str
    resource_id: str
    version: int
    change: str
    request_id: str | None
    document: str | None


@dataclass(frozen=True, slots=True)
class StoredTenant:
    """A row of `tenants`."""

    tenant_id: str
    business_id: str
    location_id: str
    business_type: str
    state: str


@dataclass(slots=True)
class ShardContent:
    """The content of one shard; *name* identifies it in reports and contains no secret.

    *histories* are the types of businesses and of resources whose versions are kept.
    """

    name: str
    tenants: list[StoredTenant] = field(default_factory=list)
    rows: list[StoredRow] = field(default_factory=list)
    operations: list[StoredOperation] = field(default_factory=list)
    histories: set[tuple[str, str]] = field(default_factory=set)
    versions: list[StoredVersion] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """A dead letter; *record* is `None` when it was truncated."""

    reason: str
    position: Position
    record: bytes | None


@dataclass(slots=True)
class ComparisonReport:
    """The result of a comparison."""

    differences: list[str] = field(default_factory=list)
    rows_compared: int = 0
    operations_compared: int = 0
    versions_compared: int = 0
    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    rows_per_shard: dict[str, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)


def compare(
    model: ReferenceModel,
    shards: Sequence[ShardContent],
    put: Mapping[Position, Item],
    letters: Iterable[StoredDeadLetter],
    *,
    foreign: frozenset[str] = frozenset(),
) -> ComparisonReport:
    """Compare all shards and dead letters with *model*, except the tenants in *foreign*, which existed before."""
    report = ComparisonReport()
    homes = _find_homes(model, shards, foreign, report)
    for shard in shards:
        report.rows_per_shard[shard.name] = len(shard.rows)
        living = {tenant.tenant_id for tenant in shard.tenants}
        owners = {row.tenant_id for row in shard.rows} | {row.tenant_id for row in shard.operations}
        report.differences += [
            f"{stray}: has rows on {shard.name}, which has no such tenant" for stray in sorted(owners - living)
        ]
    for tenant_id, tenant in model.tenants.items():
        for shard in homes.get(tenant_id, ()):
            rows = [row for row in shard.rows if row.tenant_id == tenant_id]
            operations = [operation for operation in shard.operations if operation.tenant_id == tenant_id]
            report.differences += _row_differences(tenant_id, tenant, rows)
            report.differences += _operation_differences(tenant_id, tenant, operations)
            versions = [version for version in shard.versions if version.tenant_id == tenant_id]
            kept = {name for kind, name in shard.histories if kind == tenant.business_type}
            report.differences += _version_differences(tenant_id, tenant, kept, versions)
            report.versions_compared += len(versions)
            report.rows_compared += len(rows)
            report.operations_compared += len(operations)
            report.succeeded += sum(operation.status == "succeeded" for operation in operations)
            report.failed.update(str(operation.error) for operation in operations if operation.status != "succeeded")
            report.latencies_s += [operation.latency_s for operation in operations]
    report.differences += _dead_letter_differences(put, list(letters), report.dead_letters)
    report.latencies_s.sort()
    return report


def known_times(
    model: ReferenceModel, shards: Sequence[ShardContent], windows: Mapping[datetime, tuple[datetime, datetime]]
) -> dict[datetime, datetime]:
    """Return a time for each moment of *windows*: that in the shards' rows if it is in the window, else its begin."""
    times = {moment: earliest for moment, (earliest, _) in windows.items()}
    for shard in shards:
        for row in shard.operations:
            tenant = model.tenants.get(row.tenant_id)
            entry = tenant.log.get(row.request_id) if tenant is not None else None
            if entry is None or entry.requested_at not in windows:
                continue
            earliest, latest = windows[entry.requested_at]
            if earliest - TIME_STEP <= row.requested_at <= latest:
                times[entry.requested_at] = row.requested_at
    return times


def _find_homes(
    model: ReferenceModel, shards: Sequence[ShardContent], foreign: frozenset[str], report: ComparisonReport
) -> dict[str, list[ShardContent]]:
    homes: dict[str, list[ShardContent]] = defaultdict(list)
    for shard in shards:
        for stored in shard.tenants:
            expected = model.tenants.get(stored.tenant_id)
            if expected is not None:
                homes[stored.tenant_id].append(shard)
                wanted = (expected.business_id, expected.location_id, expected.business_type, "active")
                got = (stored.business_id, stored.location_id, stored.business_type, stored.state)
                report.differences += _compare_values(
                    f"{stored.tenant_id}: row of tenants on {shard.name}", wanted, got
                )
            elif stored.tenant_id not in foreign:
                report.differences.append(f"{stored.tenant_id}: a tenant on {shard.name} that was not registered")
    for tenant_id in model.tenants:
        names = [shard.name for shard in homes.get(tenant_id, ())]
        if len(names) != 1:
            report.differences.append(f"{tenant_id}: expected on one shard, found on {len(names)}: {', '.join(names)}")
    return homes


def _row_differences(tenant_id: str, tenant: TenantModel, stored: Sequence[StoredRow]) -> Iterator[str]:
    named = {(row.resource_type, row.resource_id): row for row in stored}
    derived = [row for row in stored if row.resource_id.startswith(DERIVED_ID_PREFIX)]
    for row in derived:
        del named[row.resource_type, row.resource_id]
    if named.pop(DEFAULT_ROW, None) is None:
        yield f"{tenant_id}: expected one default row settings/default, found none"
    yield from _key_differences(f"{tenant_id}: resource", tenant.rows, named)
    for key, row in named.items():
        if (expected := tenant.rows.get(key)) is not None:
            yield from _compare_values(
                f"{tenant_id}: resource {key}", _row_texts(expected, tenant), _stored_row_texts(row)
            )
    expected_derived = Counter((kind, _row_texts(row, tenant)) for kind, row in tenant.derived_rows)
    got_derived = Counter((row.resource_type, _stored_row_texts(row)) for row in derived)
    yield from _compare_values(f"{tenant_id}: resources without ids of their own", expected_derived, got_derived)


def _version_differences(
    tenant_id: str, tenant: TenantModel, kept: AbstractSet[str], stored: Iterable[StoredVersion]
) -> Iterator[str]:
    got: defaultdict[tuple[str, str], list[tuple[str, ...]]] = defaultdict(list)
    for row in sorted(stored, key=lambda row: row.version):
        document = "" if row.document is None else canonical_text(parse_json(row.document))
        key = (row.resource_type, row.resource_id)
        if key != DEFAULT_ROW and not row.resource_id.startswith(DERIVED_ID_PREFIX):
            got[key].append((str(row.version), row.change, _known_id(row.request_id), document))
    expected = {
        key: [
            (str(number), one.kind, _known_id(one.request_id), "" if one.kind == "delete" else canonical_text(one.data))
            for number, one in enumerate(versions, 1)
        ]
        for key, versions in tenant.versions.items()
        if key[0] in kept
    }
    yield from _key_differences(f"{tenant_id}: history", expected, got)
    for key, versions in got.items():
        none = ("",) * len(versions[0])
        for wanted, found in zip_longest(expected.get(key, versions), versions, fillvalue=none):
            yield from _compare_values(f"{tenant_id}: version of {key}", wanted, found)


def _known_id(request_id: str | None) -> str:
    return "" if request_id is None or request_id.startswith(DERIVED_ID_PREFIX) else request_id


def _row_texts(row: ModelRow, tenant: TenantModel) -> tuple[str, ...]:
    return (canonical_text(row.data), row.date.isoformat(), row.last_updated.isoformat(), tenant.business_type)


def _stored_row_texts(row: StoredRow) -> tuple[str, ...]:
    data = canonical_text(parse_json(row.data))
    return (data, row.date.isoformat(), row.last_updated.isoformat(), row.business_type)


def _operation_differences(tenant_id: str, tenant: TenantModel, stored: Sequence[StoredOperation]) -> Iterator[str]:
    named = {row.request_id: row for row in stored if not row.request_id.startswith(DERIVED_ID_PREFIX)}
    yield from _key_differences(f"{tenant_id}: operation", tenant.log, named)
    for request_id, row in named.items():
        if (entry := tenant.log.get(request_id)) is not None:
            yield from _compare_values(
                f"{tenant_id}: operation {request_id}", _entry_texts(entry), _stored_operation_texts(row)
            )
    derived = [row for row in stored if row.request_id.startswith(DERIVED_ID_PREFIX)]
    for row in derived:
        if row.resource_id is not None and row.resource_id.startswith(DERIVED_ID_PREFIX):
            yield from _compare_values(f"{tenant_id}: id of an unnamed create", row.request_id, row.resource_id)
    yield from _compare_values(
        f"{tenant_id}: operations without requestId",
        Counter(_entry_texts(entry) for entry in tenant.derived),
        Counter(_stored_operation_texts(row) for row in derived),
    )


def _entry_texts(entry: LogEntry) -> tuple[str, ...]:
    return _operation_texts(entry, entry.result)


def _stored_operation_texts(row: StoredOperation) -> tuple[str, ...]:
    return _operation_texts(row, None if row.result is None else parse_json(row.result))


def _operation_texts(row: LogEntry | StoredOperation, result: JsonValue) -> tuple[str, ...]:
    resource_id = row.resource_id
    if resource_id is not None and resource_id.startswith(DERIVED_ID_PREFIX):
        resource_id = None
    text = canonical_text(_normalize_times(result))
    return (
        row.kind,
        row.resource_type,
        str(resource_id),
        row.status,
        str(row.error),
        row.requested_at.isoformat(),
        text,
    )


def _normalize_times(result: JsonValue) -> JsonValue:
    """Return *result* with its times in one format of RFC 3339, and without the cursor of a next page."""
    if not isinstance(result, dict):
        return result
    if isinstance(items := result.get("items"), list):
        rest = {name: value for name, value in result.items() if name != "next" or not result.get("hasMore")}
        return rest | {"items": [_normalize_times(item) for item in items]}
    times = {name: result[name] for name in ("date", "lastUpdated") if name in result}
    return result | {name: parse_timestamp(str(text)).isoformat() for name, text in times.items()}


def _dead_letter_differences(
    put: Mapping[Position, Item],
    letters: Sequence[StoredDeadLetter],
    counts: Counter[str],
) -> Iterator[str]:
    found: dict[Position, set[str]] = defaultdict(set)
    for letter in letters:
        item = put.get(letter.position)
        if item is None:
            continue  # the letter of another producer's record
        if letter.reason not in found[letter.position]:
            counts[letter.reason] += 1
        found[letter.position].add(letter.reason)
        if letter.record is not None and letter.record != item.record:
            yield f"dead letter of {letter.position}: its record is not the record put at that position"
    for position, item in put.items():
        reasons, expected = found.get(position, set()), _expected_reasons(item)
        if item.verdict.effect is Effect.REJECTED and not reasons:
            yield f"record at {position}: expected a dead letter {expected}, got none: {_shorten(item.record)}"
            continue
        if extra := sorted(reasons - item.verdict.reasons):
            yield f"record at {position}: expected {expected}, got a dead letter {extra}: {_shorten(item.record)}"


def _expected_reasons(item: Item) -> str:
    return " or ".join(sorted(item.verdict.reasons)) or f"none ({item.verdict.effect})"


def _key_differences(what: str, expected: Mapping[Key, object], got: Mapping[Key, object]) -> Iterator[str]:
    for key in expected.keys() - got.keys():
        yield f"{what} {key}: expected, not found: {_shorten(expected[key])}"
    for key in got.keys() - expected.keys():
        yield f"{what} {key}: not expected, found: {_shorten(got[key])}"


def _compare_values(what: str, expected: object, got: object) -> list[str]:
    if expected == got:
        return []
    if isinstance(expected, Counter) and isinstance(got, Counter):
        expected, got = expected - got, got - expected
    if isinstance(expected, tuple) and isinstance(got, tuple):
        unequal = [number for number, pair in enumerate(zip(expected, got, strict=True)) if pair[0] != pair[1]]
        expected, got = tuple(expected[number] for number in unequal), tuple(got[number] for number in unequal)
    return [f"{what}: expected {_shorten(expected)}, got {_shorten(got)}"]


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}… ({len(text)} characters)"


def percentile(sorted_values: Sequence[float], share: float) -> float | None:
    """Return the value below which *share* of *sorted_values* lie; `None` without values."""
    if not sorted_values:
        return None
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]
