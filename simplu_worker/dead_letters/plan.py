"""Decide which dead letters are replayed, in which order, and exactly what is sent. Pure."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from simplu_worker.aws.sending import PutRecord
from simplu_worker.aws.sqs_queue import FifoIds, OutgoingMessage, unwrap
from simplu_worker.consumers.kinesis.stream.aggregation import PARTS_MAX, TOO_MANY, Part, deaggregate, unpack
from simplu_worker.consumers.sqs.control_messages import with_timestamp
from simplu_worker.consumers.sqs.order_messages import OrderRules, decode_order, with_members_of_message
from simplu_worker.dead_letters.letter import ParsedDeadLetter
from simplu_worker.operations.dead_letter import BadParts, DeadLetter, origin_of_part, tenant_of
from simplu_worker.operations.decode import decode_operation
from simplu_worker.operations.operation import (
    ID_MAX,
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
LETTERS_DEFAULT: Final = 1000
LETTERS_MAX: Final = 10_000  # in one answer over HTTP
ALL_LETTERS: Final = sys.maxsize  # the limit of a command without one
CHOSEN_MAX: Final = 1000  # of letters that a request names
MESSAGE_ID_MAX: Final = 100  # characters: SQS
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

MessageId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MESSAGE_ID_MAX)]
Time: TypeAlias = Annotated[datetime, Meta(tz=True)]
Resend: TypeAlias = Sequence[PutRecord] | OutgoingMessage  # what is sent for a letter, to its source

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


class LetterLeftError(Exception):
    """The letter is left in the queue; *detail* has no content."""

    def __init__(self, why: LeftReason, detail: str) -> None:
        super().__init__(detail)
        self.why = why
        self.detail = detail


class LettersRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Criteria of dead letters, which all must be met, and what to do with those that match.

    *since* is inclusive, *until* is not, by `failedAt`. *newest*: of all that match, not the first that SQS shows.
    """

    reasons: frozenset[DeadLetterReason] = frozenset()
    source: Source | None = None
    business_id: str | None = None
    location_id: str | None = None
    since: Time | None = None
    until: Time | None = None
    message_ids: Annotated[frozenset[MessageId], Meta(max_length=CHOSEN_MAX)] = frozenset()
    limit: Annotated[int, Meta(ge=1, le=LETTERS_MAX)] = LETTERS_DEFAULT
    records: bool = False
    newest: bool = False
    apply: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse half a tenant."""
        if (self.business_id is None) != (self.location_id is None):
            raise ValueError("expected businessId and locationId together, or neither of them")

    @property
    def is_all(self) -> bool:
        """Whether every letter matches."""
        criteria = (self.reasons, self.source, self.business_id, self.since, self.until, self.message_ids)
        return not any(criteria)

    def facts(self) -> dict[str, Any]:
        """Return what is asked for the log; of the message ids their number."""
        members: dict[str, Any] = msgspec.to_builtins(self, builtin_types=(datetime,))
        del members["apply"]
        limit = None if self.limit == ALL_LETTERS else self.limit
        return members | {"reasons": sorted(self.reasons), "messageIds": len(self.message_ids), "limit": limit}

    def is_complete(self, count: int) -> bool:
        """Return whether no more than *count* letters can match."""
        return 0 < len(self.message_ids) <= count

    def match(self, letter: DeadLetter, message_id: str) -> bool:
        """Return whether the criteria match *letter*, which the message *message_id* has."""
        reasons = {letter.reason, *(letter.parts.reasons if letter.parts is not None else ())}
        return (
            (not self.reasons or not self.reasons.isdisjoint(reasons))
            and (self.source is None or letter.origin.source is self.source)
            and (self.since is None or letter.failed_at >= self.since)
            and (self.until is None or letter.failed_at < self.until)
            and (self.business_id is None or tenant_of(letter) == (self.business_id, self.location_id))
            and (not self.message_ids or message_id in self.message_ids)
        )


class EditRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A dead letter, the text in place of its record, and the new request id."""

    message_id: MessageId
    record: str
    request_id: Annotated[str, Meta(min_length=1, max_length=ID_MAX)] | None = None
    apply: bool = False

    def facts(self) -> dict[str, Any]:
        """Return what is asked for the log, without content."""
        return {"messageId": self.message_id, "requestId": self.request_id}


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


