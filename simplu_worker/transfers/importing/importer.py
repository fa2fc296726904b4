"""Import tenants from another database: plan, copy, verify, activate.

A tenant is copied from one snapshot, its rows are compared with those of the source by checksums, and only then it
becomes active. A run that is killed leaves tenants that are `incoming`; the next run copies those again.

A tenant is made on the shard that the locator names, and only if every known shard has answered that it has no row of
its id: before, and again afterwards, as the locator may have changed its answer in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from uuid import uuid4

import msgspec
import structlog

from simplu_worker import __version__
from simplu_worker.business_info import Business, BusinessFinder, UnreadableBusinessError
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import is_id
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.following import find_addresses, follow_shards
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import group_by_shard, query_all_shards
from simplu_worker.shards.settling import SupersededError, TransferRefusedError, read_tenant, read_transfer
from simplu_worker.shards.tenants.resource_changes import find_known_types
from simplu_worker.shards.types import HomeUnknownError, ShardUnavailableError
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import Pacer, run_at_once, sleep_or_event
from simplu_worker.transfers.engine import Journal, TransferEngine, TransferStatus
from simplu_worker.transfers.importing.copying import (
    AT_REST,
    CopyCallbacks,
    TakenRows,
    TargetTenant,
    TenantRows,
    Wait,
    find_shard_problem,
    go_on_at_once,
    make_incoming,
    read_homes,
    read_open_imports,
    superseded,
    take_changes,
    take_rows,
)
from simplu_worker.transfers.importing.queries import (
    SourceQuery,
    digest_of,
    list_changed_tenants,
    list_rows_without_tenant,
    list_tenants,
)
from simplu_worker.transfers.importing.rules import (
    LEFT_STATES,
    NO_TENANT,
    OVERLAP,
    TROUBLES,
    FollowState,
    HomeFacts,
    ImportCertificate,
    ImportSituation,
    ImportState,
    RefusedRow,
    SourceTenant,
    TenantReport,
    changed_since,
    name_tenant,
    place_of,
    report_of,
    situation_of,
    without_collisions,
)
from simplu_worker.transfers.importing.source import (
    ImportSource,
    SourceFacts,
    SourceReader,
    SourceRefusedError,
    SourceSnapshot,
    SourceUnavailableError,
)
from simplu_worker.transfers.moving.checksums import Comparison, Sums, describe_difference
from simplu_worker.vocabulary import MovePhase, TransferKind, TransferStep

INTERVAL_S: Final = 5.0
LOOKUPS_AT_ONCE: Final = 16
MADE_AT_ONCE: Final = 100  # so that a transaction stays far below 30 s, after which created_at is unusable
LEFT_DETAIL: Final = "rows that cannot be taken: correct them, or leave them in the source with --leave-refused"
TO_IMPORT: Final = frozenset({ImportState.IMPORT, ImportState.CONTINUE})

log = structlog.get_logger(__name__)


class _Homes(msgspec.Struct, frozen=True):
    by_tenant: dict[str, list[HomeFacts]]
    silence: str | None  # of shards that may have more


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
        named |= await self._make(shards, token)
        after = await self._read_homes([one for _, one in shards])
        made = {one.key: self._place(one, named[one.key], after) for _, one in shards}
        return [_as_made(made[one.key]) if one.key in made else placed[at] for at, one in enumerate(tenants)]

    async def check_rivals(self, tenant: SourceTenant, shard_id: str) -> None:
        """Raise `TransferRefusedError` if another shard has the tenant, `RetryableError` if one does not answer."""
        homes = await self._read_homes([tenant])
        for home in homes.by_tenant.get(tenant.tenant_id, ()):
            if home.state not in LEFT_STATES and home.shard_id != shard_id:
                raise TransferRefusedError(f"shard {home.shard_id} has it too, {home.state}")
        if homes.silence is not None:
            raise HomeUnknownError(homes.silence)

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
        silent = ", ".join(sorted({shard.shard_id for shard in known} - answers.keys()))
        return _Homes(by_tenant, f"no answer from shards that may have it: {silent}" if silent else None)

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


def _as_made(report: TenantReport) -> TenantReport:
    """Return the report on a tenant that this run has made: no other command is at work on it."""
    is_ours = report.state is ImportState.CONTINUE
    return msgspec.structs.replace(report, state=ImportState.IMPORT) if is_ours else report


def _state_after(error: WorkerError) -> ImportState:
    is_final = isinstance(error, PermanentError) and not isinstance(error, (SupersededError, SourceUnavailableError))
    return ImportState.REFUSED if is_final else ImportState.FAILED


class FollowRound(msgspec.Struct, frozen=True):
    """The time of a round's snapshot, the rows written or deleted, and the error of tenants that are behind it."""

    followed_to: datetime
    row_count: int = 0
    error: str | None = None


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


