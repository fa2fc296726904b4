"""List, replay, discard and edit dead letters (docs/dead-letters.md): what the commands and HTTP requests call.

A letter is deleted only after its record was sent; after a kill in between, the repeated record is dropped.
"""

from __future__ import annotations

import base64
import math
import uuid
from bisect import insort
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import groupby
from operator import attrgetter
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Final, NamedTuple

import msgspec

from simplu_worker.aws import sending
from simplu_worker.aws.clients import open_client
from simplu_worker.aws.sending import Producer, PutRecord, RequestBounds
from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, SEND_MAX_BYTES, Message, OutgoingMessage, Queue
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.aggregation import AggregatePacker, unpack
from simplu_worker.consumers.kinesis.stream.client import Record, Stream, stream_name
from simplu_worker.consumers.kinesis.stream.positions import AtSequenceNumber
from simplu_worker.dead_letters.letter import NotADeadLetterError, ParsedDeadLetter, WholeRecord, parse_dead_letter
from simplu_worker.dead_letters.plan import (
    EditRequest,
    LeftReason,
    LetterLeftError,
    LettersRequest,
    OrderKey,
    ReplayRules,
    Resend,
    edit_record,
    order_group,
    plan_resend,
    require_source,
    sort_key,
)
from simplu_worker.dead_letters.queue import DeadLetterBrowser, Note
from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError
from simplu_worker.operations.dead_letter import DeadLetter, tenant_of
from simplu_worker.vocabulary import DeadLetterReason, PartitionKeyRule, Source

SQS_ATTEMPTS: Final = 3
FETCH_POLLS: Final = 5  # a reply may be empty though there are records
SHOWN_RECORDS_MAX_BYTES: Final = 64 * 1024 * 1024
KEPT_IN_MEMORY_BYTES: Final = 16 * 1024 * 1024  # of the letters of a replay; the others are in a file
REQUEST_BOUNDS: Final = {
    Source.KINESIS: RequestBounds(sending.REQUEST_MAX_COUNT, sending.REQUEST_MAX_BYTES),
    Source.SQS: RequestBounds(BATCH_MAX_COUNT, SEND_MAX_BYTES),
}
QUEUES: Final = {  # by setting: whether the queue holds order events
    "sqs_shard_creation_queue_url": False,
    "sqs_order_events_queue_url": True,
    "sqs_priority_queue_url": True,
}


class LettersAction(StrEnum):
    """What a person has done with dead letters, as the log has it."""

    LIST = "list_letters"
    REPLAY = "replay_letters"
    DISCARD = "discard_letters"
    EDIT = "edit_letter"


class ReplayStatus(StrEnum):
    """The outcome of one letter, done or planned."""

    SENT = "sent"
    WOULD_SEND = "would send"
    LEFT = "left"


