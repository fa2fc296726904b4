"""Decode the bytes of a record into an operation, or into the reason why they are none (docs/interface.md). Pure.

Every decision is a function of the record's bytes and position alone, so that every reader of the record, today or
after a crash, decides the same (architecture, idea 7).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from functools import lru_cache
from sys import intern
from typing import Annotated, Any, TypeVar, cast

import msgspec

from simplu_worker.operations.document_bounds import DOCUMENT_MAX_DEPTH, exceeds_bounds
from simplu_worker.operations.nesting import cut_deep_values, is_nested_deeper
from simplu_worker.operations.operation import (
    DayRange,
    DeadLetterReason,
    ListQuery,
    Operation,
    OperationKind,
    Origin,
    RejectedRecord,
    tenant_id_of,
)

DERIVED_REQUEST_ID_PREFIX = "simplu:"
NESTING_MAX = 1 + DOCUMENT_MAX_DEPTH  # far below the interpreter's own limit, which differs between versions
DEFAULT_PAGE, DEFAULT_LIMIT = 1, 100
BACKSLASH = ord("\\")  # a search for a number in bytes takes a tenth of the time of one for a string
DIGEST_VERSION = b"\x01"  # first byte of every digest: a later rule must not turn redeliveries into reuses

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
LongId = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Positive = Annotated[int, msgspec.Meta(ge=1)]

T = TypeVar("T")


class _Pagination(msgspec.Struct, gc=False):
    page: Positive | None = None
    limit: Positive | None = None


ABSENT = msgspec.Raw(b"")


class _Message(msgspec.Struct, rename="camel", gc=False):
    """The record's members. A `null` counts as absent, as common serialisers write one for every unset member."""

    operation: str
    business_id: Id
    location_id: Id
    resource_type: Id
    timestamp: str
    resource_id: LongId | None = None
    request_id: Id | None = None
    data: msgspec.Raw = ABSENT
    filters: msgspec.Raw = ABSENT
    pagination: msgspec.Raw = ABSENT
    simplu_replay: msgspec.Raw = ABSENT


class ReplayedFrom(msgspec.Struct, frozen=True, rename="camel"):
    """Member `simpluReplay`: the first position of a record without a request id that is replayed as a dead letter."""

    stream: str
    stream_shard: str
    sequence_number: str
    sub_sequence_number: int


_message_decoder = msgspec.json.Decoder(_Message)
_pagination_decoder = msgspec.json.Decoder(_Pagination)
_replayed_decoder = msgspec.json.Decoder(ReplayedFrom)
_filters_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

_KINDS_WITH_DATA = frozenset({OperationKind.CREATE, OperationKind.UPDATE, OperationKind.PATCH})
_KINDS_WITH_ID = frozenset({OperationKind.UPDATE, OperationKind.PATCH, OperationKind.DELETE, OperationKind.READ})
_DAY_MEMBERS = ("date", "startDate", "endDate")

# The characters between the digits of a time in UTC; Postgres parses such a text as Python does.
_PUNCTUATION_OF_UTC = frozenset({"--T::Z", "--T::."})
_UTC_TEXT_MAX = len("2026-01-31T09:00:00.000000Z")

# A whole run of backslashes before what looks like a surrogate, which is one only if the run is of odd length.
# No possessive quantifiers here: Python 3.11.2, the version of Debian 12, matches some of them wrongly.
_SURROGATES = re.compile(rb"(?<!\\)(\\+)u[dD][89a-fA-F][0-9a-fA-F]{2}")
_SURROGATE_BYTES = 6


class _Form(msgspec.Struct, frozen=True, gc=False):
    """The required members for one kind of operation. Looked up once a record: access to an enum member is slow."""

    kind: OperationKind
    name: str
    needs_id: bool
    has_data: bool
    is_create: bool
    is_list: bool


_FORMS = {
    kind.value: _Form(
        kind=kind,
        name=kind.value,
        needs_id=kind in _KINDS_WITH_ID,
        has_data=kind in _KINDS_WITH_DATA,
        is_create=kind is OperationKind.CREATE,
        is_list=kind is OperationKind.LIST,
    )
    for kind in OperationKind
}


class InvalidRecordError(Exception):
    """The record breaks a rule of the contract, which the text names."""


def decode_operation(record: bytes, origin: Origin, max_bytes: int, list_limit: int) -> Operation | RejectedRecord:
    """Decode one record of resource operations.

    *list_limit* is `LIST_RESULT_LIMIT`, the maximum of a `list`'s own limit. Never raises, whatever the bytes.
    """
    if len(record) > max_bytes:
        error = f"expected at most {max_bytes} bytes (OPERATION_MAX_BYTES), got {len(record)}"
        return RejectedRecord(reason=DeadLetterReason.TOO_LARGE, error=error, origin=origin)
    try:
        message, is_deep = _parse_record(record, _message_decoder)
        return _build_operation(message, origin, record, list_limit, is_deep=is_deep)
    except (msgspec.ValidationError, InvalidRecordError) as exc:
        return _reject(DeadLetterReason.INVALID_MESSAGE, str(exc), record, origin)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        return RejectedRecord(reason=DeadLetterReason.INVALID_JSON, error=json_error(exc), origin=origin)


