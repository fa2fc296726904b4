"""Decode the bytes of records into operations, or into the reasons why they are none (docs/sending.md). Pure.

Every decision is a function of the record's bytes and position alone, so that every reader, today or after a crash,
decides the same (architecture, idea 7). Records take each step together, in columns: that takes a fifth less time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, TypeVar

import msgspec

from simplu_worker.operations.dead_letter import DECODING_ERRORS, peeked_texts, rejection_of
from simplu_worker.operations.json_record import (
    ABSENT,
    NOTHING,
    RECORD,
    Id,
    InvalidRecordError,
    LongId,
    Time,
    check_texts,
    exceeds_bounds,
    has_escapes,
    member_error,
    object_member,
    parse_record,
    parse_records,
    utc_text,
)
from simplu_worker.operations.list_query import decode_list_query
from simplu_worker.operations.operation import (
    DERIVED_REQUEST_ID_PREFIX,
    ListQuery,
    Operation,
    Origin,
    RejectedRecord,
    derived_request_id,
    is_replayed,
    tenant_id_of,
)
from simplu_worker.operations.verbs import VERBS, Verb
from simplu_worker.vocabulary import DeadLetterReason, OperationKind

DIGEST_VERSION: Final = b"\x01"  # first byte of every digest: a later rule must not turn redeliveries into reuses
HASH_BYTES: Final = 7  # a producer that finds two operations with the same can only lose one of its own


def digest_of(
    kind: str, resource_type: str, resource_id: str | None, data: bytes, filters: bytes, pagination: bytes
) -> bytes:
    """Return the versioned digest of an operation as sent; each part with its length, so that parts cannot merge.

    Without the timestamp: a producer's retry with a new one is the same operation (protocol §6.4).
    """
    return digests_of([kind], [resource_type], [resource_id], [data], [filters], [pagination])[0]


def digests_of(
    kinds: Sequence[str],
    resource_types: Sequence[str],
    resource_ids: Sequence[str | None],
    data: Sequence[bytes],
    filters: Sequence[bytes],
    paginations: Sequence[bytes],
) -> list[bytes]:
    """Return what `digest_of` returns for each operation of a batch, given by its columns."""
    parts = zip(
        map(_head, kinds, resource_types),
        [resource_id.encode() if resource_id else b"" for resource_id in resource_ids],
        data,
        filters,
        paginations,
        strict=True,
    )
    return [
        DIGEST_VERSION
        + sha256(
            b"".join((head, _sizes(len(i), len(d), len(f), len(p)), words, i, b"\0", d, b"\0", f, b"\0", p))
        ).digest()[:HASH_BYTES]
        for (head, words), i, d, f, p in parts
    ]


@lru_cache(4096)
def _head(kind: str, resource_type: str) -> tuple[bytes, bytes]:
    parts = kind.encode(), resource_type.encode()
    return b"%d,%d," % (len(parts[0]), len(parts[1])), b"\0%b\0%b\0" % parts


@lru_cache(4096)
def _sizes(*sizes: int) -> bytes:
    return ",".join(map(str, sizes)).encode()


# Decodes to an operation wherever the decoder works: it shows whether a record that does not is at fault.
SOUND_RECORD: Final = (
    b'{"operation":"create","businessId":"a","locationId":"b","resourceType":"c","resourceId":"d","requestId":"e",'
    b'"timestamp":"2026-01-01T00:00:00Z","data":{"a":1}}'
)
BACKSLASH: Final = ord("\\")  # a search for a number in bytes takes a tenth of the time of one for a string

T = TypeVar("T")


class RecordMembers(msgspec.Struct, rename="camel", gc=False):
    """The record's members. A `null` counts as absent."""

    operation: str
    business_id: Id
    location_id: Id
    resource_type: Id
    timestamp: Time
    resource_id: LongId | None = None
    request_id: Id | None = None
    data: msgspec.Raw = ABSENT
    filters: msgspec.Raw = ABSENT
    pagination: msgspec.Raw = ABSENT
    simplu_replay: msgspec.Raw = ABSENT


_message_decoder = msgspec.json.Decoder(RecordMembers)