def require_source(letter: DeadLetter, rules: ReplayRules) -> None:
    """Raise LetterLeftError where *letter* cannot be sent to its source."""
    origin = letter.origin
    if origin.source is Source.KINESIS:
        if origin.name == rules.stream:
            return
        expected = f"KINESIS_STREAM_NAME to be {origin.name!r}, got {rules.stream!r}"
    elif origin.name in rules.queues:
        return
    else:
        expected = f"one of SQS_*_QUEUE_URL to be of queue {origin.name!r}, got {sorted(rules.queues)}"
    raise LetterLeftError(LeftReason.SOURCE_NOT_CONFIGURED, f"expected {expected}")


def plan_resend(letter: DeadLetter, rules: ReplayRules) -> Resend:
    """Return what to send for *letter*, with its whole record. Raises LetterLeftError if it is left."""
    require_source(letter, rules)
    origin = letter.origin
    if origin.source is Source.SQS:
        return _message(letter, rules)
    if letter.parts is not None:
        return _bad_parts(letter, letter.parts, rules)
    if origin.part_index is None:
        parts = unpack(letter.record, order_group(letter), origin.sub_sequence_number)
        if parts is not None:
            return _parts(letter, parts, rules)
    return [_record(letter, rules)]


def _record(letter: DeadLetter, rules: ReplayRules) -> PutRecord:
    try:
        record = _ensure_request_id(letter.record, letter.origin, rules)
    except LetterLeftError:
        if not rules.force:
            raise
        record = letter.record
    if letter.reason is DeadLetterReason.REQUEST_ID_REUSED and not rules.force:
        raise _returning("another operation has its requestId")
    return PutRecord(record, order_group(letter))


def _parts(letter: DeadLetter, parts: Sequence[Part], rules: ReplayRules) -> Sequence[PutRecord]:
    """Return the operations of a whole record one by one; an invalid one becomes a dead letter of its own."""
    refusal = next((part.refusal for part in parts if part.refusal is not None), None)
    if len(parts) > PARTS_MAX:
        refusal = TOO_MANY
    if refusal is not None and not rules.force:
        raise _returning(f"{DeadLetterReason.TOO_LARGE}: {refusal}")
    split = _Split(rules)
    for part in parts:
        split.add(part.partition_key, part.data, origin_of_part(letter.origin, part.number))
    if split.has_new_ids and not rules.force:
        raise LetterLeftError(
            LeftReason.WITHOUT_REQUEST_IDS,
            "operations of this record have no requestId: if their producer sent them again, as the Kinesis "
            "Producer Library does, they would be applied twice; --force sends them",
        )
    return split.records


def _bad_parts(letter: DeadLetter, bad: BadParts, rules: ReplayRules) -> Sequence[PutRecord]:
    """Return bad parts one by one, each with its effective request id; without *force* all of them or none."""
    parts = deaggregate(letter.record)
    if parts is None or len(parts) != bad.bad_count:
        detail = f"expected an aggregate of {bad.bad_count} bad parts as its record"
        raise LetterLeftError(LeftReason.NOT_A_LETTER, detail)
    split = _Split(rules)
    for index, part in enumerate(parts):
        origin = letter.origin if bad.numbers is None else origin_of_part(letter.origin, bad.numbers[index])
        split.add(part.partition_key, part.data, origin)
    if split.has_new_ids and bad.numbers is None:
        raise LetterLeftError(
            LeftReason.WITHOUT_REQUEST_IDS,
            "the letter had no room for the numbers of its parts, from which their request ids are derived",
        )
    if split.returning and not rules.force:
        detail = f"{len(split.returning)} of {len(parts)} bad parts: {split.returning[0]}"
        raise LetterLeftError(LeftReason.WOULD_COME_BACK, detail)
    return split.records


