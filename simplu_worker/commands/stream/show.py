"""`operations show` and `operations list`. Imports no client of AWS: these commands ask shards alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output import Answer, CountProgress, Facts, Line, Part, Table, describe_silent, print_note
from simplu_worker.commands.running import parse_tenant_id
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.shards.listing import ListedOperation, ListRequest, OperationPage, decode_cursor
from simplu_worker.shards.lookups import FoundOperation, LoggedOperation, RejectedRequest
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
    tenant_id, undecided = None if tenant is None else tenant_id_of(*tenant), Undecided()
    async with open_shards(settings) as shards:
        lookups = shards.gateway.lookups
        answer = await lookups.find_operation(request_id, tenant_id, names=tenant)
        found: LoggedOperation | RejectedRequest | Absence | None = answer.operation
        if not isinstance(found, LoggedOperation) and tenant is not None:
            answer, undecided = await _find_undecided(settings, shards.gateway, request_id, tenant)
            found = answer.operation
        if not isinstance(found, LoggedOperation):
            found = await lookups.find_rejection(request_id, tenant_id, names=tenant) or found
        if isinstance(found, Absence):
            undecided, found = Undecided(found) if undecided.reason is None else undecided, None
        errors = pool_errors(shards.pools)
    status = RequestStatus.UNKNOWN if undecided.reason is None else RequestStatus.HELD
    shown = {"requestId": request_id, "status": status} | _members(undecided) if found is None else _members(found)
    part = Line(_describe_absent(request_id, undecided)) if found is None else Facts(shown)
    silent = {one: errors.get(one, "") for one in answer.silent_shard_ids}
    parts = [part, describe_silent(silent) if silent else None]
    return Answer(shown | {"shardsWithoutAnswer": list(silent)}, parts, is_failed=found is None)


async def _find_undecided(
    settings: Settings, gateway: ShardGateway, request_id: str, names: tuple[str, str]
) -> tuple[FoundOperation, Undecided]:
    """Ask the log again, and return the state of the tenant as it was before.

    An operation that is applied in between must not count as decided and absent.
    """
    from simplu_worker.consumers.kinesis.fleet.fleet_report import hold_reason, read_status

    tenant_id, leases = tenant_id_of(*names), await _read_leases(settings)
    status = read_status(leases, tenant_id)
    stream = StreamShards((settings.kinesis_stream_name or "").rpartition("/")[2], status.stream_shard_ids)
    answer = await gateway.lookups.find_operation(request_id, tenant_id, names=names, stream=stream)
    absence = answer.operation if isinstance(answer.operation, Absence) else None
    reason = hold_reason(absence, status, is_paused=gateway.paused_s(tenant_id) > 0)
    undecided = Undecided(reason, None if reason else status.up_to(answer.positions))
    shard_id = gateway.cached_shard_id(tenant_id)
    return answer, with_report(undecided, leases, tenant_id, shard_id, now=utc_now())


def with_report(
    undecided: Undecided, leases: Iterable[Lease], tenant_id: str, shard_id: str | None, *, now: datetime
) -> Undecided:
    """Return *undecided* with the oldest hold of the tenant or its shard that replicas have reported. Pure."""
    names = {f"tenant {tenant_id}"}
    if shard_id is not None:
        businesses = [tenant_id[:at] for at, one in enumerate(tenant_id) if one == "-"]
        names |= {f"shard {shard_id}", *(f"business {business_id} on {shard_id}" for business_id in businesses)}
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
    yield f"continue with --after {page.next}"


def _cells(operation: ListedOperation) -> tuple[object, ...]:
    return (
        operation.completed_at.isoformat(timespec="milliseconds"),
        operation.operation,
        " ".join(filter(None, (operation.resource_type, operation.resource_id))),
        operation.request_id,
        operation.status,
        operation.error,
    )