class ReplayOutcome(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The outcome of one message of the queue, and why it was left there."""

    message_id: str
    status: ReplayStatus
    reason: DeadLetterReason | None = None
    source: Source | None = None
    name: str | None = None
    failed_at: datetime | None = None
    why: LeftReason | None = None
    detail: str | None = None


class DeadLetterService:
    """Acts on the dead-letter queue and the sources of *settings*."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def list(
        self,
        request: LettersRequest,
        note: Note,
        *,
        room_bytes: int = SHOWN_RECORDS_MAX_BYTES,
        read_s: float = math.inf,
    ) -> dict[str, Any]:
        """Return the dead letters of a request, with at most *room_bytes* of records, and leave them in the queue.

        They are the first that SQS shows, or with `newest` the newest of the whole queue, as far as it was read in
        *read_s*. `matched` counts those that were seen, `isCut`: there may be more than are listed.
        """
        found: list[tuple[datetime, str, int, dict[str, Any]]] = []  # by the time of the failure
        foreign: list[dict[str, str]] = []
        matched, is_cut = 0, False
        async with (
            open_browser(self._settings, note) as browser,
            aclosing(browser.read(request, to_act=False, within_s=read_s)) as letters,
        ):
            async for message, parsed in letters:
                if isinstance(parsed, NotADeadLetterError):
                    foreign.append({"messageId": message.message_id, "problem": str(parsed)})
                    continue
                if is_cut := not request.newest and (len(found) == request.limit or room_bytes < 0):
                    break
                size_bytes = len(message.body) if request.records else 0
                row = _members(message, parsed, with_record=request.records)
                insort(found, (row["failedAt"], row["messageId"], size_bytes, row))
                matched, room_bytes = matched + 1, room_bytes - size_bytes
                while request.newest and (len(found) > request.limit or (room_bytes < 0 and len(found) > 1)):
                    room_bytes += found.pop(0)[2]
            is_cut |= browser.ended_early
            is_complete = request.is_complete(matched)
            hidden = 0 if is_cut or is_complete else browser.warn_of_hidden()
            behind = 0 if is_complete else await browser.count_behind()
        rows = [row for *_, row in found]
        return {
            "letters": rows[::-1] if request.newest else rows,
            "notLetters": foreign,
            "matched": matched,
            "isCut": is_cut or matched > len(rows),
            "hidden": hidden,
            "behind": behind,
        }

    async def replay(self, request: LettersRequest, note: Note) -> dict[str, Any]:
        """Send the records of the letters of a request to their source, and delete them; or plan it.

        In rounds: a FIFO queue shows more letters of a group once the first are deleted.
        """
        outcomes: list[ReplayOutcome] = []
        async with AsyncExitStack() as stack:
            browser = await stack.enter_async_context(open_browser(self._settings, note))
            sources = await _open_sources(stack, self._settings, force=request.force)
            while True:
                with SpooledTemporaryFile(max_size=KEPT_IN_MEMORY_BYTES) as file:
                    replay = _Replay(browser, sources, file, apply=request.apply)
                    await replay.read(request)
                    found = await replay.run(request.limit - _letter_count(outcomes))
                outcomes += found
                may_show_more = browser.queue.is_fifo and any(one.status is ReplayStatus.SENT for one in found)
                if not may_show_more or request.is_complete(len(outcomes)):
                    break
            unseen = await _unseen(browser, request, _letter_count(outcomes))
        counts = Counter(outcome.status for outcome in outcomes)
        return {
            "applied": request.apply,
            "sent": counts[ReplayStatus.SENT],
            "wouldSend": counts[ReplayStatus.WOULD_SEND],
            "left": counts[ReplayStatus.LEFT],
            **unseen,
            "letters": outcomes,
        }

    async def discard(self, request: LettersRequest, note: Note) -> dict[str, Any]:
        """Delete the dead letters of a request, and with them their records; or return the plan."""
        alike: Counter[tuple[str, str, str]] = Counter()

        def choose(_: Message, parsed: ParsedDeadLetter | NotADeadLetterError) -> bool:
            if isinstance(parsed, NotADeadLetterError):
                return False
            alike[parsed.letter.reason, *(tenant_of(parsed.letter) or ("", ""))] += 1
            return True

        async with open_browser(self._settings, note) as browser:
            count, left_count = await delete_letters(browser, request, choose)
            unseen = await _unseen(browser, request, count)
        return {
            "applied": request.apply,
            "discarded": count - left_count if request.apply else 0,
            "wouldDiscard": 0 if request.apply else count,
            "left": left_count,
            **unseen,
            "letters": [
                {"reason": reason, "businessId": business_id, "locationId": location_id, "count": number}
                for (reason, business_id, location_id), number in sorted(alike.items())
            ],
        }

    async def edit(self, request: EditRequest, note: Note) -> dict[str, Any] | None:
        """Send a text in place of a letter's record under a new request id, and delete the letter; or return the plan.

        None where the queue shows no such letter. A record that is sent again is dropped. Raises as `edit_record`.
        """
        request_id = request.request_id or str(uuid.uuid4())
        async with open_browser(self._settings, lambda _: None) as browser:
            parsed = await _find_letter(browser, request.message_id)
            if parsed is None:
                return None
            edited = edit_record(parsed, request.record, request_id, _rules_of(self._settings))
            if request.apply:
                async with _open_stream(self._settings) as (_, producer):
                    await producer.send([edited.record])
                if await browser.delete([request.message_id]):
                    note("the record was sent, but its dead letter was not deleted: discard it")
        operation = edited.operation
        return {
            "applied": request.apply,
            "sent": int(request.apply),
            "arrivedAt": parsed.letter.origin.arrived_at,
            "operation": operation.kind,
            "businessId": operation.business_id,
            "locationId": operation.location_id,
            "resourceType": operation.resource_type,
            "resourceId": operation.resource_id,
            "requestId": request_id,
            "oldRequestId": edited.old_request_id,
            "partitionKey": edited.record.partition_key,
        }