class _Split:
    def __init__(self, rules: ReplayRules) -> None:
        self._rules = rules
        self.records: list[PutRecord] = []
        self.returning: list[LetterLeftError] = []  # of parts that would come back
        self.has_new_ids = False

    def add(self, partition_key: str, data: bytes, origin: Origin) -> None:
        record = data
        try:
            record = _ensure_request_id(data, origin, self._rules)
        except LetterLeftError as exc:
            self.returning.append(exc)
        self.has_new_ids |= record != data
        self.records.append(PutRecord(record, partition_key))


def _ensure_request_id(record: bytes, origin: Origin, rules: ReplayRules) -> bytes:
    decoded = rules.decode(record, origin)
    if isinstance(decoded, RejectedRecord):
        raise _returning(f"{decoded.reason}: {decoded.error}")
    if decoded.request_id != derived_request_id(origin):
        return record
    record = with_request_id(record, origin)
    again = rules.decode(record, origin)
    if isinstance(again, RejectedRecord):
        raise _returning(f"with its request id, {again.reason}: {again.error}")
    return record


def _returning(error: str) -> LetterLeftError:
    return LetterLeftError(
        LeftReason.WOULD_COME_BACK, f"the record would come back as a dead letter ({error}); --force sends it unchanged"
    )


def _message(letter: DeadLetter, rules: ReplayRules) -> OutgoingMessage:
    origin = letter.origin
    try:
        body = letter.record.decode()
    except UnicodeDecodeError:
        detail = "expected UTF-8, as SQS messages are text, got other bytes"
        raise LetterLeftError(LeftReason.SEND_REFUSED, detail) from None
    attributes = dict(letter.message_attributes or {})
    if rules.queues[origin.name]:
        body, attributes = _order_event(letter, body, attributes, rules)
    elif letter.reason in LASTING_REASONS and not rules.force:
        raise _returning(letter.reason)
    else:
        body = with_timestamp(body, attributes, origin)
    # A new id: under the old one SQS would drop a message sent within five minutes, and the letter would be deleted.
    # The same one for every letter of this message, so that SQS drops a message that is sent again after a kill.
    again = hashlib.sha256(f"replay\0{origin.name}\0{origin.message_id}".encode()).hexdigest()
    return OutgoingMessage(body, FifoIds(origin.group_id or "replay", again), attributes)


def _order_event(
    letter: DeadLetter, body: str, attributes: dict[str, str], rules: ReplayRules
) -> tuple[str, dict[str, str]]:
    """Return an order event without its SNS envelope, with the tenant that it had, request id and time of sending."""
    event, found = unwrap(body, attributes)
    tenant = rules.order_tenant
    if letter.business_id is not None and letter.location_id is not None:
        tenant = letter.business_id, letter.location_id
    own_id = letter.request_id or letter.deduplication_id
    order_rules = OrderRules(rules.operation_max_bytes, tenant)
    decoded = decode_order(event, found, letter.origin, order_rules, deduplication_id=own_id)
    if isinstance(decoded, RejectedRecord):
        if not rules.force:
            raise _returning(f"{decoded.reason}: {decoded.error}")
        return body, attributes
    if letter.reason is DeadLetterReason.REQUEST_ID_REUSED and not rules.force:
        raise _returning("another operation has its deduplicationId")
    return with_members_of_message(event, found, decoded), found


class EditedRecord(NamedTuple):
    """The record to send in place of a dead letter's, and its old request id."""

    record: PutRecord
    operation: Operation
    old_request_id: str


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
    try:
        require_source(letter, rules)
    except LetterLeftError as exc:
        raise NotEditableError(exc.detail) from None
    is_of_several = origin.part_index is None and unpack(letter.record, "") is not None
    if letter.parts is not None or is_of_several:
        raise NotEditableError("the record has several operations, of which one text would replace all: replay it")
