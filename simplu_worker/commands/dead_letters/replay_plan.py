"""Which dead letters are meant, in what order they are sent again, and what exactly is sent. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.aws.sns_envelope import unwrap
from simplu_worker.aws.sqs_queue import FifoIds
from simplu_worker.consumers.kinesis.stream.aggregation import SubRecord, deaggregate
from simplu_worker.consumers.kinesis.stream.client import NewRecord
from simplu_worker.consumers.sqs.orders.decode import decode_order
from simplu_worker.dead_letters.letter import DeadLetter, tenant_of
from simplu_worker.operations.decode import (
    decode_operation,
    derived_request_id,
    replace_lone_surrogates,
    with_request_id,
)
from simplu_worker.operations.operation import DeadLetterReason, Origin, RejectedRecord, Source

HIDDEN_MIN_S: Final = 60  # how long letters stay hidden from others when this command is killed
HIDDEN_MAX_S: Final = 43_200  # SQS: 12 hours
# Most entries and bytes of one request: PutRecords, of its 5 MiB what survives base64; SendMessageBatch.
REQUEST_LIMITS: Final = {Source.KINESIS: (500, 3_500_000), Source.SQS: (10, 262_144)}
CLAIMED_PER_S: Final = 25  # letters that can be claimed again in a second, by tens, with room to spare

# Of control messages: what is in the message itself, and is there again when it is sent again.
LASTING_REASONS: Final = frozenset(
    {
        DeadLetterReason.INVALID_JSON,
        DeadLetterReason.INVALID_MESSAGE,
        DeadLetterReason.UNKNOWN_TYPE,
        DeadLetterReason.TOO_LARGE,
        DeadLetterReason.REQUEST_ID_REUSED,
    }
)


class LeftReason(StrEnum):
    """Why a letter is left where it is."""

    NOT_A_LETTER = "not_a_letter"  # something else is in the queue, such as what SQS itself moved there
    SOURCE_NOT_CONFIGURED = "source_not_configured"
    WOULD_COME_BACK = "would_come_back"
    WITHOUT_REQUEST_IDS = "without_request_ids"
    RECORD_GONE = "record_gone"
    SEND_REFUSED = "send_refused"
    BEHIND_UNSENT = "behind_unsent"
    NOT_REACHED = "not_reached"
    NOT_DELETED = "not_deleted"  # sent, but its letter is still there


class LeftLetter(msgspec.Struct, frozen=True):
    """A letter is left where it is; *detail* says what was expected, without what is in it."""

    why: LeftReason
    detail: str


class Resend(msgspec.Struct, frozen=True):
    """What is sent for a letter, in this order, to the source *name*; *group* is what its order holds in.

    Either *records* for the stream or a *message* for a queue.
    """

    source: Source
    name: str
    group: str
    records: Sequence[NewRecord] = ()
    message: QueueMessage | None = None

    @property
    def size_bytes(self) -> int:
        """About how much it is on its way."""
        sizes = [len(record.data) + len(record.partition_key) for record in self.records]
        if self.message is not None:
            sizes += [len(text.encode("utf-8", "surrogatepass")) for text in self.message.texts()]
        return sum(sizes)


class QueueMessage(msgspec.Struct, frozen=True):
    """A message for a queue; *fifo* counts only for a FIFO queue."""

    body: str
    attributes: Mapping[str, str]
    fifo: FifoIds

    def texts(self) -> Iterator[str]:
        """Yield all that SQS counts."""
        yield self.body
        for name, value in self.attributes.items():
            yield from (name, value, "String")


class DeadLetterFilter(msgspec.Struct, frozen=True):
    """Which letters are meant: those for which all that is given holds. *since* is inclusive, *until* is not."""

    reasons: frozenset[DeadLetterReason] = frozenset()
    source: Source | None = None
    tenant: tuple[str, str] | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_all(self) -> bool:
        """Whether every letter is meant."""
        return self == DeadLetterFilter()

    def match(self, letter: DeadLetter) -> bool:
        """Tell whether *letter* is meant."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (self.source is None or letter.origin.source is self.source)
            and (self.since is None or letter.failed_at >= self.since)
            and (self.until is None or letter.failed_at < self.until)
            and (self.tenant is None or tenant_of(letter) == self.tenant)
        )