async def delete_letters(
    browser: DeadLetterBrowser,
    request: LettersRequest,
    choose: Callable[[Message, ParsedDeadLetter | NotADeadLetterError], bool],
) -> tuple[int, int]:
    """Delete the letters of a request that *choose* takes; return how many these are, and how many could not go.

    In rounds: a FIFO queue shows more letters of a group once the first are deleted.
    """
    count = left_count = 0
    while True:
        found: list[str] = []
        async with aclosing(browser.read(request)) as letters:
            async for message, parsed in letters:
                if count + len(found) == request.limit:
                    break
                if choose(message, parsed):
                    found.append(message.message_id)
        count += len(found)
        left_count += len(await browser.delete(found)) if request.apply else 0
        may_show_more = request.apply and browser.queue.is_fifo and found
        if not may_show_more or request.is_complete(count) or count == request.limit:
            return count, left_count


@asynccontextmanager
async def open_browser(settings: Settings, note: Note) -> AsyncIterator[DeadLetterBrowser]:
    """Open the dead-letter queue. Raises ConfigurationError without one."""
    url = settings.dead_letter_queue_url
    if url is None:
        raise ConfigurationError("SQS_DEAD_LETTER_QUEUE_URL: expected the dead-letter queue, got nothing; set it")
    sqs = open_client("sqs", region=settings.aws_region, max_attempts=SQS_ATTEMPTS)
    async with sqs as client, DeadLetterBrowser(Queue(client, url), note) as browser:
        yield browser


@asynccontextmanager
async def _open_stream(settings: Settings) -> AsyncIterator[tuple[Stream, Producer[PutRecord]]]:
    name = settings.kinesis_stream_name or ""
    async with open_client("kinesis", region=settings.aws_region, read_timeout_s=sending.PUT_TIMEOUT_S) as client:
        yield Stream(client, name), sending.stream_producer(client, name)


def _rules_of(settings: Settings, queues: Mapping[str, bool] | None = None, *, force: bool = False) -> ReplayRules:
    return ReplayRules(
        stream=None if settings.kinesis_stream_name is None else stream_name(settings.kinesis_stream_name),
        queues=queues or {},
        operation_max_bytes=settings.operation_max_bytes,
        list_result_limit=settings.list_result_limit,
        key_rule=PartitionKeyRule(settings.kinesis_partition_key),
        order_tenant=settings.order_tenant,
        force=force,
    )


async def _unseen(browser: DeadLetterBrowser, request: LettersRequest, count: int) -> dict[str, int]:
    if request.is_complete(count):
        return {"hidden": 0, "behind": 0}
    hidden, has_reached_limit = browser.warn_of_hidden(), count == request.limit
    behind = await browser.count_behind(is_plan=not request.apply, has_reached_limit=has_reached_limit)
    return {"hidden": hidden, "behind": behind}


def _letter_count(outcomes: Sequence[ReplayOutcome]) -> int:
    return sum(outcome.why is not LeftReason.NOT_A_LETTER for outcome in outcomes)


async def _find_letter(browser: DeadLetterBrowser, message_id: str) -> ParsedDeadLetter | None:
    chosen = LettersRequest(message_ids=frozenset({message_id}))
    async with aclosing(browser.read(chosen, to_act=False)) as letters:
        async for _, parsed in letters:
            return parsed if isinstance(parsed, ParsedDeadLetter) else None
    return None


class _Chosen(NamedTuple):
    """A letter to replay: what is told of it, its place in the order, and where its text is in the file."""

    outcome: ReplayOutcome
    order: OrderKey
    group: str
    offset: int
    size_bytes: int