def parse_timestamp(text: str) -> datetime:
    """Parse an ISO 8601 time or date into UTC; no offset means UTC, a date alone its midnight.

    Raises `ValueError` for anything else, and for an instant outside the years 0001–9999 of UTC.
    """
    parsed = datetime.fromisoformat(text.upper())
    try:
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError("outside the years 0001 to 9999 in UTC") from exc


def utc_text(text: str) -> str:
    """Return an ISO 8601 time or date as text in UTC, which Postgres parses to the same instant.

    Raises the errors of `parse_timestamp`.
    """
    if text[4:20:3] in _PUNCTUATION_OF_UTC and text[-1] == "Z" and len(text) <= _UTC_TEXT_MAX:
        datetime.fromisoformat(text)
        return text
    return parse_timestamp(text).isoformat()


def derived_request_id(origin: Origin) -> str:
    """Return the request id of a record that has none: the same for every read of the same position."""
    return _derive_request_id(origin.name, origin.stream_shard_id, origin.sequence_number, origin.sub_sequence_number)


def with_request_id(record: bytes, origin: Origin) -> bytes:
    """Return *record*, a valid one without `requestId`, with the id derived from its *origin*, and with that origin.

    The record's own bytes stay, and no `resourceId` is added, as the digest covers both as they were sent. Of a member
    that occurs twice (as after `"requestId": null`) the last one counts.
    """
    replayed = ReplayedFrom(
        stream=origin.name,
        stream_shard=origin.stream_shard_id or "",
        sequence_number=origin.sequence_number or "",
        sub_sequence_number=origin.sub_sequence_number,
    )
    members = msgspec.json.encode({"requestId": derived_request_id(origin), "simpluReplay": replayed})
    return record.rstrip()[:-1] + b"," + members[1:]


def _derive_request_id(
    stream: str, stream_shard_id: str | None, sequence_number: str | None, sub_sequence_number: int
) -> str:
    position = f"{stream}\0{stream_shard_id}\0{sequence_number}\0{sub_sequence_number}"
    return DERIVED_REQUEST_ID_PREFIX + hashlib.sha256(position.encode()).hexdigest()


def _is_replayed(request_id: str, replay: msgspec.Raw) -> bool:
    """Return whether *request_id* is the one derived from the position in `simpluReplay`."""
    try:
        first = parse_record(bytes(replay), _replayed_decoder)
        derived = _derive_request_id(first.stream, first.stream_shard, first.sequence_number, first.sub_sequence_number)
    except (msgspec.DecodeError, UnicodeError):
        return False
    return request_id == derived


def replace_lone_surrogates(record: bytes) -> bytes:
    r"""Replace every unpaired surrogate escape of a JSON text by the escape of U+0000, which has the same length.

    Neither can be stored, but the parser accepts the second, to which the rules for U+0000 apply: an id with it is
    invalid, and data with it gets the outcome `invalid_data`.
    """
    mended = bytearray(record)
    high_end = -1  # the end of a high surrogate, where its low one may begin
    for match in _SURROGATES.finditer(record):
        if len(match[1]) % 2 == 0:
            continue  # the last backslash is itself escaped
        start, is_low = match.end() - _SURROGATE_BYTES, record[match.end() - 3] in b"cdefCDEF"
        if is_low and start == high_end:
            high_end = -1
            continue
        _blank(mended, high_end)
        high_end = -1 if is_low else match.end()
        if is_low:
            _blank(mended, match.end())
    _blank(mended, high_end)
    return bytes(mended)


def _blank(mended: bytearray, end: int) -> None:
    """Replace the escape that ends at *end* by that of U+0000; do nothing for -1."""
    if end >= 0:
        mended[end - _SURROGATE_BYTES : end] = rb"\u0000"