class ReplayRules(msgspec.Struct, frozen=True):
    """What the worker is configured to read, and what it takes. *queues*: those known, and whether they hold orders."""

    stream: str | None
    queues: Mapping[str, bool]
    operation_max_bytes: int
    list_result_limit: int
    force: bool = False


OrderKey: TypeAlias = tuple[Any, ...]


def sort_key(letter: DeadLetter) -> OrderKey:
    """Return what letters are sorted by: source, then the place in it.

    Sequence numbers compare as numbers; those of a stream shard that came by a reshard are higher than its parents'.
    Standard queues have none: there it is the time.
    """
    origin = letter.origin
    number = (origin.sequence_number or "").lstrip("0")
    place = (len(number), number, origin.sub_sequence_number)
    return (origin.source, origin.name, place, origin.arrived_at, letter.failed_at)


def record_key(letter: DeadLetter) -> str:
    """Return what letters of one record share: stored twice, it is sent once."""
    origin = letter.origin
    place = (origin.source, origin.name, origin.stream_shard_id, origin.sequence_number, origin.message_id)
    text = repr((*place, origin.sub_sequence_number)).encode("utf-8", "backslashreplace")
    return hashlib.sha256(text + letter.record).hexdigest()


def order_group(letter: DeadLetter) -> str:
    """Return what the letter's order holds in: a partition key or message group; else it is alone."""
    origin = letter.origin
    return origin.partition_key or origin.group_id or record_key(letter)


def unknown_source(letter: DeadLetter, rules: ReplayRules) -> LeftLetter | None:
    """Return why *letter* cannot be sent to where it came from, None if it can."""
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
    """Return what is sent for *letter*, whose record is whole, or why it is left."""
    if (nowhere := unknown_source(letter, rules)) is not None:
        return nowhere
    if letter.origin.source is Source.SQS:
        return _queue_resend(letter, rules)
    parts = deaggregate(letter.record)
    return _stream_resend(letter, rules) if parts is None else _aggregate_resend(letter, parts, rules)