class _Replay:
    def __init__(self, browser: DeadLetterBrowser, sources: _Sources, file: IO[bytes], *, apply: bool) -> None:
        self._browser = browser
        self._sources = sources
        self._file = file
        self._apply = apply
        self._chosen: list[_Chosen] = []
        self._outcomes: list[ReplayOutcome] = []
        self._blocked: set[tuple[str, str]] = set()  # source and group of each letter that was not sent

    async def read(self, request: LettersRequest) -> None:
        async with aclosing(self._browser.read(request)) as letters:
            async for message, parsed in letters:
                if isinstance(parsed, NotADeadLetterError):
                    why = LeftReason.NOT_A_LETTER
                    outcome = ReplayOutcome(message.message_id, ReplayStatus.LEFT, why=why, detail=str(parsed))
                    self._outcomes.append(outcome)
                    continue
                letter, origin = parsed.letter, parsed.letter.origin
                outcome = ReplayOutcome(
                    message.message_id,
                    ReplayStatus.WOULD_SEND,
                    letter.reason,
                    origin.source,
                    origin.name,
                    letter.failed_at,
                )
                text = message.body.encode("utf-8", "surrogatepass")
                place = self._file.seek(0, 2), self._file.write(text)
                self._chosen.append(_Chosen(outcome, sort_key(letter), order_group(letter), *place))

    async def run(self, limit: int) -> list[ReplayOutcome]:
        chosen = sorted(self._chosen, key=lambda one: one.order)[:limit]
        try:
            for (source, name), letters in groupby(chosen, key=lambda one: one.order[:2]):
                bounds = REQUEST_BOUNDS[source]
                key_of, size_of = attrgetter("group"), attrgetter("size_bytes")
                for request in sending.cut(letters, bounds, key_of=key_of, size_of=size_of):
                    await self._send(name, request)
        except RetryableError as exc:
            recorded = {outcome.message_id for outcome in self._outcomes}
            for one in chosen:
                if one.outcome.message_id not in recorded:
                    self._leave(one.outcome, LeftReason.NOT_REACHED, f"the replay stopped at an error: {exc}")
        return self._outcomes

    def _parse(self, chosen: _Chosen) -> ParsedDeadLetter:
        self._file.seek(chosen.offset)
        return parse_dead_letter(self._file.read(chosen.size_bytes).decode("utf-8", "surrogatepass"))

    async def _send(self, name: str, letters: Sequence[_Chosen]) -> None:
        """Send records, no two of one group, as a request refused in part keeps no order, and delete the letters."""
        planned: list[_Chosen] = []
        resends: list[Resend] = []
        for one in letters:
            try:
                if (name, one.group) in self._blocked:
                    detail = "an earlier record of the same key or group was not sent"
                    raise LetterLeftError(LeftReason.BEHIND_UNSENT, detail)  # noqa: TRY301
                resends.append(await self._sources.plan(self._parse(one)))
                planned.append(one)
            except LetterLeftError as exc:
                self._leave(one.outcome, exc.why, exc.detail)
        if not self._apply:
            self._outcomes += [one.outcome for one in planned]
            return
        refused = await self._sources.send(name, resends)
        for index, error in refused.items():
            self._blocked.add((name, planned[index].group))
            self._leave(planned[index].outcome, LeftReason.SEND_REFUSED, error)
        sent = [one.outcome for index, one in enumerate(planned) if index not in refused]
        kept = await self._browser.delete([one.message_id for one in sent])
        for outcome in sent:
            if outcome.message_id in kept:
                detail = "the record was sent, but its letter was not deleted; sent again, the record would be dropped"
                self._leave(outcome, LeftReason.NOT_DELETED, detail)
            else:
                self._outcomes.append(msgspec.structs.replace(outcome, status=ReplayStatus.SENT))

    def _leave(self, one: ReplayOutcome, why: LeftReason, detail: str) -> None:
        self._outcomes.append(msgspec.structs.replace(one, status=ReplayStatus.LEFT, why=why, detail=detail))


async def _open_sources(stack: AsyncExitStack, settings: Settings, *, force: bool) -> _Sources:
    stream, producer = None, None
    if settings.kinesis_stream_name is not None:
        stream, producer = await stack.enter_async_context(_open_stream(settings))
    sqs = open_client("sqs", region=settings.aws_region, max_attempts=SQS_ATTEMPTS)
    client = await stack.enter_async_context(sqs)
    queues: dict[str, Queue] = {}
    holds_orders: dict[str, bool] = {}
    for name, has_orders in QUEUES.items():
        if (url := getattr(settings, name)) is not None:
            queue = Queue(client, url)
            queues[queue.name], holds_orders[queue.name] = queue, has_orders
    return _Sources(stream, producer, queues, _rules_of(settings, holds_orders, force=force))


