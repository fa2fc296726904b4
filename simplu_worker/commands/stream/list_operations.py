"""`operations list`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import msgspec
from rich.text import Text

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_note, print_table
from simplu_worker.commands.output.progress import CountProgress
from simplu_worker.commands.requirements import parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.shards.listing.page import ListedOperation, OperationPage
from simplu_worker.shards.listing.request import ListRequest, decode_cursor
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import Absence

SEARCH_S: Final = 15.0  # then a person learns how far the search came, and goes on or narrows the time
COLUMNS: Final = ("completed", "operation", "resource", "request id", "status", "error")
STYLES: Final = {"succeeded": "green", "failed": "red"}


async def list_operations(
    settings: Settings, business_id: str, location_id: str, request: ListRequest, *, as_json: bool
) -> int:
    """Print the operations of one tenant. Return 1 if no shard has the tenant, or the search ended too early."""
    require_settings(settings, routes=True)
    parse_tenant_id(business_id, location_id)
    async with open_shards(settings) as shards:
        page = await search(shards.gateway.list_operations, business_id, location_id, request)
    if isinstance(page, Absence):
        if as_json:
            print_json({"operations": [], "next": None, "state": page})
        print_note(f"no shard has the tenant {business_id} {location_id}: {page}")
        return 1
    if as_json:
        print_json(page)
    else:
        print_page(page, request.limit)
    return 0 if page.next is None or len(page.operations) == request.limit else 1


async def search(
    list_page: Callable[[str, str, ListRequest], Awaitable[OperationPage | Absence]],
    business_id: str,
    location_id: str,
    request: ListRequest,
    *,
    seconds: float = SEARCH_S,
) -> OperationPage | Absence:
    """Return one page like those of *list_page*, but from a search of about *seconds*."""
    found: list[ListedOperation] = []
    ends_at = loop_time() + seconds
    with CountProgress("found", request.limit) as progress:
        while True:
            page = await list_page(business_id, location_id, request)
            if isinstance(page, Absence):
                return page
            found += page.operations
            progress.show(len(found))
            missing = request.limit - len(page.operations)
            if page.next is None or not missing or loop_time() >= ends_at:
                return msgspec.structs.replace(page, operations=found)
            request = msgspec.structs.replace(request, limit=missing, after=decode_cursor(page.next))


def print_page(page: OperationPage, limit: int) -> None:
    """Print a page of at most *limit* operations, and how to go on."""
    if page.operations:
        print_table(COLUMNS, map(_cells, page.operations))
    if page.next is None:
        if not page.operations:
            print_note("the log has no such operation")
        return
    if len(page.operations) < limit and page.searched_to is not None:
        print_note(f"searched back to {page.searched_to.isoformat()}; narrow the time with --since and --until, or")
    print_note(f"go on with --after {page.next}")


def _cells(operation: ListedOperation) -> tuple[object, ...]:
    return (
        _format_time(operation.completed_at),
        operation.operation,
        " ".join(filter(None, (operation.resource_type, operation.resource_id))),
        operation.request_id,
        Text(operation.status, STYLES.get(operation.status, "")),
        operation.error,
    )


def _format_time(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
