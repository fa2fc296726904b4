"""The command line of `fleet`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from simplu_worker.commands.command_line import NO_OPTIONS, CommonOptions, Flag, OneTenant, OneWord
from simplu_worker.commands.command_line import Apply as Apply
from simplu_worker.vocabulary import OperationKind, OperationOutcome

fleet = App(name="fleet")

Url = Annotated[
    str | None,
    Parameter(help="The address of a replica, as http://HOST:PORT; without it, that at HTTP_HOST and HTTP_PORT."),
]


@fleet.command(name="show")
def show_fleet(*, url: Url = None, common: CommonOptions = NO_OPTIONS) -> int:
    """Print what `top` shows, and the held targets."""
    from simplu_worker.commands.fleet.actions import show_fleet

    return common.run(show_fleet, url)


@fleet.command(name="retry")
def retry_held(target: str | None = None, /, *, url: Url = None, common: CommonOptions = NO_OPTIONS) -> int:
    """Have every replica try its held targets now.

    Parameters
    ----------
    target
        One target, as /status shows it: `shard ID` or `tenant ID`. Without it, all.
    """
    from simplu_worker.commands.fleet.actions import retry_held

    return common.run(retry_held, url, target)


def tap(
    *,
    tenant: OneTenant = None,
    resource_type: str | None = None,
    operation: Annotated[OperationKind | None, OneWord] = None,
    outcome: Annotated[OperationOutcome | None, OneWord] = None,
    content: Flag = False,
    url: Url = None,
    common: CommonOptions = NO_OPTIONS,
) -> int:
    """Print the operations that a replica decides, for up to 15 minutes.

    Parameters
    ----------
    tenant
        Only operations of this business and location.
    resource_type
        Only operations on resources of this type.
    operation
        Only operations of this kind.
    outcome
        Only operations with this outcome.
    content
        Print the data of the operations too, which are contents of your tenants. The call is logged.
    """
    from simplu_worker.commands.fleet.actions import tap_operations

    given = {
        "businessId": tenant and tenant[0],
        "locationId": tenant and tenant[1],
        "resourceType": resource_type,
        "operation": operation,
        "outcome": outcome,
        "content": "true" if content else None,
    }
    query = {name: value for name, value in given.items() if value}
    return common.run(tap_operations, url, query, as_json=common.as_json)


def top(*, url: Url = None, common: CommonOptions = NO_OPTIONS) -> int:
    """Show the fleet in the terminal: problems and advice, replicas, stream shards, largest businesses."""
    from simplu_worker.commands.fleet.actions import show_top

    return common.run(show_top, url, as_json=common.as_json)
