"""What a `list` answers (docs/sending.md), of rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from typing import Any, Protocol, TypeAlias, TypeVar

from simplu_local.workload.json_values import JsonValue, canonical_text

DAY_FILTERS = ("date", "startDate", "endDate")
KINDS: tuple[type, ...] = (Decimal, str, bool)  # in the order of a sort; all other values are last
SORTED_CHARS = 200

_MISSING = object()


class Row(Protocol):
    """A resource."""

    @property
    def data(self) -> JsonValue:
        """Its document."""
        ...

    @property
    def date(self) -> datetime:
        """When it was created."""
        ...


RowT = TypeVar("RowT", bound=Row)
DayOf: TypeAlias = Callable[[Row], date | None]


def day_of_creation(row: Row) -> date | None:
    """Return the day by which rows of a type without a date are listed."""
    return row.date.astimezone(UTC).date()


def day_at(path: str, zone: tzinfo = UTC) -> DayOf:
    """Return what gives the day of the member at *path* in a time zone."""

    def day_of(row: Row) -> date | None:
        return _day(_value_at(row.data, path), zone)

    return day_of


def passes_filters(row: Row, filters: Mapping[str, JsonValue], day_of: DayOf | None = None) -> bool:
    """Return whether *row* passes every filter; *day_of* is that of a type that names its date."""
    days = {name: value for name, value in filters.items() if name in DAY_FILTERS and value is not None}
    if days:
        has_own = "date" in days and _value_at(row.data, "date") is not _MISSING
        day = (day_of or (day_at("date") if has_own else day_of_creation))(row)
        if day is None:
            return False
        for name, value in days.items():
            bound = date.fromisoformat(str(value)[:10])
            if (name != "endDate" and day < bound) or (name != "startDate" and day > bound):
                return False
    return all(_passes(row.data, name, wanted) for name, wanted in filters.items() if name not in DAY_FILTERS)


def in_order(rows: Iterable[tuple[str, RowT]], sort: Mapping[str, JsonValue] | None) -> list[tuple[str, RowT]]:
    """Return *rows* with their ids in the order of a list: those with equal values by id, in both directions."""
    by_id = sorted(rows, key=lambda pair: pair[0])
    if sort is None:
        return by_id
    values = {resource_id: _sort_value(row, sort.get("by")) for resource_id, row in by_id}

    def key(pair: tuple[str, RowT]) -> tuple[int, Any]:
        value = values[pair[0]]
        return KINDS.index(type(value)), value[:SORTED_CHARS] if isinstance(value, str) else value

    sortable = [pair for pair in by_id if type(values[pair[0]]) in KINDS]
    last = [pair for pair in by_id if type(values[pair[0]]) not in KINDS]
    return sorted(sortable, key=key, reverse=sort.get("descending") is True) + last


def _sort_value(row: Row, by: JsonValue) -> Any:
    return Decimal(str(row.date.timestamp())) if by is None else _value_at(row.data, str(by))


def _value_at(data: JsonValue, path: str) -> Any:
    value: Any = data
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _passes(data: JsonValue, name: str, wanted: JsonValue) -> bool:
    operators = wanted if isinstance(wanted, dict) else {"equals": wanted}
    if "equals" in operators and "." not in name:
        value = data.get(name, _MISSING) if isinstance(data, dict) else _MISSING
        return _is_equal(value, operators["equals"])
    value = _value_at(data, name)
    if "exists" in operators:
        return (value is not _MISSING) is operators["exists"]
    if "in" in operators or "equals" in operators:
        several = operators.get("in", [operators.get("equals")])
        return isinstance(several, list) and any(_is_equal(value, one) for one in several)
    bounds: dict[str, Any] = {key: bound for key, bound in operators.items() if bound is not None}
    return all(
        type(value) is type(bound) and (value >= bound if key == "from" else value <= bound)
        for key, bound in bounds.items()
    )


def _is_equal(value: Any, wanted: JsonValue) -> bool:
    return value is not _MISSING and canonical_text(value) == canonical_text(wanted)


def _day(value: object, zone: tzinfo) -> date | None:
    try:
        text = str(value) if isinstance(value, str) else ""
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if len(text) == len("2026-01-31"):
        return moment.date()
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(zone).date()
