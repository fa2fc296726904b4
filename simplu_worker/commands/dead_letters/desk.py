"""Read, replay and discard dead letters, for the commands and for the HTTP interface: each returns its answer."""

from __future__ import annotations

import base64
import heapq
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from simplu_worker.aws.clients import Client, open_client
from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.commands.dead_letters.browse import DeadLetterBrowser, read_with_progress
from simplu_worker.commands.dead_letters.edit import EditRules, edit_record
from simplu_worker.commands.dead_letters.replay import DeadLetterReplay, ReplayOptions, ReplayOutcome, ReplayStatus
from simplu_worker.commands.dead_letters.replay_plan import DeadLetterFilter, LeftReason, ReplayRules
from simplu_worker.commands.dead_letters.resend import DeadLetterResender
from simplu_worker.commands.output import Narration
from simplu_worker.commands.stream.put_records import open_stream_for_puts, put_all, stream_sink
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import NewRecord
from simplu_worker.dead_letters.letter import (
    DeadLetter,
    NotADeadLetterError,
    ParsedDeadLetter,
    parse_dead_letter,
    tenant_of,
)
from simplu_worker.errors import ConfigurationError
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import PartitionKeyRule, Source

SQS_ATTEMPTS: Final = 3
SHOWN_RECORDS_MAX_BYTES: Final = 64 * 1024 * 1024
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


class ListOptions(NamedTuple):
    """The options of `dead-letters list`."""

    limit: int | None
    records: bool
    room_bytes: int = SHOWN_RECORDS_MAX_BYTES  # of records
    newest: bool = False  # of all that match: the whole queue is read, as SQS shows messages in no order
    read_s: float = math.inf  # until the reading ends, with what was found


class DiscardOptions(NamedTuple):
    """The options of `dead-letters discard`."""

    apply: bool
    limit: int | None


class EditOptions(NamedTuple):
    """A dead letter by the id of its message, the text that is to take the place of its record, and the new id."""

    message_id: str
    record: str
    request_id: str
    apply: bool


class ReplayResult(NamedTuple):
    """The outcome of each letter of a replay, or of its plan; *hidden* and *behind* were not seen."""

    outcomes: list[ReplayOutcome]
    hidden: int
    behind: int

    @property
    def is_whole(self) -> bool:
        """Whether all of them were sent, or would be."""
        return not self.hidden and all(outcome.status is not ReplayStatus.LEFT for outcome in self.outcomes)

    def members(self, *, applied: bool) -> dict[str, Any]:
        """Return the answer as JSON members."""
        counts = Counter(outcome.status for outcome in self.outcomes)
        return {
            "applied": applied,
            "sent": counts[ReplayStatus.SENT],
            "wouldSend": counts[ReplayStatus.WOULD_SEND],
            "left": counts[ReplayStatus.LEFT],
            "hidden": self.hidden,
            "behind": self.behind,
            "letters": self.outcomes,
        }


async def list_letters(
    settings: Settings, filters: DeadLetterFilter, options: ListOptions, narration: Narration
) -> dict[str, Any]:
    """Return dead letters that *filters* match, and leave them in the queue.

    They are the first that SQS shows, up to the limit, or with `newest` the newest of the whole queue, as far as it was
    read in time. `matched` counts those that were seen to match, `isCut`: there may be more than are listed.
    """
    shelf = _NewestLetters(options) if options.newest else _FirstLetters(options)
    foreign: list[dict[str, str]] = []
    is_cut = is_complete = False
    matched = 0
    async with open_browser(settings, narration) as browser:
        depth = await read_depth(browser)
        started_at = loop_time()
        async with aclosing(read_with_progress(browser, depth.visible_count)) as messages:
            async for message in messages:
                if loop_time() - started_at > options.read_s:
                    is_cut = True
                    narration.note(
                        f"the reading ended after {options.read_s:g} s, with {browser.read_count} messages; "
                        f"the queue had about {depth.visible_count} when it began"
                    )
                    break
                try:
                    parsed = parse_dead_letter(message.body)
                except NotADeadLetterError as exc:
                    if filters.is_all:
                        foreign.append({"messageId": message.message_id, "problem": str(exc)})
                    continue
                if not filters.match(parsed.letter, message.message_id):
                    continue
                if shelf.is_full:
                    is_cut = True
                    break
                matched += 1
                shelf.add(_members(message, parsed, with_record=options.records), len(message.body))
                if is_complete := filters.is_complete(matched):
                    break
        hidden = 0 if is_cut or is_complete else warn_of_hidden(depth, browser)
        behind = 0 if is_complete else await count_behind(browser)
    rows = shelf.rows()
    return {
        "letters": rows,
        "notLetters": foreign,
        "matched": matched,
        "isCut": is_cut or matched > len(rows),
        "hidden": hidden,
        "behind": behind,
    }


