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
from simplu_worker.aws.clients import open_client
from simplu_worker.commands.output.display import (
    print_json,
    print_line,
    print_members,
    print_note,
    print_table,
    shorten,
)
from simplu_worker.commands.requirements import require_settings
from simplu_worker.commands.stream.input_lines import InputLine, parse_lines
from simplu_worker.commands.stream.put_records import PutProgress, put_lines
from simplu_worker.commands.stream.wait_outcomes import (
    OperationKey,
    SendOutcome,
    SendStatus,
    send_outcomes,
    wait_for_outcomes,
)
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.stream.client import Stream
from simplu_worker.errors import PermanentError, WorkerError
from simplu_worker.operations.operation import RejectedRecord, tenant_id_of

RESULT_SHOWN_LENGTH: Final = 60
PUT_TIMEOUT_S: Final = 30.0  # a request of 5 MiB over a slow line
PUT_ATTEMPTS: Final = 3
STYLES: Final = {
    SendStatus.SUCCEEDED: "green",
    SendStatus.FAILED: "red",
    SendStatus.UNKNOWN: "yellow",
    SendStatus.NOT_SENT: "red",
}


class SendOptions(NamedTuple):
    """How to send."""

    wait: bool
    timeout_s: float
    force: bool


async def show_operation(settings: Settings, request_id: str, tenant: tuple[str, str] | None, *, as_json: bool) -> int:
    """Print what the log has of one operation, asking all shards where the *tenant* is not known; 1: not found."""
    require_settings(settings, routes=True)
    try:
        "".join([request_id, *(tenant or ())]).encode()
    except UnicodeEncodeError:  # bytes of the command line that are none
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
        print_line(f"unknown: no shard that was asked has an operation {request_id}")
    if silent and not as_json:
        print_note(f"no answer from: {', '.join(silent)}")
    return 1 if found is None else 0


def read_lines(file: Path | None) -> bytes:
    """Return what is in *file*, or on stdin; raises WorkerError when it cannot be read."""
    try:
        return (file or Path("/dev/stdin")).read_bytes()
    except OSError as exc:
        raise WorkerError(f"FILE: expected a readable file of JSON lines, got {file} ({exc.strerror})") from None


async def send_operations(settings: Settings, text: bytes, options: SendOptions, *, as_json: bool) -> int:
    """Put the operations of *text* on the stream and print their request ids, or with `wait` what became of them.

    Nothing is put when one of them is bad, unless `force`. Returns 1 when one was bad, not put, failed or not heard of.
    """
    require_settings(settings, stream=True, routes=options.wait)
    lines = parse_lines(
        text,
        now=datetime.now(UTC),
        new_id=lambda: str(uuid.uuid4()),
        max_bytes=settings.operation_max_bytes,
        list_limit=settings.list_result_limit,
    )
    bad = {line.number: line.decoded for line in lines if isinstance(line.decoded, RejectedRecord)}
    if bad and not options.force:
        _print_invalid(bad, as_json=as_json)
        return 1
    outcomes, silent = await _send(settings, lines, options)
    _print_outcomes(outcomes, silent, as_json=as_json)
    expected = {SendStatus.SUCCEEDED} if options.wait else {SendStatus.SENT}
    return 0 if not bad and all(outcome.status in expected for outcome in outcomes) else 1


async def _send(
    settings: Settings, lines: Sequence[InputLine], options: SendOptions
) -> tuple[list[SendOutcome], list[str]]:
    client = open_client("kinesis", region=settings.aws_region, read_timeout_s=PUT_TIMEOUT_S, max_attempts=PUT_ATTEMPTS)
    async with client as kinesis:
        with PutProgress("put", len(lines)) as progress:
            sent_count, trouble = await put_lines(Stream(kinesis, settings.kinesis_stream_name or ""), lines, progress)
    if trouble is not None:
        print_note(f"{sent_count} of {len(lines)} were put, then: {trouble}")
    sent, unsent = lines[:sent_count], lines[sent_count:]
    rows: dict[OperationKey, dict[str, Any]] = {}
    silent: list[str] = []
    if options.wait and sent:
        async with open_shards(settings) as shards:
            with PutProgress("in the log", len(sent)) as progress:
                rows, silent = await wait_for_outcomes(shards.gateway, sent, options.timeout_s, progress)
    return send_outcomes(sent, unsent, rows, waited=options.wait), silent


def _print_invalid(bad: dict[int, RejectedRecord], *, as_json: bool) -> None:
    if as_json:
        problems = [{"line": number, "reason": one.reason, "error": one.error} for number, one in bad.items()]
        print_json({"operations": [], "problems": problems})
    for number, one in bad.items():
        print_note(f"line {number}: {one.reason}: {one.error}")
    print_note("nothing was sent; mend the lines, or send all with --force")


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
    if silent:
        print_note(f"no answer from: {', '.join(silent)}")


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
