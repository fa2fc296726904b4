"""Decode the query of a `list` from the members `filters` and `pagination` of its record. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated, Final

import msgspec

from simplu_worker.operations.json_record import InvalidRecordError, Time, parse_record, parse_timestamp
from simplu_worker.operations.member_errors import EXPECTED_TIME, shape_parts
from simplu_worker.operations.operation import DayRange, ListQuery

DEFAULT_PAGE: Final = 1
DEFAULT_LIMIT: Final = 100

Positive = Annotated[float, msgspec.Meta(ge=1, multiple_of=1)]  # 1.0 is an integer too, as in JSON Schema


class Pagination(msgspec.Struct, gc=False):
    """The members of `pagination`."""

    page: Positive | None = None
    limit: Positive | None = None


_pagination_decoder = msgspec.json.Decoder(Pagination)
_filters_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

DAY_MEMBERS = ("date", "startDate", "endDate")


def decode_list_query(filters: bytes, pagination: bytes, list_limit: int) -> ListQuery:
    """Return the query; *filters* and *pagination* are objects, or empty. Raises `InvalidRecordError`."""
    try:
        pages = parse_record(pagination or b"{}", _pagination_decoder)
    except msgspec.ValidationError as exc:
        raise InvalidRecordError(*shape_parts(exc, within="pagination")) from None
    members = _filters_decoder.decode(filters or b"{}")
    first, last = _day_bounds({name: members.pop(name) for name in DAY_MEMBERS if name in members})
    return ListQuery(
        members=msgspec.json.encode(members).decode(),
        days=DayRange(first=first, last=last),
        page=int(min(pages.page or DEFAULT_PAGE, 2**31)),  # beyond any table; keeps the offset within a bigint
        limit=int(min(pages.limit or DEFAULT_LIMIT, list_limit)),
    )


def _day_bounds(members: dict[str, msgspec.Raw]) -> tuple[datetime | None, datetime | None]:
    days = {name: _day(name, raw) for name, raw in members.items() if bytes(raw) != b"null"}
    firsts = [days[name] for name in ("date", "startDate") if name in days]
    lasts = [days[name] for name in ("date", "endDate") if name in days]
    first = datetime.combine(max(firsts), time.min, UTC) if firsts else None
    last = datetime.combine(min(lasts), time.max, UTC) if lasts else None
    return first, last


def _day(name: str, raw: msgspec.Raw) -> date:
    try:
        return parse_timestamp(msgspec.json.decode(raw, type=Time)).date()
    except msgspec.ValidationError:
        raise InvalidRecordError(f"filters.{name}", EXPECTED_TIME, "another value") from None