class _FirstLetters:
    """The letters that SQS shows first, by the time of their failure."""

    def __init__(self, options: ListOptions) -> None:
        self._options = options
        self._rows: list[dict[str, Any]] = []
        self._room_bytes = options.room_bytes

    @property
    def is_full(self) -> bool:
        return len(self._rows) == self._options.limit or self._room_bytes < 0

    def add(self, row: dict[str, Any], size_bytes: int) -> None:
        self._rows.append(row)
        self._room_bytes -= size_bytes if self._options.records else 0

    def rows(self) -> list[dict[str, Any]]:
        return sorted(self._rows, key=lambda row: row["failedAt"])


class _NewestLetters:
    """The newest letters of all that are added, the newest first; the oldest make room."""

    is_full = False

    def __init__(self, options: ListOptions) -> None:
        self._options = options
        self._heap: list[tuple[datetime, str, int, dict[str, Any]]] = []
        self._used_bytes = 0

    def add(self, row: dict[str, Any], size_bytes: int) -> None:
        size_bytes = size_bytes if self._options.records else 0
        heapq.heappush(self._heap, (row["failedAt"], row["messageId"], size_bytes, row))
        self._used_bytes += size_bytes
        while len(self._heap) > (self._options.limit or math.inf) or (
            self._used_bytes > self._options.room_bytes and len(self._heap) > 1
        ):
            self._used_bytes -= heapq.heappop(self._heap)[2]

    def rows(self) -> list[dict[str, Any]]:
        return [row for *_, row in sorted(self._heap, reverse=True, key=lambda one: one[:2])]