_IDS: Final = ("businessId", "locationId", "requestId", "resourceId")
_UNKNOWN: Final = VERBS[OperationKind.READ]  # in place of the verb of an unknown kind


def decode_operation(record: bytes, origin: Origin, max_bytes: int, list_limit: int) -> Operation | RejectedRecord:
    """Decode one record of resource operations, as `decode_operations` does."""
    return decode_operations([record], [origin], max_bytes, list_limit)[0]


def decode_operations(
    records: Sequence[bytes], origins: Sequence[Origin], max_bytes: int, list_limit: int
) -> list[Operation | RejectedRecord]:
    """Decode records, each as if it was alone.

    *list_limit* is the most of a `list`. Never raises, whatever the bytes.
    """
    if not records:
        return []
    if max(map(len, records)) <= max_bytes and (messages := parse_records(records, _message_decoder)) is not None:
        return _Columns(messages, records, origins).operations(list_limit)
    decoded: list[Any] = [_parse(record, origin, max_bytes) for record, origin in zip(records, origins, strict=True)]
    parsed = [index for index, one in enumerate(decoded) if isinstance(one, RecordMembers)]
    if parsed:
        columns = _Columns(
            [decoded[index] for index in parsed],
            [records[index] for index in parsed],
            [origins[index] for index in parsed],
        )
        for index, one in zip(parsed, columns.operations(list_limit), strict=True):
            decoded[index] = one
    return decoded


def _parse(record: bytes, origin: Origin, max_bytes: int) -> RecordMembers | RejectedRecord:
    if len(record) > max_bytes:
        error = member_error(RECORD, f"at most {max_bytes} bytes (OPERATION_MAX_BYTES)", str(len(record)))
        return _reject(DeadLetterReason.TOO_LARGE, error, record, origin)
    try:
        return parse_record(record, _message_decoder)
    except DECODING_ERRORS as exc:
        return _reject(*rejection_of(exc), record, origin)


