"""`operations show` and `operations list`. Imports no client of AWS: these commands ask shards alone."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.output import Answer, CountProgress, Facts, Line, Part, Table, describe_silent, print_note
from simplu_worker.commands.running import parse_tenant_id
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.listing import ListedOperation, ListRequest, OperationPage, decode_cursor
from simplu_worker.shards.lookups import LoggedOperation, RejectedRequest
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.types import StreamShards
from simplu_worker.status.words import RequestStatus
from simplu_worker.timing.clock import loop_time, utc_now
from simplu_worker.vocabulary import Absence

if TYPE_CHECKING:
    from simplu_worker.consumers.kinesis.leases.lease import Lease


class Undecided(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Why operations of a tenant are held, else the time before which all are decided, where it is known.

    *target* is what a replica has reported as held since *since*.
    """

    reason: str | None = None
    read_up_to: datetime | None = None
    since: datetime | None = None
    target: str | None = None


def pool_errors(pools: Pools) -> dict[str, str]:
    """Return place and error of the shards that cannot be used, by their ids."""
    return {
        shard_id: f"{pool.address.place}: {pool.last_error}"
        for shard_id, pool in pools.by_shard_id().items()
        if pool.last_error
    }


async def show_operation(settings: Settings, request_id: str, tenant: tuple[str, str] | None) -> Answer:
    """Return the log's row of one operation; without *tenant* ask all shards. It fails if it is not found."""
    try:
        "".join([request_id, *(tenant or ())]).encode()
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        raise PermanentError("request id, tenant: expected UTF-8") from None
    tenant_id = None if tenant is None else tenant_id_of(*tenant)
    async with open_shards(settings) as shards:
        found: LoggedOperation | RejectedRequest | Absence | None
        found, silent, _ = await shards.gateway.lookups.find_operation(request_id, tenant_id, names=tenant)
        undecided = Undecided()
        if not isinstance(found, LoggedOperation) and tenant_id is not None:
            undecided = await find_undecided(settings, shards, tenant_id)
            found, silent, _ = await shards.gateway.lookups.find_operation(request_id, tenant_id, names=tenant)
        if not isinstance(found, LoggedOperation):
            found = await shards.gateway.lookups.find_rejection(request_id, tenant_id, names=tenant) or found
        if isinstance(found, Absence):
            undecided, found = Undecided(found) if undecided.reason is None else undecided, None
        errors = pool_errors(shards.pools)
    status = RequestStatus.UNKNOWN if undecided.reason is None else RequestStatus.HELD
    shown = {"requestId": request_id, "status": status} | _members(undecided) if found is None else _members(found)
    part = Line(_describe_absent(request_id, undecided)) if found is None else Facts(shown)
    parts = [part, describe_silent({one: errors.get(one, "") for one in silent}) if silent else None]
    return Answer(shown | {"shardsWithoutAnswer": list(silent)}, parts, is_failed=found is None)


async def find_undecided(settings: Settings, shards: Shards, tenant_id: str) -> Undecided:
    """Return the state of a tenant; less of it where a service does not answer.

    Ask before the log is read: an operation applied in between must not count as decided and absent.
    """
    from simplu_worker.consumers.kinesis.fleet.fleet_report import hold_reason, read_status

    leases = await _read_leases(settings)
    status = read_status(leases, tenant_id)
    stream_name = (settings.kinesis_stream_name or "").rpartition("/")[2]
    gateway = shards.gateway
    try:
        found = await gateway.lookups.read_positions_at_home(
            tenant_id, StreamShards(stream_name, status.stream_shard_ids)
        )
    except WorkerError:  # the survey of the shards has named every server without an answer
        shard_id, undecided = None, Undecided()
        with contextlib.suppress(WorkerError):
            address = await shards.locator.locate(tenant_id)
            shard_id = None if address is None else address.shard_id
    else:
        absence = found if isinstance(found, Absence) else None
        reason = hold_reason(absence, status, is_paused=gateway.paused_s(tenant_id) > 0)
        read_up_to = None if reason or isinstance(found, Absence) else status.up_to([found])
        shard_id, undecided = gateway.cached_shard_id(tenant_id), Undecided(reason, read_up_to)
    return with_report(undecided, leases, tenant_id, shard_id, now=utc_now())


