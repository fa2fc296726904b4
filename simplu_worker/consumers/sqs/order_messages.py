"""Decode order events (docs/sending.md): any text gives an operation or a rejection, no exception. Pure.

An operation is a function of the message alone, so that every receive of it gives the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, cast

import msgspec

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive import verdicts
from simplu_worker.operations.dead_letter import DECODING_ERRORS, UnknownTypeError, peeked_texts, rejection_of
from simplu_worker.operations.decode import digest_of
from simplu_worker.operations.json_record import (
    ABSENT,
    NOTHING,
    RECORD,
    Id,
    InvalidRecordError,
    LongId,
    check_texts,
    exceeds_bounds,
    has_escapes,
    member_error,
    object_member,
    parse_record,
    peeked_value,
)
from simplu_worker.operations.operation import (
    DERIVED_REQUEST_ID_PREFIX,
    Operation,
    Origin,
    RejectedRecord,
    tenant_id_of,
)
from simplu_worker.vocabulary import DeadLetterReason, OperationKind

RESOURCE_TYPE: Final = "order"
TENANT_ATTRIBUTES: Final = {"businessId": "BusinessId", "locationId": "LocationId"}  # by the members they replace
ID_MAX_CHARS: Final = 128
LONG_ID_MAX_CHARS: Final = 256
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)  # of `firstSentAt`

ORDER_KINDS: Final = {"CREATE": OperationKind.CREATE, "UPDATE": OperationKind.PATCH, "DELETE": OperationKind.DELETE}
_KNOWN: Final = ", ".join(ORDER_KINDS)


class _PeekedOrder(msgspec.Struct):
    type: msgspec.Raw = ABSENT


class OrderMembers(msgspec.Struct, rename="camel", gc=False):
    """The members of an order event. `null` counts as absent, and so does a `firstSentAt` that no replay has."""

    type: str
    order_id: LongId | None = None
    data: msgspec.Raw = msgspec.Raw(b"")
    deduplication_id: Id | None = None
    business_id: Id | None = None
    location_id: Id | None = None
    first_sent_at: msgspec.Raw = msgspec.Raw(b"")


# Decodes to an operation wherever the decoder works: it shows whether an event that does not is at fault.
SOUND_EVENT: Final = '{"type":"CREATE","orderId":"a","data":{},"businessId":"b","locationId":"c"}'


class OrderRules(msgspec.Struct, frozen=True):
    """What holds for all events of a queue. *default_tenant*: of events that name none.

    *window* is how long a `deduplicationId` is one event; None: as long as the log has it.
    """

    max_bytes: int
    default_tenant: tuple[str, str] | None = None
    window: timedelta | None = None


_peek_decoder = msgspec.json.Decoder(_PeekedOrder)
_event_decoder = msgspec.json.Decoder(OrderMembers)
_time_decoder = msgspec.json.Decoder(Annotated[datetime, msgspec.Meta(tz=True)])


def decode_order(
    body: str, attributes: Mapping[str, str], origin: Origin, rules: OrderRules, *, deduplication_id: str | None
) -> Operation | RejectedRecord:
    """Decode one message; *deduplication_id* is its own, from a FIFO queue."""
    record = body.encode("utf-8", "surrogatepass")
    own_id = deduplication_id or origin.message_id or ""
    if len(record) > rules.max_bytes:
        error = member_error(RECORD, f"at most {rules.max_bytes} bytes (OPERATION_MAX_BYTES)", str(len(record)))
        return RejectedRecord(reason=DeadLetterReason.TOO_LARGE, error=error, origin=origin, request_id=own_id)
    try:
        return _operation_of(_parse(record), record, attributes, origin, rules, own_id=own_id)
    except DECODING_ERRORS as exc:
        rejection = rejection_of(exc)
    request_id, order_id = peeked_texts(record, ("deduplicationId", "orderId"))
    business_id, location_id = _peeked_tenant(record, attributes)
    return RejectedRecord(*rejection, origin, business_id, location_id, request_id or own_id, order_id)


def tenant_of_order(message: Message, rules: OrderRules) -> tuple[str, str] | None:
    """Return the business and the location that a message names, without decoding it."""
    names = [message.attributes.get(name) for name in TENANT_ATTRIBUTES.values()]
    if None in names:
        names = _peeked_tenant(message.body.encode("utf-8", "surrogatepass"), message.attributes)
    business_id, location_id = names if any(names) or rules.default_tenant is None else rules.default_tenant
    return (business_id, location_id) if business_id and location_id else None


def _peeked_tenant(record: bytes, attributes: Mapping[str, str]) -> list[str | None]:
    sent = zip(TENANT_ATTRIBUTES.values(), peeked_texts(record, tuple(TENANT_ATTRIBUTES)), strict=True)
    return [_short_attribute(attributes.get(name)) or member for name, member in sent]


def _parse(record: bytes) -> OrderMembers:
    try:
        return parse_record(record, _event_decoder)
    except msgspec.ValidationError:
        _kind_of(peeked_value(parse_record(record, _peek_decoder).type))  # with an unknown type it may have any members
        raise


def _short_attribute(value: str | None) -> str | None:
    return value if value is not None and len(value) <= LONG_ID_MAX_CHARS else None


def _kind_of(sent: object) -> OperationKind:
    kind = ORDER_KINDS.get(sent) if isinstance(sent, str) else None
    if kind is None:
        got = NOTHING if sent is None else "another value"
        raise UnknownTypeError(member_error("type", f"one of {_KNOWN}", got))
    return kind


def _operation_of(
    event: OrderMembers, record: bytes, attributes: Mapping[str, str], origin: Origin, rules: OrderRules, *, own_id: str
) -> Operation:
    kind = _kind_of(event.type)
    business_id, location_id = _tenant_of(event, attributes, rules)
    order_id, request_id = event.order_id, event.deduplication_id or own_id
    if order_id is None:
        if kind is not OperationKind.CREATE:
            raise InvalidRecordError("orderId", f"text, for {event.type}", NOTHING)
        # Never the message's own deduplication id, which may be a hash of the content: two equal orders are two orders.
        order_id = request_id = event.deduplication_id or origin.message_id or own_id
    if has_escapes(record):
        check_texts({"orderId": event.order_id, "deduplicationId": event.deduplication_id})
    if request_id.startswith(DERIVED_REQUEST_ID_PREFIX):
        expected = f"an id without the prefix {DERIVED_REQUEST_ID_PREFIX!r} of derived ids"
        raise InvalidRecordError("deduplicationId", expected, "one with it")
    data = object_member(event.data, "data", required=kind is not OperationKind.DELETE)
    sent_at = _first_sent_at(event, origin) or origin.arrived_at
    return Operation(
        kind=kind,
        business_id=business_id,
        location_id=location_id,
        tenant_id=tenant_id_of(business_id, location_id),
        resource_type=RESOURCE_TYPE,
        resource_id=order_id,
        request_id=request_id,
        data=None if kind is OperationKind.DELETE else msgspec.Raw(data),
        query=None,
        requested_at=sent_at.isoformat(),
        digest=digest_of(kind, RESOURCE_TYPE, event.order_id, data, b"", b""),
        origin=origin,
        size_bytes=len(record),
        exceeds_bounds=kind is not OperationKind.DELETE and exceeds_bounds(data),
        window_start=None if rules.window is None else (sent_at - rules.window).isoformat(),
    )


def with_members_of_message(body: str, attributes: Mapping[str, str], operation: Operation) -> str:
    """Return the *body* of a valid event for a replay, with its request id, its tenant, and its first time."""
    event = _parse(body.encode())
    members: dict[str, str] = {}
    if event.deduplication_id != operation.request_id:
        members["deduplicationId"] = operation.request_id
    if not any(_named_tenant(event, attributes)):
        members |= {"businessId": operation.business_id, "locationId": operation.location_id}
    if _first_sent_at(event, operation.origin) is None:
        members["firstSentAt"] = operation.requested_at
    # Of two members with one name the decoder takes the last.
    return body.rstrip()[:-1] + "," + msgspec.json.encode(members).decode()[1:] if members else body


def _first_sent_at(event: OrderMembers, origin: Origin) -> datetime | None:
    try:
        first = _time_decoder.decode(event.first_sent_at)
    except DECODING_ERRORS:  # absent, or a member of the producer's own
        return None
    return first.astimezone(UTC) if EARLIEST <= first <= origin.arrived_at else None


def _named_tenant(event: OrderMembers, attributes: Mapping[str, str]) -> list[str | None]:
    return [event.business_id, event.location_id, *(attributes.get(name) for name in TENANT_ATTRIBUTES.values())]


def _tenant_of(event: OrderMembers, attributes: Mapping[str, str], rules: OrderRules) -> tuple[str, str]:
    if rules.default_tenant is not None and not any(_named_tenant(event, attributes)):
        return rules.default_tenant
    business_id = _tenant_part("businessId", event.business_id, attributes)
    return business_id, _tenant_part("locationId", event.location_id, attributes)


def _tenant_part(member: str, sent: str | None, attributes: Mapping[str, str]) -> str:
    name = TENANT_ATTRIBUTES[member]
    attribute = attributes.get(name) or None
    value = attribute or sent
    if value is None:
        raise InvalidRecordError(member, f"message attribute {name} or the member", "neither")
    if attribute is not None:
        if sent is not None and sent != attribute:
            raise InvalidRecordError(member, f"the value of message attribute {name}", "another")
        if len(attribute) > ID_MAX_CHARS:
            raise InvalidRecordError(f"message attribute {name}", f"1 to {ID_MAX_CHARS} characters", "more")
        try:
            attribute.encode()
        except UnicodeEncodeError:
            value = "\0"  # a lone surrogate is treated as in a body: neither can be stored
    check_texts({member: value})
    return value


BEHIND_VERDICT: Final = verdicts.ReturnToQueue(0)  # behind an undecided message of its group
RETRIABLE_LETTERS: Final = frozenset({DeadLetterReason.UNKNOWN_TENANT, DeadLetterReason.RETRIES_EXHAUSTED})


class OrderMessage(msgspec.Struct, eq=False):
    """A message with its decoded content, its verdict once it is decided, and why it is deferred.

    *shard_id* is the shard to which its operation is on its way.
    """

    message: Message
    chain: str
    decoded: Operation | RejectedRecord
    members: Chain
    shard_id: str | None = None
    verdict: verdicts.Verdict | None = None
    deferral: str | None = None

    @property
    def operation(self) -> Operation:
        """The operation of a message that was not rejected."""
        return cast(Operation, self.decoded)

    @property
    def allows_next(self) -> bool:
        """Whether the next message of its chain may be applied in the same call.

        Not behind an operation that may yet be applied, if the worker dies before the dead letter is stored.
        """
        match self.verdict:
            case verdicts.Done():
                return True
            case verdicts.ToDeadLetter(reason=reason):
                return reason not in RETRIABLE_LETTERS
            case _:
                return False


class Chain:
    """The messages of one chain in one call, in order. Runs of one tenant are sent, each after the one before."""

    def __init__(self) -> None:
        self.members: list[OrderMessage] = []
        self.has_ended = asyncio.Event()
        self._position = 0  # of the first message behind the run that was sent last

    @property
    def has_decided_run(self) -> bool:
        """Whether the run that was sent has its verdicts."""
        return all(one.verdict is not None for one in self.members[: self._position])

    def next_run(self) -> Sequence[OrderMessage]:
        """Return the next messages to send, of one tenant, if any."""
        while self._position < len(self.members) and all(one.allows_next for one in self.members[: self._position]):
            run = _run_from(self.members, self._position)
            self._position += len(run)
            if pending := [one for one in run if one.verdict is None]:
                return pending
        return ()

    def undecided(self) -> list[OrderMessage]:
        """Return the messages that were sent and have no verdict."""
        return [one for one in self.members[: self._position] if one.verdict is None]

    def stop_behind(self, stopping: OrderMessage) -> list[OrderMessage]:
        """Defer the messages behind one; return those that were sent and undecided."""
        place = self.members.index(stopping) + 1
        sent = [one for one in self.members[place : self._position] if one.verdict is None]
        for one in sent:
            one.verdict = BEHIND_VERDICT
        return sent

    def end(self) -> None:
        """Defer the messages behind the first that may not be passed; behind a dead letter until it is stored."""
        self.has_ended.set()
        first = next((index for index, one in enumerate(self.members) if not one.allows_next), len(self.members))
        is_dead_letter = first < len(self.members) and isinstance(self.members[first].verdict, verdicts.ToDeadLetter)
        for one in self.members[first + 1 :]:
            if not (is_dead_letter and isinstance(one.verdict, verdicts.ToDeadLetter)):
                one.verdict, one.deferral = verdicts.RetryHeld(0.0) if is_dead_letter else BEHIND_VERDICT, None


def _run_from(members: Sequence[OrderMessage], position: int) -> Sequence[OrderMessage]:
    tenant_id: str | None = None
    for end in range(position, len(members)):
        decoded = members[end].decoded
        if isinstance(decoded, Operation):
            if tenant_id not in {None, decoded.tenant_id}:
                return members[position:end]
            tenant_id = decoded.tenant_id
    return members[position:]
