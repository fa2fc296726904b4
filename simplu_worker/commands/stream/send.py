"""`operations show` and `operations send`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from rich.text import Text

from simplu_worker.assembly import open_shards
from simplu_worker.commands.output.display import (
    print_json,
    print_line,
    print_members,
    print_note,
    print_silent,
    print_table,
    shorten,
)
from simplu_worker.commands.output.progress import CountProgress
from simplu_worker.commands.requirements import require_settings
from simplu_worker.commands.stream.input_lines import InputLine, parse_lines
from simplu_worker.commands.stream.put_records import open_stream_for_puts, put_in_order
from simplu_worker.commands.stream.wait_outcomes import (
    OperationKey,
    SendOutcome,
    SendStatus,
    send_outcomes,
    wait_for_outcomes,
)
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import NewRecord
from simplu_worker.errors import PermanentError, WorkerError
from simplu_worker.operations.operation import RejectedRecord, tenant_id_of

RESULT_SHOWN_LENGTH: Final = 60
STYLES: Final = {
    SendStatus.SUCCEEDED: "green",
    SendStatus.FAILED: "red",
    SendStatus.UNKNOWN: "yellow",
    SendStatus.NOT_SENT: "red",
}


class SendOptions(NamedTuple):
    """The options of `operations send`."""

    wait: bool
    timeout_s: float
    force: bool


async def show_operation(settings: Settings, request_id: str, tenant: tuple[str, str] | None, *, as_json: bool) -> int:
    """Print the log's row of one operation; without *tenant* query all shards. Return 1 if it is not found."""
    require_settings(settings, routes=True)
    try:
        "".join([request_id, *(tenant or ())]).encode()
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        raise PermanentError("request id, tenant: expected UTF-8") from None
    tenant_id = None if tenant is None else tenant_id_of(*tenant)
    async with open_shards(settings) as shards:
        found, silent = await shards.gateway.find_operation(request_id, tenant_id)
    shown = {"requestId": request_id, "status": "unknown"} if found is None else _members(found)
    if as_json:
        print_json(shown | {"shardsWithoutAnswer": silent})
    elif found is not None:
        print_members({name: _format_value(value) for name, value in shown.items()})
    else:
        print_line(f"unknown: no shard that answered has an operation {request_id}")
    if not as_json:
        print_silent(silent)
    return 1 if found is None else 0


def read_lines(file: Path | None) -> bytes:
    """Return the content of *file*, or of stdin. Raises WorkerError if it cannot be read."""
    try:
        return (file or Path("/dev/stdin")).read_bytes()
    except OSError as exc:
        raise WorkerError(f"FILE: expected a readable file of JSON lines, got {file} ({exc.strerror})") from None


async def send_operations(settings: Settings, text: bytes, options: SendOptions, *, as_json: bool) -> int:
    """Put the operations of *text* on the stream; print their request ids, or with `wait` their outcomes.

    Puts nothing if a line is invalid, unless `force`. Returns 1 if a line was invalid or not put, or if an operation
    failed or did not reach the log in time.
    """
    require_settings(settings, stream=True, routes=options.wait)
    lines = parse_lines(
        text,
        now=datetime.now(UTC),
        new_id=lambda: str(uuid.uuid4()),
        max_bytes=settings.operation_max_bytes,
        list_limit=settings.list_result_limit,
    )
    invalid = {line.number: line.decoded for line in lines if isinstance(line.decoded, RejectedRecord)}
    if invalid and not options.force:
        _print_invalid(invalid, as_json=as_json)
        return 1
    outcomes, silent = await _send(settings, lines, options)
    _print_outcomes(outcomes, silent, as_json=as_json)
    expected = {SendStatus.SUCCEEDED} if options.wait else {SendStatus.SENT}
    return 0 if not invalid and all(outcome.status in expected for outcome in outcomes) else 1


async def _send(
    settings: Settings, lines: Sequence[InputLine], options: SendOptions
) -> tuple[list[SendOutcome], list[str]]:
    records = [NewRecord(line.partition_key, line.record) for line in lines]
    async with open_stream_for_puts(settings) as stream:
        with CountProgress("put", len(records)) as progress:
            sent_count, error = await put_in_order(stream, records, progress)
    if error is not None:
        print_note(f"{sent_count} of {len(records)} were put, then: {error}")
    sent, unsent = lines[:sent_count], lines[sent_count:]
    rows: dict[OperationKey, dict[str, Any]] = {}
    silent: list[str] = []
    if options.wait and sent:
        async with open_shards(settings) as shards:
            with CountProgress("in the log", len(sent)) as progress:
                rows, silent = await wait_for_outcomes(shards.gateway, sent, options.timeout_s, progress)
    return send_outcomes(sent, unsent, rows, waited=options.wait), silent


def _print_invalid(invalid: dict[int, RejectedRecord], *, as_json: bool) -> None:
    if as_json:
        problems = [{"line": number, "reason": one.reason, "error": one.error} for number, one in invalid.items()]
        print_json({"operations": [], "problems": problems})
    for number, one in invalid.items():
        print_note(f"line {number}: {one.reason}: {one.error}")
    print_note("nothing was sent; correct the lines, or send all with --force")


def _print_outcomes(outcomes: Sequence[SendOutcome], silent: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"operations": outcomes, "shardsWithoutAnswer": silent})
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
            outcome.error,
            "" if outcome.result is None else shorten(bytes(outcome.result).decode(), RESULT_SHOWN_LENGTH),
        )
        for outcome in outcomes
    ]
    print_table(columns, rows)
    print_silent(silent)


def _members(value: msgspec.Struct) -> dict[str, Any]:
    members: dict[str, Any] = msgspec.to_builtins(value, builtin_types=(msgspec.Raw, datetime))
    return members


def _format_value(value: object) -> object:
    match value:
        case msgspec.Raw():
            return bytes(value).decode()
        case datetime():
            return value.isoformat()
        case _:
            return value
