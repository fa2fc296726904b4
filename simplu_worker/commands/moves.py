"""`tenants move`, `rollback`, `verify` and `cleanup`: plan moves, run some at a time, and publish each new home."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.cache.cache import open_cache
from simplu_worker.commands.command_line import DEFAULT_BOUNDS, MoveBounds, parse_duration
from simplu_worker.commands.output import (
    Answer,
    Line,
    Part,
    Table,
    TransferProgress,
    print_json_line,
    print_line,
    print_note,
    print_table,
    table_of,
)
from simplu_worker.commands.running import parse_tenant_id, require_settings
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.health import assessment
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.routing.citrus import CitrusClient
from simplu_worker.shards.routing.locator import StaticMap, pin_in_file
from simplu_worker.shards.routing.shard_query import fetch_from_shard, query_with_causes
from simplu_worker.shards.settling import Transfer, read_transfer
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import run_at_once
from simplu_worker.transfers import QUERIES
from simplu_worker.transfers.engine import TransferStatus
from simplu_worker.transfers.moving.balance import WayBack, way_back
from simplu_worker.transfers.moving.checksums import (
    Comparison,
    TypeSum,
    check_former_rows,
    compare_shards,
    describe_difference,
)
from simplu_worker.transfers.moving.mover import PAUSE, Mover
from simplu_worker.transfers.moving.places import (
    MovePlan,
    TenantPlaces,
    check_room,
    check_shards,
    find_places,
    has_business,
    plan_move,
)
from simplu_worker.transfers.moving.sides import MoveUndo, clean_up, count_copied
from simplu_worker.transfers.moving.types import GONE, Certificate, Move, MoveOptions
from simplu_worker.vocabulary import MoveOutcome, TransferKind, TransferStep

DIFFERS: Final = (
    "its rows differ from those on its former shard, where they stay; run: simplu-worker tenants verify, correct what "
    "differs, then this move again"
)
GOES_ON: Final = "a command has started this move, and not ended it: it continues"
TYPES_SHOWN: Final = 12  # resource types of a comparison on the screen; `--json` has all of them
SUM_COLUMNS: Final = ("resource type", "rows", "bytes", "checksum")
PLANNED_AT_ONCE: Final = 8  # tenants
POLL_S: Final = 1.0
VERBS: Final = {kind: f"{kind}s" for kind in TransferKind} | {TransferKind.DEPARTURE: "moves"}
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


class FoundMove(msgspec.Struct, frozen=True):
    """A move that is possible. *goes_on*: a command has begun it."""

    move: Move
    goes_on: bool


class MoveResult(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What became of one request: a certificate, or an error; *warning*, if Citrus or the map was not written."""

    tenant: str
    outcome: MoveOutcome
    certificate: Certificate | None = None
    error: str | None = None
    warning: str | None = None


async def find_home(shards: Shards, tenant_id: str, places: TenantPlaces | None = None) -> str:
    """Return the shard with a tenant's home. Raises as `TenantPlaces.home`, and `RetryableError` between two shards."""
    known = places or await find_places(shards.locator, shards.pools, tenant_id)
    if (home := known.home()) is None:
        raise RetryableError(
            f"{tenant_id}: the tenant has left its shard; workers activate it within seconds: run the command again"
        )
    return home


async def find_move(
    shards: Shards, request: MoveRequest, places: TenantPlaces | None = None
) -> FoundMove | Certificate:
    """Return the move of a tenant, or the certificate of one done.

    With *places* the plan that has them counts the room. Raises `PermanentError` if the tenant cannot be moved there,
    `RetryableError` if a shard or Citrus does not answer.
    """
    tenant_id, target_id = request.tenant_id, request.shard_id
    known = places or await find_places(shards.locator, shards.pools, tenant_id)
    source_id, home = known.source_for(target_id), known.home()
    move = Move(tenant_id, source_id, target_id)
    if home == source_id:  # a tenant that has left its shard has to arrive, whatever the other one is like
        await check_shards(shards.locator, shards.pools, tenant_id, source_id, target_id)
        if places is None:
            await _check_room(shards, request)
        return FoundMove(move, goes_on=target_id in known.arriving_on())
    if home == target_id:
        async with shards.pools.pool_of(source_id).connection() as connection:
            departure = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
        if departure is not None and departure.place == target_id and (kept := _last_certificate(departure)):
            return kept
    return FoundMove(move, goes_on=True)


