"""`operations send`."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from rich.text import Text

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.awaited import note_what_is_awaited
from simplu_worker.commands.output.display import (
    print_json,
    print_note,
    print_silent,
    print_table,
    shorten,
)
from simplu_worker.commands.output.progress import CountProgress
from simplu_worker.commands.requirements import require_settings
from simplu_worker.commands.stream.input_lines import InputLine, message_of, parse_events, parse_lines
from simplu_worker.commands.stream.put_records import (
    PutCount,
    Sink,
    open_queue_for_sends,
    open_stream_for_puts,
    put_in_order,
    queue_sink,
    stream_sink,
)
from simplu_worker.commands.stream.send_status import SendStatus, Undecided
from simplu_worker.commands.stream.show import pool_errors
from simplu_worker.commands.stream.undecided import find_undecided
from simplu_worker.commands.stream.wait_outcomes import (
    LastPoll,
    OperationKey,
    SendOutcome,
    describe_poll,
    find_operations,
    find_rejected,
    interrupted_outcomes,
    send_outcomes,
    wait_for_outcomes,
    with_undecided,
)
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import NewRecord
from simplu_worker.consumers.sqs.orders.decode import OrderRules
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.operation import RejectedRecord
from simplu_worker.timing.uuid7 import uuid7
from simplu_worker.vocabulary import PartitionKeyRule

RESULT_SHOWN_LENGTH: Final = 60

STYLES: Final = {
    SendStatus.SUCCEEDED: "green",
    SendStatus.FAILED: "red",
    SendStatus.REJECTED: "red",
    SendStatus.HELD: "yellow",
    SendStatus.UNKNOWN: "yellow",
    SendStatus.NOT_SENT: "red",
}

T = TypeVar("T")


class SendOptions(NamedTuple):
    """The options of `operations send`. *orders* sends order events, *priority* to the priority queue."""

    wait: bool
    timeout_s: float
    force: bool
    orders: bool = False
    priority: bool = False


def read_lines(file: Path | None) -> bytes:
    """Return the content of *file*, or of stdin. Raises WorkerError if it cannot be read.

    Stdin is not opened again by its name: another user may own the pipe, as after `sudo -u`.
    """
    try:
        if file is not None:
            return file.read_bytes()
        if sys.stdin is None:  # closed when the process started
            raise WorkerError("FILE: expected JSON lines on stdin, got a closed one; name a file, or pipe them in")
        return sys.stdin.buffer.read()
    except PermissionError:
        raise WorkerError(
            f"FILE: expected a file that this user may read, got {file}; give the user the right, or pipe the file in "
            "and name it -"
        ) from None
    except OSError as exc:
        got = f"{file or 'stdin'} ({exc.strerror})"
        raise WorkerError(f"FILE: expected a readable file of JSON lines, got {got}") from None


async def send_operations(settings: Settings, text: bytes, options: SendOptions, *, as_json: bool) -> int:
    """Put the operations of *text* on the stream, or order events into their queue.

    Print their request ids, or with `wait` their outcomes. An interrupted command prints the ids, too: a repetition
    would send the operations again, with other ids.

    Puts nothing if a line is invalid, unless `force`. Returns 1 if a line was invalid or not put, or if an operation
    failed or did not reach the log in time.
    """
    require_settings(settings, stream=not options.orders, routes=options.wait, queue=_queue_name(options))
    lines = parse_input(settings, text, is_orders=options.orders)
    invalid = [(line.number, line.decoded) for line in lines if isinstance(line.decoded, RejectedRecord)]
    if invalid and not options.force:
        _print_invalid(invalid, as_json=as_json)
        return 1
    count = PutCount()
    try:
        outcomes, silent = await _send(settings, lines, options, count)
    except BaseException:
        if count.done or count.under_way:
            so_far = interrupted_outcomes(lines, sent_count=count.done, under_way_count=count.under_way)
            _print_outcomes(so_far, {}, as_json=as_json)
        raise
    _print_outcomes(outcomes, silent, as_json=as_json)
    expected = {SendStatus.SUCCEEDED} if options.wait else {SendStatus.SENT}
    return 0 if not invalid and all(outcome.status in expected for outcome in outcomes) else 1


def _queue_name(options: SendOptions) -> str | None:
    if not options.orders:
        return None
    return "SQS_PRIORITY_QUEUE_URL" if options.priority else "SQS_ORDER_EVENTS_QUEUE_URL"


def parse_input(settings: Settings, text: bytes, *, is_orders: bool) -> list[InputLine]:
    """Return the lines of *text* as operations, or as order events."""
    now = datetime.now(UTC)
    if is_orders:
        rules = OrderRules(settings.operation_max_bytes, settings.order_tenant)
        return parse_events(text, now=now, new_id=_new_id, rules=rules)
    limits = {"max_bytes": settings.operation_max_bytes, "list_limit": settings.list_result_limit}
    key_rule = PartitionKeyRule(settings.kinesis_partition_key)
    return parse_lines(text, now=now, new_id=_new_id, key_rule=key_rule, **limits)


def _new_id() -> str:
    return str(uuid7(datetime.now(UTC), uuid.uuid4()))


async def _send(
    settings: Settings, lines: Sequence[InputLine], options: SendOptions, count: PutCount
) -> tuple[list[SendOutcome], dict[str, str]]:
    begun_at = datetime.now(UTC)
    if options.orders:
        await _put_events(settings, lines, options, count)
    else:
        await _put(settings, lines, count)
    sent, unsent = lines[: count.done], lines[count.done :]
    if not options.wait or not sent:
        return send_outcomes(sent, unsent, {}, waited=options.wait), {}
    rows, undecided, silent = await _wait(settings, sent, options, begun_at)
    outcomes = send_outcomes(sent, unsent, rows, waited=True)
    return [with_undecided(outcome, undecided) for outcome in outcomes], silent


async def _put(settings: Settings, lines: Sequence[InputLine], count: PutCount) -> None:
    """Put *lines* on the stream; count those that were put, and print the error if these are not all."""
    records = [NewRecord(line.partition_key, line.record) for line in lines]
    async with open_stream_for_puts(settings) as stream:
        await _put_into(stream_sink(stream), records, str(stream.address), count)


async def _put_events(settings: Settings, lines: Sequence[InputLine], options: SendOptions, count: PutCount) -> None:
    """Do the same with order events and their queue."""
    url = settings.sqs_priority_queue_url if options.priority else settings.sqs_order_events_queue_url
    async with open_queue_for_sends(settings, url or "") as queue:
        run_id = _new_id()
        messages = [message_of(line, is_fifo=queue.is_fifo, run_id=run_id) for line in lines]
        await _put_into(queue_sink(queue), messages, queue.name, count)


async def _put_into(sink: Sink[T], items: Sequence[T], place: str, count: PutCount) -> None:
    failures: list[RetryableError] = []

    def describe() -> str:
        cause = failures[-1] if failures else f"no answer from {place} yet"
        return f"waiting for {sink.name}: {cause}"

    with CountProgress("put", len(items)) as progress, note_what_is_awaited(describe, progress):
        error = await put_in_order(sink, items, progress, count, on_failure=failures.append)
    if error is not None:
        print_note(f"{count.done} of {len(items)} were put on {place}, then: {error}")


async def _wait(
    settings: Settings, sent: Sequence[InputLine], options: SendOptions, begun_at: datetime
) -> tuple[dict[OperationKey, dict[str, Any]], Mapping[str, Undecided], dict[str, str]]:
    """Wait for the outcomes of the lines *sent* since *begun_at*.

    Return the rows of the logs and of the records rejected since, the states of the tenants without a row, and the
    shards without an answer, with the causes.
    """
    poll = LastPoll(len(sent))
    async with open_shards(settings) as shards:

        def describe() -> str:
            return describe_poll(poll, pool_errors(shards.pools))

        async def look(tenant_ids: Collection[str]) -> Mapping[str, Undecided]:
            return await find_undecided(settings, shards, tenant_ids, is_stream=not options.orders)

        with CountProgress("in the log", len(sent)) as progress, note_what_is_awaited(describe, progress):
            rows = await wait_for_outcomes(shards.gateway, sent, options.timeout_s, progress, poll, look=look)
        absent = {line.key for line in sent if line.key is not None and line.key not in rows}
        tenant_ids = {tenant_id for tenant_id, _ in absent}
        undecided = await look(tenant_ids)
        if absent:  # an operation that was applied in between must not count as decided and absent
            rows |= await find_operations(shards.gateway, absent, poll)
            rows |= await find_rejected(shards.gateway, absent - rows.keys(), begun_at)
        errors = pool_errors(shards.pools)
    if poll.error is not None:
        print_note(f"the shards were not listed: {poll.error}")
    return rows, undecided, {shard_id: errors.get(shard_id, "") for shard_id in poll.silent_shard_ids}


def _print_invalid(invalid: Sequence[tuple[int, RejectedRecord]], *, as_json: bool) -> None:
    if as_json:
        problems = [{"line": number, "reason": one.reason, "error": one.error} for number, one in invalid]
        print_json({"operations": [], "problems": problems})
    for number, one in invalid:
        print_note(f"line {number}: {one.reason}: {one.error}")
    print_note("nothing was sent; correct the lines, or send all with --force")


def _print_outcomes(outcomes: Sequence[SendOutcome], silent: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print_json({"operations": outcomes, "shardsWithoutAnswer": list(silent)})
        return
    columns = ("line", "request id", "operation", "tenant", "resource", "status", "error", "result")
    rows = [
        (
            outcome.line,
            outcome.request_id,
            outcome.operation,
            " ".join(filter(None, (outcome.business_id, outcome.location_id))),
            " ".join(filter(None, (outcome.resource_type, outcome.resource_id))),
            Text(outcome.status, STYLES.get(outcome.status, "")),
            outcome.remark,
            "" if outcome.result is None else shorten(bytes(outcome.result).decode(), RESULT_SHOWN_LENGTH),
        )
        for outcome in outcomes
    ]
    print_table(columns, rows)
    print_silent(list(silent), silent)
