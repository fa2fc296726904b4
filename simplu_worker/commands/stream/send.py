"""`operations send`, and `operations test`, which sends nothing."""

from __future__ import annotations

import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

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
from simplu_worker.commands.stream.outcomes import (
    LastPoll,
    OperationKey,
    SendOutcome,
    SendStatus,
    find_operations,
    send_outcomes,
    wait_for_outcomes,
)
from simplu_worker.commands.stream.show import pool_errors
from simplu_worker.config.settings import ROUTES, Settings, set_of
from simplu_worker.consumers.sqs.order_messages import OrderRules
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import Operation, RejectedRecord
from simplu_worker.operations.schema_judge import Finding
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import uuid7
from simplu_worker.vocabulary import Absence, Failure, PartitionKeyRule

RESULT_SHOWN_LENGTH: Final = 60

T = TypeVar("T")


@dataclass
class PutCount:
    """How many items of *total* were put, and how many more are under way."""

    total: int
    done: int = 0
    under_way: int = 0


class SendOptions(NamedTuple):
    """The options of `operations send`."""

    wait: bool
    timeout_s: float
    force: bool
    orders: bool = False
    priority: bool = False


def read_input(settings: Settings, file: Path | None, *, is_orders: bool) -> list[InputLine]:
    """Return the lines of *file*, or of stdin, as operations or order events. Raises WorkerError."""
    try:
        text = sys.stdin.buffer.read() if file is None else file.read_bytes()
    except OSError as exc:
        raise WorkerError(
            f"FILE: {file or 'stdin'} cannot be read: {exc.strerror}; name another file, or pipe the lines to -"
        ) from None
    now = datetime.now(UTC)
    if is_orders:
        rules = OrderRules(settings.operation_max_bytes, settings.order_tenant)
        return parse_events(text, now=now, new_id=_new_id, rules=rules)
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
    queue = "SQS_PRIORITY_QUEUE_URL" if options.priority else "SQS_ORDER_EVENTS_QUEUE_URL"
    required = {"queue": queue} if options.orders else {"stream": True}
    require_settings(settings, routes=options.wait, **required)
    lines = read_input(settings, file, is_orders=options.orders)
    invalid = [(line.number, line.decoded) for line in lines if isinstance(line.decoded, RejectedRecord)]
    if invalid and not options.force:
        problems = [{"line": number, "reason": one.reason, "error": one.error} for number, one in invalid]
        notes = [f"line {number}: {one.reason}: {one.error}" for number, one in invalid]
        notes.append("nothing was sent; correct the lines, or send all with --force")
        return output.Answer({"operations": [], "problems": problems}, notes=notes, is_failed=True)
    count = PutCount(len(lines))
    try:
        outcomes, silent = await _send(settings, lines, options, count)
    except BaseException:
        if count.done or count.under_way:
            _answer(send_outcomes(lines, count.done, count.under_way), {}).print(as_json=as_json)
        raise
    expected = SendStatus.SUCCEEDED if options.wait else SendStatus.SENT
    is_failed = bool(invalid) or any(outcome.status is not expected for outcome in outcomes)
    return _answer(outcomes, silent, is_failed=is_failed)


def _new_id() -> str:
    return str(uuid7(datetime.now(UTC), uuid.uuid4()))


async def _send(
    settings: Settings, lines: Sequence[InputLine], options: SendOptions, count: PutCount
) -> tuple[list[SendOutcome], dict[str, str]]:
    if options.orders:
        await _put_events(settings, lines, options, count)
    else:
        await _put(settings, lines, count)
    if not options.wait or not count.done:
        return send_outcomes(lines, count.done, count.under_way), {}
    return await _wait(settings, lines, options, count)


async def _put(settings: Settings, lines: Sequence[InputLine], count: PutCount) -> None:
    async with open_client("kinesis", region=settings.aws_region, read_timeout_s=PUT_TIMEOUT_S) as client:
        producer = stream_producer(client, settings.kinesis_stream_name or "")
        await _send_requests(producer, [PutRecord(line.record, line.partition_key) for line in lines], count)


async def _put_events(settings: Settings, lines: Sequence[InputLine], options: SendOptions, count: PutCount) -> None:
    url = settings.sqs_priority_queue_url if options.priority else settings.sqs_order_events_queue_url
    async with open_client("sqs", region=settings.aws_region, read_timeout_s=PUT_TIMEOUT_S) as client:
        queue, run_id = Queue(client, url or ""), _new_id()
        messages = [message_of(line, is_fifo=queue.is_fifo, run_id=run_id) for line in lines]
        await _send_requests(queue_producer(queue), messages, count)


async def _send_requests(producer: Producer[T], items: Sequence[T], count: PutCount) -> None:
    """Send *items* in requests, one at a time.

    One without an answer is sent again: the log drops the second operation by its request id.
    """
    with output.CountProgress("put", count.total) as progress:

        def wait(error: RetryableError) -> None:
            progress.tell(f"put: {count.done} of {count.total}; waiting for {producer.name}: {error}")

        for request in producer.cut(items):
            count.under_way = len(request)
            try:
                await producer.send(request, wait)
            except WorkerError as exc:
                output.print_note(f"{count.done} of {count.total} were put on {producer.place}, then: {exc}")
                return
            count.done, count.under_way = count.done + len(request), 0
            progress.show(count.done)


async def _wait(
    settings: Settings, lines: Sequence[InputLine], options: SendOptions, count: PutCount
) -> tuple[list[SendOutcome], dict[str, str]]:
    poll, sent = LastPoll(), lines[: count.done]
    async with open_shards(settings) as shards:
        with output.CountProgress("in the log", len(sent)) as progress:
            rows = await wait_for_outcomes(shards.gateway, sent, options.timeout_s, progress.show, poll)
        errors = pool_errors(shards.pools)
    if poll.error is not None:
        output.print_note(f"the shards were not listed: {poll.error}")
    outcomes = send_outcomes(lines, count.done, count.under_way, rows)
    if any(one.status is SendStatus.UNKNOWN for one in outcomes):
        output.print_note("why operations are not decided: simplu-worker operations show REQUEST_ID --tenant B L")
    return outcomes, {shard_id: errors.get(shard_id, "") for shard_id in poll.silent_shard_ids}


def _answer(outcomes: Sequence[SendOutcome], silent: dict[str, str], *, is_failed: bool = True) -> output.Answer:
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
    parts = [output.Table(columns, rows), output.describe_silent(silent) if silent else None]
    return output.Answer({"operations": outcomes, "shardsWithoutAnswer": list(silent)}, parts, is_failed=is_failed)


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
    lines = read_input(settings, file, is_orders=is_orders)
    homes: Mapping[str, str | Absence] = {}
    logged: Mapping[OperationKey, Mapping[str, object]] = {}
    refusals: Mapping[int, Finding] = {}
    poll = LastPoll()
    keys = {line.key for line in lines if line.key is not None}
    if keys and set_of(settings, *ROUTES):
        async with open_shards(settings) as shards:
            homes = await _find_homes(shards.gateway, sorted({tenant_id for tenant_id, _ in keys}))
            logged = await find_operations(shards.gateway, keys, poll)
            refusals = await _foresee(shards.gateway, lines, homes)
    found = [preview(line, homes, logged, refusals) for line in lines]
    is_failed = any(one.fate in {Fate.DEAD_LETTER, Fate.FAILED} for one in found)
    return output.Answer({"records": found}, _describe_previews(found), poll.silent_shard_ids, is_failed)


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
