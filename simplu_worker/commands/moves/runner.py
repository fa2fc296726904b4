"""Run moves of tenants, some at a time, and publish each new home."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import msgspec
import structlog

from simplu_worker.assembly.shards import Shards
from simplu_worker.commands.moves.cache_clearing import clear_cache
from simplu_worker.commands.moves.finding import FinishedMove, find_move
from simplu_worker.commands.moves.progress import MoveProgress
from simplu_worker.commands.moves.terms import MoveTerms
from simplu_worker.commands.output.display import print_json_line, print_line, print_note, print_table
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import StaticMap
from simplu_worker.shards.routing.publishing import pin_in_file
from simplu_worker.transfers.moving.checksums import TypeSum
from simplu_worker.transfers.moving.mover import Mover
from simplu_worker.transfers.moving.planning.capacities import check_room, fetch_capacities, has_business
from simplu_worker.transfers.moving.types import Certificate, MoveOptions, MoveStatus
from simplu_worker.vocabulary import MoveOutcome, MovePhase

DIFFERS: Final = (
    "its rows differ from those on its former shard, which are kept; run: simplu-worker tenants verify --repair "
    "--apply, then this move again"
)
TYPES_SHOWN: Final = 12  # resource types of a certificate on the screen; `--json` has all of them
MAY_HAVE_LEFT: Final = frozenset(
    {MovePhase.FENCE, MovePhase.LAST_DELTA, MovePhase.COMMIT, MovePhase.ACTIVATE, MovePhase.CERTIFY, MovePhase.PUBLISH}
)

log = structlog.get_logger(__name__)


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
    """What became of one request: a certificate, or an error; *warning*, if Citrus or the map was not written.

    *finished* is a move that an earlier command has finished, *rows_deleted* the number of rows of the copy of one that
    was taken back.
    """

    tenant: str
    outcome: MoveOutcome
    certificate: Certificate | None = None
    error: str | None = None
    warning: str | None = None
    rows_deleted: int | None = None
    finished: FinishedMove | None = None


class MoveRunner:
    """Runs moves, some at a time, and publishes each. With *is_drain* the journal has them as moves of a drain.

    For `tenants move`, `tenants rollback`, `shards rebalance` and `shards drain`. Where Citrus limits a shard, moves to
    that one follow each other: how many it takes is known only once it was told of the move before.
    """

    def __init__(
        self, settings: Settings, shards: Shards, terms: MoveTerms, *, as_json: bool, is_drain: bool = False
    ) -> None:
        self._settings = settings
        self._shards = shards
        self._as_json = as_json
        self._terms = terms
        self._slots = asyncio.Semaphore(terms.parallel)
        self._publishing = asyncio.Lock()
        self._turns: dict[str, asyncio.Lock] = {}  # by the shard that Citrus limits
        self._has_stale_cache = False
        self._options = MoveOptions(
            log_kept=timedelta(hours=settings.operation_retention_hours),
            max_pause_s=terms.max_pause,
            max_rows_per_s=terms.max_rows_per_second,
            is_drain=is_drain,
        )

    def __repr__(self) -> str:
        return f"MoveRunner({self._terms})"

    async def run(self, requests: Sequence[MoveRequest]) -> int:
        """Run all moves, print each result as it comes, and clear the cache in the end, also if it is cancelled.

        Return 1 if a tenant was not moved, or its rows differ.
        """
        results = []
        limited = await fetch_capacities(self._shards.locator, {one.shard_id for one in requests})
        self._turns = {shard_id: asyncio.Lock() for shard_id, answer in limited.items() if answer is not None}
        with MoveProgress(len(requests), as_json=self._as_json) as progress:
            tasks = [
                asyncio.create_task(self._run_one(one, progress), name=f"move:{one.tenant_id}") for one in requests
            ]
            try:
                for task in asyncio.as_completed(tasks):
                    result = await task
                    results.append(result)
                    progress.finish(result.tenant)
                    print_result(result, as_json=self._as_json, is_only=len(requests) == 1)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._clear_cache()
        return 0 if all(one.outcome is MoveOutcome.MOVED for one in results) else 1

    async def _run_one(self, request: MoveRequest, progress: MoveProgress) -> MoveResult:
        tenant_id, certificate = request.tenant_id, None
        async with self._turns.get(request.shard_id, contextlib.nullcontext()), self._slots:
            try:
                ended = await self._move(request, self._watched(progress.watch(tenant_id)))
                if isinstance(ended, FinishedMove):
                    self._has_stale_cache = True  # an earlier command may have ended before the cache and the home
                    warning = await self._publish(request)
                    outcome = MoveOutcome.MOVED if ended.is_equal else MoveOutcome.DIFFERS
                    return MoveResult(tenant_id, outcome, finished=ended, warning=warning)
                certificate = ended
                warning = await self._publish(request)
            except WorkerError as exc:
                return MoveResult(tenant_id, MoveOutcome.FAILED, error=str(exc))
            except Exception as exc:  # a bug: the other tenants go on
                log.exception("move.crashed", tenant_id=tenant_id)
                error = f"{type(exc).__name__}: a bug, which the log has; run the same command again to go on"
                return MoveResult(tenant_id, MoveOutcome.FAILED, certificate, error)
        outcome = MoveOutcome.MOVED if certificate.verdict == "equal" else MoveOutcome.DIFFERS
        return MoveResult(tenant_id, outcome, certificate, warning=warning)

    async def _move(self, request: MoveRequest, show: Callable[[MoveStatus], None]) -> Certificate | FinishedMove:
        found = await find_move(self._shards, request.tenant_id, request.shard_id)
        if isinstance(found, FinishedMove):
            return found
        if not found.has_left:
            capacities = await fetch_capacities(self._shards.locator, {request.shard_id})
            if (capacity := capacities[request.shard_id]) is not None:
                is_there = await has_business(self._shards.pools.pool_of(request.shard_id), request.business_id)
                check_room(request.shard_id, capacity, is_counted=is_there)
        return await Mover(self._shards.pools, self._shards.commits, found.move, self._options, show=show).run()

    def _watched(self, show: Callable[[MoveStatus], None]) -> Callable[[MoveStatus], None]:
        def watch(status: MoveStatus) -> None:
            self._has_stale_cache |= status.phase in MAY_HAVE_LEFT
            show(status)

        return watch

    async def _clear_cache(self) -> None:
        """Clear the cache if a tenant may have left its shard: readers may have filled it from the rows there."""
        if self._has_stale_cache:
            self._has_stale_cache = False
            if warning := await clear_cache(self._settings):
                print_note(warning)

    async def _publish(self, request: MoveRequest) -> str | None:
        """Publish the home to Citrus or the map; return a warning where that is not possible: the shards lead to it."""
        locator, tenant_id, shard_id = self._shards.locator, request.tenant_id, request.shard_id
        async with self._publishing:
            try:
                if isinstance(locator, CitrusClient):
                    if not await locator.move(tenant_id, shard_id):
                        return (
                            f"Citrus has no PUT /api/shard/{tenant_id}, or does not know the tenant: it goes on naming "
                            f"the old shard, which leads to shard {shard_id}; keep the old shard"
                        )
                elif isinstance(locator, StaticMap) and self._settings.shard_map_file is not None:
                    await asyncio.to_thread(pin_in_file, self._settings.shard_map_file, {tenant_id: shard_id})
            except (PermanentError, RetryableError) as exc:
                names = shlex.join((request.business_id, request.location_id))
                return (
                    f"{exc}; the tenant is on shard {shard_id}, and the old shard leads there: keep the old shard; "
                    f"run: simplu-worker tenants move {names} --to {shard_id} --apply, to publish the new one"
                )
        return None


def print_result(result: MoveResult, *, as_json: bool, is_only: bool = False) -> None:
    """Print what became of one move; of an only one, and where rows differ, also the rows of each type."""
    if as_json:
        print_json_line(result)
        return
    if result.certificate is not None:
        print_line(describe(result.certificate))
        if is_only or result.outcome is MoveOutcome.DIFFERS:
            print_table(("resource type", "rows", "bytes", "checksum"), sum_rows(result.certificate))
        if result.outcome is MoveOutcome.DIFFERS:
            print_note(with_tenant(result.tenant, DIFFERS))
    if result.finished is not None:
        print_line(result.finished.describe())
    if result.rows_deleted is not None:
        print_line(f"{result.tenant}: taken back; {result.rows_deleted} rows of the copy deleted")
    for note in (result.error, result.warning):
        if note is not None:
            print_note(with_tenant(result.tenant, note))


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
