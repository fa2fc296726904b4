"""Send the records of dead letters to their sources. A letter is deleted only after its record was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from simplu_worker.aws.sqs_queue import OutgoingMessage, Queue
from simplu_worker.commands.dead_letters.replay_plan import (
    LeftLetter,
    LeftReason,
    QueueMessage,
    ReplayRules,
    Resend,
    ResendRequest,
    plan_resend,
    unknown_source,
)
from simplu_worker.commands.stream.input_lines import cut_into_puts
from simplu_worker.commands.stream.put_records import put_all, stream_sink
from simplu_worker.consumers.kinesis.stream.aggregation import AggregatePacker, unpack
from simplu_worker.consumers.kinesis.stream.client import Record, Stream
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber
from simplu_worker.dead_letters.letter import DeadLetter, ParsedDeadLetter
from simplu_worker.errors import PermanentError
from simplu_worker.vocabulary import Source

SEND_TRIES: Final = 4
RETRY_S: Final = 0.2
FETCH_POLLS: Final = 5  # a reply may be empty though there are records


class DeadLetterResender:
    """Sends records to the configured stream and queues."""

    def __init__(self, stream: Stream | None, queues: Mapping[str, Queue], rules: ReplayRules) -> None:
        self._stream = stream
        self._queues = queues
        self._rules = rules

    async def plan_resend(self, parsed: ParsedDeadLetter) -> Resend | LeftLetter:
        """Return the messages to send for a letter, or why it is left. Raises RetryableError of the stream."""
        letter = parsed.letter
        if (left := unknown_source(letter, self._rules)) is not None:
            return left
        if parsed.whole is not None:
            record = await self._fetch_record(parsed)
            if isinstance(record, LeftLetter):
                return record
            letter = msgspec.structs.replace(letter, record=record)
        return plan_resend(letter, self._rules)

    async def send(self, request: ResendRequest) -> dict[int, LeftLetter]:
        """Send *request*; return the refused entries by their index. Raises RetryableError of the source."""
        resends = request.resends
        if not resends:
            return {}
        try:
            return await self._send(resends)
        except PermanentError as exc:
            if len(resends) == 1:
                return {0: _left_refused(str(exc))}
        refused: dict[int, LeftLetter] = {}
        for index, resend in enumerate(resends):  # alone, so that a bad entry does not fail the others
            try:
                alone = await self._send([resend])
            except PermanentError as exc:
                alone = {0: _left_refused(str(exc))}
            if 0 in alone:
                refused[index] = alone[0]
        return refused

    async def _send(self, resends: Sequence[Resend]) -> dict[int, LeftLetter]:
        if resends[0].source is Source.KINESIS and self._stream is not None:  # without one `unknown_source` leaves all
            for records in cut_into_puts(record for resend in resends for record in resend.records):
                await put_all(stream_sink(self._stream), records)
            return {}
        return await self._send_messages(self._queues[resends[0].name], resends)

    async def _send_messages(self, queue: Queue, resends: Sequence[Resend]) -> dict[int, LeftLetter]:
        """Send messages, no two of one group, and send refused ones again."""
        indices = list(range(len(resends)))
        refused: dict[int, LeftLetter] = {}
        for try_count in range(1, SEND_TRIES + 1):
            unsent = await queue.send(list(_outgoing([resends[index] for index in indices], queue)))
            refused = {indices[entry.index]: _left_refused(f"SendMessageBatch: {entry.code}") for entry in unsent}
            indices = list(refused)
            if not indices:
                break
            if try_count < SEND_TRIES:
                await asyncio.sleep(RETRY_S * try_count)
        return refused

    async def _fetch_record(self, parsed: ParsedDeadLetter) -> bytes | LeftLetter:
        """Return the whole record of a letter that has only the beginning of it."""
        letter, whole = parsed.letter, parsed.whole
        if letter.origin.source is Source.SQS or self._stream is None or whole is None:
            return _left_gone("a message that was too long for its letter is stored nowhere else")
        record = await self._read_record(self._stream, letter)
        if record is None:
            return _left_gone(f"the stream {self._stream.name} no longer has the record")
        candidates = [record.data, *_parts_named(letter, record)]
        found = [data for data in candidates if whole.matches(data)]
        return found[0] if found else _left_gone("the stream has another record at its position")

    async def _read_record(self, stream: Stream, letter: DeadLetter) -> Record | None:
        origin = letter.origin
        place = AtSequenceNumber(origin.sequence_number or "")
        try:
            iterator: str | None = await stream.get_iterator(origin.stream_shard_id or "", place)
            for _ in range(FETCH_POLLS):
                if iterator is None:
                    break
                reply = await stream.get_records(iterator, limit=1)
                if reply.records:
                    record = reply.records[0]
                    return record if record.sequence_number == origin.sequence_number else None
                iterator = reply.next_iterator
        except PermanentError:
            return None  # past the retention of the stream, or of its shard
        return None


def _parts_named(letter: DeadLetter, record: Record) -> Iterator[bytes]:
    """Yield the part of *record* at the letter's position, or an aggregate of its bad parts."""
    numbers = {letter.origin.part_number} if letter.parts is None else set(letter.parts.numbers or ())
    found = [part for part in unpack(record.data, record.partition_key) or () if part.number in numbers]
    if letter.parts is None:
        yield from (part.data for part in found)
        return
    packer = AggregatePacker()
    for part in found:
        packer.add(part.partition_key, part.data)
    yield packer.seal()


def _outgoing(resends: Iterable[Resend], queue: Queue) -> Iterable[OutgoingMessage]:
    for resend in resends:
        match resend.message:
            case QueueMessage(body, attributes, fifo):
                yield OutgoingMessage(body=body, fifo=fifo if queue.is_fifo else None, attributes=attributes)
            case None:
                raise TypeError("a letter of a queue is sent as a message")


def _left_refused(error: str) -> LeftLetter:
    return LeftLetter(LeftReason.SEND_REFUSED, error)


def _left_gone(reason: str) -> LeftLetter:
    return LeftLetter(LeftReason.RECORD_GONE, f"the letter has only the beginning of the record; {reason}")
