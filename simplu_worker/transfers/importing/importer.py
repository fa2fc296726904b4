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
from simplu_worker.shards.routing.following import follow_shards
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
    TargetTenant,
    TenantCopier,
    find_shard_problem,
    make_incoming,
    read_homes,
    read_open_imports,
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
    place_of,
    report_of,
    without_collisions,
)
from simplu_worker.transfers.importing.source import ImportSource, SourceFacts, SourceReader, SourceSnapshot
from simplu_worker.transfers.moving.checksums import Comparison, describe_difference
from simplu_worker.vocabulary import TransferStep

LOOKUPS_AT_ONCE: Final = 16
MADE_AT_ONCE: Final = 100  # so that a transaction stays far below 30 s, after which created_at is unusable
LEFT_DETAIL: Final = "rows that cannot be taken: correct them, or leave them in the source with --leave-refused"
TO_IMPORT: Final = frozenset({ImportState.IMPORT, ImportState.CONTINUE})

log = structlog.get_logger(__name__)


class _Homes(msgspec.Struct, frozen=True):
    by_tenant: dict[str, list[HomeFacts]]
    silent: list[str]

    @property
    def silence(self) -> str | None:
        return f"no answer from shards that may have it: {', '.join(self.silent)}" if self.silent else None


class _Placer(msgspec.Struct, frozen=True):
    """Finds the shards of the tenants of *source*, and the step for each."""

    locator: Locator
    pools: Pools
    source: str

    async def place(self, tenants: Sequence[SourceTenant], *, token: str | None) -> list[TenantReport]:
        """Return the step for each tenant; with *token* register and make those that no shard has. Idempotent."""
        homes = await self._read_homes(tenants)
        unmade = [one for one in tenants if self._place(one, None, homes).state is ImportState.IMPORT]
        named = await self._name_shards(unmade, registers=token is not None)
        placed = [self._place(one, named.get(one.key), homes) for one in tenants]
        if token is None:
            return placed
        shards = [(shard, one) for one in unmade if isinstance(shard := named[one.key], ShardAddress)]
        errors = await self._make(shards, token)
        after = await self._read_homes([one for _, one in shards])
        made = {one.key: self._made(one, shard, errors.get(one.key), after) for shard, one in shards}
        return [made.get(tenant.key, report) for tenant, report in zip(tenants, placed, strict=True)]

    async def find_rivals(self, tenant: SourceTenant, shard_id: str | None) -> str | None:
        homes = await self._read_homes([tenant])
        found = homes.by_tenant.get(tenant.tenant_id, ())
        others = [home for home in found if home.state not in LEFT_STATES and home.shard_id != shard_id]
        return f"shard {others[0].shard_id} has it too, {others[0].state}" if others else homes.silence

    def _place(self, tenant: SourceTenant, named: ShardAddress | WorkerError | None, homes: _Homes) -> TenantReport:
        if tenant.problem is not None:
            return report_of(tenant, ImportState.REFUSED, detail=tenant.problem)
        state, home, problem = place_of(tenant, homes.by_tenant.get(tenant.tenant_id, ()), source=self.source)
        if home is not None:
            is_there = state is ImportState.THERE and home.detail is not None
            certificate = msgspec.json.decode(home.detail or "", type=ImportCertificate) if is_there else None
            return report_of(tenant, state, home.shard_id, problem, certificate)
        if homes.silence is not None:
            return report_of(tenant, ImportState.FAILED, detail=homes.silence)
        if isinstance(named, WorkerError):
            return report_of(tenant, _state_after(named), detail=str(named))
        return report_of(tenant, state, None if named is None else named.shard_id)

    async def _name_shards(
        self, tenants: Sequence[SourceTenant], *, registers: bool
    ) -> dict[tuple[str, str], ShardAddress | WorkerError | None]:
        async def name(tenant: SourceTenant) -> ShardAddress | WorkerError | None:
            try:
                if not registers:
                    return await self.locator.locate(tenant.tenant_id)
                address = (await self.locator.register(*tenant.key, tenant.business_type or "")).address
            except WorkerError as exc:
                return exc
            return address if address.is_active else RetryableError(f"shard {address.shard_id} is not active")

        answers = await run_at_once(name, tenants, most=LOOKUPS_AT_ONCE)
        return {one.key: found for one, found in zip(tenants, answers, strict=True)}

    async def _read_homes(self, tenants: Iterable[SourceTenant]) -> _Homes:
        ids = [one.tenant_id for one in tenants if one.problem is None]
        known = await self.locator.list_shards() if ids else []
        await follow_shards(self.pools, known)

        async def fetch(shard: ShardAddress) -> list[HomeFacts]:
            return await read_homes(self.pools.ensure_pool(shard), ids)

        answers = await query_all_shards(known, fetch)
        by_tenant: defaultdict[str, list[HomeFacts]] = defaultdict(list)
        for home in (home for homes in answers.values() for home in homes):
            by_tenant[home.tenant_id].append(home)
        return _Homes(by_tenant, sorted({shard.shard_id for shard in known} - answers.keys()))

    async def _make(
        self, pairs: Sequence[tuple[ShardAddress, SourceTenant]], token: str
    ) -> dict[tuple[str, str], WorkerError]:
        errors: dict[tuple[str, str], WorkerError] = {}

        async def make(shard: ShardAddress, tenants: Sequence[SourceTenant]) -> None:
            try:
                pool = self.pools.ensure_pool(shard)
                problem = await find_shard_problem(pool, (one.business_type or "" for one in tenants))
                if problem is not None:
                    raise PermanentError(problem)
                for start in range(0, len(tenants), MADE_AT_ONCE):
                    await make_incoming(pool, tenants[start : start + MADE_AT_ONCE], source=self.source, token=token)
            except WorkerError as exc:
                errors.update({one.key: exc for one in tenants})

        async with asyncio.TaskGroup() as tasks:
            for shard, tenants in group_by_shard(pairs):
                tasks.create_task(make(shard, tenants), name=f"make-incoming:{shard.shard_id}")
        return errors

    def _made(
        self, tenant: SourceTenant, shard: ShardAddress, error: WorkerError | None, homes: _Homes
    ) -> TenantReport:
        if error is not None:
            return report_of(tenant, _state_after(error), shard.shard_id, str(error))
        found = self._place(tenant, None, homes)
        if found.state is not ImportState.IMPORT:
            return found
        detail = f"shard {shard.shard_id}: the row that was made is gone; run this again"
        return report_of(tenant, ImportState.FAILED, shard.shard_id, detail)