class _Run(msgspec.Struct, frozen=True):
    """A run with its snapshot, and the *token* under which it writes."""

    snapshot: SourceSnapshot
    queries: Sequence[SourceQuery]
    digest: str
    tenants: list[SourceTenant]
    placer: _Placer
    commits: ReplicationWaiter
    options: ImportOptions
    callbacks: CopyCallbacks
    pace: Pacer
    token: str

    @property
    def taken_at(self) -> datetime:
        """The time of the snapshot."""
        return datetime.fromisoformat(self.snapshot.facts.taken_at)

    def certify(self, taken: TakenRows) -> ImportCertificate:
        """Return the certificate of a tenant, and tell of its refused rows."""
        for one in taken.refused:
            self.callbacks.note_refused(one)
        return ImportCertificate(
            source=self.snapshot.facts.place,
            snapshot_at=self.snapshot.facts.taken_at,
            queries=self.digest,
            rows=taken.total.row_count,
            bytes=taken.total.byte_count,
            checksum=taken.total.digest,
            verified_at=datetime.now(UTC).isoformat(timespec="seconds"),
            worker_version=__version__,
            types={name: one.row_count for name, one in taken.types.items()},
            refused=dict(Counter(one.reason for one in taken.refused)),
            deleted=taken.deleted,
        )

    async def note_rows(self, count: int) -> None:
        """Tell of rows that were read, and rest."""
        self.callbacks.note_rows(count)
        await asyncio.sleep(self.pace.pause_s(count, now=loop_time()))


class Aim(StrEnum):
    """How an engine leaves a tenant."""

    ACTIVE = "active"
    FOLLOWED = "followed"  # its rows compared
    UP_TO_DATE = "up to date"  # by a round of following, unless another run has it now