def parse_record(record: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Parse *record*, nested however deep, with its lone surrogates replaced.

    A member with a deep value must be unknown, or raw in the type of *decoder*.
    Raises `msgspec.ValidationError` for JSON of another shape; for anything else, `msgspec.DecodeError`,
    `UnicodeDecodeError` or `RecursionError`, which `json_error` describes.
    """
    return _parse_record(record, decoder)[0]


def _parse_record(record: bytes, decoder: msgspec.json.Decoder[T]) -> tuple[T, bool]:
    """Return the same as `parse_record`, and whether *record* is nested deeper than NESTING_MAX."""
    if not record.isascii():
        record.decode()  # msgspec does not check the strings that it skips or keeps raw
    # A shorter text has no room to close as many brackets: if it opens them, it is no JSON, and refused as such below.
    is_deep = len(record) > 2 * NESTING_MAX and is_nested_deeper(record, NESTING_MAX)
    parse = _parse_deep if is_deep else _parse_shallow
    try:
        return parse(record, decoder), is_deep
    except msgspec.DecodeError:
        mended = replace_lone_surrogates(record)
        if mended == record:
            raise
        return parse(mended, decoder), is_deep


def _parse_shallow(record: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(record)
    except msgspec.ValidationError:
        # msgspec stops at the first fault of any kind, but text that is no JSON at all must be reported as that.
        msgspec.json.decode(record, type=msgspec.Raw)
        raise


def _parse_deep(record: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    cut = cut_deep_values(record)
    return cast("T", _with_values(_parse_shallow(cut.text, decoder), cut.values))


def _with_values(message: Any, values: Mapping[bytes, bytes]) -> Any:
    """Return *message*, a struct or a dictionary, with the deep values of its raw members in their places."""
    members: dict[str, Any] = message if isinstance(message, dict) else msgspec.structs.asdict(message)
    raw = {name: bytes(value) for name, value in members.items() if isinstance(value, msgspec.Raw)}
    deep = {name: msgspec.Raw(values[place]) for name, place in raw.items() if place in values}
    return members | deep if isinstance(message, dict) else msgspec.structs.replace(message, **deep)


def json_error(exc: Exception) -> str:
    """Return why a record is no JSON, without quoting it."""
    match exc:
        case RecursionError():  # only if the worker's own calls are nested deep
            return f"expected JSON nested at most {NESTING_MAX} deep, got deeper"
        case UnicodeDecodeError():
            return f"expected UTF-8, got another byte at {exc.start}"
        case _:
            return f"expected one JSON object: {exc}"


def has_escapes(record: bytes) -> bool:
    """Return whether a JSON text has an escaped character: U+0000 can only occur as one."""
    return b"\\u" in record


def check_texts(texts: Mapping[str, str | None]) -> None:
    """Raise `InvalidRecordError` for a text that Postgres cannot store, with the name of its member."""
    for name, value in texts.items():
        if value is not None and "\0" in value:
            raise InvalidRecordError(f"{name}: expected text without U+0000 and lone surrogates")


def _ids_of(message: _Message) -> dict[str, str | None]:
    return {
        "businessId": message.business_id,
        "locationId": message.location_id,
        "resourceType": message.resource_type,
        "resourceId": message.resource_id,
        "requestId": message.request_id,
    }


def _build_operation(message: _Message, origin: Origin, record: bytes, list_limit: int, *, is_deep: bool) -> Operation:
    form = _FORMS.get(message.operation)
    if form is None:
        known = ", ".join(_FORMS)
        came = f"another text of {len(message.operation)} characters"  # not the text: errors are logged
        raise InvalidRecordError(f"operation: expected one of {known}, got {came}")
    if BACKSLASH in record and has_escapes(record):  # in two steps: the first is much faster, and rarely true
        check_texts(_ids_of(message))
    request_id, sent_id = message.request_id, message.resource_id
    if request_id is None:
        request_id = derived_request_id(origin)
    elif request_id.startswith(DERIVED_REQUEST_ID_PREFIX) and not _is_replayed(request_id, message.simplu_replay):
        raise InvalidRecordError(
            f"requestId: the prefix {DERIVED_REQUEST_ID_PREFIX!r} is reserved for derived ids; send another id"
        )
    if form.needs_id and sent_id is None:
        raise InvalidRecordError(f"resourceId: required for {form.kind}")
    data = bytes(message.data)
    if data[:1] != b"{":  # rarely
        data = object_member(message.data, "data", required=form.has_data)
    filters = b"" if message.filters is ABSENT else object_member(message.filters, "filters")
    pagination = b"" if message.pagination is ABSENT else object_member(message.pagination, "pagination")
    are_filters_deep = is_deep and form.is_list and is_nested_deeper(filters, DOCUMENT_MAX_DEPTH)
    try:
        requested_at = utc_text(message.timestamp)
    except ValueError:
        raise InvalidRecordError(
            "timestamp: expected ISO 8601 in the years 0001 to 9999, such as 2026-01-31T09:00:00Z"
        ) from None
    business_id, location_id, tenant_id = _interned_ids(message.business_id, message.location_id)
    return Operation(  # positional arguments: keywords take half as long again
        form.kind,
        business_id,
        location_id,
        tenant_id,
        intern(message.resource_type),
        None if form.is_list else request_id if form.is_create and sent_id is None else sent_id,
        request_id,
        message.data if form.has_data else None,
        _list_query(b"" if are_filters_deep else filters, pagination, list_limit) if form.is_list else None,
        requested_at,
        digest_of(form.name, message.resource_type, sent_id, data, filters, pagination),
        origin,
        len(record),
        exceeds_bounds(data, may_be_deep=is_deep) if form.has_data else are_filters_deep,
    )


@lru_cache(16_384)  # with fewer than a replica has tenants, most of these are made again for each operation
def _interned_ids(business_id: str, location_id: str) -> tuple[str, str, str]:
    """Return the ids of a business, a location and their tenant.

    All operations of a tenant share these objects: less memory, and lookups and comparisons by identity.
    """
    return intern(business_id), intern(location_id), intern(tenant_id_of(business_id, location_id))


def object_member(raw: msgspec.Raw, name: str, *, required: bool = False) -> bytes:
    """Return the bytes of an object member; empty if it is absent or null. Raises `InvalidRecordError`."""
    value = bytes(raw)
    if value[:1] == b"{":
        return value
    if value and value != b"null":
        raise InvalidRecordError(f"{name}: expected an object")
    if required:
        raise InvalidRecordError(f"{name}: required, expected an object")
    return b""


def _list_query(filters: bytes, pagination: bytes, list_limit: int) -> ListQuery:
    try:
        pages = parse_record(pagination or b"{}", _pagination_decoder)
    except msgspec.ValidationError as exc:
        raise InvalidRecordError(f"pagination: {exc}") from None
    members = _filters_decoder.decode(filters or b"{}")
    first, last = _day_bounds({name: members.pop(name) for name in _DAY_MEMBERS if name in members})
    return ListQuery(
        members=msgspec.json.encode(members).decode(),
        days=DayRange(first=first, last=last),
        page=min(pages.page or DEFAULT_PAGE, 2**31),  # beyond any table; keeps the offset within a bigint
        limit=min(pages.limit or DEFAULT_LIMIT, list_limit),
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
        return parse_timestamp(msgspec.json.decode(raw, type=str)).date()
    except (ValueError, msgspec.ValidationError):
        raise InvalidRecordError(f"filters.{name}: expected an ISO 8601 date, such as 2026-01-31") from None


def digest_of(
    kind: str, resource_type: str, resource_id: str | None, data: bytes, filters: bytes, pagination: bytes
) -> bytes:
    """Return the versioned digest of an operation as sent; each part with its length, so that parts cannot merge.

    Without the timestamp: a producer's retry with a new timestamp is the same operation (protocol §6.4).
    """
    head, words = _digest_head(kind, resource_type)
    sent_id = resource_id.encode() if resource_id else b""
    sizes = _sizes_as_text(len(sent_id), len(data), len(filters), len(pagination))
    parts = (head, sizes, words, sent_id, b"\0", data, b"\0", filters, b"\0", pagination)
    return DIGEST_VERSION + hashlib.sha256(b"".join(parts)).digest()


@lru_cache(4096)
def _digest_head(kind: str, resource_type: str) -> tuple[bytes, bytes]:
    """Return the sizes of the first two parts of a digest, and the parts."""
    parts = kind.encode(), resource_type.encode()
    return b"%d,%d," % (len(parts[0]), len(parts[1])), b"\0%b\0%b\0" % parts


@lru_cache(4096)
def _sizes_as_text(*sizes: int) -> bytes:
    return ",".join(map(str, sizes)).encode()


class _Ids(msgspec.Struct, rename="camel"):
    """The readable ids of an invalid record, for its dead letter and the log."""

    business_id: msgspec.Raw = ABSENT
    location_id: msgspec.Raw = ABSENT
    request_id: msgspec.Raw = ABSENT
    resource_id: msgspec.Raw = ABSENT


def _reject(reason: DeadLetterReason, error: str, record: bytes, origin: Origin) -> RejectedRecord:
    try:
        ids = msgspec.json.decode(replace_lone_surrogates(record), type=_Ids)
    except (msgspec.DecodeError, RecursionError):
        ids = _Ids()
    return RejectedRecord(
        reason=reason,
        error=error,
        origin=origin,
        business_id=short_text(ids.business_id),
        location_id=short_text(ids.location_id),
        request_id=short_text(ids.request_id),
        resource_id=short_text(ids.resource_id),
    )


def peeked_value(raw: msgspec.Raw) -> object:
    """Return the value of a member that may be any; infinity for one that cannot be read, None for none."""
    try:
        return msgspec.json.decode(raw) if bytes(raw) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return math.inf


def short_text(raw: msgspec.Raw) -> str | None:
    """Return the value of a member if it may be an id, otherwise None."""
    value = peeked_value(raw)
    return value if isinstance(value, str) and len(value) <= 256 else None
