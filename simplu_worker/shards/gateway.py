"""The consumers' way to the shards: find the shard of a tenant, apply operations there, look up an operation."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, Final, NamedTuple, TypeVar, cast

import msgspec

from simplu_worker.bulkheads import note_trouble, translate
from simplu_worker.cache.invalidations import OnChange, changed_keys, ignore_changes
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.fairness import ShardTime, TenantUsage
from simplu_worker.operations.operation import (
    ABSENCE_MAX_AGE_S,
    Disposition,
    Operation,
    Outcome,
    is_storable,
    tenant_id_of,
)
from simplu_worker.operations.waves import HOLD
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.crashed_batches import CrashedBatches
from simplu_worker.shards.apply.judging import Foreseen
from simplu_worker.shards.apply.writer import ShardWriter
from simplu_worker.shards.health.trial_write import try_write
from simplu_worker.shards.listing import ListedOperation, ListRequest, OperationLister, OperationPage, listed_members
from simplu_worker.shards.log import (
    count_failures,
    find_rejections,
    forget_failures,
    key_of_id,
    note_rejections,
    note_unplaced_rejections,
)
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.directory import DESTROYED_STATES, Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import ShardRows, fetch_from_all_shards, query_all_shards
from simplu_worker.shards.tenants.control_rules import is_row_of
from simplu_worker.shards.tenants.provisioning import FirstUse, TenantName
from simplu_worker.shards.types import (
    Lever,
    PositionClaim,
    PositionMerge,
    Rejection,
    ShardPositionRows,
    StoredPositions,
    StreamPosition,
    StreamShards,
    TenantPausedError,
)
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.sharing import Coalescer
from simplu_worker.vocabulary import Absence, Inability, TargetKind, TenantState

HOMELESS: Final = (Absence.UNREGISTERED, Absence.NOT_HERE)
RESOURCE_SHOWN_MAX_BYTES: Final = 256 * 1024  # of a document for a person to look at
LOOK_AROUND_S: Final = 5.0
UNPLACED_SHARDS: Final = 3  # few, as each question about a tenant without a home goes to all of them
NO_STREAM_SHARDS: Final = StreamShards("", ())
Method = TypeVar("Method", bound=Callable[..., Coroutine[Any, Any, Any]])


def _by_target(target: TargetKind) -> Callable[[Method], Method]:

    def decorate(method: Method) -> Method:
        @wraps(method)
        async def call(gateway: ShardGateway, name: str, *args: Any, **kwargs: Any) -> Any:
            with translate(target, name, method.__name__, WorkerError):
                return await method(gateway, name, *args, **kwargs)

        return cast(Method, call)

    return decorate


of_shard: Final = _by_target(TargetKind.SHARD)
of_tenant: Final = _by_target(TargetKind.TENANT)


class LoggedOperation(ListedOperation, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """One operation as its row in the shard's log; *result* is JSON text as Postgres wrote it."""

    shard_id: str
    result: msgspec.Raw | None = None


class FoundOperation(NamedTuple):
    """The answer of the shards about one operation, or why its tenant has no home.

    *silent_shard_ids* are the asked shards that did not answer, *positions* the rows of those that did.
    """

    operation: LoggedOperation | Absence | None
    silent_shard_ids: Sequence[str] = ()
    positions: Sequence[ShardPositionRows] = ()


class RejectedRequest(
    msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, tag_field="status", tag="rejected"
):
    """A record that was rejected, as its row on the shard of its tenant."""

    request_id: str
    reason: str
    error: str
    dead_letter_queue: str
    source: str
    rejected_at: datetime
    shard_id: str
    sequence_number: str | None = None
    message_id: str | None = None