async def _check_room(shards: Shards, request: MoveRequest) -> None:
    if isinstance(shards.locator, CitrusClient):
        capacity = await shards.locator.fetch_capacity(request.shard_id)
        if capacity is not None:
            is_there = await has_business(shards.pools.pool_of(request.shard_id), request.business_id)
            check_room(request.shard_id, capacity, is_counted=is_there)


def _last_certificate(departure: Transfer) -> Certificate | None:
    """Return the certificate of a finished move, unless its rows are to be compared again."""
    found = departure.detail.get("certificate")
    is_last = departure.step in {TransferStep.CLEANING, TransferStep.CLEANED} or (
        departure.step == TransferStep.DONE and departure.is_equal
    )
    return msgspec.convert(found, Certificate) if found and is_last else None


async def find_refused(
    shards: Shards, requests: Sequence[MoveRequest], places: Mapping[str, TenantPlaces]
) -> dict[str, str]:
    """Return by tenant why moves are not possible."""
    refused: dict[str, str] = {}

    async def find(request: MoveRequest) -> None:
        try:
            await find_move(shards, request, places.get(request.tenant_id))
        except WorkerError as exc:
            refused[request.tenant_id] = str(exc)

    await run_at_once(find, requests, most=PLANNED_AT_ONCE)
    return refused


async def wait_for_killed(
    shard: ShardPool, tenant_id: str, kind: TransferKind = TransferKind.DEPARTURE, home: str | None = None
) -> None:
    """Wait until the command of a transfer on *shard*, if any, counts as killed. Raises `RetryableError` if it runs."""
    began_at, is_told = loop_time(), False
    while True:
        waited_s = loop_time() - began_at
        async with shard.connection() as connection:
            with connection.working_in(home or connection.home):
                found = await read_transfer(connection, tenant_id, kind)
        silent_s = None if found is None else found.silent_s
        if silent_s is None or silent_s > assessment.RUNNING_S:
            return
        if silent_s < waited_s:  # it has noted since
            raise RetryableError(f"{tenant_id}: another command {VERBS[kind]} it; run this again once that has ended")
        if not is_told:
            print_note(
                f"{tenant_id}: another command has started to {VERBS[kind].removesuffix('s')} it, and counts as killed "
                f"once it has written nothing for {assessment.RUNNING_S:.0f} s: waiting for that"
            )
            is_told = True
        await asyncio.sleep(POLL_S)


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