class ImportEngine(TransferEngine[TenantReport]):
    """Imports one tenant, or copies it for following; *report* says where it was placed."""

    def __init__(self, run: _Run, tenant: SourceTenant, report: TenantReport, aim: Aim) -> None:
        super().__init__(run.placer.pools.pool_of(report.shard_id or ""), tenant.tenant_id, lambda _: None)
        self._run = run
        self._tenant = tenant
        self._report = report
        self._aim = aim
        self._target = TargetTenant(self._shard, tenant.tenant_id, token=run.token)
        is_ours = aim is Aim.UP_TO_DATE or report.state is ImportState.IMPORT  # unless another run has begun since
        self._earlier = run.token if is_ours else None
        self._verified: tuple[ImportCertificate, Server | None] | None = None  # rows that need no other copy
        self._rows_max = 0
        self._is_new = aim is not Aim.UP_TO_DATE  # made by this run: without rows
        self.status = TransferStatus(MovePhase.COPY, row_total=tenant.row_count)

    @property
    def journal(self) -> Journal:
        """The row of this run."""
        return self._target.journal

    @property
    def progress(self) -> object:
        """The most rows that a try has read: each begins with the first one."""
        return self._rows_max

    def describe_state(self) -> str:
        """Return in which state the tenant is, and which command comes next."""
        if self.status.phase == MovePhase.CERTIFY:
            return "the tenant is active, and its standbys have not confirmed that: run the same command again"
        return "its operations wait: run the same command again, or tenants import --discard --apply"

    async def prepare_again(self) -> None:
        """Count the rows anew, and look whether the shard has another address now."""
        self._run.callbacks.note_rows(-self.status.row_count)
        self.status = TransferStatus(MovePhase.COPY, row_total=self._tenant.row_count)
        await find_addresses(self._run.placer.locator, self._run.placer.pools)

    async def go_on(self) -> TenantReport:
        """Go on by the tenant's row, the journal and the snapshot."""
        situation, detail, server = await self._begin()
        if situation is ImportSituation.ENDED:
            return await self._end(msgspec.convert(detail, ImportCertificate), server)
        if self._aim is Aim.UP_TO_DATE and situation is ImportSituation.CATCH_UP:
            async with self._opened() as source:
                count = await self._take_changes(source, detail)
            return await self._leave(ImportState.FOLLOWED, rows=count)
        if self._verified is None:
            taken = await (self._catch_up(detail) if situation is ImportSituation.CATCH_UP else self._copy())
            self._verified = self._run.certify(taken), taken.verified_on
        certificate, verified_on = self._verified
        self._report = with_rows(self._report, certificate)
        if certificate.refused and not self._run.options.leave_refused:
            return await self._leave(ImportState.LEFT, detail=LEFT_DETAIL)
        if self._aim is Aim.ACTIVE:
            return await self._activate(certificate, verified_on)
        return await self._leave(ImportState.FOLLOWED)

    async def _leave(self, state: ImportState, **facts: Any) -> TenantReport:
        """Leave the tenant as it is, still held."""
        if state is ImportState.LEFT:
            await self._target.note(TransferStep.OPEN, AT_REST)
        else:
            await self._target.note(TransferStep.FOLLOWING, FollowState(self._run.digest, self._run.taken_at))
        return msgspec.structs.replace(self._report, state=state, **facts)

    async def _begin(self) -> tuple[ImportSituation, dict[str, Any], Server]:
        """Take the import over; return the next step, what the journal had, and the shard's server."""
        own = self.journal.token
        async with self._shard.transaction() as connection:
            tenant = await read_tenant(connection, self._tenant_id)
            found = await read_transfer(connection, self._tenant_id, TransferKind.IMPORT)
            self._earlier = self._earlier or (None if found is None else found.token)
            situation = situation_of(tenant, found, own=own, earlier=self._earlier, queries=self._run.digest)
            if tenant is None or found is None or situation is ImportSituation.TAKEN:
                raise superseded(self._target.shard_id, self._tenant_id)
            if situation is not ImportSituation.ENDED:
                await self.journal.take(connection, TransferStep.OPEN)
        self._is_new = self._is_new and found.token == own
        if self._verified is not None and tenant.server != self._verified[1]:
            self._verified = None
        return situation, found.detail, tenant.server

    async def _copy(self) -> TakenRows:
        """Copy the tenant whole, and compare."""
        if not self._is_new:
            await self._target.clear()
        self._is_new = False
        async with self._opened() as source:
            taken = await take_rows(source, self._note_rows, self._target)
        if (found := await self._compare(taken)) != taken.types:
            differing = describe_difference(Comparison(taken.types, found))
            raise RetryableError(
                f"shard {self._target.shard_id}: its rows differ from the source's: {differing}; run this again,"
                " which copies the tenant again"
            )
        return taken

    async def _catch_up(self, detail: Mapping[str, Any]) -> TakenRows:
        """Copy what has changed since a follower's last snapshot, and compare; if that differs, copy all."""
        async with self._opened() as source:
            await self._take_changes(source, detail)
            taken = await source.sum_rows()
        if await self._compare(taken) == taken.types:
            self._run.callbacks.note_rows(self._tenant.row_count)
            return taken
        log.warning("import.differs", tenant_id=self._tenant_id, shard_id=self._target.shard_id)
        return await self._copy()

    async def _take_changes(self, source: TenantRows, detail: Mapping[str, Any]) -> int:
        since = changed_since(detail, queries=self._run.digest)
        return 0 if since is None else await take_changes(source, since, self._run.note_rows, self._target)

    async def _compare(self, taken: TakenRows) -> Sums:
        self.status = msgspec.structs.replace(self.status, phase=MovePhase.VERIFY)
        found, taken.verified_on = await self._target.sum_rows()
        return found

    async def _activate(self, certificate: ImportCertificate, verified_on: Server | None) -> TenantReport:
        """Activate the tenant, once its standbys have its rows."""
        run, target = self._run, self._target
        self.status = msgspec.structs.replace(self.status, phase=MovePhase.ACTIVATE)
        await run.placer.check_rivals(self._tenant, target.shard_id)
        if verified_on is not None:
            # A shard that loses the activation has the tenant `incoming` then, and what was applied is read again.
            await self._confirm(verified_on)
        server = await target.activate(certificate, datetime.now(UTC), verified_on=verified_on)
        return await self._end(certificate, server)

    async def _end(self, certificate: ImportCertificate, server: Server) -> TenantReport:
        """Wait until standbys of *server* have the active tenant."""
        tenant, shard_id = self._tenant, self._target.shard_id
        self.status = msgspec.structs.replace(self.status, phase=MovePhase.CERTIFY)
        await self._confirm(server)
        names = {"business_id": tenant.business_id, "location_id": tenant.location_id}
        log.info("tenant.imported", **names, shard_id=shard_id, row_count=certificate.rows)
        report = with_rows(self._report, certificate)
        return msgspec.structs.replace(report, state=ImportState.IMPORTED, certificate=certificate)

    async def _confirm(self, server: Server) -> None:
        try:
            await self._run.commits.wait_for_transaction(self._target.shard_id, server)
        except RetryableError as exc:  # the same for all tenants of the shard
            raise ShardUnavailableError(str(exc), shard_id=self._target.shard_id) from exc

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[TenantRows]:
        async with self._run.snapshot.open_reader() as reader:
            yield TenantRows(reader, self._run.queries, self._tenant)

    async def _note_rows(self, count: int) -> None:
        self.status = msgspec.structs.replace(self.status, row_count=self.status.row_count + count)
        self._rows_max = max(self._rows_max, self.status.row_count)
        await self._run.note_rows(count)


