"""`operations test`: show what the worker would make of records. Nothing is sent, and nothing is applied."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_note, print_silent, print_table, shorten
from simplu_worker.commands.stream.input_lines import InputLine
from simplu_worker.commands.stream.send import parse_input
from simplu_worker.commands.stream.wait_outcomes import LastPoll, OperationKey, find_operations
from simplu_worker.config.settings import Settings
from simplu_worker.config.variable_rules import ROUTES, set_of
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.operations.operation import Operation, RejectedRecord
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.vocabulary import Absence

LOOKUPS_AT_ONCE: Final = 10
ERROR_SHOWN_LENGTH: Final = 100


class Fate(StrEnum):
    """The next step of a worker with a record."""

    APPLIED = "applied"  # its outcome may still be an error, by the state of the resource then
    DUPLICATE = "duplicate"  # the log has its request id
    HELD = "held"  # until its tenant has a shard
    DEAD_LETTER = "dead_letter"
    VALID = "valid"  # no way to find shards is configured, or a shard does not answer


class Preview(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The next step of a worker with one line."""

    line: int
    fate: Fate
    reason: str | None = None
    error: str | None = None
    operation: str | None = None
    business_id: str | None = None
    location_id: str | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    request_id: str | None = None
    shard_id: str | None = None


async def preview_operations(settings: Settings, text: bytes, *, is_orders: bool, as_json: bool) -> int:
    """Print the next step of a worker with each line of *text*. Returns 1 if one of them would be a dead letter."""
    lines = parse_input(settings, text, is_orders=is_orders)
    homes: Mapping[str, str | Absence] = {}
    logged: Mapping[OperationKey, Mapping[str, object]] = {}
    poll = LastPoll(len(lines))
    keys = {line.key for line in lines if line.key is not None}
    if keys and set_of(settings, *ROUTES):
        async with open_shards(settings) as shards:
            homes = await _find_homes(shards.gateway, sorted({tenant_id for tenant_id, _ in keys}))
            logged = await find_operations(shards.gateway, keys, poll)
    found = [preview(line, homes, logged) for line in lines]
    if as_json:
        print_json({"records": found, "shardsWithoutAnswer": poll.silent_shard_ids})
    else:
        _print_previews(found)
        print_silent(poll.silent_shard_ids)
    return 1 if any(one.fate is Fate.DEAD_LETTER for one in found) else 0


def preview(
    line: InputLine, homes: Mapping[str, str | Absence], logged: Mapping[OperationKey, Mapping[str, object]]
) -> Preview:
    """Return the next step with a line, by the known shards of tenants and the rows of the logs."""
    decoded = line.decoded
    if isinstance(decoded, RejectedRecord):
        return Preview(
            line.number,
            Fate.DEAD_LETTER,
            reason=decoded.reason,
            error=decoded.error,
            business_id=decoded.business_id,
            location_id=decoded.location_id,
            request_id=decoded.request_id,
        )
    home = homes.get(decoded.tenant_id)
    row = logged.get((decoded.tenant_id, decoded.request_id))
    if row is not None:
        return _of_operation(line.number, decoded, Fate.DUPLICATE, shard_id=str(row["shard_id"]))
    if isinstance(home, Absence):
        return _of_operation(line.number, decoded, Fate.HELD, reason=home)
    fate = Fate.VALID if home is None else Fate.APPLIED
    return _of_operation(line.number, decoded, fate, shard_id=home)


def _of_operation(
    number: int, operation: Operation, fate: Fate, *, reason: str | None = None, shard_id: str | None = None
) -> Preview:
    return Preview(
        number,
        fate,
        reason=reason,
        operation=operation.kind,
        business_id=operation.business_id,
        location_id=operation.location_id,
        resource_type=operation.resource_type,
        resource_id=operation.resource_id,
        request_id=operation.request_id,
        shard_id=shard_id,
    )


async def _find_homes(gateway: ShardGateway, tenant_ids: Iterable[str]) -> dict[str, str | Absence]:
    """Return the shard of each tenant, or why there is none; tenants without an answer are left out."""
    homes: dict[str, str | Absence] = {}
    turns = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def find(tenant_id: str) -> None:
        async with turns:
            try:
                homes[tenant_id] = await gateway.find(tenant_id)
            except (RetryableError, PermanentError) as exc:
                print_note(f"tenant {tenant_id}: {exc}")

    async with asyncio.TaskGroup() as tasks:
        for tenant_id in tenant_ids:
            tasks.create_task(find(tenant_id))
    return homes


def _print_previews(found: Sequence[Preview]) -> None:
    rows = (
        (
            one.line,
            one.fate,
            one.reason,
            one.operation,
            " ".join(part for part in (one.business_id, one.location_id) if part),
            " ".join(part for part in (one.resource_type, one.resource_id) if part),
            one.shard_id,
            shorten(one.error or "", ERROR_SHOWN_LENGTH),
        )
        for one in found
    )
    print_table(("line", "would be", "reason", "operation", "tenant", "resource", "shard", "error"), rows)
    counts = Counter(one.fate for one in found)
    print_note(", ".join(f"{count} {fate}" for fate, count in sorted(counts.items())) or "no records")
    print_note("nothing was sent or applied")