def with_report(
    undecided: Undecided, leases: Iterable[Lease], tenant_id: str, shard_id: str | None, *, now: datetime
) -> Undecided:
    """Return *undecided* with the oldest hold of the tenant or its shard that replicas have reported. Pure."""
    names = {f"tenant {tenant_id}", *(() if shard_id is None else (f"shard {shard_id}",))}
    held = [one for lease in leases if lease.report is not None for one in lease.report.held if one.target in names]
    if not held:
        return undecided
    oldest = max(held, key=lambda one: one.age_s)
    return Undecided(oldest.reason, since=now - timedelta(seconds=oldest.age_s), target=oldest.target)


async def _read_leases(settings: Settings) -> list[Lease]:
    if settings.kinesis_stream_name is None:
        return []
    from simplu_worker.assembly.aws import open_leases

    try:
        async with open_leases(settings) as (table, _):
            return await table.scan()
    except WorkerError as exc:
        print_note(f"how far the stream is read is not known: {exc}")
        return []


def _describe_absent(request_id: str, undecided: Undecided) -> str:
    if undecided.reason is not None:
        where = "" if undecided.target is None else f" ({undecided.target})"
        since = "" if undecided.since is None else f" since {undecided.since.isoformat(timespec='seconds')}"
        return f"held: {undecided.reason}{where}{since}; if operation {request_id} was sent, it waits"
    told = f"unknown: no shard that answered has an operation {request_id}"
    if undecided.read_up_to is None:
        return told
    return f"{told}; the tenant's operations that were sent before {undecided.read_up_to.isoformat()} are decided"


def _members(value: msgspec.Struct) -> dict[str, Any]:
    members: dict[str, Any] = msgspec.to_builtins(value, builtin_types=(msgspec.Raw, datetime))
    return members


SEARCH_S: Final = 15.0  # then a person learns how far the search came, and goes on or narrows the time
COLUMNS: Final = ("completed", "operation", "resource", "request id", "status", "error")


async def list_operations(settings: Settings, business_id: str, location_id: str, request: ListRequest) -> Answer:
    """Return the operations of one tenant; it fails if it has no shard, or the search ended too early."""
    parse_tenant_id(business_id, location_id)
    async with open_shards(settings) as shards:
        page = await search(shards.gateway.lookups.list_operations, business_id, location_id, request)
    if isinstance(page, Absence):
        members: dict[str, Any] = {"operations": [], "next": None, "state": page}
        return Answer(members, [f"no shard has the tenant {business_id} {location_id}: {page}"], is_failed=True)
    is_cut = page.next is not None and len(page.operations) < request.limit
    return Answer(page, describe_page(page, request.limit), is_failed=is_cut)


async def search(
    list_page: Callable[[str, str, ListRequest], Awaitable[OperationPage | Absence]],
    business_id: str,
    location_id: str,
    request: ListRequest,
    *,
    seconds: float = SEARCH_S,
) -> OperationPage | Absence:
    """Return one page from a search of about *seconds*."""
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


def describe_page(page: OperationPage, limit: int) -> Iterator[Part]:
    """Yield a page of at most *limit* operations, and how to go on."""
    if page.operations:
        yield Table(COLUMNS, map(_cells, page.operations))
    if page.next is None:
        yield None if page.operations else "the log has no such operation"
        return
    if len(page.operations) < limit and page.searched_to is not None:
        yield f"searched back to {page.searched_to.isoformat()}; narrow the time with --since and --until, or"
    yield f"go on with --after {page.next}"


def _cells(operation: ListedOperation) -> tuple[object, ...]:
    return (
        operation.completed_at.isoformat(timespec="milliseconds"),
        operation.operation,
        " ".join(filter(None, (operation.resource_type, operation.resource_id))),
        operation.request_id,
        operation.status,
        operation.error,
    )
