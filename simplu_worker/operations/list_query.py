"""Decode the query of a `list` from the members `filters` and `pagination` of its record. Pure.

Equality of whole members is left to the index and to `@>`; all other filters become one JSON path, whose values are
variables, and whose text has names of members alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Final

import msgspec

from simplu_worker.operations.json_record import (
    EXPECTED_TIME,
    InvalidRecordError,
    Time,
    kind_of,
    parse_record,
    parse_timestamp,
    shape_parts,
)
from simplu_worker.operations.operation import Days, ListIndex, ListProblem, ListQuery, Path, Sort, is_storable

DEFAULT_PAGE: Final = 1
DEFAULT_LIMIT: Final = 100
FILTERS_MAX: Final = 20  # that are no equality of a whole member
VALUES_MAX: Final = 100  # of `in`
PATH_MAX: Final = 8
NAME_MAX: Final = 128  # characters of a member's name in a path
CURSOR_MAX: Final = 16_000  # characters
SORTED_CHARS: Final = 200  # of a text, by which lists are sorted and indexes are made; `applying.sql` has the same
DAY_MEMBERS: Final = ("date", "startDate", "endDate")
OPERATORS: Final = "`from` and `to`, `in`, `exists` or `equals`"
SCALAR_KINDS: Final = frozenset({"text", "a number", "true or false", "null"})

Positive = Annotated[float, msgspec.Meta(ge=1, multiple_of=1)]  # 1.0 is an integer too, as in JSON Schema


class Pagination(msgspec.Struct, gc=False):
    """The members of `pagination`."""

    page: Positive | None = None
    limit: Positive | None = None
    sort: msgspec.Raw = msgspec.Raw(b"null")
    after: msgspec.Raw = msgspec.Raw(b"null")
    total: msgspec.Raw = msgspec.Raw(b"null")


class _Sort(msgspec.Struct, forbid_unknown_fields=True):
    by: str | None = None
    descending: bool = False


class _ProblemError(Exception):
    def __init__(self, member: str, expected: str) -> None:
        super().__init__(member, expected)
        self.problem = ListProblem(member, expected)


class _Cursor(msgspec.Struct, array_like=True, frozen=True):
    list_id: str
    is_last: bool
    rank: Annotated[int, msgspec.Meta(ge=-3, le=3)]
    number: Annotated[str, msgspec.Meta(pattern=r"^-?[0-9]+(\.[0-9]+)?(?![\s\S])")]
    text: str
    resource_id: str


_UNREADABLE: Final = (msgspec.DecodeError, RecursionError)

_pagination_decoder = msgspec.json.Decoder(Pagination)
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_cursor_decoder = msgspec.json.Decoder(_Cursor)
_sort_decoder = msgspec.json.Decoder(_Sort | None)
_flag_decoder = msgspec.json.Decoder(bool | None)
_values_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def decode_list_query(filters: bytes, pagination: bytes, resource_type: str, list_limit: int) -> ListQuery:
    """Return the query; *filters* and *pagination* are objects, or empty.

    A query that cannot be meant has a `problem`. Raises `InvalidRecordError` for a `pagination` without numbers of a
    page.
    """
    try:
        pages = parse_record(pagination or b"{}", _pagination_decoder)
    except msgspec.ValidationError as exc:
        raise InvalidRecordError(*shape_parts(exc, within="pagination")) from None
    members = _members_decoder.decode(filters or b"{}")
    page = int(min(pages.page or DEFAULT_PAGE, 2**31))  # beyond any table; keeps the offset within a bigint
    limit = int(min(pages.limit or DEFAULT_LIMIT, list_limit))
    try:
        days = _days({name: members.pop(name) for name in DAY_MEMBERS if name in members})
        parts = _FilterParts()
        for name, raw in members.items():
            parts.add(name, raw)
        sort = _sort(pages.sort)
        list_id = _list_id(resource_type, filters, sort)
        return ListQuery(
            members=msgspec.json.encode(parts.members).decode(),
            days=days,
            path=parts.path,
            values=msgspec.json.encode(parts.values).decode(),
            indexes=tuple(parts.indexes),
            names=tuple(members),
            sort=sort,
            after=_after(pages.after, list_id),
            has_total=_flag(pages.total, "pagination.total"),
            list_id=list_id,
            page=page,
            limit=limit,
        )
    except _ProblemError as exc:
        return ListQuery(problem=exc.problem, page=page, limit=limit)


class _FilterParts:
    def __init__(self) -> None:
        self.members: dict[str, msgspec.Raw] = {}  # that are equal as a whole
        self.values: dict[str, msgspec.Raw] = {}  # the variables of the path
        self.indexes: list[ListIndex] = []
        self._conditions: list[str] = []

    @property
    def path(self) -> str:
        return f"strict {' && '.join(self._conditions)}" if self._conditions else ""

    def add(self, name: str, raw: msgspec.Raw) -> None:
        member = f"filters.{name[:NAME_MAX]}"
        operators = _members_decoder.decode(raw) if bytes(raw)[:1] == b"{" else {"equals": raw}
        if "equals" in operators and len(operators) == 1 and "." not in name:
            self.members[name] = operators["equals"]
            return
        if len(self._conditions) == FILTERS_MAX:
            raise _ProblemError("filters", f"at most {FILTERS_MAX} of nested members and with operators")
        path = _path(name, member)
        if condition := self._condition(path, operators, member):
            self._conditions.append(f"({condition})")

    def _condition(self, path: Path, operators: Mapping[str, msgspec.Raw], member: str) -> str:
        place = "$" + "".join(f".{msgspec.json.encode(name).decode()}" for name in path)
        match operators:
            case {"equals": value} if len(operators) == 1:
                return self._one_of(place, path, [value], f"{member}.equals")
            case {"in": values} if len(operators) == 1:
                return self._one_of(place, path, _several(values, f"{member}.in"), f"{member}.in")
            case {"exists": value} if len(operators) == 1:
                exists = _flag(value, f"{member}.exists")
                return f"exists({place})" if exists else f"(exists({place})) is unknown"
            case _ if operators and operators.keys() <= {"from", "to"}:
                return self._range(place, path, operators, member)
        raise _ProblemError(member, f"a value, or an object of {OPERATORS}")

    def _one_of(self, place: str, path: Path, values: Sequence[msgspec.Raw], member: str) -> str:
        for value in values:
            if kind_of(bytes(value)) not in SCALAR_KINDS:
                raise _ProblemError(member, "a text, a number, true, false or null")
        if len(values) == 1 and kind_of(bytes(values[0])) == "text":
            self._note_index(path, values[0], values[0])
        return " || ".join(f"{place} == {self._variable(value)}" for value in values)

    def _range(self, place: str, path: Path, operators: Mapping[str, msgspec.Raw], member: str) -> str:
        bounds = {name: raw for name, raw in operators.items() if bytes(raw) != b"null"}
        kinds = {kind_of(bytes(raw)) for raw in bounds.values()}
        if not kinds <= {"text"} and not kinds <= {"a number"}:
            raise _ProblemError(member, "`from` and `to` to be two texts or two numbers")
        if kinds == {"text"}:
            self._note_index(path, bounds.get("from"), bounds.get("to"))
        signs = {"from": ">=", "to": "<="}
        return " && ".join(f"{place} {signs[name]} {self._variable(raw)}" for name, raw in bounds.items())

    def _variable(self, value: msgspec.Raw) -> str:
        name = f"v{len(self.values)}"
        self.values[name] = value
        return f"${name}"

    def _note_index(self, path: Path, low: msgspec.Raw | None, high: msgspec.Raw | None) -> None:
        texts = [None if raw is None else msgspec.json.decode(raw, type=str)[:SORTED_CHARS] for raw in (low, high)]
        if all(text is None or is_storable(text) for text in texts):
            self.indexes.append(ListIndex(path, *texts))


def _path(name: str, member: str) -> Path:
    parts = tuple(name.split("."))
    if len(parts) > PATH_MAX or not all(1 <= len(part) <= NAME_MAX and is_storable(part) for part in parts):
        raise _ProblemError(
            member, f"1 to {PATH_MAX} names of members with dots between, each of 1 to {NAME_MAX} characters"
        )
    return parts


def _several(raw: msgspec.Raw, member: str) -> Sequence[msgspec.Raw]:
    values = _values_decoder.decode(raw) if bytes(raw)[:1] == b"[" else []
    if not 1 <= len(values) <= VALUES_MAX:
        raise _ProblemError(member, f"a list of 1 to {VALUES_MAX} values")
    return values


def _flag(raw: msgspec.Raw, member: str) -> bool:
    try:
        return bool(_flag_decoder.decode(raw))
    except _UNREADABLE:
        raise _ProblemError(member, "true or false") from None


def _sort(raw: msgspec.Raw) -> Sort | None:
    try:
        sort = _sort_decoder.decode(raw)
    except _UNREADABLE:
        expected = "an object of `by`, the name of a member, and `descending`, true or false"
        raise _ProblemError("pagination.sort", expected) from None
    if sort is None:
        return None
    return Sort(() if sort.by is None else _path(sort.by, "pagination.sort.by"), sort.descending)


def _after(raw: msgspec.Raw, list_id: str) -> str | None:
    if bytes(raw) == b"null":
        return None
    error = _ProblemError("pagination.after", "the `next` of a page of this list, with the same filters and sort")
    try:
        text = msgspec.json.decode(raw, type=str)
        cursor = _cursor_decoder.decode(base64.b64decode(text[:CURSOR_MAX], validate=True))
    except (*_UNREADABLE, binascii.Error, ValueError):
        raise error from None
    if cursor.list_id != list_id or not (is_storable(cursor.text) and is_storable(cursor.resource_id)):
        raise error
    return msgspec.json.encode(cursor).decode()


def _list_id(resource_type: str, filters: bytes, sort: Sort | None) -> str:
    members = sorted((name, bytes(raw)) for name, raw in _members_decoder.decode(filters or b"{}").items())
    return hashlib.sha256(repr((resource_type, members, sort)).encode()).hexdigest()[:16]


def _days(members: Mapping[str, msgspec.Raw]) -> Days:
    days = {name: _day(name, raw) for name, raw in members.items() if bytes(raw) != b"null"}
    firsts = [days[name] for name in ("date", "startDate") if name in days]
    lasts = [days[name] for name in ("date", "endDate") if name in days]
    return Days(max(firsts, default=None), min(lasts, default=None), is_one="date" in days)


def _day(name: str, raw: msgspec.Raw) -> date:
    try:
        return parse_timestamp(msgspec.json.decode(raw, type=Time)).date()
    except msgspec.ValidationError:
        raise _ProblemError(f"filters.{name}", EXPECTED_TIME) from None


class ListRules(msgspec.Struct, frozen=True):
    """The path of a resource type's date, and the paths that have an index."""

    date: Path | None = None
    filtered: frozenset[Path] = frozenset()