class _Columns:
    """A column for each member of some operations: made as for usual records, then amended. *errors* are by index."""

    def __init__(self, messages: Sequence[RecordMembers], records: Sequence[bytes], origins: Sequence[Origin]) -> None:
        self.messages = messages
        self.records = records
        self.origins = origins
        self.errors: dict[int, str] = {}
        self.kinds = [message.operation for message in messages]
        self.verbs = self._verbs()
        self.request_ids = [message.request_id or "" for message in messages]
        self.sent_ids = [message.resource_id for message in messages]
        self.resource_ids = self.sent_ids.copy()
        self.documents = list(map(bytes, [message.data for message in messages]))
        self.filters = [b""] * len(messages)
        self.paginations = self.filters.copy()
        self.queries: list[ListQuery | None] = [None] * len(messages)

    def operations(self, list_limit: int) -> list[Operation | RejectedRecord]:
        messages, verbs = self.messages, self.verbs
        self._check_texts()
        if DERIVED_REQUEST_ID_PREFIX in "\0".join(self.request_ids):
            self._amend(self.request_ids, range(len(messages)), self._sent_request_id)
        apart = [
            index
            for index, (message, verb, document) in enumerate(zip(messages, verbs, self.documents, strict=True))
            if not verb.has_data
            or document[:1] != b"{"
            or message.resource_id is None
            or message.request_id is None
            or message.filters is not ABSENT
            or message.pagination is not ABSENT
        ]
        self._amend(self.request_ids, apart, self._request_id)
        self._amend(self.resource_ids, apart, self._resource_id)
        self._amend(self.documents, apart, self._document)
        self._amend(self.filters, apart, lambda index: object_member(messages[index].filters, "filters"))
        self._amend(self.paginations, apart, lambda index: object_member(messages[index].pagination, "pagination"))

        def query_of(index: int) -> ListQuery | None:
            if not verbs[index].has_query:
                return None
            filters, resource_type = self.filters[index], messages[index].resource_type
            return decode_list_query(filters, self.paginations[index], resource_type, list_limit)

        self._amend(self.queries, apart, query_of)
        resource_types = [message.resource_type for message in messages]
        business_ids, location_ids, tenant_ids = self._tenants()
        decoded: list[Any] = list(
            map(
                Operation,
                [verb.kind for verb in verbs],
                business_ids,
                location_ids,
                tenant_ids,
                resource_types,
                self.resource_ids,
                self.request_ids,
                [message.data if verb.has_data else None for message, verb in zip(messages, verbs, strict=True)],
                self.queries,
                [utc_text(message.timestamp) for message in messages],
                digests_of(self.kinds, resource_types, self.sent_ids, self.documents, self.filters, self.paginations),
                self.origins,
                map(len, self.records),
                [
                    exceeds_bounds(filters if verb.has_query else document if verb.has_data else b"")
                    for verb, document, filters in zip(verbs, self.documents, self.filters, strict=True)
                ],
            )
        )
        for index, error in self.errors.items():
            record, origin = self.records[index], self.origins[index]
            decoded[index] = _reject(DeadLetterReason.INVALID_MESSAGE, error, record, origin)
        return decoded

    def _amend(self, column: list[T], indexes: Iterable[int], value_of: Callable[[int], T]) -> None:
        for index in indexes:
            try:
                column[index] = value_of(index)
            except InvalidRecordError as exc:
                self.errors.setdefault(index, str(exc))

    def _verbs(self) -> list[Verb]:
        try:
            return [VERBS[kind] for kind in self.kinds]
        except KeyError:
            verbs = [VERBS.get(kind, _UNKNOWN) for kind in self.kinds]
            self._amend(verbs, range(len(verbs)), lambda index: _known_verb(self.kinds[index]))
            return verbs

    def _check_texts(self) -> None:
        if True in [BACKSLASH in record for record in self.records]:  # in two steps: the first one is much faster
            escaped = [index for index, record in enumerate(self.records) if has_escapes(record)]
            self._amend([None] * len(self.records), escaped, lambda index: check_texts(_ids_of(self.messages[index])))

    def _sent_request_id(self, index: int) -> str:
        request_id, replay = self.request_ids[index], self.messages[index].simplu_replay
        if request_id.startswith(DERIVED_REQUEST_ID_PREFIX) and not is_replayed(request_id, replay):
            raise InvalidRecordError(
                "requestId", f"an id without the prefix {DERIVED_REQUEST_ID_PREFIX!r} of derived ids", "one with it"
            )
        return request_id

    def _request_id(self, index: int) -> str:
        return self.request_ids[index] or derived_request_id(self.origins[index])

    def _resource_id(self, index: int) -> str | None:
        verb, sent_id = self.verbs[index], self.sent_ids[index]
        if verb.needs_id and sent_id is None:
            raise InvalidRecordError("resourceId", f"text, for {verb.kind}", NOTHING)
        return None if verb.has_query else self.request_ids[index] if sent_id is None else sent_id

    def _document(self, index: int) -> bytes:
        return object_member(self.messages[index].data, "data", required=self.verbs[index].has_data)

    def _tenants(self) -> Iterable[tuple[str, ...]]:
        business_ids = [message.business_id for message in self.messages]
        location_ids = [message.location_id for message in self.messages]
        return zip(*map(_shared_ids, business_ids, location_ids), strict=True)


def _known_verb(kind: str) -> Verb:
    if kind not in VERBS:
        known = ", ".join(VERBS)
        came = f"another text of {len(kind)} characters"  # not the text: errors are logged
        raise InvalidRecordError("operation", f"one of {known}", came)
    return VERBS[kind]


def _ids_of(message: RecordMembers) -> dict[str, str | None]:
    return {
        "businessId": message.business_id,
        "locationId": message.location_id,
        "resourceType": message.resource_type,
        "resourceId": message.resource_id,
        "requestId": message.request_id,
    }


@lru_cache(16_384)  # with fewer than a replica has tenants, most of these are made again for each operation
def _shared_ids(business_id: str, location_id: str) -> tuple[str, str, str]:
    return business_id, location_id, tenant_id_of(business_id, location_id)


def _reject(reason: DeadLetterReason, error: str, record: bytes, origin: Origin) -> RejectedRecord:
    business_id, location_id, request_id, resource_id = peeked_texts(record, _IDS)
    return RejectedRecord(reason, error, origin, business_id, location_id, request_id, resource_id)