def _state_after(error: WorkerError) -> ImportState:
    return ImportState.REFUSED if isinstance(error, PermanentError) else ImportState.FAILED


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


class ImportShards(msgspec.Struct, frozen=True):
    """The access of an import to the shards, and to business-info if that has the types of tenants."""

    locator: Locator
    pools: Pools
    business_info: BusinessFinder | None


class _Opened(msgspec.Struct, frozen=True):
    """A run with its snapshot."""

    snapshot: SourceSnapshot
    queries: Sequence[SourceQuery]
    digest: str
    tenants: list[SourceTenant]
    placer: _Placer
    copier: TenantCopier


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
        self._token = f"0/{uuid4()}"

    async def plan(self) -> ImportResult:
        """Read every row once, and return what an import would do; nothing is changed anywhere.

        Raises `PermanentError` if the queries do not fit, `RetryableError` without an answer.
        """

        async def scan(run: _Opened, tenant: SourceTenant, report: TenantReport) -> TenantReport:
            return with_taken(report, report.state, await run.copier.copy(tenant, None))

        async with self._opened() as run:
            return await self._run(run, scan, token=None)

    async def apply(self) -> ImportResult:
        """Import every tenant that can be; return a report on each. Raises as `plan`, before the first change."""
        async with self._opened() as run:
            return await self._run(run, self._import, token=self._token)

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
        followed: dict[tuple[str, str], FollowedTenant] = {}

        async def begin(run: _Opened, tenant: SourceTenant, report: TenantReport) -> TenantReport:
            target = self._target(tenant, report)
            taken = await self._copy(run, tenant, target)
            if taken.refused and not self._options.leave_refused:
                return with_taken(report, ImportState.LEFT, taken, detail=LEFT_DETAIL)
            taken_at = datetime.fromisoformat(run.snapshot.facts.taken_at)
            await target.note(TransferStep.FOLLOWING, FollowState(run.digest, taken_at))
            followed[tenant.key] = FollowedTenant(tenant, target, taken_at)
            return with_taken(report, ImportState.FOLLOWED, taken)

        async with self._opened() as run:
            result = await self._run(run, begin, token=self._token)
        if not followed:
            return result
        left = [f"{one.name}: {one.detail}" for one in result.reports if one.state in TROUBLES]
        report_round(FollowRound(datetime.fromisoformat(run.snapshot.facts.taken_at), error=text_of(left)))
        shards = self._shards
        follower = Follower(
            self._source, run.queries, followed, self._callbacks, self._pace, shards.locator, shards.pools
        )
        await follower.run(stopping, report_round, interval_s=interval_s)
        failures = {" ".join(key): error for key, error in follower.failures.items()}
        reports = [
            msgspec.structs.replace(one, state=ImportState.FAILED, detail=failures[one.name])
            if one.state is ImportState.FOLLOWED and one.name in failures
            else one
            for one in result.reports
        ]
        return msgspec.structs.replace(result, reports=reports)

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[_Opened]:
        async with self._source.open_snapshot() as snapshot:
            queries = await snapshot.reader.describe(self._queries)
            listed = await _list_tenants(snapshot.reader, queries)
            for query in queries:
                async for page in snapshot.reader.read_pages(list_rows_without_tenant(query)):
                    for row in page:
                        self._callbacks.note_refused(RefusedRow((), query.resource_type, row["resource_id"], NO_TENANT))
            known = await find_known_types(self._shards.locator, self._shards.pools)
            tenants = without_collisions([await self._name(one, known) for one in listed])
            tenants.sort(key=lambda one: (-one.row_count, one.key))  # the largest first: the last ones end together
            self._callbacks.note_total(sum(one.row_count for one in tenants if one.problem is None))
            placer = _Placer(self._shards.locator, self._shards.pools, snapshot.facts.identity)
            copier = TenantCopier(snapshot, queries, self._callbacks, self._pace)
            yield _Opened(snapshot, queries, digest_of(queries), tenants, placer, copier)

    async def _name(self, tenant: SourceTenant, known_types: Mapping[str, Mapping[str, str]]) -> SourceTenant:
        business: Business | str | None = None
        if self._shards.business_info is not None and is_id(tenant.business_id):
            try:
                business = await self._shards.business_info.find(tenant.business_id)
            except UnreadableBusinessError as exc:
                business = str(exc)
        return name_tenant(tenant, business, business_type=self._options.business_type, known_types=known_types)

    async def _run(
        self,
        run: _Opened,
        work: Callable[[_Opened, SourceTenant, TenantReport], Awaitable[TenantReport]],
        *,
        token: str | None,
    ) -> ImportResult:
        """Place all tenants, and do the *work* for those that are to be imported."""

        async def work_on(placed: tuple[SourceTenant, TenantReport]) -> TenantReport:
            tenant, report = placed
            if report.state not in TO_IMPORT:
                return report
            try:
                return await work(run, tenant, report)
            except WorkerError as exc:
                return msgspec.structs.replace(report, state=_state_after(exc), detail=str(exc))

        placed = await run.placer.place(run.tenants, token=token)
        pairs = [*zip(run.tenants, placed, strict=True)]
        reports = await run_at_once(work_on, pairs, most=self._options.parallel)
        return ImportResult(run.snapshot.facts, run.digest, sorted(reports, key=lambda report: report.name))

    async def _copy(self, run: _Opened, tenant: SourceTenant, target: TargetTenant) -> TakenRows:
        """Copy a tenant, or the changes of one that followed, until its rows are equal to those of the source."""
        state = await target.take_over()
        since = followed_since(state.step, state.detail, queries=run.digest)
        if since is not None:
            taken = await run.copier.complete(tenant, since, target)
            if taken is not None:
                return taken
            log.warning("import.differs", tenant_id=tenant.tenant_id, shard_id=target.shard_id)
        taken = await run.copier.copy(tenant, target)
        found, taken.verified_on = await target.sum_rows()
        if found != taken.types:
            differing = describe_difference(Comparison(taken.types, found))
            raise RetryableError(
                f"shard {target.shard_id}: its rows differ from those of the source: {differing}; run this again, which"
                " copies the tenant again"
            )
        return taken

    def _target(self, tenant: SourceTenant, report: TenantReport) -> TargetTenant:
        return TargetTenant(self._shards.pools.pool_of(report.shard_id or ""), tenant.tenant_id, token=self._token)

    async def _import(self, run: _Opened, tenant: SourceTenant, report: TenantReport) -> TenantReport:
        target = self._target(tenant, report)
        taken = await self._copy(run, tenant, target)
        if taken.refused and not self._options.leave_refused:
            return with_taken(report, ImportState.LEFT, taken, detail=LEFT_DETAIL)
        if (rival := await run.placer.find_rivals(tenant, report.shard_id)) is not None:
            raise RetryableError(rival)
        if taken.verified_on is not None:
            # A shard that loses the activation has the tenant `incoming` then, and what was applied is read again.
            await self._commits.wait_for_transaction(target.shard_id, taken.verified_on)
        certificate = _certify(run, taken)
        server = await target.activate(certificate, datetime.now(UTC), verified_on=taken.verified_on)
        await self._commits.wait_for_transaction(target.shard_id, server)
        log.info(
            "tenant.imported",
            business_id=tenant.business_id,
            location_id=tenant.location_id,
            shard_id=target.shard_id,
            row_count=certificate.rows,
        )
        return msgspec.structs.replace(with_taken(report, ImportState.IMPORTED, taken), certificate=certificate)


