"""`operations send`, and `operations test`, which sends nothing."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.aws.clients import open_client
from simplu_worker.aws.sending import PUT_TIMEOUT_S, Producer, PutRecord, queue_producer, stream_producer
from simplu_worker.aws.sqs_queue import Queue
from simplu_worker.commands import output
from simplu_worker.commands.running import require_settings
from simplu_worker.commands.stream.input_lines import (
    InputLine,
    LineReport,
    message_of,
    names_in,
    parse_events,
    parse_lines,
)
from simplu_worker.commands.stream.show import pool_errors
from simplu_worker.config.settings import ROUTES, Settings, set_of
from simplu_worker.consumers.sqs.order_messages import OrderRules
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import Operation, RejectedRecord
from simplu_worker.operations.schema_judge import Finding
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.log import key_of_id
from simplu_worker.timing.clock import uuid7
from simplu_worker.vocabulary import Absence, DeadLetterReason, Failure, PartitionKeyRule

POLL_MIN_S: Final = 0.25
POLL_REST: Final = 4  # a poll may take a fifth of the time
KEYS_PER_QUERY: Final = 5000

OperationKey = tuple[str, str]
"""A tenant id and a request id."""


class SendStatus(StrEnum):
    """The status of one line."""

    NOT_SENT = "not sent"
    SENT = "sent"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"  # not in the log in time: held, or a dead letter; or the command ended while it was put


class SendOutcome(LineReport, frozen=True, kw_only=True):
    """The outcome of one line; *result* is JSON text as Postgres wrote it."""

    status: SendStatus
    result: msgspec.Raw | None = None


class FoundOperations(NamedTuple):
    """The rows of the logs, with their `shard_id`; the shards that did not answer; and why none could be asked."""

    rows: Mapping[OperationKey, Mapping[str, Any]]
    silent_shard_ids: Sequence[str] = ()
    error: str | None = None


async def wait_for_outcomes(
    gateway: ShardGateway, lines: Sequence[InputLine], timeout_s: float, show: Callable[[int], None]
) -> FoundOperations:
    """Query the logs until they have all *lines*, for at most *timeout_s*; show how many, and return what was found."""
    deadline = time.monotonic() + timeout_s
    pending = {line.key for line in lines if line.key is not None}
    rows: dict[OperationKey, Mapping[str, Any]] = {}
    while True:
        started = time.monotonic()
        found = await find_operations(gateway, pending)
        rows |= found.rows
        pending -= rows.keys()
        show(len(rows))
        left_s = deadline - time.monotonic()
        if not pending or left_s <= 0:
            return found._replace(rows=rows)
        await asyncio.sleep(min(left_s, max(POLL_MIN_S, POLL_REST * (time.monotonic() - started))))


async def find_operations(gateway: ShardGateway, keys: Iterable[OperationKey]) -> FoundOperations:
    """Query all logs once."""
    ordered = sorted(keys)
    rows: dict[OperationKey, Mapping[str, Any]] = {}
    silent: set[str] = set()
    error: str | None = None
    for first in range(0, len(ordered), KEYS_PER_QUERY):
        some = ordered[first : first + KEYS_PER_QUERY]
        try:
            tenant_ids, requests = [key[0] for key in some], [key_of_id(key[1]) for key in some]
            survey = await gateway.lookups.survey("find_operations", tenant_ids, requests)
        except RetryableError as exc:
            error = str(exc)  # Citrus does not list the shards now: the next poll queries these keys again
            continue
        silent |= set(survey.silent_shard_ids)
        rows |= {(row["tenant_id"], row["request_id"]): row | {"shard_id": shard_id} for shard_id, row in survey.rows}
    return FoundOperations(rows, sorted(silent), error)


def outcome_of(line: InputLine, status: SendStatus, row: Mapping[str, Any] | None) -> SendOutcome:
    """Return the outcome of *line*, which was sent or not, by the *row* of a log, if one has it."""
    decoded, names = line.decoded, names_in(line)
    if isinstance(decoded, RejectedRecord):
        return SendOutcome(**names, status=status, error=f"{decoded.reason}: {decoded.error}")
    if row is None:
        return SendOutcome(**names, status=status)
    if bytes(row["digest"]) != decoded.digest:
        names |= {"status": SendStatus.FAILED, "error": DeadLetterReason.REQUEST_ID_REUSED}
    else:
        result = None if row["result"] is None else msgspec.Raw(row["result"].encode())
        names |= {"status": SendStatus(row["status"]), "error": row["error"], "result": result}
    return SendOutcome(**names, shard_id=row["shard_id"])


RESULT_SHOWN_LENGTH: Final = 60

T = TypeVar("T")


class SendOptions(NamedTuple):
    """The options of `operations send`."""

    wait: bool
    timeout_s: float
    force: bool
    orders: bool = False
    priority: bool = False

    @property
    def queue(self) -> str:
        """The variable that names the queue of order events."""
        return "SQS_PRIORITY_QUEUE_URL" if self.priority else "SQS_ORDER_EVENTS_QUEUE_URL"


def read_input(settings: Settings, file: Path | None, *, is_orders: bool) -> list[InputLine]:
    """Return the lines of *file*, or of stdin, as operations or order events. Raises WorkerError."""
    try:
        text = sys.stdin.buffer.read() if file is None else file.read_bytes()
    except OSError as exc:
        raise WorkerError(
            f"FILE: {file or 'stdin'} cannot be read: {exc.strerror}; name another file, or pipe the lines to -"
        ) from None
    if is_orders:
        rules = OrderRules(settings.operation_max_bytes, settings.order_tenant)
        return parse_events(text, now=datetime.now(UTC), new_id=_new_id, rules=rules)
    return parse_operations(settings, text)


def parse_operations(settings: Settings, text: bytes) -> list[InputLine]:
    """Return the lines of *text* as operations; a missing request id or timestamp is filled in."""
    now = datetime.now(UTC)
    limits = {"max_bytes": settings.operation_max_bytes, "list_limit": settings.list_result_limit}
    key_rule = PartitionKeyRule(settings.kinesis_partition_key)
    return parse_lines(text, now=now, new_id=_new_id, key_rule=key_rule, **limits)


async def send_operations(
    settings: Settings, file: Path | None, options: SendOptions, *, as_json: bool
) -> output.Answer:
    """Put operations on the stream, or order events into their queue; nothing if a line is invalid.

    An interrupted command prints the request ids too, as a repetition would have others. It fails unless all were put,
    or with `wait` have succeeded.
    """
    queue = options.queue if options.orders else None
    require_settings(settings, routes=options.wait, stream=queue is None, queue=queue)
    return await send_lines(settings, read_input(settings, file, is_orders=options.orders), options, as_json=as_json)


async def send_lines(
    settings: Settings, lines: Sequence[InputLine], options: SendOptions, *, as_json: bool
) -> output.Answer:
    """Put *lines* where their operations or events belong; as `send_operations`."""
    invalid = [(line.number, line.decoded) for line in lines if isinstance(line.decoded, RejectedRecord)]
    if invalid and not options.force:
        problems = [{"line": number, "reason": one.reason, "error": one.error} for number, one in invalid]
        notes = [f"line {number}: {one.reason}: {one.error}" for number, one in invalid]
        notes.append("nothing was sent; correct the lines, or send all with --force")
        return output.Answer({"operations": [], "problems": problems}, notes, is_failed=True)
    statuses = [SendStatus.NOT_SENT] * len(lines)
    found, silent = FoundOperations({}), dict[str, str]()
    try:
        await _put(settings, lines, options, statuses)
        if options.wait and SendStatus.SENT in statuses:
            found, silent = await _wait(settings, lines, options, statuses)
    except BaseException:
        if {*statuses} != {SendStatus.NOT_SENT}:
            _answer(lines, statuses, {}, {}).print(as_json=as_json)
        raise
    return _answer(lines, statuses, found.rows, silent, is_done=not invalid, has_waited=options.wait)


def _new_id() -> str:
    return str(uuid7(datetime.now(UTC), uuid.uuid4()))


async def _put(
    settings: Settings, lines: Sequence[InputLine], options: SendOptions, statuses: list[SendStatus]
) -> None:
    service = "sqs" if options.orders else "kinesis"
    async with open_client(service, region=settings.aws_region, read_timeout_s=PUT_TIMEOUT_S) as client:
        if options.orders:
            queue, run_id = Queue(client, getattr(settings, options.queue.lower())), _new_id()
            messages = [message_of(line, is_fifo=queue.is_fifo, run_id=run_id) for line in lines]
            await _send_requests(queue_producer(queue), messages, statuses)
        else:
            records = [PutRecord(line.record, line.partition_key) for line in lines]
            await _send_requests(stream_producer(client, settings.kinesis_stream_name or ""), records, statuses)


async def _send_requests(producer: Producer[T], items: Sequence[T], statuses: list[SendStatus]) -> None:
    """Send *items* in requests, one at a time.

    One without an answer is sent again: the log drops the second operation by its request id.
    """
    done = 0
    with output.CountProgress("put", len(items)) as progress:

        def wait(error: RetryableError) -> None:
            progress.tell(f"put: {done} of {len(items)}; waiting for {producer.name}: {error}")

        for request in producer.cut(items):
            under_way = slice(done, done + len(request))
            statuses[under_way] = [SendStatus.UNKNOWN] * len(request)
            try:
                await producer.send(request, wait)
            except WorkerError as exc:
                output.print_note(f"{done} of {len(items)} were put on {producer.place}, then: {exc}")
                return
            statuses[under_way] = [SendStatus.SENT] * len(request)
            done += len(request)
            progress.show(done)


async def _wait(
    settings: Settings, lines: Sequence[InputLine], options: SendOptions, statuses: list[SendStatus]
) -> tuple[FoundOperations, dict[str, str]]:
    sent = [line for line, status in zip(lines, statuses, strict=True) if status is SendStatus.SENT]
    async with open_shards(settings) as shards:
        with output.CountProgress("in the log", len(sent)) as progress:
            found = await wait_for_outcomes(shards.gateway, sent, options.timeout_s, progress.show)
        errors = pool_errors(shards.pools)
    if found.error is not None:
        output.print_note(f"the shards were not listed: {found.error}")
    for number, line in enumerate(lines):
        if statuses[number] is SendStatus.SENT and line.key is not None and line.key not in found.rows:
            statuses[number] = SendStatus.UNKNOWN
    if SendStatus.UNKNOWN in statuses:
        output.print_note("why operations are not decided: simplu-worker operations show REQUEST_ID --tenant B L")
    return found, {shard_id: errors.get(shard_id, "") for shard_id in found.silent_shard_ids}


def _answer(
    lines: Sequence[InputLine],
    statuses: Sequence[SendStatus],
    found: Mapping[OperationKey, Mapping[str, Any]],
    silent: Mapping[str, str],
    *,
    is_done: bool = False,
    has_waited: bool = False,
) -> output.Answer:
    outcomes = [
        outcome_of(line, status, None if line.key is None else found.get(line.key))
        for line, status in zip(lines, statuses, strict=True)
    ]
    columns = ("line", "request id", "operation", "tenant", "resource", "status", "error", "result")
    rows = [
        (
            outcome.line,
            outcome.request_id,
            outcome.operation,
            outcome.tenant,
            outcome.resource,
            outcome.status,
            outcome.error,
            "" if outcome.result is None else output.shorten(bytes(outcome.result).decode(), RESULT_SHOWN_LENGTH),
        )
        for outcome in outcomes
    ]
    expected = SendStatus.SUCCEEDED if has_waited else SendStatus.SENT
    is_done = is_done and all(outcome.status is expected for outcome in outcomes)
    return output.Answer({"operations": outcomes}, [output.Table(columns, rows)], silent, is_failed=not is_done)


ERROR_SHOWN_LENGTH: Final = 100


class Fate(StrEnum):
    """The next step of a worker with a record."""

    APPLIED = "applied"  # its outcome may still be an error, by the state of the resource then
    DUPLICATE = "duplicate"  # the log has its request id
    FAILED = "failed"  # its data do not fit the schema of its type; what a patch makes of a document is not known
    HELD = "held"  # until its tenant has a shard
    DEAD_LETTER = "dead_letter"
    VALID = "valid"  # no way to find shards is configured, or a shard does not answer


class Preview(LineReport, frozen=True, kw_only=True):
    """The next step of a worker with one line."""

    fate: Fate
    reason: str | None = None


async def preview_operations(settings: Settings, file: Path | None, *, is_orders: bool) -> output.Answer:
    """Return the next step of a worker with each line; it fails if one would be refused."""
    return await preview_lines(settings, read_input(settings, file, is_orders=is_orders))


async def preview_lines(settings: Settings, lines: Sequence[InputLine]) -> output.Answer:
    """Return the next step of a worker with each of *lines*; as `preview_operations`."""
    homes: Mapping[str, str | Absence] = {}
    logged = FoundOperations({})
    refusals: Mapping[int, Finding] = {}
    keys = {line.key for line in lines if line.key is not None}
    if keys and set_of(settings, *ROUTES):
        async with open_shards(settings) as shards:
            homes = await _find_homes(shards.gateway, sorted({tenant_id for tenant_id, _ in keys}))
            logged = await find_operations(shards.gateway, keys)
            refusals = await _foresee(shards.gateway, lines, homes)
    found = [preview(line, homes, logged.rows, refusals) for line in lines]
    is_failed = any(one.fate in {Fate.DEAD_LETTER, Fate.FAILED} for one in found)
    return output.Answer({"records": found}, _describe_previews(found), logged.silent_shard_ids, is_failed)


def preview(
    line: InputLine,
    homes: Mapping[str, str | Absence],
    logged: Mapping[OperationKey, Mapping[str, object]],
    refusals: Mapping[int, Finding],
) -> Preview:
    """Return the next step with a line, by the shards of tenants, the logs, and the *refusals* of schemas by line."""
    decoded, names = line.decoded, names_in(line)
    if isinstance(decoded, RejectedRecord):
        return Preview(**names, fate=Fate.DEAD_LETTER, reason=decoded.reason, error=decoded.error)
    if (row := logged.get((decoded.tenant_id, decoded.request_id))) is not None:
        return Preview(**names, fate=Fate.DUPLICATE, shard_id=str(row["shard_id"]))
    home = homes.get(decoded.tenant_id)
    if isinstance(home, Absence):
        return Preview(**names, fate=Fate.HELD, reason=home)
    if (finding := refusals.get(line.number)) is not None:
        return Preview(**names, fate=Fate.FAILED, shard_id=home, reason=Failure.INVALID_DATA, error=str(finding))
    return Preview(**names, fate=Fate.VALID if home is None else Fate.APPLIED, shard_id=home)


async def _find_homes(gateway: ShardGateway, tenant_ids: Iterable[str]) -> dict[str, str | Absence]:
    homes: dict[str, str | Absence] = {}
    for tenant_id in tenant_ids:
        try:
            homes[tenant_id] = await gateway.find(tenant_id)
        except (RetryableError, PermanentError) as exc:
            output.print_note(f"tenant {tenant_id}: {exc}")
    return homes


async def _foresee(
    gateway: ShardGateway, lines: Iterable[InputLine], homes: Mapping[str, str | Absence]
) -> dict[int, Finding]:
    by_shard: defaultdict[str, list[tuple[int, Operation]]] = defaultdict(list)
    for line in lines:
        if isinstance(line.decoded, Operation):
            home = homes.get(line.decoded.tenant_id)
            if home is not None and not isinstance(home, Absence):
                by_shard[home].append((line.number, line.decoded))
    refusals: dict[int, Finding] = {}
    for shard_id, sent in by_shard.items():
        try:
            found = await gateway.foresee(shard_id, [operation for _, operation in sent])
        except RetryableError as exc:
            output.print_note(f"business types of shard {shard_id}: {exc}")
        else:
            refusals.update({sent[index][0]: finding for index, finding in found.items()})
    return refusals


def _describe_previews(found: Sequence[Preview]) -> Iterator[output.Part]:
    rows = (
        (
            one.line,
            one.fate,
            one.reason,
            one.operation,
            one.tenant,
            one.resource,
            one.shard_id,
            output.shorten(one.error or "", ERROR_SHOWN_LENGTH),
        )
        for one in found
    )
    yield output.Table(("line", "would be", "reason", "operation", "tenant", "resource", "shard", "error"), rows)
    counts = Counter(one.fate for one in found)
    yield ", ".join(f"{count} {fate}" for fate, count in sorted(counts.items())) or "no records"
    yield "nothing was sent or applied"