NO_LIST_RULES: Final = ListRules()


def resolved(query: ListQuery, rules: ListRules) -> ListQuery:
    """Return *query* with what it `asked` by the *rules* of its type: the argument of `:wanted` in `applying.sql`."""
    days, own_date = query.days, None
    if not days.is_open:
        own_date = rules.date or (("date",) if days.is_one else None)
    asked: dict[str, Any] = {"page": query.page, "limit": query.limit, "listId": query.list_id, "names": query.names}
    if query.path:
        asked |= {"path": query.path, "values": msgspec.Raw(query.values.encode())}
    if own_date is not None:
        asked |= {"date": own_date, "orCreation": rules.date is None, "first": days.first, "last": days.last}
    else:
        asked |= {
            "madeFrom": f"{days.first}T00:00:00Z" if days.first else None,
            "madeTo": f"{days.last}T23:59:59.999999Z" if days.last else None,
        }
    if query.sort is not None:
        asked |= {"isSorted": True, "by": query.sort.path}
    if query.after is not None:
        asked["after"] = msgspec.Raw(query.after.encode())
    asked |= {"hasTotal": query.has_total, "isDescending": query.sort is not None and query.sort.is_descending}
    if rules.date is not None and own_date is not None:
        if rules.date in rules.filtered:
            asked["index"] = {"path": rules.date, "isTime": True}
    elif index := next((one for one in query.indexes if one.path in rules.filtered - {rules.date}), None):
        asked["index"] = {"path": index.path, "isTime": False, "low": index.low, "high": index.high}
    return msgspec.structs.replace(query, asked=msgspec.json.encode(asked).decode())