def visibility_timeout_s(count: int) -> int:
    """Return for how long to hide *count* letters from others: as short as claiming all of them again in time allows.

    Short, for after a kill they stay hidden for that long.
    """
    return min(HIDDEN_MAX_S, HIDDEN_MIN_S + 2 * count // CLAIMED_PER_S)


class ResendRequest:
    """What goes out with one request, no two of one group: a request that is taken in part keeps no order.

    What is more than one record goes by itself, and so does what is larger than a request may be.
    """

    def __init__(self) -> None:
        self.resends: list[Resend] = []
        self._groups: set[str] = set()
        self._size_bytes = 0

    def has_room_for(self, resend: Resend) -> bool:
        """Tell whether *resend* fits beside what is there."""
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
        """Put *resend* in."""
        self.resends.append(resend)
        self._groups.add(resend.group)
        self._size_bytes += resend.size_bytes


def cut_into_puts(records: Iterable[NewRecord]) -> Iterator[list[NewRecord]]:
    """Cut the *records* of one letter into requests of PutRecords, none with two of one partition key."""
    most_count, most_bytes = REQUEST_LIMITS[Source.KINESIS]
    put: list[NewRecord] = []
    keys: set[str] = set()
    size_bytes = 0
    for record in records:
        is_full = len(put) == most_count or size_bytes + len(record.data) > most_bytes
        if put and (is_full or record.partition_key in keys):
            yield put
            put, keys, size_bytes = [], set(), 0
        put.append(record)
        keys.add(record.partition_key)
        size_bytes += len(record.data)
    if put:
        yield put


def _stream_resend(letter: DeadLetter, rules: ReplayRules) -> Resend | LeftLetter:
    record = _ensure_request_id(letter.record, letter.origin, rules)
    if letter.reason is DeadLetterReason.REQUEST_ID_REUSED and not rules.force:
        return _left_returning("another operation has its requestId")
    if isinstance(record, LeftLetter):
        if not rules.force:
            return record
        record = letter.record
    return _records_resend(letter, [NewRecord(letter.origin.partition_key or record_key(letter), record)])


def _aggregate_resend(letter: DeadLetter, parts: Sequence[SubRecord], rules: ReplayRules) -> Resend | LeftLetter:
    """Send what an aggregate holds as records of their own. What of it can never be applied becomes a letter itself."""
    records = []
    for part in parts:
        origin = msgspec.structs.replace(
            letter.origin, sub_sequence_number=part.sub_sequence_number, partition_key=part.partition_key
        )
        record = _ensure_request_id(part.data, origin, rules)
        if not isinstance(record, LeftLetter) and record != part.data and not rules.force:
            return LeftLetter(
                LeftReason.WITHOUT_REQUEST_IDS,
                "an aggregate of which records carry no requestId: where its producer sent them again by itself, as "
                "the Kinesis Producer Library does, they would be applied twice; --force sends them",
            )
        records.append(NewRecord(part.partition_key, part.data if isinstance(record, LeftLetter) else record))
    return _records_resend(letter, records)


def _records_resend(letter: DeadLetter, records: Sequence[NewRecord]) -> Resend:
    return Resend(source=Source.KINESIS, name=letter.origin.name, group=order_group(letter), records=records)


def _ensure_request_id(record: bytes, origin: Origin, rules: ReplayRules) -> bytes | LeftLetter:
    """Return *record* with its effective request id in it, or why it is no operation."""
    limits = {"max_bytes": rules.operation_max_bytes, "list_limit": rules.list_result_limit}
    decoded = decode_operation(record, origin, **limits)
    if isinstance(decoded, RejectedRecord):
        return _left_returning(f"{decoded.reason}: {decoded.error}")
    if decoded.request_id != derived_request_id(origin):
        return record
    record = with_request_id(record, origin)
    again = decode_operation(record, origin, **limits)
    if isinstance(again, RejectedRecord):
        return _left_returning(f"with its request id, {again.reason}: {again.error}")
    return record


def _left_returning(error: str) -> LeftLetter:
    return LeftLetter(
        LeftReason.WOULD_COME_BACK, f"it would come back as a dead letter ({error}); --force sends it as it is"
    )


def _queue_resend(letter: DeadLetter, rules: ReplayRules) -> Resend | LeftLetter:
    origin = letter.origin
    try:
        body = letter.record.decode()
    except UnicodeDecodeError:
        return LeftLetter(LeftReason.SEND_REFUSED, "expected text, for a message of SQS is text, got other bytes")
    attributes = dict(letter.message_attributes or {})
    if rules.queues[origin.name]:
        event = _prepare_order_event(letter, body, attributes, rules)
        if isinstance(event, LeftLetter):
            return event
        body, attributes = event
    elif letter.reason in LASTING_REASONS and not rules.force:
        return _left_returning(letter.reason)
    # A new id: under the old one SQS would drop what is sent within five minutes, and the letter would be deleted.
    # The same one for every letter of this message, so that what is sent again after a kill is dropped.
    again = hashlib.sha256(f"replay\0{origin.name}\0{origin.message_id}".encode()).hexdigest()
    fifo = FifoIds(group_id=origin.group_id or "replay", deduplication_id=again)
    return Resend(
        source=Source.SQS,
        name=origin.name,
        group=order_group(letter),
        message=QueueMessage(body=body, attributes=attributes, fifo=fifo),
    )


def _prepare_order_event(
    letter: DeadLetter, body: str, attributes: Mapping[str, str], rules: ReplayRules
) -> tuple[str, dict[str, str]] | LeftLetter:
    """Return an order event with its request id in its body, out of SNS's envelope, or why it is none."""
    event, found = unwrap(body, attributes)
    own_id = letter.request_id or letter.deduplication_id
    decoded = decode_order(event, found, letter.origin, deduplication_id=own_id, max_bytes=rules.operation_max_bytes)
    if isinstance(decoded, RejectedRecord):
        refused = _left_returning(f"{decoded.reason}: {decoded.error}")
        return (body, dict(attributes)) if rules.force else refused
    if letter.reason is DeadLetterReason.REQUEST_ID_REUSED and not rules.force:
        return _left_returning("another operation has its deduplicationId")
    if decoded.request_id == _sent_deduplication_id(event):
        return event, found
    return event.rstrip()[:-1] + "," + msgspec.json.encode({"deduplicationId": decoded.request_id}).decode()[1:], found


class _SentIds(msgspec.Struct, rename="camel"):
    """What a valid order event says of its request id."""

    deduplication_id: str | None = None


def _sent_deduplication_id(event: str) -> str | None:
    return msgspec.json.decode(replace_lone_surrogates(event.encode()), type=_SentIds).deduplication_id
