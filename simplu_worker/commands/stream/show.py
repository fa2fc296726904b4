"""`operations show`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_line, print_members, print_silent
from simplu_worker.commands.requirements import require_settings
from simplu_worker.commands.stream.send_status import SendStatus, Undecided
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.gateway import LoggedOperation, RejectedRequest
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.timing.clock import utc_now
from simplu_worker.vocabulary import Absence


async def show_operation(settings: Settings, request_id: str, tenant: tuple[str, str] | None, *, as_json: bool) -> int:
    """Print the log's row of one operation; without *tenant* query all shards. Return 1 if it is not found."""
    require_settings(settings, routes=True)
    try:
        "".join([request_id, *(tenant or ())]).encode()
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        raise PermanentError("request id, tenant: expected UTF-8") from None
    tenant_id = None if tenant is None else tenant_id_of(*tenant)
    async with open_shards(settings) as shards:
        found: LoggedOperation | RejectedRequest | Absence | None
        found, silent, _ = await shards.gateway.find_operation(request_id, tenant_id, names=tenant)
        undecided = Undecided()
        if not isinstance(found, LoggedOperation) and tenant_id is not None:
            from simplu_worker.commands.stream.undecided import read_leases, stream_shards_of, undecided_of, with_report
            from simplu_worker.consumers.kinesis.fleet.read_status import read_status

            # Before the log is read: an operation that is applied in between must not count as decided and absent.
            leases = await read_leases(settings)
            read = read_status(leases, tenant_id)
            asked = stream_shards_of(settings, read)
            found, silent, rows = await shards.gateway.find_operation(request_id, tenant_id, names=tenant, stream=asked)
            is_paused = shards.gateway.paused_s(tenant_id) > 0
            undecided = undecided_of(read, found if isinstance(found, Absence) else rows[0], is_paused=is_paused)
            shard_id = shards.gateway.cached_shard_id(tenant_id)
            undecided = with_report(undecided, leases, tenant_id, shard_id, now=utc_now())
        if not isinstance(found, LoggedOperation):
            found = await shards.gateway.find_rejection(request_id, tenant_id, names=tenant) or found
        if isinstance(found, Absence):
            undecided, found = Undecided(found) if undecided.reason is None else undecided, None
        errors = pool_errors(shards.pools)
    status = SendStatus.UNKNOWN if undecided.reason is None else SendStatus.HELD
    shown = {"requestId": request_id, "status": status} | _members(undecided) if found is None else _members(found)
    if as_json:
        print_json(shown | {"shardsWithoutAnswer": list(silent)})
    elif found is not None:
        print_members({name: _format_value(value) for name, value in shown.items()})
    else:
        print_line(_describe_absent(request_id, undecided))
    if not as_json:
        print_silent(silent, errors)
    return 1 if found is None else 0


def _describe_absent(request_id: str, undecided: Undecided) -> str:
    if undecided.reason is not None:
        return f"held: {undecided.hold}; if operation {request_id} was sent, it waits"
    told = f"unknown: no shard that answered has an operation {request_id}"
    if undecided.read_up_to is None:
        return told
    return f"{told}; the tenant's operations that were sent before {undecided.read_up_to.isoformat()} are decided"


def pool_errors(pools: Pools) -> dict[str, str]:
    """Return place and error of the shards that cannot be used, by their ids."""
    return {
        shard_id: f"{pool.address.place}: {pool.last_error}"
        for shard_id, pool in pools.by_shard_id().items()
        if pool.last_error
    }


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
