"""A reference model of docs/sending.md: the meaning of a record in plain Python, one operation at a time. Pure.

The producer gets the expected outcome of each record from the model, and the checker compares every shard with it. The
model is written from the contract alone and shares no code with the worker, so that one mistake cannot be in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum

from simplu_local.workload.json_values import JsonValue, canonical_text, parse_json
from simplu_local.workload.lists import day_at, in_order, passes_filters

DERIVED_ID_PREFIX = "simplu:"
WRITING_KINDS = ("create", "update", "patch", "delete")
READING_KINDS = ("read", "list")
DEFAULT_LIST_PAGE, DEFAULT_LIST_LIMIT = 1, 100
LIST_RESULT_LIMIT = 1000  # LIST_RESULT_LIMIT's default, docs/configuration.md
RESULT_MAX_BYTES = 1024 * 1024  # docs/outcomes.md: a longer result is `result_too_large`
NUMERIC_MAX_EXPONENT = 131_071  # PostgreSQL manual, numeric: 131072 digits before the decimal point
NUMERIC_MAX_SCALE = 16_383  # the same manual: digits after the decimal point


class Effect(StrEnum):
    """The expected effect of a record."""

    LOGGED = "logged"  # exactly one row of `operations`, succeeded or failed
    DROPPED = "dropped"  # a redelivery: no effect beyond the first delivery's
    REJECTED = "rejected"  # a dead letter and no row
    HELD = "held"  # the tenant is not registered: the record waits, without effect for now


@dataclass(frozen=True, slots=True)
class Verdict:
    """The expected outcome of one record. *reasons* are those its dead letter may name; empty: no dead letter."""

    effect: Effect
    reasons: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class OperationRequest:
    """A valid record before encoding; *data*, *filters* and *pagination* are JSON text, as sent."""

    kind: str
    business_id: str
    location_id: str
    resource_type: str
    resource_id: str | None
    timestamp: datetime
    request_id: str | None
    data: str | None = None
    filters: str | None = None
    pagination: str | None = None

    @property
    def tenant_id(self) -> str:
        """The id of the tenant."""
        return f"{self.business_id}-{self.location_id}"

    @property
    def content(self) -> tuple[str | None, ...]:
        """The members that distinguish another operation with the same request id from a redelivery."""
        return (self.kind, self.resource_type, self.resource_id, self.data, self.filters, self.pagination)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A resource; *data* is parsed JSON."""

    data: JsonValue
    date: datetime
    last_updated: datetime


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a resource: the change, and the data after it; `None` of a delete."""

    kind: str
    request_id: str | None
    data: JsonValue


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One row of `operations`. *error* is `None` when it succeeded; only `read` and `list` have a *result*."""

    kind: str
    resource_type: str
    resource_id: str | None
    requested_at: datetime
    content: tuple[str | None, ...]
    error: str | None = None
    result: JsonValue = None

    @property
    def status(self) -> str:
        """The status, as in docs/outcomes.md."""
        return "failed" if self.error else "succeeded"


# Names under which business types store what is sent under another one; of the names that workloads use.
STORED_NAMES = {("dental", "patients"): "patient", ("restaurant", "products"): "product"}
# The members that are the dates of resource types.
DATES = {("dental", "appointment"): "appointmentTime", ("gym", "class"): "startsAt"}


@dataclass(slots=True)
class TenantModel:
    """The expected rows of one tenant.

    Operations without a `requestId` are in *derived*, and resources with an id from such an operation are in
    *derived_rows*: the worker derives those ids from positions, which the model does not know.
    """

    business_id: str
    location_id: str
    business_type: str
    rows: dict[tuple[str, str], ModelRow] = field(default_factory=dict)
    log: dict[str, LogEntry] = field(default_factory=dict)
    derived: list[LogEntry] = field(default_factory=list)
    derived_rows: list[tuple[str, ModelRow]] = field(default_factory=list)
    versions: dict[tuple[str, str], list[ModelVersion]] = field(default_factory=dict)  # in order; not of derived rows

    def stored_name(self, resource_type: str) -> str:
        """Return the name under which resources are stored that are sent as *resource_type*."""
        return STORED_NAMES.get((self.business_type, resource_type), resource_type)