async def replay_letters(
    settings: Settings, filters: DeadLetterFilter, options: ReplayOptions, narration: Narration
) -> ReplayResult:
    """Send the records of letters that *filters* match to their source, and delete the letters; or return the plan."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_sqs(settings))
        browser = DeadLetterBrowser(Queue(client, _queue_url(settings)), narration)
        await stack.enter_async_context(browser)
        resender = await _open_resender(stack, settings, client, options)
        depth = await read_depth(browser)
        started_at = datetime.now(UTC)
        outcomes = await _replay_in_passes(browser, resender, filters, options, depth.visible_count, started_at)
        is_complete = filters.is_complete(len(outcomes))
        hidden = 0 if is_complete else warn_of_hidden(depth, browser)
        may_withhold = _may_withhold(browser, options, _letter_count(outcomes), started_at)
        behind = 0 if is_complete else await count_behind(browser, may_withhold=may_withhold)
    return ReplayResult(outcomes, hidden, behind)


async def _replay_in_passes(
    browser: DeadLetterBrowser,
    resender: DeadLetterResender,
    filters: DeadLetterFilter,
    options: ReplayOptions,
    expected: int,
    started_at: datetime,
) -> list[ReplayOutcome]:
    """Replay until a pass sends nothing. A FIFO queue shows more letters of a group once the first are deleted.

    Letters that arrive after the start stay in the queue.
    """
    outcomes: list[ReplayOutcome] = []
    newest: datetime | None = None
    while True:
        limit = None if options.limit is None else options.limit - _letter_count(outcomes)
        with closing(DeadLetterReplay(browser, resender, options)) as replay:
            await replay.read(filters, expected, newest=newest)
            found = await replay.run(limit)
        outcomes += found
        newest = started_at
        may_show_more = browser.is_fifo and any(outcome.status is ReplayStatus.SENT for outcome in found)
        if not may_show_more or filters.is_complete(len(outcomes)):
            return outcomes


async def discard_letters(
    settings: Settings, filters: DeadLetterFilter, options: DiscardOptions, narration: Narration
) -> dict[str, Any]:
    """Delete the dead letters that *filters* match, and with them their records; or return the plan.

    Other messages of the queue stay, and so do letters that arrive after the start.
    """
    discard = _Discard(Counter(), [], 0)
    async with open_browser(settings, narration) as browser:
        depth = await read_depth(browser)
        started_at = datetime.now(UTC)
        while not filters.is_complete(found_count := len(discard.found)):
            await _find_to_discard(browser, filters, options, discard, depth.visible_count, started_at)
            new = discard.found[found_count:]
            if not options.apply:
                break
            discard.kept_count += len(await browser.delete_all(new))
            if not (browser.is_fifo and new) or len(discard.found) == options.limit:
                break
        count = len(discard.found)
        is_complete = filters.is_complete(count)
        hidden = 0 if is_complete else warn_of_hidden(depth, browser)
        may_withhold = _may_withhold(browser, options, count, started_at)
        behind = 0 if is_complete else await count_behind(browser, may_withhold=may_withhold)
    return {
        "applied": options.apply,
        "discarded": count - discard.kept_count if options.apply else 0,
        "wouldDiscard": 0 if options.apply else count,
        "left": discard.kept_count,
        "hidden": hidden,
        "behind": behind,
        "letters": [
            {"reason": reason, "businessId": business_id, "locationId": location_id, "count": number}
            for (reason, business_id, location_id), number in sorted(discard.alike.items())
        ],
    }


@dataclass
class _Discard:
    """The progress of a discard: the letters by reason and tenant, their message ids, and how many were not deleted."""

    alike: Counter[tuple[str, str, str]]
    found: list[str]
    kept_count: int


async def _find_to_discard(
    browser: DeadLetterBrowser,
    filters: DeadLetterFilter,
    options: DiscardOptions,
    discard: _Discard,
    expected: int,
    newest: datetime,
) -> None:
    """Add to *discard* the letters that the queue shows and *filters* match, up to the limit."""
    async with aclosing(read_with_progress(browser, expected)) as messages:
        async for message in messages:
            if len(discard.found) == options.limit:
                return
            if message.sent_at > newest:
                continue
            try:
                letter = parse_dead_letter(message.body).letter
            except NotADeadLetterError:
                continue
            if filters.match(letter, message.message_id):
                discard.alike[letter.reason, *(tenant_of(letter) or ("", ""))] += 1
                discard.found.append(message.message_id)
                if filters.is_complete(len(discard.found)):
                    return


async def edit_letter(settings: Settings, options: EditOptions, narration: Narration) -> dict[str, Any] | None:
    """Send the corrected record of a letter under a new request id, and delete the letter; or return the plan.

    None where the queue shows no such letter. Sent again after a lost answer, the record is dropped as a redelivery.
    Raises as `edit_record`.
    """
    rules = EditRules(
        settings.kinesis_stream_name,
        PartitionKeyRule(settings.kinesis_partition_key),
        settings.operation_max_bytes,
        settings.list_result_limit,
    )
    async with open_browser(settings, narration) as browser:
        parsed = await _find_letter(browser, options.message_id)
        if parsed is None:
            return None
        edited = edit_record(parsed, options.record, options.request_id, rules)
        if options.apply:
            async with open_stream_for_puts(settings) as stream:
                await put_all(stream_sink(stream), [NewRecord(edited.partition_key, edited.record)])
            if await browser.delete([options.message_id]):
                narration.note("the record was sent, but its dead letter was not deleted: discard it")
    return {"applied": options.apply, "sent": int(options.apply), "arrivedAt": parsed.letter.origin.arrived_at} | (
        edited.facts()
    )


async def _find_letter(browser: DeadLetterBrowser, message_id: str) -> ParsedDeadLetter | None:
    async with aclosing(browser.read_messages()) as messages:
        async for message in messages:
            if message.message_id == message_id:
                try:
                    return parse_dead_letter(message.body)
                except NotADeadLetterError:
                    return None
    return None


class QueueDepth(NamedTuple):
    """The queue's depth before it was read, by SQS's estimates."""

    visible_count: int
    in_flight_count: int

    def hidden_count(self, read_count: int) -> int:
        """Return how many messages were hidden from a command that read *read_count*.

        The estimates lag behind, but cannot be less than the number that was read.
        """
        return min(self.in_flight_count, max(0, self.visible_count + self.in_flight_count - read_count))


def _letter_count(outcomes: list[ReplayOutcome]) -> int:
    return sum(outcome.why is not LeftReason.NOT_A_LETTER for outcome in outcomes)


def _queue_url(settings: Settings) -> str:
    url = settings.dead_letter_queue_url
    if url is None:
        raise ConfigurationError("SQS_DEAD_LETTER_QUEUE_URL: expected the dead-letter queue, got nothing; set it")
    return url


@asynccontextmanager
async def open_sqs(settings: Settings) -> AsyncIterator[Client]:
    """Open SQS."""
    async with open_client("sqs", region=settings.aws_region, max_attempts=SQS_ATTEMPTS) as client:
        yield client


@asynccontextmanager
async def open_browser(settings: Settings, narration: Narration) -> AsyncIterator[DeadLetterBrowser]:
    """Open the dead-letter queue. Raises ConfigurationError without one."""
    url = _queue_url(settings)
    async with open_sqs(settings) as client, DeadLetterBrowser(Queue(client, url), narration) as browser:
        yield browser


async def _open_resender(
    stack: AsyncExitStack, settings: Settings, client: Client, options: ReplayOptions
) -> DeadLetterResender:
    stream = None
    if settings.kinesis_stream_name is not None:
        stream = await stack.enter_async_context(open_stream_for_puts(settings))
    urls = {name: getattr(settings, name) for name in QUEUES}
    queues = {name: Queue(client, url) for name, url in urls.items() if url is not None}
    rules = ReplayRules(
        stream=None if stream is None else stream.name,
        queues={queue.name: QUEUES[name] for name, queue in queues.items()},
        operation_max_bytes=settings.operation_max_bytes,
        order_tenant=settings.order_tenant,
        list_result_limit=settings.list_result_limit,
        force=options.force,
    )
    return DeadLetterResender(stream, {queue.name: queue for queue in queues.values()}, rules)


async def read_depth(browser: DeadLetterBrowser) -> QueueDepth:
    """Return the depth of the queue, and note how this command affects other readers of the queue."""
    attributes = await browser.read_attributes()
    browser.narration.note(
        f"queue {browser.name}: dead letters are hidden from other readers while they are read, and then returned"
    )
    if attributes.redrive_policy is not None:
        browser.narration.note("the queue has a redrive policy of its own: each read counts as a receive")
    return QueueDepth(attributes.visible_count, attributes.in_flight_count)


def warn_of_hidden(depth: QueueDepth, browser: DeadLetterBrowser) -> int:
    """Return how many letters were hidden from this command, and note it."""
    count = depth.hidden_count(browser.read_count)
    if count:
        browser.narration.note(
            f"{count} dead letters were hidden from this command: another one is running, or was killed a short while "
            "ago; wait until they are visible again, then repeat the command"
        )
    return count


def _may_withhold(
    browser: DeadLetterBrowser, options: ReplayOptions | DiscardOptions, letter_count: int, started_at: datetime
) -> bool:
    """Return whether a FIFO queue may withhold letters that the command was to read.

    A plan leaves all letters in front of them. An applied command leaves those that the filter does not match or that
    it could not send or delete; those that came after its start have only later ones behind them.
    """
    if not options.apply:
        return True
    return letter_count != options.limit and browser.has_in_flight(sent_until=started_at)


async def count_behind(browser: DeadLetterBrowser, *, may_withhold: bool = True) -> int:
    """Return how many letters are behind those that were read: too many for one run, or withheld by a FIFO queue.

    *may_withhold*: whether a FIFO queue may withhold any. Their number is SQS's estimate for all groups, whatever the
    letters are about.
    """
    if not browser.was_cut and not (browser.is_fifo and may_withhold):
        return 0
    behind = (await browser.read_attributes()).visible_count
    if browser.was_cut:
        browser.narration.note("the queue has more dead letters than one run can process; run it again for the rest")
        return max(behind, 1)  # the count of the queue is an estimate
    if behind:
        browser.narration.note(
            f"{behind} dead letters may be behind those that stay in their groups: a FIFO queue shows at most ten of a "
            "group until these are deleted"
        )
    return behind


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
        **_part_counts(letter),
    }
    return row | (_record_members(letter) if with_record else {})


def _part_counts(letter: DeadLetter) -> dict[str, Any]:
    parts = letter.parts
    return {} if parts is None else {"parts": {"total": parts.part_count, "bad": parts.bad_count, **parts.reasons}}


def _record_members(letter: DeadLetter) -> dict[str, Any]:
    attributes = {} if letter.message_attributes is None else {"messageAttributes": letter.message_attributes}
    try:
        return {"record": letter.record.decode(), **attributes}
    except UnicodeDecodeError:
        return {"recordBase64": base64.b64encode(letter.record).decode(), **attributes}
