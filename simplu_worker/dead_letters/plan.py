"""Decide which dead letters are replayed, in which order, and exactly what is sent. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.aws.sending import REQUEST_MAX_BYTES, REQUEST_MAX_COUNT, PutRecord
from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, SEND_MAX_BYTES, FifoIds, OutgoingMessage, unwrap
from simplu_worker.consumers.kinesis.stream.aggregation import PARTS_MAX, TOO_MANY, Part, deaggregate, unpack
from simplu_worker.consumers.sqs.control_messages import with_timestamp
from simplu_worker.consumers.sqs.order_messages import OrderRules, decode_order, with_members_of_message
from simplu_worker.dead_letters.letter import ParsedDeadLetter
from simplu_worker.operations.dead_letter import BadParts, DeadLetter, origin_of_part, tenant_of
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import (
    KEY_MAX,
    Operation,
    Origin,
    RejectedRecord,
    derived_request_id,
    partition_key_by,
    with_request_id,
)
from simplu_worker.vocabulary import DeadLetterReason, PartitionKeyRule, Source

HIDDEN_MIN_S: Final = 60  # a killed command's letters stay hidden from other readers at least that long
HIDDEN_MAX_S: Final = 43_200  # SQS: 12 hours
HIDDEN_PER_1000_S: Final = 80
# Most entries and bytes of one request: PutRecords, SendMessageBatch.
REQUEST_LIMITS: Final = {
    Source.KINESIS: (REQUEST_MAX_COUNT, REQUEST_MAX_BYTES),
    Source.SQS: (BATCH_MAX_COUNT, SEND_MAX_BYTES),
}
REPLAY_MEMBER: Final = "simpluReplay"  # names the position of a record that is replayed under its own id

# Faults of a control message itself: they recur when it is sent again.
LASTING_REASONS: Final = frozenset(
    {
        DeadLetterReason.INVALID_JSON,
        DeadLetterReason.INVALID_MESSAGE,
        DeadLetterReason.UNKNOWN_TYPE,
        DeadLetterReason.TOO_LARGE,
        DeadLetterReason.REQUEST_ID_REUSED,
    }
)

_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class LeftReason(StrEnum):
    """Why a letter is left in the queue."""

    NOT_A_LETTER = "not_a_letter"  # another message, such as one that SQS itself moved to the queue
    SOURCE_NOT_CONFIGURED = "source_not_configured"
    WOULD_COME_BACK = "would_come_back"
    WITHOUT_REQUEST_IDS = "without_request_ids"
    RECORD_GONE = "record_gone"
    SEND_REFUSED = "send_refused"
    BEHIND_UNSENT = "behind_unsent"
    NOT_REACHED = "not_reached"
    NOT_DELETED = "not_deleted"  # sent, but the letter is still in the queue


class LeftLetter(msgspec.Struct, frozen=True):
    """A letter that is left in the queue; *detail* has no content."""

    why: LeftReason
    detail: str


class Resend(msgspec.Struct, frozen=True):
    """What to send for a letter to the source *name*; resends of one *group* keep their order."""

    source: Source
    name: str
    group: str
    records: Sequence[PutRecord] = ()
    message: OutgoingMessage | None = None

    @property
    def size_bytes(self) -> int:
        """The approximate size of the request."""
        sizes = [len(record.data) + len(record.partition_key) for record in self.records]
        if self.message is not None:
            attributes = (self.message.attributes or {}).items()
            texts = [self.message.body, *(text for pair in attributes for text in (*pair, "String"))]
            sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
        return sum(sizes)


class DeadLetterFilter(msgspec.Struct, frozen=True):
    """A filter of dead letters: all given criteria must be met. *since* is inclusive, *until* is not."""

    reasons: frozenset[DeadLetterReason] = frozenset()
    source: Source | None = None
    tenant: tuple[str, str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    message_ids: frozenset[str] = frozenset()

    @property
    def is_all(self) -> bool:
        """Whether the filter matches every letter."""
        return self == DeadLetterFilter()

    def facts(self) -> dict[str, Any]:
        """Return the criteria for the log; of the message ids their number."""
        business_id, location_id = self.tenant or (None, None)
        return {
            "reasons": sorted(self.reasons),
            "source": self.source,
            "businessId": business_id,
            "locationId": location_id,
            "since": self.since,
            "until": self.until,
            "messageIds": len(self.message_ids),
        }

    def is_complete(self, count: int) -> bool:
        """Return whether no more than *count* letters can match."""
        return 0 < len(self.message_ids) <= count

    def match(self, letter: DeadLetter, message_id: str) -> bool:
        """Return whether the filter matches *letter*, which the message *message_id* has."""
        reasons = {letter.reason, *(letter.parts.reasons if letter.parts is not None else ())}
        return (
            (not self.reasons or not self.reasons.isdisjoint(reasons))
            and (self.source is None or letter.origin.source is self.source)
            and (self.since is None or letter.failed_at >= self.since)
            and (self.until is None or letter.failed_at < self.until)
            and (self.tenant is None or tenant_of(letter) == self.tenant)
            and (not self.message_ids or message_id in self.message_ids)
        )


class ReplayRules(msgspec.Struct, frozen=True):
    """The worker's sources and limits. *queues*: whether each queue holds order events, by name."""

    stream: str | None
    queues: Mapping[str, bool]
    operation_max_bytes: int
    list_result_limit: int
    key_rule: PartitionKeyRule = PartitionKeyRule.RESOURCE_TYPE
    order_tenant: tuple[str, str] | None = None  # of order events that name none
    force: bool = False

    def decode(self, record: bytes, origin: Origin) -> Operation | RejectedRecord:
        """Decode a record as the worker would."""
        return decode_operation(record, origin, self.operation_max_bytes, self.list_result_limit)