class ReferenceModel:
    """The expected resources and log of every tenant after the records applied so far."""

    def __init__(self, *, list_result_limit: int = LIST_RESULT_LIMIT) -> None:
        self.tenants: dict[str, TenantModel] = {}
        self._list_result_limit = list_result_limit

    def add_tenant(self, business_id: str, location_id: str, business_type: str) -> None:
        """Register a tenant; idempotent."""
        self.tenants.setdefault(f"{business_id}-{location_id}", TenantModel(business_id, location_id, business_type))

    def apply(self, request: OperationRequest) -> Verdict:
        """Apply *request* after all earlier ones and return the expected outcome of its record."""
        tenant = self.tenants.get(request.tenant_id)
        if tenant is None:
            return Verdict(Effect.HELD)
        if request.request_id is not None and (earlier := tenant.log.get(request.request_id)) is not None:
            if earlier.content == request.content:
                return Verdict(Effect.DROPPED)
            return Verdict(Effect.REJECTED, frozenset({"request_id_reused"}))
        entry = self._execute(tenant, request)
        if request.request_id is None:
            tenant.derived.append(entry)
        else:
            tenant.log[request.request_id] = entry
        return Verdict(Effect.LOGGED)

    def logged_count(self) -> int:
        """Return the expected number of rows of `operations`."""
        return sum(len(tenant.log) + len(tenant.derived) for tenant in self.tenants.values())

    def replace_times(self, times: Mapping[datetime, datetime]) -> None:
        """Replace the moments that are keys of *times* by their values, the real times."""
        for tenant in self.tenants.values():
            tenant.rows = {
                key: replace(
                    row, date=times.get(row.date, row.date), last_updated=times.get(row.last_updated, row.last_updated)
                )
                for key, row in tenant.rows.items()
            }
            tenant.log = {
                request_id: replace(entry, requested_at=times.get(entry.requested_at, entry.requested_at))
                for request_id, entry in tenant.log.items()
            }

    def _execute(self, tenant: TenantModel, request: OperationRequest) -> LogEntry:
        resource_id = request.resource_id
        if request.kind == "create" and resource_id is None:
            resource_id = request.request_id
        data = parse_json(request.data) if request.data is not None else None
        if not is_storable(data):
            return _entry(request, resource_id, error="invalid_data")
        if request.kind == "list":
            return self._execute_list(tenant, request)
        if resource_id is None:
            # A create with neither id: the worker derives one, which no other record can name.
            resource_type = tenant.stored_name(request.resource_type)
            tenant.derived_rows.append((resource_type, ModelRow(data, request.timestamp, request.timestamp)))
            return _entry(request, None)
        key = (tenant.stored_name(request.resource_type), resource_id)
        error, row = _apply_to_row(request, tenant.rows.get(key), data)
        result = _read_result(resource_id, row) if request.kind == "read" and row is not None else None
        if row is None:
            tenant.rows.pop(key, None)
        else:
            tenant.rows[key] = row
        if error is None and request.kind in WRITING_KINDS:
            version = ModelVersion(request.kind, request.request_id, None if row is None else row.data)
            tenant.versions.setdefault(key, []).append(version)
        return _entry(request, resource_id, error=error, result=result)

    def _execute_list(self, tenant: TenantModel, request: OperationRequest) -> LogEntry:
        filters = _object(request.filters)
        paging = _object(request.pagination)
        page = int(str(paging.get("page", DEFAULT_LIST_PAGE)))
        limit = min(int(str(paging.get("limit", DEFAULT_LIST_LIMIT))), self._list_result_limit)
        name = tenant.stored_name(request.resource_type)
        path = DATES.get((tenant.business_type, name))
        day_of = None if path is None else day_at(path)
        of_type = {key[1]: row for key, row in tenant.rows.items() if key[0] == name}
        rows = {resource_id: row for resource_id, row in of_type.items() if passes_filters(row, filters, day_of)}
        sort = paging.get("sort")
        found = in_order(rows.items(), sort if isinstance(sort, dict) else None)
        first = (page - 1) * limit
        items: list[JsonValue] = [_read_result(resource_id, row) for resource_id, row in found[first : first + limit]]
        result: dict[str, JsonValue] = {
            "items": items,
            "page": Decimal(page),
            "limit": Decimal(limit),
            "hasMore": len(found) > first + limit,
        }
        if paging.get("total") is True:
            result["total"] = Decimal(len(found))
        if len(canonical_text(result)) > RESULT_MAX_BYTES:
            return _entry(request, None, error="result_too_large")
        return _entry(request, None, result=result)


def _apply_to_row(
    request: OperationRequest, row: ModelRow | None, data: JsonValue
) -> tuple[str | None, ModelRow | None]:
    when = request.timestamp
    if request.kind == "create":
        return ("already_exists", row) if row is not None else (None, ModelRow(data, when, when))
    if row is None:
        return "not_found", None
    match request.kind:
        case "update":
            return None, ModelRow(data, row.date, when)
        case "patch":
            return None, ModelRow(merge_patch(row.data, data), row.date, when)
        case "delete":
            return None, None
        case "read":
            return None, row
        case _:
            raise ValueError(f"expected a kind of operation of docs/sending.md, got {request.kind!r}")


def _entry(
    request: OperationRequest, resource_id: str | None, *, error: str | None = None, result: JsonValue = None
) -> LogEntry:
    return LogEntry(request.kind, request.resource_type, resource_id, request.timestamp, request.content, error, result)


def _read_result(resource_id: str, row: ModelRow) -> dict[str, JsonValue]:
    return {
        "resourceId": resource_id,
        "data": row.data,
        "date": row.date.isoformat(),
        "lastUpdated": row.last_updated.isoformat(),
    }


def _object(text: str | None) -> dict[str, JsonValue]:
    value = parse_json(text) if text is not None else {}
    if not isinstance(value, dict):
        raise TypeError(f"expected a JSON object, got {type(value).__name__}")
    return value


def merge_patch(target: JsonValue, patch: JsonValue) -> JsonValue:
    """Return *target* changed by *patch* (RFC 7396); neither argument is modified."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def is_storable(value: JsonValue) -> bool:
    """Return whether jsonb can store *value*: no U+0000, no lone surrogate, no number outside numeric's range."""
    match value:
        case str():
            return "\x00" not in value and not any("\ud800" <= char <= "\udfff" for char in value)
        case Decimal():
            exponent = int(value.as_tuple().exponent)
            fits = value.is_zero() or value.adjusted() <= NUMERIC_MAX_EXPONENT
            return fits and -exponent <= NUMERIC_MAX_SCALE
        case list():
            return all(map(is_storable, value))
        case dict():
            return all(is_storable(name) and is_storable(member) for name, member in value.items())
        case _:
            return True


def parse_timestamp(text: str) -> datetime:
    """Parse a time: UTC without an offset, midnight without a time."""
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
