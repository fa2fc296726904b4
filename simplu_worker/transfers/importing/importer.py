"""Import tenants from another database: plan, copy, verify, activate.

A tenant is copied from one snapshot, its rows are compared with those of the source by checksums, and only then it
becomes active. A run that is killed leaves tenants that are `incoming`; the next run copies those again.

A tenant is made on the shard that the locator names, and only if every known shard has answered that it has no row of
its id: before, and again afterwards, as the locator may have changed its answer in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import msgspec
import structlog

from simplu_worker import __version__
from simplu_worker.business_info import Business, BusinessFinder, UnreadableBusinessError
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import is_id
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import group_by_shard, query_all_shards
from simplu_worker.shards.tenants.resource_changes import find_known_types
from simplu_worker.timing.waits import Pacer, run_at_once
from simplu_worker.transfers.importing.copying import (
    INTERVAL_S,
    CopyCallbacks,
    FollowedTenant,
    Follower,
    FollowRound,
    TakenRows,
    TenantCopier,
    text_of,
)
from simplu_worker.transfers.importing.queries import (
    SourceQuery,
    digest_of,
    list_rows_without_tenant,
    list_tenants,
)
from simplu_worker.transfers.importing.rules import (
    LEFT_STATES,
    NO_TENANT,
    TROUBLES,
    FollowState,
    HomeFacts,
    ImportCertificate,
    ImportState,
    RefusedRow,
    SourceTenant,
    TenantReport,
    followed_since,
    name_tenant,
    parse_certificate,
    place_of,
    without_collisions,
)
from simplu_worker.transfers.importing.source import ImportSource, SourceFacts, SourceReader, SourceSnapshot
from simplu_worker.transfers.importing.target import (
    TargetTenant,
    find_shard_problem,
    make_incoming,
    read_homes,
    read_open_imports,
)
from simplu_worker.transfers.moving.checksums import Comparison, describe_difference
from simplu_worker.vocabulary import TransferStep

LOOKUPS_AT_ONCE: Final = 16
QUERY_MAX_TENANTS: Final = 1000
MADE_AT_ONCE: Final = 100  # so that a transaction stays far below 30 s, after which created_at is unusable


class _PlacedImport(msgspec.Struct, frozen=True):
    """A tenant with the step for it, and its shard; *problem* is the reason of a refusal or failure."""

    tenant: SourceTenant
    state: ImportState
    shard_id: str | None = None
    problem: str | None = None
    certificate: str | None = None


class _Homes(msgspec.Struct, frozen=True):
    by_tenant: dict[str, list[HomeFacts]]
    silent: list[str]


class _Placer:
    def __init__(self, locator: Locator, pools: Pools, *, source: str) -> None:
        self._locator = locator
        self._pools = pools
        self._source = source

    async def plan(self, tenants: Sequence[SourceTenant]) -> list[_PlacedImport]:
        named = await self._name_shards(tenants, lambda one: self._locator.locate(one.tenant_id))
        homes = await self._read_homes(tenants)
        return [self._place(one, named.get(one.tenant_id), homes) for one in tenants]

    async def place(self, tenants: Sequence[SourceTenant], *, token: str) -> list[_PlacedImport]:
        """Register the tenants, and make them as `incoming`. Idempotent."""
        homes = await self._read_homes(tenants)
        unmade = [one for one in tenants if self._place(one, None, homes).state is ImportState.IMPORT]
        named = await self._name_shards(unmade, self._register)
        placed = [self._place(one, named.get(one.tenant_id), homes) for one in tenants]
        to_make = [one for one in placed if one.state is ImportState.IMPORT]
        errors = await self._make(to_make, named, token=token)
        after = await self._read_homes([one.tenant for one in to_make])
        return [
            self._made(one, errors.get(one.tenant.tenant_id), after) if one.state is ImportState.IMPORT else one
            for one in placed
        ]

    async def find_rivals(self, placed: _PlacedImport) -> str | None:
        homes = await self._read_homes([placed.tenant])
        found = homes.by_tenant.get(placed.tenant.tenant_id, ())
        others = [home for home in found if home.state not in LEFT_STATES and home.shard_id != placed.shard_id]
        if others:
            return f"shard {others[0].shard_id} has it too, {others[0].state}"
        return _silence(homes)

    def _place(self, tenant: SourceTenant, named: ShardAddress | WorkerError | None, homes: _Homes) -> _PlacedImport:
        if tenant.problem is not None:
            return _PlacedImport(tenant, ImportState.REFUSED, problem=tenant.problem)
        state, home, problem = place_of(tenant, homes.by_tenant.get(tenant.tenant_id, ()), source=self._source)
        if home is not None:
            certificate = home.detail if state is ImportState.THERE else None
            return _PlacedImport(tenant, state, home.shard_id, problem, certificate)
        if (silence := _silence(homes)) is not None:
            return _PlacedImport(tenant, ImportState.FAILED, problem=silence)
        if isinstance(named, WorkerError):
            return _PlacedImport(tenant, _state_after(named), problem=str(named))
        return _PlacedImport(tenant, state, None if named is None else named.shard_id)

    async def _name_shards(
        self, tenants: Sequence[SourceTenant], name: Callable[[SourceTenant], Awaitable[ShardAddress | None]]
    ) -> dict[str, ShardAddress | WorkerError | None]:
        async def answer(tenant: SourceTenant) -> ShardAddress | WorkerError | None:
            try:
                return await name(tenant)
            except WorkerError as exc:
                return exc

        known = [one for one in tenants if one.problem is None]
        answers = await run_at_once(answer, known, most=LOOKUPS_AT_ONCE)
        return {one.tenant_id: found for one, found in zip(known, answers, strict=True)}

    async def _register(self, tenant: SourceTenant) -> ShardAddress:
        address = (await self._locator.register(*tenant.key, tenant.business_type or "")).address
        if not address.is_active:
            raise RetryableError(f"shard {address.shard_id} is not active")
        return address

    async def _read_homes(self, tenants: Iterable[SourceTenant]) -> _Homes:
        ids = [one.tenant_id for one in tenants if one.problem is None]
        by_tenant: defaultdict[str, list[HomeFacts]] = defaultdict(list)
        silent: set[str] = set()
        known = await self._locator.list_shards() if ids else []
        for start in range(0, len(ids), QUERY_MAX_TENANTS):
            part = ids[start : start + QUERY_MAX_TENANTS]

            async def fetch(shard: ShardAddress, part: Sequence[str] = part) -> list[HomeFacts]:
                return await read_homes(self._pools.ensure_pool(shard), part)

            answers = await query_all_shards(known, fetch)
            silent |= {shard.shard_id for shard in known} - answers.keys()
            for home in (home for homes in answers.values() for home in homes):
                by_tenant[home.tenant_id].append(home)
        return _Homes(by_tenant, sorted(silent))

    async def _make(
        self, placed: Sequence[_PlacedImport], named: dict[str, ShardAddress | WorkerError | None], *, token: str
    ) -> dict[str, WorkerError]:
        errors: dict[str, WorkerError] = {}

        async def make(shard: ShardAddress, tenants: Sequence[SourceTenant]) -> None:
            try:
                pool = self._pools.ensure_pool(shard)
                problem = await find_shard_problem(pool, (one.business_type or "" for one in tenants))
                if problem is not None:
                    raise PermanentError(problem)
                for start in range(0, len(tenants), MADE_AT_ONCE):
                    await make_incoming(pool, tenants[start : start + MADE_AT_ONCE], source=self._source, token=token)
            except WorkerError as exc:
                errors.update({one.tenant_id: exc for one in tenants})

        pairs = [
            (shard, one.tenant) for one in placed if isinstance(shard := named.get(one.tenant.tenant_id), ShardAddress)
        ]
        async with asyncio.TaskGroup() as tasks:
            for shard, tenants in group_by_shard(pairs):
                tasks.create_task(make(shard, tenants), name=f"make-incoming:{shard.shard_id}")
        return errors

    def _made(self, placed: _PlacedImport, error: WorkerError | None, homes: _Homes) -> _PlacedImport:
        if error is not None:
            return msgspec.structs.replace(placed, state=_state_after(error), problem=str(error))
        found = self._place(placed.tenant, None, homes)
        if found.state is ImportState.IMPORT:
            problem = f"shard {placed.shard_id}: the row that was made is gone; run this again"
            return msgspec.structs.replace(placed, state=ImportState.FAILED, problem=problem)
        return found


def _state_after(error: WorkerError) -> ImportState:
    return ImportState.REFUSED if isinstance(error, PermanentError) else ImportState.FAILED


def _silence(homes: _Homes) -> str | None:
    return f"no answer from shards that may have it: {', '.join(homes.silent)}" if homes.silent else None


log = structlog.get_logger(__name__)

LEFT_DETAIL: Final = "rows that cannot be taken: correct them, or leave them in the source with --leave-refused"
OTHER_QUERIES: Final = "by other queries: nothing was taken by these"
TO_IMPORT: Final = frozenset({ImportState.IMPORT, ImportState.CONTINUE})


class ImportOptions(msgspec.Struct, frozen=True):
    """The options of a run. *max_rows_per_s* bounds the rows read by all connections together.

    *business_type* is that of every tenant; without it business-info has the types.
    """

    business_type: str | None = None
    parallel: int = 4
    max_rows_per_s: float | None = None
    leave_refused: bool = False


class ImportResult(msgspec.Struct, frozen=True):
    """The result of a plan or of a run; *queries* is their digest."""

    source: SourceFacts
    queries: str
    reports: list[TenantReport]


class DiscardResult(msgspec.Struct, frozen=True):
    """The tenants that were discarded, or not, and the shards that did not answer."""

    source: str
    reports: list[TenantReport]
    silent: list[str]


class ImportShards(msgspec.Struct, frozen=True):
    """The access of an import to the shards, and to business-info if that has the types of tenants."""

    locator: Locator
    pools: Pools
    business_info: BusinessFinder | None


class Importer:
    """Imports the tenants of *source* that *queries* return."""

    def __init__(
        self,
        source: ImportSource,
        queries: Sequence[SourceQuery],
        shards: ImportShards,
        options: ImportOptions,
        callbacks: CopyCallbacks | None = None,
    ) -> None:
        self._source = source
        self._queries = queries
        self._shards = shards
        self._options = options
        self._callbacks = callbacks or CopyCallbacks()
        self._commits = ReplicationWaiter(shards.pools)
        self._pace = Pacer(options.max_rows_per_s)

    async def plan(self) -> ImportResult:
        """Read every row once, and return what an import would do; nothing is changed anywhere.

        Raises `PermanentError` if the queries do not fit, `RetryableError` without an answer.
        """
        async with self._opened() as run:
            placed = await run.placer.plan(run.tenants)
            return await run.report(placed, lambda one: self._scan(run, one))

    async def apply(self) -> ImportResult:
        """Import every tenant that can be; return a report on each. Raises as `plan`, before the first change."""
        token = f"0/{uuid4()}"
        async with self._opened() as run:
            placed = await run.placer.place(run.tenants, token=token)
            return await run.report(placed, lambda one: self._import(run, one, token))

    async def follow(
        self,
        stopping: asyncio.Event,
        report_round: Callable[[FollowRound], None],
        *,
        interval_s: float = INTERVAL_S,
    ) -> ImportResult:
        """Copy every tenant that can be, and follow the source until *stopping*; return a report on each.

        `apply` activates them later. The first round that is reported is the copy. Raises as `plan`.
        """
        token = f"0/{uuid4()}"
        followed: list[FollowedTenant] = []
        async with self._opened() as run:
            placed = await run.placer.place(run.tenants, token=token)
            result = await run.report(placed, lambda one: self._begin_to_follow(run, one, token, followed))
        if not followed:
            return result
        followed_to = datetime.fromisoformat(run.snapshot.facts.taken_at)
        left = [f"{one.name}: {one.detail}" for one in result.reports if one.state in TROUBLES]
        report_round(FollowRound(followed_to, error=text_of(left)))
        follower = Follower(
            self._source,
            run.queries,
            followed,
            self._callbacks,
            self._pace,
            self._shards.locator,
            self._shards.pools,
        )
        await follower.run(stopping, report_round, interval_s=interval_s)
        reports = [
            _report_left(one, follower.failures.get((one.business_id or "", one.location_id or "")))
            for one in result.reports
        ]
        return msgspec.structs.replace(result, reports=reports)

    async def discard(self, *, apply: bool, identity: str | None = None) -> DiscardResult:
        """Delete the tenants of the source that no run has activated; without *apply* list them.

        Of the source with *identity*, if given: the database may have another one by now, or be gone.
        """
        token = f"0/{uuid4()}"
        reports: list[TenantReport] = []
        place = identity
        if identity is None:
            async with self._source.open_snapshot() as snapshot:
                identity, place = snapshot.facts.identity, snapshot.facts.place

        async def read(shard: ShardAddress) -> list[dict[str, Any]]:
            return await read_open_imports(self._shards.pools.ensure_pool(shard), identity)

        known = await self._shards.locator.list_shards()
        found = await query_all_shards(known, read)
        for shard_id, row in ((shard_id, row) for shard_id, rows in sorted(found.items()) for row in rows):
            state, detail, count = ImportState.DISCARDED if apply else ImportState.DISCARD, None, 0
            try:
                if apply:
                    pool = self._shards.pools.pool_of(shard_id)
                    count = await TargetTenant(pool, row["id"], token=token).discard()
            except WorkerError as exc:
                state, detail = ImportState.FAILED, str(exc)
            names = row["business_id"], row["location_id"], row["business_type"]
            reports.append(TenantReport(state, " ".join(names[:2]), *names, shard_id, rows=count, detail=detail))
        return DiscardResult(place or identity, reports, sorted({shard.shard_id for shard in known} - found.keys()))

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[_ImportRun]:
        async with self._source.open_snapshot() as snapshot:
            queries = await snapshot.reader.describe(self._queries)
            listed = await _list_tenants(snapshot.reader, queries)
            await self._note_rows_without_tenant(snapshot.reader, queries)
            known = await find_known_types(self._shards.locator, self._shards.pools)
            tenants = without_collisions([await self._name(one, known) for one in listed])
            tenants.sort(key=lambda one: (-one.row_count, one.key))  # the largest first: the last ones end together
            self._callbacks.note_total(sum(one.row_count for one in tenants if one.problem is None))
            placer = _Placer(self._shards.locator, self._shards.pools, source=snapshot.facts.identity)
            copier = TenantCopier(snapshot, queries, self._callbacks, self._pace)
            yield _ImportRun(snapshot, queries, tenants, placer, copier, self._options.parallel)

    async def _name(self, tenant: SourceTenant, known_types: Mapping[str, Mapping[str, str]]) -> SourceTenant:
        business: Business | str | None = None
        if self._shards.business_info is not None and is_id(tenant.business_id):
            try:
                business = await self._shards.business_info.find(tenant.business_id)
            except UnreadableBusinessError as exc:
                business = str(exc)
        return name_tenant(tenant, business, business_type=self._options.business_type, known_types=known_types)

    async def _note_rows_without_tenant(self, reader: SourceReader, queries: Sequence[SourceQuery]) -> None:
        for query in queries:
            async for page in reader.read_pages(list_rows_without_tenant(query)):
                for row in page:
                    self._callbacks.note_refused(RefusedRow((), query.resource_type, row["resource_id"], NO_TENANT))

    async def _scan(self, run: _ImportRun, placed: _PlacedImport) -> TenantReport:
        return _report(placed, placed.state, await run.copier.copy(placed.tenant, None))

    async def _copy(self, run: _ImportRun, placed: _PlacedImport, target: TargetTenant) -> TakenRows:
        """Copy a tenant, or the changes of one that followed, until its rows are equal to those of the source."""
        state = await target.take_over()
        since = followed_since(state.step, state.detail, queries=run.digest)
        if since is not None:
            taken = await run.copier.complete(placed.tenant, since, target)
            if taken is not None:
                return taken
            log.warning("import.differs", tenant_id=placed.tenant.tenant_id, shard_id=placed.shard_id)
        taken = await run.copier.copy(placed.tenant, target)
        found, taken.verified_on = await target.sum_rows()
        if found != taken.types:
            differing = describe_difference(Comparison(taken.types, found))
            raise RetryableError(
                f"shard {placed.shard_id}: its rows differ from those of the source: {differing}; run this again, which"
                " copies the tenant again"
            )
        return taken

    def _target(self, placed: _PlacedImport, token: str) -> TargetTenant:
        return TargetTenant(self._shards.pools.pool_of(placed.shard_id or ""), placed.tenant.tenant_id, token=token)

    async def _begin_to_follow(
        self, run: _ImportRun, placed: _PlacedImport, token: str, followed: list[FollowedTenant]
    ) -> TenantReport:
        target = self._target(placed, token)
        taken = await self._copy(run, placed, target)
        if taken.refused and not self._options.leave_refused:
            return _report(placed, ImportState.LEFT, taken, detail=LEFT_DETAIL)
        taken_at = datetime.fromisoformat(run.snapshot.facts.taken_at)
        await target.note(TransferStep.FOLLOWING, FollowState(run.digest, taken_at))
        followed.append(FollowedTenant(placed.tenant, target, taken_at))
        return _report(placed, ImportState.FOLLOWED, taken)

    async def _import(self, run: _ImportRun, placed: _PlacedImport, token: str) -> TenantReport:
        tenant, shard_id = placed.tenant, placed.shard_id or ""
        target = self._target(placed, token)
        taken = await self._copy(run, placed, target)
        if taken.refused and not self._options.leave_refused:
            return _report(placed, ImportState.LEFT, taken, detail=LEFT_DETAIL)
        if (rival := await run.placer.find_rivals(placed)) is not None:
            raise RetryableError(rival)
        if taken.verified_on is not None:
            # A shard that loses the activation has the tenant `incoming` then, and what was applied is read again.
            await self._commits.wait_for_transaction(shard_id, taken.verified_on)
        certificate = _certify(run, taken)
        server = await target.activate(certificate, datetime.now(UTC), verified_on=taken.verified_on)
        await self._commits.wait_for_transaction(shard_id, server)
        log.info(
            "tenant.imported",
            business_id=tenant.business_id,
            location_id=tenant.location_id,
            shard_id=shard_id,
            row_count=certificate.rows,
        )
        return _report(placed, ImportState.IMPORTED, taken, certificate=certificate)


class _ImportRun:
    def __init__(
        self,
        snapshot: SourceSnapshot,
        queries: Sequence[SourceQuery],
        tenants: list[SourceTenant],
        placer: _Placer,
        copier: TenantCopier,
        parallel: int,
    ) -> None:
        self.snapshot = snapshot
        self.queries = queries
        self.digest = digest_of(queries)
        self.tenants = tenants
        self.placer = placer
        self.copier = copier
        self._parallel = parallel

    async def report(
        self, placed: Sequence[_PlacedImport], work: Callable[[_PlacedImport], Awaitable[TenantReport]]
    ) -> ImportResult:
        reports = [_report_untouched(one, self.digest) for one in placed if one.state not in TO_IMPORT]

        async def work_on(one: _PlacedImport) -> TenantReport:
            try:
                return await work(one)
            except WorkerError as exc:
                return _report(one, _state_after(exc), None, detail=str(exc))

        reports += await run_at_once(work_on, [one for one in placed if one.state in TO_IMPORT], most=self._parallel)
        reports.sort(key=lambda report: report.name)
        return ImportResult(self.snapshot.facts, self.digest, reports)


async def _list_tenants(reader: SourceReader, queries: Iterable[SourceQuery]) -> list[SourceTenant]:
    counts: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for query in queries:
        async for page in reader.read_pages(list_tenants(query)):
            for row in page:
                counts[row["business_id"], row["location_id"]][query.resource_type] = row["row_count"]
    # `list_rows_without_tenant` has the rows without one of the two.
    return [SourceTenant(*key, of_tenant) for key, of_tenant in counts.items() if None not in key]


def _certify(run: _ImportRun, taken: TakenRows) -> ImportCertificate:
    facts = run.snapshot.facts
    return ImportCertificate(
        source=facts.place,
        snapshot_at=facts.taken_at,
        queries=run.digest,
        rows=taken.total.row_count,
        bytes=taken.total.byte_count,
        checksum=taken.total.digest,
        verified_at=datetime.now(UTC).isoformat(timespec="seconds"),
        worker_version=__version__,
        types={name: one.row_count for name, one in taken.types.items()},
        refused=dict(taken.refused),
        deleted=taken.deleted,
    )


def _report(
    placed: _PlacedImport,
    state: ImportState,
    taken: TakenRows | None,
    *,
    detail: str | None = None,
    certificate: ImportCertificate | None = None,
) -> TenantReport:
    tenant = placed.tenant
    return TenantReport(
        state=state,
        name=tenant.name,
        business_id=tenant.business_id,
        location_id=tenant.location_id,
        business_type=tenant.business_type,
        shard_id=placed.shard_id,
        rows=0 if taken is None else taken.total.row_count,
        bytes=0 if taken is None else taken.total.byte_count,
        refused={} if taken is None else dict(taken.refused),
        deleted=0 if taken is None else taken.deleted,
        detail=detail,
        certificate=certificate,
    )


def _report_left(report: TenantReport, error: str | None) -> TenantReport:
    if error is None or report.state is not ImportState.FOLLOWED:
        return report
    return msgspec.structs.replace(report, state=ImportState.FAILED, detail=error)


def _report_untouched(placed: _PlacedImport, digest: str) -> TenantReport:
    certificate = parse_certificate(placed.certificate)
    report = _report(placed, placed.state, None, detail=placed.problem, certificate=certificate)
    if certificate is None:
        return report
    detail = None if certificate.queries == digest else OTHER_QUERIES
    return msgspec.structs.replace(report, rows=certificate.rows, bytes=certificate.bytes, detail=detail)