OrderKey: TypeAlias = tuple[Any, ...]


def sort_key(letter: DeadLetter) -> OrderKey:
    """Return the key that sorts letters by their source, then by their position in it.

    Sequence numbers compare as numbers; messages of a standard queue have none, and are sorted by time.
    """
    origin = letter.origin
    number = (origin.sequence_number or "").lstrip("0")
    position = (len(number), number, origin.sub_sequence_number, origin.part_index or 0)
    return (origin.source, origin.name, position, origin.arrived_at, letter.failed_at)


def order_group(letter: DeadLetter) -> str:
    """Return the partition key or message group, of which the order is kept, or the message."""
    origin = letter.origin
    return origin.partition_key or origin.group_id or origin.message_id or "replay"


def visibility_timeout_s(count: int) -> int:
    """Return for how long *count* letters are hidden: many times what reading, sending and deleting them takes.

    It is short because letters stay hidden that long after a kill.
    """
    return min(HIDDEN_MAX_S, HIDDEN_MIN_S + count * HIDDEN_PER_1000_S // 1000)


def unknown_source(letter: DeadLetter, rules: ReplayRules) -> LeftLetter | None:
    """Return why *letter* cannot be sent to its source, if so."""
    origin = letter.origin
    if origin.source is Source.KINESIS:
        if origin.name == rules.stream:
            return None
        expected = f"KINESIS_STREAM_NAME to be {origin.name!r}, got {rules.stream!r}"
    elif origin.name in rules.queues:
        return None
    else:
        expected = f"one of SQS_*_QUEUE_URL to be of queue {origin.name!r}, got {sorted(rules.queues)}"
    return LeftLetter(LeftReason.SOURCE_NOT_CONFIGURED, f"expected {expected}")


def plan_resend(letter: DeadLetter, rules: ReplayRules) -> Resend | LeftLetter:
    """Return what to send for *letter*, with its whole record, or why it is left."""
    if (left := unknown_source(letter, rules)) is not None:
        return left
    origin = letter.origin
    if origin.source is Source.SQS:
        return _queue_resend(letter, rules)
    if letter.parts is not None:
        return _parts_resend(letter, letter.parts, rules)
    if origin.part_index is None:
        parts = unpack(letter.record, order_group(letter), origin.sub_sequence_number)
        if parts is not None:
            return _unpacked_resend(letter, parts, rules)
    return _record_resend(letter, rules)


class ResendRequest:
    """The resends of one request, no two of one group: a request that is refused in part keeps no order.

    A resend of several records has a request of its own, and so has one that is larger than the limit.
    """

    def __init__(self) -> None:
        self.resends: list[Resend] = []
        self._groups: set[str] = set()
        self._size_bytes = 0

    def has_room_for(self, resend: Resend) -> bool:
        """Return whether *resend* may join this request."""
        if not self.resends:
            return True
        first = self.resends[0]
        most_count, most_bytes = REQUEST_LIMITS[resend.source]
        return (
            (first.source, first.name) == (resend.source, resend.name)
            and len(self.resends) < most_count
            and self._size_bytes + resend.size_bytes <= most_bytes
            and resend.group not in self._groups
            and max(len(first.records), len(resend.records)) <= 1
        )

    def add(self, resend: Resend) -> None:
        """Add *resend*."""
        self.resends.append(resend)
        self._groups.add(resend.group)
        self._size_bytes += resend.size_bytes


def _record_resend(letter: DeadLetter, rules: ReplayRules) -> Resend | LeftLetter:
    record = _ensure_request_id(letter.record, letter.origin, rules)
    if letter.reason is DeadLetterReason.REQUEST_ID_REUSED and not rules.force:
        return _left_returning("another operation has its requestId")
    if isinstance(record, LeftLetter):
        if not rules.force:
            return record
        record = letter.record
    return _stream_resend(letter, [PutRecord(record, order_group(letter))])


def _unpacked_resend(letter: DeadLetter, parts: Sequence[Part], rules: ReplayRules) -> Resend | LeftLetter:
    """Send the operations of a whole record one by one; an invalid one becomes a dead letter of its own."""
    refusal = next((part.refusal for part in parts if part.refusal is not None), None)
    if len(parts) > PARTS_MAX:
        refusal = TOO_MANY
    if refusal is not None and not rules.force:
        return _left_returning(f"{DeadLetterReason.TOO_LARGE}: {refusal}")
    split = _Split(rules)
    for part in parts:
        split.add(part.partition_key, part.data, origin_of_part(letter.origin, part.number))
    if split.has_new_ids and not rules.force:
        return LeftLetter(
            LeftReason.WITHOUT_REQUEST_IDS,
            "operations of this record have no requestId: if their producer sent them again, as the Kinesis "
            "Producer Library does, they would be applied twice; --force sends them",
        )
    return _stream_resend(letter, split.records)


def _parts_resend(letter: DeadLetter, bad: BadParts, rules: ReplayRules) -> Resend | LeftLetter:
    """Send bad parts one by one, each with its effective request id; without *force* all of them or none."""
    parts = deaggregate(letter.record)
    if parts is None or len(parts) != bad.bad_count:
        return LeftLetter(LeftReason.NOT_A_LETTER, f"expected an aggregate of {bad.bad_count} bad parts as its record")
    split = _Split(rules)
    for index, part in enumerate(parts):
        origin = letter.origin if bad.numbers is None else origin_of_part(letter.origin, bad.numbers[index])
        split.add(part.partition_key, part.data, origin)
    if split.has_new_ids and bad.numbers is None:
        return LeftLetter(
            LeftReason.WITHOUT_REQUEST_IDS,
            "the letter had no room for the numbers of its parts, from which their request ids are derived",
        )
    if split.returning and not rules.force:
        detail = f"{len(split.returning)} of {len(parts)} bad parts: {split.returning[0].detail}"
        return LeftLetter(LeftReason.WOULD_COME_BACK, detail)
    return _stream_resend(letter, split.records)


class _Split:
    def __init__(self, rules: ReplayRules) -> None:
        self._rules = rules
        self.records: list[PutRecord] = []
        self.returning: list[LeftLetter] = []  # of parts that would come back
        self.has_new_ids = False

    def add(self, partition_key: str, data: bytes, origin: Origin) -> None:
        record = _ensure_request_id(data, origin, self._rules)
        if isinstance(record, LeftLetter):
            self.returning.append(record)
            record = data
        self.has_new_ids |= record != data
        self.records.append(PutRecord(record, partition_key))


def _stream_resend(letter: DeadLetter, records: Sequence[PutRecord]) -> Resend:
    return Resend(source=Source.KINESIS, name=letter.origin.name, group=order_group(letter), records=records)


def _ensure_request_id(record: bytes, origin: Origin, rules: ReplayRules) -> bytes | LeftLetter:
    decoded = rules.decode(record, origin)
    if isinstance(decoded, RejectedRecord):
        return _left_returning(f"{decoded.reason}: {decoded.error}")
    if decoded.request_id != derived_request_id(origin):
        return record
    record = with_request_id(record, origin)
    again = rules.decode(record, origin)
    if isinstance(again, RejectedRecord):
        return _left_returning(f"with its request id, {again.reason}: {again.error}")
    return record


def _left_returning(error: str) -> LeftLetter:
    return LeftLetter(
        LeftReason.WOULD_COME_BACK, f"the record would come back as a dead letter ({error}); --force sends it unchanged"
    )


def _queue_resend(letter: DeadLetter, rules: ReplayRules) -> Resend | LeftLetter:
    origin = letter.origin
    try:
        body = letter.record.decode()
    except UnicodeDecodeError:
        return LeftLetter(LeftReason.SEND_REFUSED, "expected UTF-8, as SQS messages are text, got other bytes")
    attributes = dict(letter.message_attributes or {})
    if rules.queues[origin.name]:
        event = _prepare_order_event(letter, body, attributes, rules)
        if isinstance(event, LeftLetter):
            return event
        body, attributes = event
    elif letter.reason in LASTING_REASONS and not rules.force:
        return _left_returning(letter.reason)
    else:
        body = with_timestamp(body, attributes, origin)
    # A new id: under the old one SQS would drop a message sent within five minutes, and the letter would be deleted.
    # The same one for every letter of this message, so that SQS drops a message that is sent again after a kill.
    again = hashlib.sha256(f"replay\0{origin.name}\0{origin.message_id}".encode()).hexdigest()
    fifo = FifoIds(group_id=origin.group_id or "replay", deduplication_id=again)
    return Resend(
        source=Source.SQS,
        name=origin.name,
        group=order_group(letter),
        message=OutgoingMessage(body, fifo, attributes),
    )


def _prepare_order_event(
    letter: DeadLetter, body: str, attributes: Mapping[str, str], rules: ReplayRules
) -> tuple[str, dict[str, str]] | LeftLetter:
    """Return an order event without its SNS envelope, with the tenant that it had, request id and time of sending."""
    event, found = unwrap(body, attributes)
    tenant = rules.order_tenant
    if letter.business_id is not None and letter.location_id is not None:
        tenant = letter.business_id, letter.location_id
    own_id = letter.request_id or letter.deduplication_id
    order_rules = OrderRules(rules.operation_max_bytes, tenant)
    decoded = decode_order(event, found, letter.origin, order_rules, deduplication_id=own_id)
    if isinstance(decoded, RejectedRecord):
        refused = _left_returning(f"{decoded.reason}: {decoded.error}")
        return (body, dict(attributes)) if rules.force else refused
    if letter.reason is DeadLetterReason.REQUEST_ID_REUSED and not rules.force:
        return _left_returning("another operation has its deduplicationId")
    return with_members_of_message(event, found, decoded), found


class EditedRecord(msgspec.Struct, frozen=True):
    """The record to send in place of a dead letter's, and its old request id."""

    record: PutRecord
    operation: Operation
    old_request_id: str

    def facts(self) -> dict[str, Any]:
        """Return the members of the plan, without content."""
        one = self.operation
        return {
            "operation": one.kind,
            "businessId": one.business_id,
            "locationId": one.location_id,
            "resourceType": one.resource_type,
            "resourceId": one.resource_id,
            "requestId": one.request_id,
            "oldRequestId": self.old_request_id,
            "partitionKey": self.record.partition_key,
        }


class NotEditableError(Exception):
    """A dead letter that cannot be corrected here."""


def edit_record(parsed: ParsedDeadLetter, text: str, request_id: str, rules: ReplayRules) -> EditedRecord:
    """Return the record to send for a letter whose record a person has replaced by *text*, under a new *request_id*.

    Raises NotEditableError for a letter of which that would lose a part, and ValueError for a text that would come
    back.
    """
    _check_editable(parsed, rules)
    letter = parsed.letter
    try:
        members = _members_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise ValueError(f"record: expected a JSON object, got another text ({exc})") from None
    members.pop(REPLAY_MEMBER, None)
    members["requestId"] = msgspec.Raw(msgspec.json.encode(request_id))
    record = msgspec.json.encode(members)
    decoded = rules.decode(record, letter.origin)
    if isinstance(decoded, RejectedRecord):
        error = f"record: it would become a dead letter again ({decoded.reason}: {decoded.error})"
        raise ValueError(error)  # noqa: TRY004  (the text is at fault)
    old_request_id = letter.request_id or derived_request_id(letter.origin)
    if request_id == old_request_id:
        raise ValueError("requestId: expected a new one, got that of the dead letter, under which it would be dropped")
    key = partition_key_by(rules.key_rule, decoded.tenant_id, decoded.resource_type)
    return EditedRecord(PutRecord(record, key[:KEY_MAX]), decoded, old_request_id)


def _check_editable(parsed: ParsedDeadLetter, rules: ReplayRules) -> None:
    letter, origin = parsed.letter, parsed.letter.origin
    if parsed.whole is not None:
        raise NotEditableError("the dead letter has only the beginning of its record: replay it, or have it sent anew")
    if origin.source is not Source.KINESIS:
        raise NotEditableError(
            "expected a record of the stream, got a message of a queue: have its producer correct it"
        )
    if (unknown := unknown_source(letter, rules)) is not None:
        raise NotEditableError(unknown.detail)
    is_of_several = origin.part_index is None and unpack(letter.record, "") is not None
    if letter.parts is not None or is_of_several:
        raise NotEditableError("the record has several operations, of which one text would replace all: replay it")
