"""Run moves of tenants, some at a time, and publish each new home."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import msgspec

from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.moves.cache_clearing import clear_cache
from simplu_worker.commands.moves.progress import MoveProgress
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.output.display import print_line, print_note, print_table
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.moving.checksums import TypeSum
from simplu_worker.shards.moving.mover import Mover
from simplu_worker.shards.moving.planning.places import find_places
from simplu_worker.shards.moving.planning.readiness import check_shards
from simplu_worker.shards.moving.types import Certificate, Move, MoveOptions, MoveStatus
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.publishing import pin_in_file

TYPES_SHOWN: Final = 12  # resource types of a certificate on the screen; `--json` has all of them


class MoveRequest(msgspec.Struct, frozen=True):
    """A tenant, and the shard that it is to move to."""

    business_id: str
    location_id: str
    shard_id: str

    @property
    def tenant_id(self) -> str:
        """The id of the tenant."""
        return tenant_id_of(self.business_id, self.location_id)


class MoveResult(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What became of one request: a certificate, or an error; *warning*, if Citrus or the map was not written."""

    tenant: str
    outcome: str
    certificate: Certificate | None = None
    error: str | None = None
    warning: str | None = None


class MoveRunner:
    """Runs moves, some at a time, and publishes each: `tenants move`, `shards rebalance` and `shards drain`."""

    def __init__(self, settings: Settings, shards: Shards, terms: MoveTerms, *, as_json: bool) -> None:
        self._settings = settings
        self._shards = shards
        self._as_json = as_json
        self._terms = terms
        self._slots = asyncio.Semaphore(terms.parallel)
        self._publishing = asyncio.Lock()
        self._options = MoveOptions(
            log_kept=timedelta(hours=settings.operation_retention_hours),
            max_pause_s=terms.max_pause,
            max_rows_per_s=terms.max_rows_per_second,
        )

    def __repr__(self) -> str:
        return f"MoveRunner({self._terms})"

    async def run(self, requests: Sequence[MoveRequest]) -> int:
        """Run all moves, print each result as it comes, and clear the cache in the end.

        Return 1 if a tenant was not moved, or its rows differ.
        """
        results = []
        with MoveProgress(len(requests), as_json=self._as_json) as progress:
            tasks = [
                asyncio.create_task(self._run_one(one, progress), name=f"move:{one.tenant_id}") for one in requests
            ]
            try:
                for task in asyncio.as_completed(tasks):
                    result = await task
                    results.append(result)
                    progress.finish(result.tenant)
                    self._print(result, is_only=len(requests) == 1)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if any(one.certificate is not None for one in results) and (warning := await clear_cache(self._settings)):
            print_note(warning)
        return 0 if all(one.outcome == "moved" for one in results) else 1

    async def _run_one(self, request: MoveRequest, progress: MoveProgress) -> MoveResult:
        tenant_id = request.tenant_id
        async with self._slots:
            try:
                certificate = await self._move(request, progress.watch(tenant_id))
            except WorkerError as exc:
                return MoveResult(tenant_id, "failed", error=str(exc))
            warning = await self._publish(tenant_id, request.shard_id)
        return MoveResult(
            tenant_id, "moved" if certificate.verdict == "equal" else "differs", certificate, None, warning
        )

    async def _move(self, request: MoveRequest, show: Callable[[MoveStatus], None]) -> Certificate:
        locator, pools = self._shards.locator, self._shards.pools
        places = await find_places(locator, pools, request.tenant_id)
        source_id = places.source_for(request.shard_id)
        await check_shards(locator, pools, source_id, request.shard_id)
        move = Move(request.tenant_id, source_id, request.shard_id)
        mover = Mover(pools, self._shards.commits, move, self._options, show=show)
        return await mover.run()

    async def _publish(self, tenant_id: str, shard_id: str) -> str | None:
        """Publish the home to Citrus or the map; return a warning where that is not possible: the shards lead to it."""
        locator = self._shards.locator
        async with self._publishing:
            try:
                if isinstance(locator, CitrusClient):
                    if not await locator.move(tenant_id, shard_id):
                        return (
                            "Citrus has no PUT /api/shard: it goes on naming the old shard, "
                            "which leads to the new one; keep the old shard"
                        )
                elif isinstance(locator, StaticMap) and self._settings.shard_map_file is not None:
                    await asyncio.to_thread(pin_in_file, self._settings.shard_map_file, {tenant_id: shard_id})
            except (PermanentError, RetryableError) as exc:
                return f'{exc}; the old shard leads to the new one; pin the tenant: "{tenant_id}": "{shard_id}"'
        return None

    def _print(self, result: MoveResult, *, is_only: bool) -> None:
        if self._as_json:
            print_line(msgspec.json.encode(result).decode())
            return
        if result.certificate is None:
            print_note(with_tenant(result.tenant, result.error or ""))
            return
        print_line(describe(result.certificate))
        if is_only or result.outcome == "differs":
            print_table(("resource type", "rows", "bytes", "checksum"), sum_rows(result.certificate))
        if result.warning:
            print_note(f"{result.tenant}: {result.warning}")


def with_tenant(tenant_id: str, error: str) -> str:
    """Return *error* with the tenant in front; many have it there already."""
    return error if error.startswith(f"{tenant_id}: ") else f"{tenant_id}: {error}"


def describe(certificate: Certificate) -> str:
    """Return a certificate as one line."""
    compared = certificate.comparison
    mib = certificate.bytes_copied / 2**20
    pause = "" if certificate.pause_s is None else f", paused for {certificate.pause_s * 1000:.0f} ms"
    changed = f", {compared.excluded} changed since" if compared.excluded else ""
    return (
        f"{certificate.tenant}: {certificate.source_shard} → {certificate.target_shard}, "
        f"epoch {certificate.epoch_before} → {certificate.epoch}, {certificate.rows_copied} rows ({mib:.1f} MiB) "
        f"copied in {certificate.duration_s:.1f} s{pause}; "
        f"{compared.row_count} resources compared{changed}: {certificate.verdict}"
    )


def sum_rows(certificate: Certificate) -> list[tuple[object, ...]]:
    """Return the rows of a table of a certificate: those of the largest resource types, or that differ."""
    source, target = certificate.comparison.source, certificate.comparison.target
    names = sorted({**source, **target}, key=lambda name: (source.get(name) == target.get(name), -_rows(source, name)))
    rows = [_sum_row(name, source.get(name, TypeSum()), target.get(name, TypeSum())) for name in names[:TYPES_SHOWN]]
    more = len(names) - len(rows)
    return [*rows, (f"and {more} more", "", "", "")] if more else rows


def _rows(sums: Mapping[str, TypeSum], name: str) -> int:
    return sums.get(name, TypeSum()).row_count


def _sum_row(name: str, source: TypeSum, target: TypeSum) -> tuple[object, ...]:
    if source == target:
        return name, source.row_count, source.byte_count, source.digest
    pairs = [(source.row_count, target.row_count), (source.byte_count, target.byte_count)]
    return name, *(f"{one} → {other}" for one, other in [*pairs, (source.digest, target.digest)])
