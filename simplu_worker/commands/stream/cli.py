"""The command line of `operations` and `replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators

from simplu_worker.commands.command_line import NO_OPTIONS, CommonOptions, Flag, UsageError, parse_time

operations = App(name="operations", help="Show the outcome of operations, and send operations.")


@operations.command(name="show")
def show_operation(
    request_id: str, /, *, tenant: tuple[str, str] | None = None, common: CommonOptions = NO_OPTIONS
) -> int:
    """Print the status of one operation.

    Parameters
    ----------
    request_id
        The operation's request id.
    tenant
        The operation's business and location; without this option every shard is queried.
    """
    from simplu_worker.commands.stream.send import show_operation

    return common.run(lambda settings: show_operation(settings, request_id, tenant, as_json=common.as_json))


@operations.command(name="send")
def send_operations(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    wait: Flag = False,
    timeout: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 60,
    force: Flag = False,
    orders: Flag = False,
    priority: Flag = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Put operations, one JSON object a line, on the stream; or order events into their queue.

    Parameters
    ----------
    file
        A file of JSON lines; `-` for stdin. A missing requestId or timestamp is filled in, of an order event a missing
        deduplicationId.
    wait
        Wait until every operation is in the log, and print the outcomes.
    timeout
        Wait for at most this many seconds.
    force
        Send invalid lines too; the worker stores a dead letter for each.
    orders
        The lines are order events, for SQS_ORDER_EVENTS_QUEUE_URL. The group is groupId, else orderId.
    priority
        With --orders: for SQS_PRIORITY_QUEUE_URL.
    """
    from simplu_worker.commands.stream.send import SendOptions, read_lines, send_operations

    if priority and not orders:
        raise UsageError("--priority: expected --orders with it, got it alone")
    options = SendOptions(wait=wait, timeout_s=timeout, force=force, orders=orders, priority=priority)
    path = None if file == "-" else Path(file)
    return common.run(lambda settings: send_operations(settings, read_lines(path), options, as_json=common.as_json))


def replay(*, start: Annotated[str, Parameter(name="--from")], common: CommonOptions = NO_OPTIONS) -> int:
    """Read the stream again from a time. Operations that were applied before are dropped as duplicates.

    Parameters
    ----------
    start
        The time to start from, as ISO 8601; no offset means UTC.
    """
    from simplu_worker.commands.stream.replay import replay

    instant = parse_time("--from", start)
    return common.run(lambda settings: replay(settings, instant, as_json=common.as_json))
