"""The command line of `operations` and `replay`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter, validators

from simplu_worker.commands.command_line import (
    NO_OPTIONS,
    Apply,
    CommonOptions,
    Flag,
    OneTenant,
    OneWord,
    parse_range,
    parse_time,
)
from simplu_worker.errors import UsageError
from simplu_worker.vocabulary import Failure, OperationStatus

if TYPE_CHECKING:
    from simplu_worker.shards.listing import ListRequest

operations = App(name="operations")


@Parameter(name="*")
@dataclass(frozen=True)
class OperationListOptions:
    """The operations to list; all of them without an option.

    Parameters
    ----------
    resource_type
        Only operations on resources of this type.
    resource_id
        Only operations on resources with this id.
    since
        Only operations that were decided at this time or later, by RFC 3339; no offset means UTC.
    until
        Only operations that were decided before this time.
    status
        Only those with this status.
    error
        Only operations that failed with this error.
    limit
        Print at most this many, up to 500.
    after
        Go on after a list that ended with this cursor.
    """

    resource_type: str | None = None
    resource_id: str | None = None
    since: str | None = None
    until: str | None = None
    status: Annotated[OperationStatus | None, OneWord] = None
    error: Annotated[Failure | None, OneWord] = None
    limit: int = 50
    after: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None

    def parse(self) -> ListRequest:
        """Return the request. Raises UsageError."""
        from simplu_worker.shards import listing

        try:
            after = listing.SearchPosition() if self.after is None else listing.decode_cursor(self.after)
        except ValueError as exc:
            raise UsageError(f"--after: {exc}") from None
        since, until = parse_range(self.since, self.until)
        about = self.resource_type, self.resource_id
        try:
            return listing.check_request(
                listing.ListRequest(*about, since, until, self.status, self.error, self.limit, after)
            )
        except listing.InvalidRequestError as exc:
            raise UsageError(f"--{exc.member.replace('_', '-')}: {exc.problem}") from None


ALL_OPERATIONS: Final = OperationListOptions()


@operations.command(name="show")
def show_operation(request_id: str, /, *, tenant: OneTenant = None, common: CommonOptions = NO_OPTIONS) -> int:
    """Print the status of one operation.

    Parameters
    ----------
    tenant
        The operation's business and location; without this option every shard is queried.
    """
    from simplu_worker.commands.stream.show import show_operation

    return common.run(show_operation, request_id, tenant)


@operations.command(name="list")
def list_operations(
    business: str,
    location: str,
    /,
    *,
    options: OperationListOptions = ALL_OPERATIONS,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Print a tenant's decided operations, newest first; a batch's in no order."""
    from simplu_worker.commands.stream.show import list_operations

    return common.run(list_operations, business, location, options.parse())


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
    """Send operations, one JSON object a line, or order events.

    Parameters
    ----------
    file
        A file of JSON lines; `-` for stdin. A missing requestId or timestamp is filled in, of an order event a missing
        deduplicationId.
    wait
        Wait until every operation is in the log, and print the outcomes.
    force
        Send invalid lines too; the worker stores a dead letter for each.
    orders
        The lines are order events, for SQS_ORDER_EVENTS_QUEUE_URL. The group is groupId, else orderId.
    priority
        With --orders: for SQS_PRIORITY_QUEUE_URL.
    """
    from simplu_worker.commands.stream.send import SendOptions, send_operations

    if priority and not orders:
        raise UsageError("--priority: expected --orders with it, got it alone")
    options = SendOptions(wait=wait, timeout_s=timeout, force=force, orders=orders, priority=priority)
    return common.run(send_operations, _path(file), options, as_json=common.as_json)


@operations.command(name="test")
def preview_operations(
    file: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    orders: Flag = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Show what a worker would do with each record, one JSON object a line. Nothing is sent.

    Parameters
    ----------
    file
        A file of JSON lines; `-` for stdin.
    orders
        The lines are order events.
    """
    from simplu_worker.commands.stream.send import preview_operations

    return common.run(preview_operations, _path(file), is_orders=orders)


def _path(file: str) -> Path | None:
    return None if file == "-" else Path(file)


def replay(
    *,
    since: str,
    until: str | None = None,
    tenant: OneTenant = None,
    apply: Apply = False,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Read the stream again from a time. Operations that were applied before are dropped as duplicates.

    Without --apply the operations are only looked up in the logs, and counted.

    Parameters
    ----------
    since
        The time to start from, by RFC 3339; no offset means UTC.
    until
        Only records that arrived before this time.
    tenant
        Only operations of this business and location.
    """
    from simplu_worker.commands.running import parse_tenant_id
    from simplu_worker.commands.stream.replay_rules import ReplayRange
    from simplu_worker.commands.stream.replaying import replay

    begins, (_, ends) = parse_time("--since", since), parse_range(since, until)
    chosen = ReplayRange(begins, ends, None if tenant is None else parse_tenant_id(*tenant))
    return common.run(replay, chosen, apply=apply)