@dataclass(frozen=True)
class _Sources:
    stream: Stream | None
    producer: Producer[PutRecord] | None
    queues: Mapping[str, Queue]
    rules: ReplayRules

    async def plan(self, parsed: ParsedDeadLetter) -> Resend:
        """Return what to send for a letter. Raises LetterLeftError."""
        letter = parsed.letter
        require_source(letter, self.rules)
        if parsed.whole is not None:
            letter = msgspec.structs.replace(letter, record=await self._fetch_record(letter, parsed.whole))
        return plan_resend(letter, self.rules)

    async def send(self, name: str, resends: Sequence[Resend]) -> dict[int, str]:
        """Send to the source *name*; return what was refused, by index, with the errors."""
        if not resends:
            return {}
        try:
            await self._send(name, resends)
        except PermanentError as exc:
            if len(resends) == 1:
                return {0: str(exc)}
        else:
            return {}
        refused: dict[int, str] = {}
        for index, resend in enumerate(resends):  # alone, so that a bad entry does not fail the others
            if error := await self.send(name, [resend]):
                refused[index] = error[0]
        return refused

    async def _send(self, name: str, resends: Sequence[Resend]) -> None:
        messages = [one for one in resends if isinstance(one, OutgoingMessage)]
        records = [record for one in resends if not isinstance(one, OutgoingMessage) for record in one]
        if self.producer is not None:  # without one `require_source` leaves all records
            await self.producer.send_all(records)
        if messages:
            queue = self.queues[name]
            if not queue.is_fifo:
                messages = [msgspec.structs.replace(message, fifo=None) for message in messages]
            await sending.queue_producer(queue).send_all(messages)

    async def _fetch_record(self, letter: DeadLetter, whole: WholeRecord) -> bytes:
        if letter.origin.source is Source.SQS or self.stream is None:
            raise _gone("a message that was too long for its letter is stored nowhere else")
        record = await self._read_record(self.stream, letter)
        if record is None:
            raise _gone(f"the stream {self.stream.name} no longer has the record")
        numbers = {letter.origin.part_number} if letter.parts is None else set(letter.parts.numbers or ())
        parts = [one for one in unpack(record.data, record.partition_key) or () if one.number in numbers]
        packer = AggregatePacker()
        for part in parts:
            packer.add(part.partition_key, part.data)
        for data in (record.data, *(part.data for part in parts), packer.seal()):
            if whole.matches(data):
                return data
        raise _gone("the stream has another record at its position")

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


def _gone(why: str) -> LetterLeftError:
    return LetterLeftError(LeftReason.RECORD_GONE, f"the letter has only the beginning of the record; {why}")


def _members(message: Message, parsed: ParsedDeadLetter, *, with_record: bool) -> dict[str, Any]:
    letter, origin = parsed.letter, parsed.letter.origin
    tenant = tenant_of(letter)
    position: dict[str, Any] = {"streamShard": origin.stream_shard_id} if origin.source is Source.KINESIS else {}
    if origin.part_index is not None:
        position["partIndex"] = origin.part_index
    row = {
        "messageId": message.message_id,
        "failedAt": letter.failed_at,
        "reason": letter.reason,
        "error": letter.error,
        "source": origin.source,
        "name": origin.name,
        **position,
        "sequenceNumber": origin.sequence_number,
        "subSequenceNumber": origin.sub_sequence_number,
        "sourceMessageId": origin.message_id,
        "groupId": origin.group_id,
        "partitionKey": origin.partition_key,
        "arrivedAt": origin.arrived_at,
        "businessId": tenant and tenant[0],
        "locationId": tenant and tenant[1],
        "requestId": letter.request_id,
        "resourceId": letter.resource_id,
        "attempts": letter.attempts,
        "recordBytes": len(letter.record) if parsed.whole is None else parsed.whole.size_bytes,
        "truncated": parsed.whole is not None,
    }
    if (parts := letter.parts) is not None:
        row["parts"] = {"total": parts.part_count, "bad": parts.bad_count, **parts.reasons}
    return row | (_record_members(letter) if with_record else {})


def _record_members(letter: DeadLetter) -> dict[str, Any]:
    attributes = {} if letter.message_attributes is None else {"messageAttributes": letter.message_attributes}
    try:
        return {"record": letter.record.decode(), **attributes}
    except UnicodeDecodeError:
        return {"recordBase64": base64.b64encode(letter.record).decode(), **attributes}