class MoveRunner:
    """Runs moves, some at a time, and publishes each."""

    def __init__(
        self, settings: Settings, shards: Shards, bounds: MoveBounds, *, as_json: bool, parallel: int = 1
    ) -> None:
        self._settings = settings
        self._shards = shards
        self._as_json = as_json
        self._parallel = parallel
        self._publishing = asyncio.Lock()
        self._options = MoveOptions(
            log_kept=timedelta(hours=settings.operation_retention_hours), max_pause_s=bounds.max_pause
        )

    async def run(self, requests: Sequence[MoveRequest]) -> int:
        """Run all moves, print each, and clear the cache, also if cancelled; return 1 if one failed or rows differ."""

        async def run_one(request: MoveRequest) -> MoveOutcome:
            result = await self._run_one(request, partial(show_status, progress, request.tenant_id))
            progress.finish()
            print_result(result, as_json=self._as_json, is_only=len(requests) == 1)
            return result.outcome

        with TransferProgress(len(requests)) as progress:
            try:
                outcomes = await run_at_once(run_one, requests, most=self._parallel)
            finally:
                if warning := await clear_cache(self._settings):  # also after a command that was killed before that
                    print_note(warning)
        return 0 if all(one is MoveOutcome.MOVED for one in outcomes) else 1

    async def _run_one(self, request: MoveRequest, show: Callable[[TransferStatus], None]) -> MoveResult:
        tenant_id, certificate = request.tenant_id, None
        try:
            certificate = await self._move(request, show)
            warning = await self._publish(request)
        except WorkerError as exc:
            return MoveResult(tenant_id, MoveOutcome.FAILED, error=str(exc))
        except Exception as exc:  # a bug: the other tenants go on
            log.exception("move.crashed", tenant_id=tenant_id)
            error = f"{type(exc).__name__}: a bug, which the log has; run the same command again to continue"
            return MoveResult(tenant_id, MoveOutcome.FAILED, certificate, error)
        outcome = MoveOutcome.MOVED if certificate.comparison.is_equal else MoveOutcome.DIFFERS
        return MoveResult(tenant_id, outcome, certificate, warning=warning)

    async def _move(self, request: MoveRequest, show: Callable[[TransferStatus], None]) -> Certificate:
        found = await find_move(self._shards, request)
        if isinstance(found, FoundMove):
            await wait_for_killed(self._shards.pools.pool_of(found.move.source_id), request.tenant_id)
            if found.goes_on:
                found = await find_move(self._shards, request)  # a worker may have activated the tenant meanwhile
        if isinstance(found, Certificate):
            return found
        return await Mover(self._shards.pools, self._shards.commits, found.move, self._options, show=show).run()

    async def _publish(self, request: MoveRequest) -> str | None:
        locator, tenant_id, shard_id = self._shards.locator, request.tenant_id, request.shard_id
        async with self._publishing:
            try:
                if isinstance(locator, CitrusClient):
                    if not await locator.move(tenant_id, shard_id):
                        return (
                            f"Citrus has no PUT /api/shard/{tenant_id}, or does not know the tenant: it still names "
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


def show_status(progress: TransferProgress, tenant_id: str, status: TransferStatus) -> None:
    """Show how far a transfer is, but not in the pause of a move: that takes time."""
    if status.phase not in PAUSE:
        progress.show(tenant_id, status.phase, status.row_count, status.row_total)


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
        f"{compared.row_count} resources compared{changed}: {compared.verdict}"
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


PLAN_COLUMNS: Final = {
    "tenant": "tenant",
    "sourceShard": "from",
    "targetShard": "to",
    "resources": "resources",
    "byteCount": "bytes",
    "operations": "operations",
}


class Planned(msgspec.Struct, frozen=True):
    """What a move would copy, or the certificate of one that has ended."""

    plan: list[MovePlan] = []
    finished: list[Certificate] = []

    def describe(self) -> Iterator[Part]:
        """Yield it for people."""
        if self.plan:
            yield table_of(PLAN_COLUMNS, msgspec.to_builtins(self.plan))
        for one in self.finished:
            yield f"{describe(one)}; by an earlier command"
        for plan in self.plan:
            if plan.goes_on:
                yield f"{plan.tenant}: {GOES_ON}"


async def plan_request(shards: Shards, request: MoveRequest) -> Planned:
    """Return what a move would copy. Raises as `find_move`."""
    found = await find_move(shards, request)
    if isinstance(found, Certificate):
        return Planned(finished=[found])
    return Planned([await plan_move(shards.pools, found.move, goes_on=found.goes_on)])


async def move_tenant(
    settings: Settings, request: MoveRequest, bounds: MoveBounds, *, apply: bool, as_json: bool
) -> Answer | int:
    """Return what a move would take; with *apply* move the tenant. Fails if that failed, or its rows differ."""
    require_settings(settings, routes=True)
    parse_tenant_id(request.business_id, request.location_id)
    async with open_shards(settings) as shards:
        if apply:
            return await MoveRunner(settings, shards, bounds, as_json=as_json).run([request])
        planned = await plan_request(shards, request)
    note = "nothing was moved; with --apply the tenant is" if planned.plan else None
    return Answer(planned, [*planned.describe(), note])


async def rollback_tenant(
    settings: Settings,
    tenant: tuple[str, str],
    bounds: MoveBounds = DEFAULT_BOUNDS,
    *,
    apply: bool,
    as_json: bool,
    stay: bool = False,
) -> Answer | int:
    """Plan to delete the copy of a move that has not ended, or to move the tenant back; with *apply* do so.

    With *stay* copies are only deleted.
    """
    require_settings(settings, routes=True)
    tenant_id = parse_tenant_id(*tenant)
    async with open_shards(settings) as shards:
        places = await find_places(shards.locator, shards.pools, tenant_id)
        copies, destroyed_on = places.arriving_on(), places.destroyed_on()
        if destroyed_on is not None and copies:
            home, state = destroyed_on, f"was destroyed on shard {destroyed_on}"
            way = WayBack(tuple(copies))
        else:
            home = await find_home(shards, tenant_id, places)
            state = f"stays on shard {home}"
            way = await _find_way_back(shards, tenant, home, copies, stay=stay)
        if not way.undone and stay:
            raise PermanentError(f"{tenant_id}: expected a move that has not ended, got none: its home is shard {home}")
        if not apply:
            return await _plan(shards, tenant, home, way)
        await wait_for_killed(shards.pools.pool_of(home), tenant_id)
        count = sum([await MoveUndo(shards.pools, tenant_id, home, copy).run() for copy in way.undone])
        if way.back_to is None:
            members = {"tenant": tenant_id, "outcome": MoveOutcome.UNDONE, "rowsDeleted": count}
            return Answer(members, [Line(f"{tenant_id}: {state}; {count} rows of the copy deleted")])
        runner = MoveRunner(settings, shards, bounds, as_json=as_json)
        status = await runner.run([MoveRequest(*tenant, way.back_to)])
    if status:
        print_note(
            f"{tenant_id}: run the command again to continue, or with --stay to leave the tenant on shard {home}"
        )
    return status


async def _plan(shards: Shards, tenant: tuple[str, str], home: str, way: WayBack) -> Answer:
    tenant_id = parse_tenant_id(*tenant)
    count = sum([await count_copied(shards.pools, tenant_id, copy) for copy in way.undone])
    planned = Planned()
    if way.back_to is not None and not way.undone:  # beside another copy a move is refused, and that goes first
        planned = await plan_request(shards, MoveRequest(*tenant, way.back_to))
    steps = [f"the copy on shard {copy} is deleted; the tenant is on shard {home}" for copy in way.undone]
    steps += [f"{count} rows of the copy"] if way.undone else []
    steps += [] if way.back_to is None else [f"moves back from shard {home} to shard {way.back_to}"]
    plan = {
        "tenant": tenant_id,
        "shard": home,
        "deletesCopiesOn": way.undone,
        "rowsDeleted": count,
        "backTo": way.back_to,
    }
    parts = [
        *(Line(f"{tenant_id}: {step}") for step in steps),
        *planned.describe(),
        "nothing was changed; with --apply this is done",
    ]
    return Answer({"rollback": plan, "plan": planned.plan}, parts)


async def _find_way_back(
    shards: Shards, tenant: tuple[str, str], home: str, copies: Sequence[str], *, stay: bool
) -> WayBack:
    pools, tenant_id = shards.pools, parse_tenant_id(*tenant)
    async with pools.pool_of(home).connection() as connection:
        arrival = await read_transfer(connection, tenant_id, TransferKind.ARRIVAL)
        departure = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
    came_from, last_move = None, None
    if arrival is not None:
        came_from = arrival.place
        with contextlib.suppress(RetryableError):  # a copy elsewhere can be deleted without this shard
            async with pools.pool_of(came_from).connection() as connection:
                last_move = await read_transfer(connection, tenant_id, TransferKind.DEPARTURE)
    way = way_back(
        home,
        copies,
        came_from=came_from,
        last_departure=departure,
        last_move=last_move,
        known=pools.by_shard_id(),
        stay=stay,
    )
    if way.is_unended:
        raise PermanentError(
            f"{tenant_id}: its move to shard {home} has not ended; run: simplu-worker tenants move "
            f"{shlex.join(tenant)} --to {home} --apply, and this again if the tenant is to leave the shard"
        )
    if came_from is None and not way.undone and not stay:
        raise PermanentError(
            f"{tenant_id}: shard {home} knows of no move there, or the tenant was restored since; name the shard that "
            "it is to move to: simplu-worker tenants move, with --to"
        )
    return way


SHOWN_MAX: Final = 20  # resources that differ


async def verify_tenant(settings: Settings, tenant: tuple[str, str]) -> Answer:
    """Compare a tenant with the shard that it left; it fails if something differs."""
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
        await check_former_rows(source, target, tenant_id, arrival)
        comparison = await compare_shards(
            source, target, tenant_id, arrival.ready_at, live_on_source=False, log_kept=kept / 2
        )
    members = {"tenant": tenant_id, "verdict": comparison.verdict, "comparison": comparison}
    return Answer(members, _describe_comparison(tenant_id, comparison), is_failed=not comparison.is_equal)


def _describe_comparison(tenant_id: str, comparison: Comparison) -> Iterator[Part]:
    yield Table(SUM_COLUMNS, sum_rows(comparison))
    changed = f"; {comparison.excluded} that may have changed since the move are not compared"
    yield Line(f"{tenant_id}: {comparison.row_count} resources compared{changed}: {comparison.verdict}")
    if not comparison.is_equal:
        yield f"differing: {describe_difference(comparison)}"
        for resource_type, resource_id in comparison.differing[:SHOWN_MAX]:
            yield f"  {resource_type} {resource_id}"
        yield (
            "what its producers send again is right, and not compared any more; tenants cleanup leaves the rows on the "
            "former shard"
        )


async def _find_move(shards: Shards, tenant_id: str) -> tuple[ShardPool, ShardPool, Transfer]:
    """Return the shard that a tenant left, its home, and the journal of the move there."""
    home = await find_home(shards, tenant_id)
    target = shards.pools.pool_of(home)
    async with target.connection() as connection:
        arrival = await read_transfer(connection, tenant_id, TransferKind.ARRIVAL)
    if arrival is None:
        raise PermanentError(f"{tenant_id}: expected a tenant that has moved to shard {home}, got one that has not")
    return shards.pools.pool_of(arrival.place), target, arrival


KEPT: Final = (
    "its move ended with rows that differ, and these may be the better ones; run: simplu-worker tenants verify, "
    "correct what differs, then tenants move again; or with --differing they are deleted too"
)
COUNTED_AT_ONCE: Final = 8  # tenants: each takes a read of the indexes of all its rows


async def clean_up_tenants(settings: Settings, older_than: str, *, differing: bool = False, apply: bool) -> Answer:
    """Delete the rows that tenants have left on former shards; fail if some stay. Without *apply* count them."""
    require_settings(settings, routes=True)
    age = parse_duration("--older-than", older_than)
    async with open_shards(settings) as shards:

        async def ask(address: ShardAddress) -> list[dict[str, Any]]:
            return await fetch_from_shard(shards.pools.ensure_pool(address), QUERIES["find_left_behind"], age)

        known = await shards.locator.list_shards()
        left, silent = await query_with_causes(known, ask)
        known_ids = {one.shard_id for one in known}

        async def look(rows: tuple[str, dict[str, Any]]) -> dict[str, Any]:
            (shard_id, one), home_id = rows, rows[1]["target_shard_id"]
            try:
                if one["differs"] and not differing:
                    raise PermanentError(KEPT)
                if home_id not in known_ids:  # it has left the map or Citrus since
                    home_id = await _find_last_home(shards, one["tenant_id"])
                if home_id in silent:  # each try would take as long as its deadline
                    raise RetryableError(f"no answer from shard {home_id}, where its home is")
                way = one["tenant_id"], shard_id, one["target_shard_id"]
                count = await clean_up(shards.pools, shards.commits, *way, home_id=home_id, apply=apply)
                found: dict[str, Any] = {"rows": count}
            except WorkerError as exc:
                found = {"error": str(exc)}
            return {"tenant": one["tenant_id"], "left": shard_id, "home": home_id} | found

        rows = [(shard_id, one) for shard_id in sorted(left) for one in left[shard_id]]
        found = await run_at_once(look, rows, most=1 if apply else COUNTED_AT_ONCE)
    count = sum(one.get("rows") or 0 for one in found)
    parts = [
        table_of({"tenant": "tenant", "left": "left", "home": "home", "rows": "rows"}, found),
        *(f"{one['tenant']}: its rows stay on shard {one['left']}: {one['error']}" for one in found if "error" in one),
        *(f"{one['tenant']}: its home is another one now" for one in found if one.get("rows", 0) is None),
        f"nothing was deleted; with --apply these {count} rows are" if found and not apply else None,
    ]
    is_failed = any("error" in one for one in found)
    return Answer({"applied": apply, "tenants": found}, parts, silent, is_failed)


async def _find_last_home(shards: Shards, tenant_id: str) -> str:
    """Return the shard with the tenant's home, or the one on which it was destroyed."""
    places = await find_places(shards.locator, shards.pools, tenant_id)
    gone = [shard_id for shard_id, state in places.states.items() if state in GONE]
    return gone[0] if len(gone) == 1 and places.home() is None else await find_home(shards, tenant_id, places)
