"""Plan moves of tenants, run some at a time, show how far they are, and publish each new home."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.assembly.shards import Shards
from simplu_worker.cache.cache import open_cache
from simplu_worker.commands.command_line import MoveTerms
from simplu_worker.commands.output import (
    Answer,
    Part,
    ProgressLine,
    Table,
    print_json_line,
    print_line,
    print_note,
    print_table,
    table_of,
)
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import StaticMap, pin_in_file
from simplu_worker.shards.settling import Departure, read_departure
from simplu_worker.transfers.moving.checksums import Comparison, TypeSum
from simplu_worker.transfers.moving.mover import PAUSE, Mover
from simplu_worker.transfers.moving.places import TenantPlaces, check_room, fetch_capacities, find_places, has_business
from simplu_worker.transfers.moving.readiness import MovePlan, check_shards, plan_move
from simplu_worker.transfers.moving.types import Certificate, Move, MoveOptions, MoveStatus
from simplu_worker.transfers.patience import run_at_once
from simplu_worker.vocabulary import MoveOutcome, MovePhase, MoveStep


class MoveProgress(ProgressLine):
    """The progress of *total* moves, and of the one that went on last."""

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._running: dict[str, MoveStatus] = {}
        self._ended: list[MoveStatus] = []
        super().__init__(self.describe(), clock=clock)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.text = f"{self.describe()}; the same command goes on with the moves"
        super().__exit__(kind, error, trace)

    def show(self, tenant_id: str, status: MoveStatus) -> None:
        """Show how far a move is."""
        self._running[tenant_id] = status
        if status.phase not in PAUSE:
            total = f" of {status.row_total:,}" if status.row_total else ""
            self.tell(f"{self.describe()}; {tenant_id}: {status.phase}, {status.row_count:,}{total} rows")

    def finish(self, tenant_id: str) -> None:
        """Note that a move has ended, well or not."""
        self._ended.append(self._running.pop(tenant_id, MoveStatus(MovePhase.PREPARE)))

    def describe(self) -> str:
        """Return how far all moves are together."""
        every = [*self._ended, *self._running.values()]
        rows, mib = sum(one.row_count for one in every), sum(one.byte_count for one in every) / 2**20
        return f"{len(self._ended)} of {self._total} ended, {rows:,} rows, {mib:.1f} MiB"


class FoundMove(msgspec.Struct, frozen=True):
    """A move to be done. *goes_on*: a command has begun it; *has_left*: its tenant has left its source."""

    move: Move
    goes_on: bool
    has_left: bool


async def find_move(
    shards: Shards, tenant_id: str, target_id: str, places: TenantPlaces | None = None
) -> FoundMove | Certificate:
    """Return the move of a tenant to the shard *target_id*, whether or not that has room; the certificate of one done.

    Raises `PermanentError` if it cannot be moved there, `RetryableError` if a shard does not answer.
    """
    if places is None:
        places = await find_places(shards.locator, shards.pools, tenant_id)
    source_id, home = places.source_for(target_id), places.home()
    move = Move(tenant_id, source_id, target_id)
    if home == source_id:  # a tenant that has left its shard has to arrive, whatever the other one is like
        await check_shards(shards.locator, shards.pools, tenant_id, source_id, target_id)
        return FoundMove(move, goes_on=target_id in places.arriving_on(), has_left=False)
    if home == target_id:
        async with shards.pools.pool_of(source_id).connection() as connection:
            departure = await read_departure(connection, tenant_id)
        if departure is not None and departure.target_shard_id == target_id and (kept := _last_certificate(departure)):
            return kept
    return FoundMove(move, goes_on=True, has_left=True)


def _last_certificate(departure: Departure) -> Certificate | None:
    """Return the certificate of a finished move, unless its rows are to be compared again."""
    found = departure.detail.get("certificate")
    is_last = departure.step in {MoveStep.CLEANING, MoveStep.CLEANED} or (
        departure.step == MoveStep.DONE and departure.is_equal
    )
    return msgspec.convert(found, Certificate) if found and is_last else None


async def clear_cache(settings: Settings) -> str | None:
    """Clear the cache, if there is one, of former rows; return a warning if that failed."""
    if settings.redis_url is None:
        return None
    try:
        async with open_cache(settings.redis_url.get_secret_value()) as (_, admin):
            await admin.clear()
    except WorkerError as exc:
        return f"the cache was not cleared: {exc}; run: curl -X DELETE on /cache/clear of a worker"
    return None


DIFFERS: Final = (
    "its rows differ from those on its former shard; if these are still there, run: simplu-worker tenants verify "
    "--repair --apply, then this move again"
)
TYPES_SHOWN: Final = 12  # resource types of a comparison on the screen; `--json` has all of them
SUM_COLUMNS: Final = ("resource type", "rows", "bytes", "checksum")
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
    """What became of one request: a certificate, or an error; *warning*, if Citrus or the map was not written."""

    tenant: str
    outcome: MoveOutcome
    certificate: Certificate | None = None
    error: str | None = None
    warning: str | None = None


class MoveRunner:
    """Runs moves, some at a time, and publishes each; those to a shard with a limit of Citrus follow each other."""

    def __init__(self, settings: Settings, shards: Shards, terms: MoveTerms, *, as_json: bool) -> None:
        self._settings = settings
        self._shards = shards
        self._as_json = as_json
        self._terms = terms
        self._slots = asyncio.Semaphore(terms.parallel)
        self._publishing = asyncio.Lock()
        self._turns: dict[str, asyncio.Lock] = {}  # by the shard that Citrus limits
        self._options = MoveOptions(
            log_kept=timedelta(hours=settings.operation_retention_hours),
            max_pause_s=terms.max_pause,
            max_rows_per_s=terms.max_rows_per_second,
        )

    async def run(self, requests: Sequence[MoveRequest]) -> int:
        """Run all moves, print each, and clear the cache, also if cancelled; return 1 if one failed or rows differ."""
        results = []
        limited = await fetch_capacities(self._shards.locator, {one.shard_id for one in requests})
        self._turns = {shard_id: asyncio.Lock() for shard_id, answer in limited.items() if answer is not None}
        with MoveProgress(len(requests)) as progress:
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
                if warning := await clear_cache(self._settings):  # also after a command that was killed before that
                    print_note(warning)
        return 0 if all(one.outcome is MoveOutcome.MOVED for one in results) else 1

    async def _run_one(self, request: MoveRequest, progress: MoveProgress) -> MoveResult:
        tenant_id, certificate = request.tenant_id, None
        async with self._turns.get(request.shard_id, contextlib.nullcontext()), self._slots:
            try:
                certificate = await self._move(request, partial(progress.show, tenant_id))
                warning = await self._publish(request)
            except WorkerError as exc:
                return MoveResult(tenant_id, MoveOutcome.FAILED, error=str(exc))
            except Exception as exc:  # a bug: the other tenants go on
                log.exception("move.crashed", tenant_id=tenant_id)
                error = f"{type(exc).__name__}: a bug, which the log has; run the same command again to go on"
                return MoveResult(tenant_id, MoveOutcome.FAILED, certificate, error)
        outcome = MoveOutcome.MOVED if certificate.verdict == "equal" else MoveOutcome.DIFFERS
        return MoveResult(tenant_id, outcome, certificate, warning=warning)

    async def _move(self, request: MoveRequest, show: Callable[[MoveStatus], None]) -> Certificate:
        found = await find_move(self._shards, request.tenant_id, request.shard_id)
        if isinstance(found, Certificate):
            return found
        if not found.has_left:
            capacities = await fetch_capacities(self._shards.locator, {request.shard_id})
            if (capacity := capacities[request.shard_id]) is not None:
                is_there = await has_business(self._shards.pools.pool_of(request.shard_id), request.business_id)
                check_room(request.shard_id, capacity, is_counted=is_there)
        return await Mover(self._shards.pools, self._shards.commits, found.move, self._options, show=show).run()

    async def _publish(self, request: MoveRequest) -> str | None:
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
    """Print what became of one move, with the rows of each type where they differ or it is the only one."""
    if as_json:
        print_json_line(result)
        return
    if result.certificate is not None:
        print_line(describe(result.certificate))
        if is_only or result.outcome is MoveOutcome.DIFFERS:
            print_table(SUM_COLUMNS, sum_rows(result.certificate.comparison))
        if result.outcome is MoveOutcome.DIFFERS:
            print_note(with_tenant(result.tenant, DIFFERS))
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


def sum_rows(comparison: Comparison) -> list[tuple[object, ...]]:
    """Return the rows of SUM_COLUMNS: the types that differ, then the largest ones."""
    every = [
        (name, comparison.source.get(name, TypeSum()), comparison.target.get(name, TypeSum()))
        for name in {**comparison.source, **comparison.target}
    ]
    every.sort(key=lambda one: (one[1] == one[2], -one[1].row_count, one[0]))
    rows = [(name, *map(_change, _cells(source), _cells(target))) for name, source, target in every[:TYPES_SHOWN]]
    more = len(every) - len(rows)
    return [*rows, (f"and {more} more", "", "", "")] if more else rows


def _cells(one: TypeSum) -> tuple[object, ...]:
    return one.row_count, one.byte_count, one.digest


def _change(source: object, target: object) -> object:
    return source if source == target else f"{source} → {target}"


PARALLEL: Final = 8  # tenants that are measured at once: each takes a read of all its rows
COLUMNS: Final = {
    "tenant": "tenant",
    "sourceShard": "from",
    "targetShard": "to",
    "resources": "resources",
    "byteCount": "bytes",
    "operations": "operations",
}


class MovePlans(msgspec.Struct, frozen=True):
    """What requests come to, in their order; by tenant, why some are *refused*."""

    plans: list[MovePlan] = []
    finished: list[Certificate] = []
    refused: dict[str, str] = {}

    @property
    def members(self) -> dict[str, Any]:
        """The members of JSON."""
        return {"plan": self.plans, "finished": self.finished, "refused": self.refused}


async def check_moves(
    shards: Shards, requests: Sequence[MoveRequest], places: Mapping[str, TenantPlaces] | None = None
) -> tuple[list[FoundMove | Certificate], dict[str, str]]:
    """Return the moves that are possible, in order, and by tenant why others are refused.

    Without *places* all shards are asked for each tenant. Moves to one shard count one after the other, each business
    once.
    """
    refused: dict[str, str] = {}

    async def find(request: MoveRequest) -> FoundMove | Certificate | None:
        try:
            known = None if places is None else places.get(request.tenant_id)
            return await find_move(shards, request.tenant_id, request.shard_id, known)
        except WorkerError as exc:
            refused[request.tenant_id] = str(exc)
            return None

    answers = await run_at_once(find, requests, most=PARALLEL)
    capacities = await fetch_capacities(shards.locator, {one.shard_id for one in requests})
    coming: defaultdict[str, set[str]] = defaultdict(set)  # businesses, by shard
    possible: list[FoundMove | Certificate] = []
    for request, found in zip(requests, answers, strict=True):
        if found is None:
            continue
        capacity = capacities[request.shard_id]
        if capacity is not None and isinstance(found, FoundMove) and not found.has_left:
            business_id, there = request.business_id, coming[request.shard_id]
            try:
                is_there = await has_business(shards.pools.pool_of(request.shard_id), business_id)
                is_counted = is_there or business_id in there
                check_room(request.shard_id, capacity, coming_count=len(there), is_counted=is_counted)
            except WorkerError as exc:
                refused[request.tenant_id] = str(exc)
                continue
            if not is_there:
                there.add(business_id)
        possible.append(found)
    return possible, refused


async def plan_moves(shards: Shards, requests: Sequence[MoveRequest]) -> MovePlans:
    """Return what each move would copy, and why some are refused."""
    possible, refused = await check_moves(shards, requests)

    async def measure(found: FoundMove) -> MovePlan | None:
        try:
            return await plan_move(shards.pools, found.move, goes_on=found.goes_on)
        except WorkerError as exc:
            refused[found.move.tenant_id] = str(exc)
            return None

    plans = await run_at_once(measure, [one for one in possible if isinstance(one, FoundMove)], most=PARALLEL)
    finished = [one for one in possible if isinstance(one, Certificate)]
    return MovePlans([one for one in plans if one is not None], finished, refused)


def plan_answer(planned: MovePlans) -> Answer:
    """Return a plan for people and as JSON; it fails if a move is refused."""
    return Answer(planned.members, _describe_plans(planned), is_failed=bool(planned.refused))


def _describe_plans(planned: MovePlans) -> Iterator[Part]:
    yield plan_table(planned)
    for one in planned.finished:
        yield f"{describe(one)}; by an earlier command"
    for plan in planned.plans:
        if plan.goes_on:
            yield f"{plan.tenant}: a command has begun this move, and not ended it: it goes on"
    for tenant_id, problem in planned.refused.items():
        yield with_tenant(tenant_id, problem)
    if planned.plans:
        yield "nothing was moved; with --apply the tenants are"


def plan_table(planned: MovePlans) -> Table | None:
    """Return what the moves would take; None without moves."""
    return table_of(COLUMNS, msgspec.to_builtins(planned.plans)) if planned.plans else None