async def discard_tenants(
    locator: Locator, pools: Pools, source: str | None, *, apply: bool
) -> tuple[list[TenantReport], list[str]]:
    """Delete the tenants that no run has activated, without *apply* list them; return the silent shards too.

    Of one source, if given: its name is in the details.
    """
    token = f"0/{uuid4()}"
    reports: list[TenantReport] = []

    async def read(shard: ShardAddress) -> list[dict[str, Any]]:
        return await read_open_imports(pools.ensure_pool(shard), source)

    known = await locator.list_shards()
    found = await query_all_shards(known, read)
    for shard_id, row in ((shard_id, row) for shard_id, rows in sorted(found.items()) for row in rows):
        state, detail, count = ImportState.DISCARDED if apply else ImportState.DISCARD, f"of {row['place']}", 0
        try:
            if apply:
                count = await TargetTenant(pools.pool_of(shard_id), row["id"], token=token).discard()
        except WorkerError as exc:
            state, detail = ImportState.FAILED, str(exc)
        names = row["business_id"], row["location_id"], row["business_type"]
        reports.append(TenantReport(state, " ".join(names[:2]), *names, shard_id, rows=count, detail=detail))
    return reports, sorted({shard.shard_id for shard in known} - found.keys())


async def _list_tenants(reader: SourceReader, queries: Iterable[SourceQuery]) -> list[SourceTenant]:
    counts: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for query in queries:
        async for page in reader.read_pages(list_tenants(query)):
            for row in page:
                counts[row["business_id"], row["location_id"]][query.resource_type] = row["row_count"]
    # `list_rows_without_tenant` has the rows without one of the two.
    return [SourceTenant(*key, of_tenant) for key, of_tenant in counts.items() if None not in key]


def _certify(run: _Opened, taken: TakenRows) -> ImportCertificate:
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


def with_taken(
    report: TenantReport, state: ImportState, taken: TakenRows, *, detail: str | None = None
) -> TenantReport:
    """Return *report* with the rows that were taken, or can be."""
    return msgspec.structs.replace(
        report,
        state=state,
        rows=taken.total.row_count,
        bytes=taken.total.byte_count,
        refused=dict(taken.refused),
        deleted=taken.deleted,
        detail=detail,
    )
