"""`tenants verify`: compare a tenant that has moved with the shard that it left, and repair what differs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.commands.output.display import print_json, print_line, print_note, print_table
from simplu_worker.commands.requirements import parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.settling.rows import Arrival, read_arrival
from simplu_worker.transfers.moving.checksums import Comparison, TypeSum, compare_shards, describe_difference
from simplu_worker.transfers.moving.planning.places import find_places
from simplu_worker.transfers.moving.repairing import Repair, check_former_rows, repair_resources

SHOWN_MAX: Final = 20  # resources that differ


async def verify_tenant(
    settings: Settings, tenant: tuple[str, str], *, repair: bool = False, apply: bool = False, as_json: bool
) -> int:
    """Compare a tenant with the shard that it left; print what differs. Return 1 if something does.

    With *repair* print also what a repair would write; with *apply* write it, and compare again.
    """
    require_settings(settings, routes=True)
    tenant_id = parse_tenant_id(*tenant)
    kept = timedelta(hours=settings.operation_retention_hours)
    async with open_shards(settings) as shards:
        source, target, arrival = await _find_move(shards, tenant_id)
        if arrival.ready_at is None or arrival.read_at - arrival.ready_at > kept:
            raise PermanentError(
                f"{tenant_id}: expected a move within OPERATION_RETENTION_HOURS, got an older one: "
                "the log has not all changes since; compare with a backup"
            )

        async def compared() -> Comparison:
            since = arrival.ready_at or arrival.read_at
            return await compare_shards(source, target, tenant_id, since, live_on_source=False, log_kept=kept / 2)

        await check_former_rows(source, target, tenant_id, arrival)
        comparison = await compared()
        done = Repair(0)
        if repair and comparison.differing:
            done = await repair_resources(source, target, tenant_id, arrival, comparison.differing, apply=apply)
            comparison = await compared() if apply else comparison
    _print_comparison(tenant_id, comparison, done, apply=apply, as_json=as_json)
    return 0 if comparison.is_equal else 1


def _print_comparison(tenant_id: str, comparison: Comparison, done: Repair, *, apply: bool, as_json: bool) -> None:
    verdict = "equal" if comparison.is_equal else "differs"
    if as_json:
        counted = "repaired" if apply else "repairable"
        members: dict[str, Any] = {"tenant": tenant_id, "verdict": verdict, counted: done.count}
        print_json({**members, "refused": sorted(done.refused), "comparison": comparison})
        return
    print_table(
        ("resource type", "rows", "former shard's", "bytes", "former shard's", ""),
        (_sums_row(name, comparison) for name in sorted({**comparison.source, **comparison.target})),
    )
    changed = f"; {comparison.excluded} that may have changed since the move are not compared"
    print_line(f"{tenant_id}: {comparison.row_count} resources compared{changed}: {verdict}")
    if done.count and apply:
        print_note(f"{done.count} resources were written as they were on the former shard")
    elif done.count:
        print_note(
            f"nothing was changed; with --apply {done.count} resources are written as they were on the former shard"
        )
    if done.refused:
        print_note(
            f"{len(done.refused)} resources stay: somebody has written them since the move, and not by operations"
        )
    if not comparison.is_equal:
        print_note(f"differing: {describe_difference(comparison)}")
        for resource_type, resource_id in comparison.differing[:SHOWN_MAX]:
            print_note(f"  {resource_type} {resource_id}")
        print_note(
            "with --repair --apply those not written since the move are written as they were; "
            "tenants rollback moves the tenant back"
        )


def _sums_row(name: str, comparison: Comparison) -> tuple[object, ...]:
    here, there = (sums.get(name, TypeSum()) for sums in (comparison.source, comparison.target))
    counts = (there.row_count, here.row_count, there.byte_count, here.byte_count)
    return (name, *counts, "" if there == here else "differs")


async def _find_move(shards: Shards, tenant_id: str) -> tuple[ShardPool, ShardPool, Arrival]:
    """Return the shard that a tenant left, its home, and the journal of the move there."""
    places = await find_places(shards.locator, shards.pools, tenant_id)
    home = places.home()
    if home is None:
        raise RetryableError(f"{tenant_id}: expected a home, got a tenant on its way; run tenants move again")
    target = shards.pools.pool_of(home)
    async with target.connection() as connection:
        arrival = await read_arrival(connection, tenant_id)
    if arrival is None:
        raise PermanentError(f"{tenant_id}: expected a tenant that has moved to shard {home}, got one that has not")
    return shards.pools.pool_of(arrival.source_shard_id), target, arrival