class ShardGateway:
    """The only way from the consumers to the shards."""

    def __init__(
        self,
        directory: Directory,
        locator: Locator,
        pools: Pools,
        *,
        tenant_wait: timedelta,
        on_change: OnChange = ignore_changes,
        commits: ReplicationWaiter | None = None,
        first_use: FirstUse | None = None,
    ) -> None:
        self._directory = directory
        self._locator = locator
        self._pools = pools
        self._tenant_wait = tenant_wait
        self._on_change = on_change
        self._commits = commits or ReplicationWaiter(pools)
        self._first_use = first_use
        self._lister = OperationLister(directory, pools)
        self._decisions: Coalescer[ShardAddress, tuple[str, str, str], bool | None] = Coalescer(self._fetch_decisions)
        self._writers: dict[str, tuple[ShardPool, ShardWriter]] = {}
        self._crashed = CrashedBatches()
        self._times: defaultdict[str, ShardTime] = defaultdict(ShardTime)
        self._last_applied_at: dict[str, float] = {}

    @property
    def inability(self) -> Inability | None:
        """Why no operation can be applied now, whichever tenant's."""
        if (reason := self._locator.inability) is not None:
            return reason
        pools = self._pools.by_shard_id().values()
        are_lost = bool(pools) and not any(pool.is_healthy and pool.refusal is None for pool in pools)
        return Inability.SHARDS_UNREACHABLE if are_lost else None

    async def look_around(self) -> None:
        """Find out whether a shard answers, so that `inability` is known. Raises nothing."""
        with contextlib.suppress(RetryableError, PermanentError, TimeoutError):
            async with asyncio.timeout(LOOK_AROUND_S):
                for shard in await self._locator.list_shards():
                    with contextlib.suppress(RetryableError, PermanentError):
                        await self._pools.ensure_pool(shard).probe()
                        break

    def cached_shard_id(self, tenant_id: str) -> str | None:
        """Return the shard on which the tenant was last found; None if it is paused."""
        address = self._directory.cached_address(tenant_id)
        return None if address is None or self.paused_s(tenant_id) else address.shard_id

    def paused_s(self, tenant_id: str) -> float:
        """Return for how many seconds a tenant is still paused."""
        return self._directory.paused_s(tenant_id)

    def is_tenant(self, business_id: str, location_id: str) -> bool | None:
        """Return whether the tenant's id is of these two ids; None if unknown."""
        return self._directory.is_tenant(business_id, location_id)

    def is_up(self, shard_id: str) -> bool:
        """Return whether the last use or probe of a shard succeeded."""
        pool = self._pools.by_shard_id().get(shard_id)
        return pool is not None and pool.is_healthy

    def last_applied_at(self, shard_id: str) -> float:
        """Return when a shard last applied a batch of any caller (monotonic)."""
        return self._last_applied_at.get(shard_id, float("-inf"))

    def time_of(self, shard_id: str) -> ShardTime:
        """Return what operations cost a shard."""
        return self._times[shard_id]

    def usages(self) -> Mapping[str, TenantUsage]:
        """Return what tenants took of each shard lately, by shard id."""
        return {shard_id: time.usage for shard_id, time in self._times.items()}

    @of_tenant
    async def find(self, tenant_id: str, *, absence_max_age_s: float = 0.0) -> str | Absence:
        """Return the id of the shard that confirms the tenant, or why there is none. Raises as `Directory.find`."""
        found = await self._directory.find(tenant_id, absence_max_age_s=absence_max_age_s)
        return found.shard_id if isinstance(found, ShardAddress) else found

    @of_tenant
    async def find_writable_shard(self, tenant_id: str, *, absence_max_age_s: float = 0.0) -> str | Absence:
        """Return the shard that takes operations of the tenant, or why there is none.

        Raises `TenantPausedError` too.
        """
        found = await self.find(tenant_id, absence_max_age_s=absence_max_age_s)
        if not isinstance(found, Absence) and self.paused_s(tenant_id):
            raise TenantPausedError("a person has paused the tenant")
        return found

    @of_tenant
    async def end_pause(self, tenant_id: str) -> None:
        """End the pause of a tenant. Raises as `find`."""
        home = await self.find(tenant_id)
        if not isinstance(home, Absence):
            async with self._pools.pool_of(home).connection() as connection:
                await connection.execute(QUERIES["end_pause"], tenant_id)

    @of_tenant
    async def provision_on_first_use(self, tenant_id: str, names: Iterable[TenantName]) -> str | Absence:
        """Provision a tenant that was `NOT_HERE`, if `PROVISION_ON_FIRST_USE` is set; then return as `find`.

        *names* are the pairs of business and location that sent operations. Raises `TenantNotMadeError`.
        """
        if self._first_use is None:
            return Absence.NOT_HERE
        await self._first_use.make_tenant(names)
        self._directory.forget(tenant_id)
        return await self.find(tenant_id)

    @of_shard
    async def apply(
        self, shard_id: str, operations: Sequence[Operation], *, claim: PositionClaim | None = None
    ) -> list[Outcome]:
        """Apply *operations* to a shard, in effect one by one in order; return the outcome of each.

        With *claim*, the same transaction writes the reader's row. Raises `RetryableError` with an unknown outcome: the
        caller may retry the same batch; `PositionChangedError` when the reader must read the row.
        """
        stored_names: Mapping[str, Collection[str]] = {}
        if self._pools.is_retired(shard_id):
            outcomes = [HOLD] * len(operations)  # it has no tenants any more
        else:
            outcomes = await self._apply(shard_id, operations, claim)
            self._last_applied_at[shard_id] = loop_time()
            self._crashed.has_applied = True
            stored_names = self._ensure_writer(shard_id).stored_names
        for tenant_id in {operation.tenant_id for operation in operations}:
            self._directory.cached_address(tenant_id)  # marks the cached route as used
        hold = Disposition.HOLD  # looked up once: access to an enum member is slow
        for operation, outcome in zip(operations, outcomes, strict=True):
            if outcome.disposition is hold:
                self._directory.forget(operation.tenant_id)
        self._on_change(changed_keys(operations, outcomes, stored_names))
        return outcomes

    async def _apply(
        self, shard_id: str, operations: Sequence[Operation], claim: PositionClaim | None
    ) -> list[Outcome]:
        try:
            return await self._ensure_writer(shard_id).apply(operations, claim)
        except WorkerError:
            raise
        except Exception as exc:
            error = note_trouble(TargetKind.SHARD, shard_id, "apply", exc)
            if not operations:
                raise error from exc
        self._writers.pop(shard_id, None)  # nothing that it remembers counts
        writer = self._ensure_writer(shard_id)
        return await self._crashed.apply_apart(lambda own: writer.apply(own, claim), operations)

    @of_shard
    async def foresee(self, shard_id: str, operations: Sequence[Operation]) -> Foreseen:
        """Return what the rules of a shard's business types say of operations, patches aside, as of now."""
        return await self._ensure_writer(shard_id).foresee(operations)

    @of_shard
    async def wait_until_safe(self, shard_id: str, operations: Sequence[Operation]) -> None:
        """Wait until applied operations of a queue are as safe as their shard can make them.

        Raises `RetryableError` when the shard does not confirm them or has lost them: apply them again.
        """
        await self._commits.wait_for_operations(shard_id, operations)

    @of_shard
    async def give_up(self, shard_id: str, operation: Operation, *, claim: PositionClaim | None = None) -> Outcome:
        """Log an operation as given up (`retries_exhausted`), once its dead letter is stored. Idempotent.

        Returns APPLIED with that failure, DUPLICATE when the row exists, else the outcome of a batch of this operation
        alone. *claim* and errors as with `apply`.
        """
        outcome = (
            HOLD if self._pools.is_retired(shard_id) else await self._ensure_writer(shard_id).give_up(operation, claim)
        )
        if outcome.disposition is Disposition.HOLD:
            self._directory.forget(operation.tenant_id)
        return outcome

    @of_shard
    async def try_write(self, shard_id: str) -> None:
        """Try what operations do on a shard, and roll it back. Raises `WorkerError`."""
        await try_write(self._pools.pool_of(shard_id))

    @of_shard
    async def count_failures(self, shard_id: str, failed: Sequence[tuple[str, str]]) -> list[int | None]:
        """Count one failure more of each message, by tenant and message id; return their numbers.

        A message has no number if its tenant does not live on the shard: its cached route is dropped.
        """
        counts = await count_failures(self._pools.pool_of(shard_id), failed)
        for (tenant_id, _), count in zip(failed, counts, strict=True):
            if count is None:
                self._directory.forget(tenant_id)
        return counts

    @of_shard
    async def forget_failures(self, shard_id: str, tenant_id: str, message_id: str) -> None:
        """Forget the failures of a message. Raises as `count_failures` does."""
        await forget_failures(self._pools.pool_of(shard_id), (tenant_id, message_id))

    @of_shard
    async def probe(self, shard_id: str) -> None:
        """Check, within seconds, that a shard can apply operations now; raise `RetryableError` when it cannot.

        A retired shard counts as up: `apply` holds all its operations, so that their tenants are looked up again.
        """
        if not self._pools.is_retired(shard_id):
            await self._ensure_writer(shard_id).probe()

    async def list_shard_ids(self) -> list[str]:
        """Return the ids of all usable shards; those in use if the locator cannot list the shards."""
        with contextlib.suppress(RetryableError, PermanentError):
            for address in await self._locator.list_shards():
                if address.refusal is None:
                    self._pools.ensure_pool(address)
        return sorted(self._pools.by_shard_id())

    @of_shard
    async def read_positions(
        self, shard_id: str, stream: str, stream_shard_ids: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions | None:
        """Return the positions of stream shards stored on a shard; None without a schema."""
        return await self._ensure_writer(shard_id).read_positions(stream, stream_shard_ids, is_first=is_first)

    @of_shard
    async def fence_and_read_positions(
        self, shard_id: str, claim: PositionClaim, ancestors: Sequence[str], *, is_first: bool = False
    ) -> StoredPositions | None:
        """Write a new fencing token into the row of *claim*; return the rows of it and *ancestors*.

        A failover that loses rows of ancestors then loses the token too, and the reader notices.
        """
        return await self._ensure_writer(shard_id).fence_and_read_positions(claim, ancestors, is_first=is_first)

    @of_shard
    async def find_resident_tenants(self, shard_id: str, tenant_ids: Sequence[str]) -> set[str]:
        """Return which of the tenants live on a shard, and drop their cached routes."""
        if self._pools.is_retired(shard_id):
            return set()
        here = await self._ensure_writer(shard_id).find_resident_tenants(tenant_ids)
        for tenant_id in here:
            self._directory.forget(tenant_id)
        return here

    @of_shard
    async def write_positions(self, shard_id: str, claims: Sequence[PositionClaim]) -> list[PositionClaim]:
        """Write *claims* into the rows of their readers; return those for which the reader must read the row first."""
        return await self._ensure_writer(shard_id).write_positions(claims)

    @of_shard
    async def read_merges(self, shard_id: str, stream: str, stream_shard_id: str) -> list[PositionMerge]:
        """Return how a shard's row of a stream shard got its last tokens from moves to the shard."""
        return await self._ensure_writer(shard_id).read_merges(stream, stream_shard_id)

    @of_shard
    async def mark_gap(self, shard_id: str, stream: str, stream_shard_id: str, pending_from: str) -> None:
        """Mark a row with *pending_from*, to which the stream does not reach back. Idempotent."""
        await self._ensure_writer(shard_id).mark_gap(stream, stream_shard_id, pending_from)

    @of_shard
    async def forget_positions(self, shard_id: str, stream: str, stream_shard_ids: Sequence[str]) -> None:
        """Delete a shard's rows of stream shards past their retention."""
        await self._ensure_writer(shard_id).forget_positions(stream, stream_shard_ids)

    @of_tenant
    async def find_again(self, tenant_id: str) -> str | Absence:
        """Find a tenant's shard, or its new address, without the cached route. Raises as `find`."""
        found = await self._directory.find(tenant_id, is_cached_enough=False)
        return found.shard_id if isinstance(found, ShardAddress) else found

    async def find_operation(
        self,
        request_id: str,
        tenant_id: str | None,
        *,
        names: tuple[str, str] | None = None,
        stream: StreamShards = NO_STREAM_SHARDS,
    ) -> FoundOperation:
        """Return one operation from the log, with the shards' rows of the stream shards in *stream*.

        *names*, business id and location id, tell tenants with one id apart. Without the tenant all shards are asked,
        and the newest is returned.
        """
        if not is_storable(request_id):
            return FoundOperation(None)
        if tenant_id is not None:
            return await self._find_operation_of(tenant_id, names, request_id, stream)
        survey = await self.survey(
            "find_operation_of_any_tenant", stream.stream, list(stream.ids), key_of_id(request_id)
        )
        rows = {shard_id: _positions_in(row["positions"]) for shard_id, row in survey.rows}
        found = [(shard_id, row) for shard_id, row in survey.rows if row["request_id"] is not None]
        operation: LoggedOperation | Absence | None = None
        if found:
            shard_id, row = max(found, key=lambda one: one[1]["completed_at"])
            if row["lives_here"]:
                operation = _operation_of(shard_id, row)
            else:
                operation = (await self._find_operation_of(row["tenant_id"], None, request_id, stream)).operation
        return FoundOperation(operation, survey.silent_shard_ids, list(rows.values()))

    async def _find_operation_of(
        self, tenant_id: str, names: tuple[str, str] | None, request_id: str, stream: StreamShards
    ) -> FoundOperation:
        async def find(shard: ShardAddress) -> FoundOperation | None:
            asked = stream.stream, list(stream.ids)
            row = await self._fetch_one(shard, "find_operation", *asked, tenant_id, key_of_id(request_id))
            if row is None:
                return None
            if names not in {None, (row["business_id"], row["location_id"])}:
                return FoundOperation(Absence.UNREGISTERED)
            operation = None if row["request_id"] is None else _operation_of(shard.shard_id, row)
            return FoundOperation(operation, [], [_positions_in(row["positions"])])

        if not is_storable(tenant_id):
            return FoundOperation(None)
        found = await self._directory.ask_home(tenant_id, find)
        return FoundOperation(self.absence_of(names, found)) if isinstance(found, Absence) else found

    def absence_of(self, names: tuple[str, str] | None, found: Absence) -> Absence:
        """Return *found*, why the tenant has no home now, as those with the ids *names* see it."""
        return Absence.UNREGISTERED if names is not None and self.is_tenant(*names) is False else found

    @of_tenant
    async def read_positions_at_home(self, tenant_id: str, stream: StreamShards) -> ShardPositionRows | Absence:
        """Return the rows of the stream shards in *stream* on a tenant's shard, or why it has none."""

        async def read(shard: ShardAddress) -> ShardPositionRows | None:
            row = await self._fetch_one(shard, "read_positions_at_home", stream.stream, list(stream.ids), tenant_id)
            return None if row is None else _positions_in(row["positions"])

        return await self._directory.ask_home(tenant_id, read)

    @of_tenant
    async def is_decided(self, tenant_id: str, business_id: str, request_id: str) -> bool:
        """Return whether an operation has an outcome, a rejection too; False of a tenant without a home."""
        if not (is_storable(tenant_id) and is_storable(request_id)):
            return False
        found = await self._directory.find(tenant_id, absence_max_age_s=ABSENCE_MAX_AGE_S)
        if not isinstance(found, ShardAddress):
            return False
        (has_left,) = await self._decisions.submit(found, [(tenant_id, business_id, request_id)])
        if has_left:
            self._directory.forget(tenant_id)
        return has_left is False

    async def _fetch_decisions(self, shard: ShardAddress, keys: Sequence[tuple[str, str, str]]) -> list[bool | None]:
        tenant_ids, business_ids, request_ids = zip(*keys, strict=True)
        requests = [key_of_id(request_id) for request_id in request_ids]
        async with self._pools.ensure_pool(shard).connection() as connection:
            rows = await connection.fetch(QUERIES["find_decided"], tenant_ids, business_ids, requests, request_ids)
        found = {row["number"] - 1: row["has_left"] for row in rows}
        return [found.get(number) for number in range(len(keys))]

    async def find_rejection(
        self, request_id: str, tenant_id: str | None, *, names: tuple[str, str] | None = None
    ) -> RejectedRequest | Absence | None:
        """Return the last record that was rejected with a request id, where `find_operation` finds none."""
        if not is_storable(request_id):
            return None
        if tenant_id is not None:
            found = await self._find_rejections_of(tenant_id, [request_id], names)
            return found if isinstance(found, Absence) else found.get(request_id)
        known = await self._locator.list_shards()
        queries = ("find_rejection_of_any_tenant", "find_unplaced_rejections_of_any_tenant")
        of_any = [one for query in queries for one in await self._newest_rejections(known, query, request_id)]
        return max(of_any, key=lambda one: one.rejected_at, default=None)

    async def _newest_rejections(
        self, shards: Sequence[ShardAddress], query: str, *arguments: object
    ) -> list[RejectedRequest]:

        async def fetch(shard: ShardAddress) -> list[dict[str, Any]]:
            return await find_rejections(self._pools.ensure_pool(shard), query, *arguments)

        answers = await query_all_shards(shards, fetch)
        found = [_rejected_request_of(shard_id, row) for shard_id, rows in answers.items() for row in rows]
        return sorted(found, key=lambda one: one.rejected_at, reverse=True)

    async def _unplaced_shards(self) -> Sequence[ShardAddress]:
        return sorted(await self._locator.list_shards(), key=lambda shard: shard.shard_id)[:UNPLACED_SHARDS]

    async def note_unplaced_rejections(self, dead_letter_queue: str, rejections: Sequence[Rejection]) -> bool:
        """Write *rejections* of tenants without a home on the first shard that answers; False without room."""
        error: WorkerError = RetryableError("no shard is known")
        for shard in await self._unplaced_shards():
            try:
                return await note_unplaced_rejections(self._pools.ensure_pool(shard), dead_letter_queue, rejections)
            except WorkerError as exc:
                error = exc
        raise RetryableError(str(error))

    async def find_rejections(self, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], RejectedRequest]:
        """Return the records of *keys*, tenants and request ids, that were rejected."""
        by_tenant: defaultdict[str, list[str]] = defaultdict(list)
        for tenant_id, request_id in keys:
            by_tenant[tenant_id].append(request_id)
        rejections: dict[tuple[str, str], RejectedRequest] = {}
        for tenant_id, request_ids in by_tenant.items():
            found = await self._find_rejections_of(tenant_id, request_ids)
            if not isinstance(found, Absence):
                rejections |= {(tenant_id, request_id): one for request_id, one in found.items()}
        return rejections

    async def _find_rejections_of(
        self, tenant_id: str, request_ids: Sequence[str], names: tuple[str, str] | None = None
    ) -> dict[str, RejectedRequest] | Absence:
        business_id = None if names is None else names[0]

        async def find(shard: ShardAddress) -> dict[str, RejectedRequest] | Absence | None:
            rows = await find_rejections(self._pools.ensure_pool(shard), "find_rejections", tenant_id, request_ids)
            if rows and business_id not in {None, rows[0]["business_id"]}:
                return Absence.UNREGISTERED
            found = {row["request_id"]: _rejected_request_of(shard.shard_id, row) for row in rows if row["request_id"]}
            return found if rows else None

        if not is_storable(tenant_id):
            return {}
        at_home: dict[str, RejectedRequest] | Absence
        # Mostly asked for what `find_operation` has not found: without another look for a tenant that is unknown.
        at_home = await self._directory.ask_home(tenant_id, find, absence_max_age_s=ABSENCE_MAX_AGE_S)
        at_home = self.absence_of(names, at_home) if isinstance(at_home, Absence) else at_home
        if at_home not in HOMELESS:
            return at_home
        shards = await self._unplaced_shards()
        unplaced = await self._newest_rejections(
            shards, "find_unplaced_rejections", list(request_ids), tenant_id, business_id
        )
        return {one.request_id: one for one in reversed(unplaced)} or at_home

    @of_shard
    async def note_rejections(
        self, shard_id: str, dead_letter_queue: str, rejections: Sequence[Rejection]
    ) -> dict[str, str]:
        """Write *rejections* of a shard's tenants; return the businesses of those that live there, by id."""
        homes = await note_rejections(self._pools.pool_of(shard_id), dead_letter_queue, rejections)
        for tenant_id in {one.tenant_id for one in rejections} - homes.keys():
            self._directory.forget(tenant_id)
        return homes

    async def list_operations(
        self, business_id: str, location_id: str, request: ListRequest
    ) -> OperationPage | Absence:
        """Return a page of the operations of a tenant, see `OperationLister.list_page`."""
        return await self._lister.list_page(business_id, location_id, request)

    @of_tenant
    async def find_tenant(self, tenant_id: str) -> tuple[str, dict[str, Any]] | Absence:
        """Return the shard of a tenant and its row, with counts of resources and operations."""

        async def show(shard: ShardAddress) -> tuple[str, dict[str, Any]] | None:
            row = await self._fetch_one(shard, "show_tenant", tenant_id)
            return (shard.shard_id, row) if row is not None and row["lives_here"] else None

        return await self._directory.ask_home(tenant_id, show) if is_storable(tenant_id) else Absence.UNREGISTERED

    async def find_resource(
        self, business_id: str, location_id: str, resource_type: str, resource_id: str
    ) -> tuple[str, dict[str, Any]] | Absence:
        """Return a tenant's shard, and the row of a resource: `is_there`, and columns or nulls."""
        tenant_id = tenant_id_of(business_id, location_id)

        async def show(shard: ShardAddress) -> tuple[str, dict[str, Any]] | None:
            row = await self._fetch_one(shard, "show_resource", *key, RESOURCE_SHOWN_MAX_BYTES)
            return None if row is None else (shard.shard_id, row)

        key = (tenant_id, resource_type, resource_id)
        return await self._directory.ask_home(tenant_id, show) if all(map(is_storable, key)) else Absence.UNREGISTERED

    async def steer_tenant(
        self, business_id: str, location_id: str, lever: Lever
    ) -> tuple[str, dict[str, Any]] | TenantState | Absence:
        """Set what a person wants for a tenant; return its shard and row, its end as state, or why it has no shard."""
        tenant_id = tenant_id_of(business_id, location_id)

        async def steer(shard: ShardAddress) -> tuple[str, dict[str, Any]] | TenantState | Absence | None:
            ids = (tenant_id, business_id, location_id)
            row = await self._fetch_one(shard, "steer_tenant", *ids, lever.pause_s, lever.weight)
            if row is not None:
                return shard.shard_id, row
            if (row := await self._fetch_one(shard, "find_tenants", [tenant_id])) is None:
                return None
            if not is_row_of(row, business_id, location_id):
                return Absence.UNREGISTERED
            return TenantState(row["state"]) if row["state"] in DESTROYED_STATES else None

        return await self._directory.ask_home(tenant_id, steer) if is_storable(tenant_id) else Absence.UNREGISTERED

    async def survey(self, query: str, *arguments: object) -> ShardRows:
        """Run a query on every known shard, each for at most a few seconds."""
        return await fetch_from_all_shards(self._locator, self._pools, QUERIES[query], *arguments)

    async def _fetch_one(self, shard: ShardAddress, query: str, *arguments: object) -> dict[str, Any] | None:
        async with self._pools.ensure_pool(shard).connection() as connection:
            row = await connection.fetchrow(QUERIES[query], *arguments)
        return None if row is None else dict(row)

    def _ensure_writer(self, shard_id: str) -> ShardWriter:
        pool = self._pools.pool_of(shard_id)
        known, writer = self._writers.get(shard_id, (None, None))
        if writer is None or known is not pool:  # the shard was retired, and restored
            writer = ShardWriter(pool, tenant_wait=self._tenant_wait, time=self.time_of(shard_id))
            self._writers[shard_id] = pool, writer
        return writer


def _operation_of(shard_id: str, row: dict[str, Any]) -> LoggedOperation:
    result = None if row["result"] is None else msgspec.Raw(row["result"].encode())
    return LoggedOperation(**listed_members(row), shard_id=shard_id, result=result)


def _positions_in(document: str | None) -> ShardPositionRows:
    return {} if document is None else msgspec.json.decode(document, type=dict[str, StreamPosition])


def _rejected_request_of(shard_id: str, row: dict[str, Any]) -> RejectedRequest:
    members = {name: value for name, value in row.items() if name not in {"tenant_id", "business_id"}}
    return RejectedRequest(**members, shard_id=shard_id)