class Importer(msgspec.Struct, frozen=True):
    """Imports the tenants of *source* that *queries* return."""

    source: ImportSource
    queries: Sequence[SourceQuery]
    shards: ImportShards
    options: ImportOptions
    callbacks: CopyCallbacks = CopyCallbacks()

    async def plan(self) -> ImportResult:
        """Read every row once, and return what an import would do; nothing is changed anywhere.

        Raises `PermanentError` if the queries do not fit, `RetryableError` without an answer.
        """
        async with self._opened() as run:
            return await self._import_all(run, None)

    async def apply(self) -> ImportResult:
        """Import every tenant that can be; return a report on each. Raises as `plan`, before the first change."""
        async with self._opened() as run:
            return await self._import_all(run, Aim.ACTIVE)

    async def follow(
        self, stopping: asyncio.Event, report_round: Callable[[FollowRound], None], *, interval_s: float = INTERVAL_S
    ) -> ImportResult:
        """Copy every tenant that can be, and follow the source until *stopping*; return a report on each.

        `apply` activates them later. The first round that is reported is the copy. Raises as `plan`.
        """
        async with self._opened() as run:
            result = await self._import_all(run, Aim.FOLLOWED)
        reports = {one.name: one for one in result.reports}
        if all(one.state is not ImportState.FOLLOWED for one in result.reports):
            return result
        left = [f"{one.name}: {one.detail}" for one in result.reports if one.state in TROUBLES]
        since = run.taken_at
        report_round(FollowRound(since, error=text_of(left)))
        while not await sleep_or_event(interval_s, until=stopping):
            one = await self._follow(run, reports, since)
            since = one.followed_to
            report_round(one)
        return msgspec.structs.replace(result, reports=[*reports.values()])

    async def _follow(self, run: _Run, reports: dict[str, TenantReport], since: datetime) -> FollowRound:
        """Bring the followed tenants of *reports* up to date; those behind are read from *since* on the next time."""
        followed = {one.key: one for one in run.tenants if reports[one.name].state is ImportState.FOLLOWED}
        changed, errors, count, is_behind = set[tuple[str, str]](), list[str](), 0, False
        try:
            async with self.source.open_snapshot() as snapshot:
                for query in run.queries:
                    async for page in snapshot.reader.read_pages(list_changed_tenants(query, since - OVERLAP)):
                        changed |= {(row["business_id"], row["location_id"]) for row in page} & followed.keys()
                now = msgspec.structs.replace(run, snapshot=snapshot)
                for tenant in (followed[key] for key in sorted(changed)):
                    report = reports[tenant.name]
                    try:
                        count += (await ImportEngine(now, tenant, report, Aim.UP_TO_DATE).go_on()).rows
                    except (SourceUnavailableError, SourceRefusedError):
                        raise
                    except SupersededError as exc:
                        errors.append(str(exc))
                        failed = msgspec.structs.replace(report, state=ImportState.FAILED, detail=str(exc))
                        reports[tenant.name] = failed
                    except WorkerError as exc:
                        errors.append(f"{tenant.name}: {exc}")
                        is_behind = True
            if is_behind:  # a shard may have another address now
                await find_addresses(run.placer.locator, run.placer.pools)
        except WorkerError as exc:
            return FollowRound(since, count, str(exc))
        return FollowRound(since if is_behind else now.taken_at, count, text_of(errors))

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[_Run]:
        async with self.source.open_snapshot() as snapshot:
            queries = await snapshot.reader.describe(self.queries)
            listed = await _list_tenants(snapshot.reader, queries)
            for query in queries:
                async for page in snapshot.reader.read_pages(list_rows_without_tenant(query)):
                    for row in page:
                        self.callbacks.note_refused(RefusedRow((), query.resource_type, row["resource_id"], NO_TENANT))
            known = await find_known_types(self.shards.locator, self.shards.pools)
            tenants = without_collisions([await self._name(one, known) for one in listed])
            tenants.sort(key=lambda one: (-one.row_count, one.key))  # the largest first: the last ones end together
            self.callbacks.note_total(sum(one.row_count for one in tenants if one.problem is None))
            placer = _Placer(self.shards.locator, self.shards.pools, snapshot.facts.identity)
            commits, pace = ReplicationWaiter(self.shards.pools), Pacer(self.options.max_rows_per_s)
            how = commits, self.options, self.callbacks, pace, f"0/{uuid4()}"
            yield _Run(snapshot, queries, digest_of(queries), tenants, placer, *how)

    async def _name(self, tenant: SourceTenant, known_types: Mapping[str, Mapping[str, str]]) -> SourceTenant:
        business: Business | str | None = None
        if self.shards.business_info is not None and is_id(tenant.business_id):
            try:
                business = await self.shards.business_info.find(tenant.business_id)
            except UnreadableBusinessError as exc:
                business = str(exc)
        return name_tenant(tenant, business, business_type=self.options.business_type, known_types=known_types)

    async def _import_all(self, run: _Run, aim: Aim | None) -> ImportResult:
        """Place all tenants, and run an engine for each that is to be imported; without *aim* only read its rows."""
        # By shard, or None for all: the next of the tenants would wait as long for nothing.
        given_up: dict[str | None, str] = {}

        async def work_on(placed: tuple[SourceTenant, TenantReport]) -> TenantReport:
            tenant, report = placed
            if report.state not in TO_IMPORT:
                return report
            try:
                if aim is None:
                    async with run.snapshot.open_reader() as reader:
                        taken = await take_rows(TenantRows(reader, run.queries, tenant), run.note_rows, None)
                    return with_rows(report, run.certify(taken))
                if (error := given_up.get(report.shard_id) or given_up.get(None)) is not None:
                    raise RetryableError(error)
                if report.state is ImportState.CONTINUE:
                    shard = self.shards.pools.pool_of(report.shard_id or "")
                    await self.callbacks.wait_for_killed(shard, tenant.tenant_id)
                return await ImportEngine(run, tenant, report, aim).run()
            except WorkerError as exc:
                cause = exc.__cause__
                if isinstance(cause, HomeUnknownError):
                    given_up[None] = str(cause)
                elif isinstance(cause, ShardUnavailableError) and cause.shard_id == report.shard_id:
                    given_up[report.shard_id] = str(cause)
                return msgspec.structs.replace(report, state=_state_after(exc), detail=str(exc))

        placed = await run.placer.place(run.tenants, token=None if aim is None else run.token)
        pairs = [*zip(run.tenants, placed, strict=True)]
        reports = await run_at_once(work_on, pairs, most=self.options.parallel)
        return ImportResult(run.snapshot.facts, run.digest, sorted(reports, key=lambda report: report.name))


async def discard_tenants(
    locator: Locator, pools: Pools, source: str | None, wait_for_killed: Wait = go_on_at_once, *, apply: bool
) -> tuple[list[TenantReport], list[str]]:
    """Delete, or without *apply* list, the tenants that no run has activated; return the silent shards too."""
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
                await wait_for_killed(pools.pool_of(shard_id), row["id"])
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


def with_rows(report: TenantReport, certificate: ImportCertificate) -> TenantReport:
    """Return *report* with the rows that were taken, or can be."""
    rows = {name: getattr(certificate, name) for name in ("rows", "bytes", "refused", "deleted")}
    return msgspec.structs.replace(report, **rows)


def text_of(errors: Sequence[str]) -> str | None:
    """Return a text for the errors of several tenants; None without any."""
    if not errors:
        return None
    return errors[0] if len(errors) == 1 else f"{errors[0]} (the first of {len(errors)} tenants)"
