"""Make tenants: register them with Citrus, and make their rows on the named shards; idempotent.

A missing row alone is never a reason to make one: an earlier home might still have the tenant's data. So earlier homes
are asked first, and no tenant is made while one of them is silent.

A crash may follow each step. *Registered*: Citrus names the same shard again (409). *Provisioned*: tenant and default
row came in one commit. All shards are asked once more then: if two replicas make a tenant on two shards at once, the
one that commits last finds both. It tells so and undoes nothing, as both take operations: a person decides.

At a first operation (`PROVISION_ON_FIRST_USE`) business-info must list the location as active, and every shard must
answer that it has no row of the id, destroyed ones included. `control_at` is the year 1970: any message is newer.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from operator import itemgetter
from typing import Final, TypeAlias

import msgspec
import structlog

from simplu_worker import instruments
from simplu_worker.business_info import ABSENT_FRESH_S, Business, BusinessFinder, refusal_reason
from simplu_worker.cache.invalidations import OnChange, ResourceKey, ignore_changes
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import ID_MAX, is_id, tenant_id_of
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter, note_server
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.log import MarkOrigin, mark_changes, name_change
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.errors import LostRaceError, StatementFailedError
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES, affected_count
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator, Registration
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards, group_by_shard
from simplu_worker.shards.routing.tenant_homes import TenantHome
from simplu_worker.shards.schema.schema_check import check_registration, ensure_schema
from simplu_worker.shards.schema.type_files import is_type_name
from simplu_worker.shards.tenants import control_rules
from simplu_worker.shards.types import (
    HomeUnknownError,
    ProvisionAnswer,
    ProvisionRequest,
    ProvisionResult,
    ShardUnavailableError,
    TenantNotMadeError,
    UnknownBusinessTypeError,
)
from simplu_worker.timing.sharing import Coalescer
from simplu_worker.timing.waits import repeat_every, run_at_once
from simplu_worker.vocabulary import ProvisioningOutcome, TenantState

NAMED_MAX: Final = 50  # types, in an error
STEP_QUERIES: Final = {
    control_rules.ControlStep.RESTORE: "restore_tenants",
    control_rules.ControlStep.NOTE: "note_control",
}
TRANSACTION_MAX_TENANTS: Final = 100  # so that a transaction stays far below 30 s, after which created_at is unusable


class MadeTenant(msgspec.Struct, frozen=True):
    """What became of one tenant, the business type of its row, and the server that committed the transaction."""

    result: ProvisionResult
    business_type: str
    server: Server


RowOutcome: TypeAlias = "MadeTenant | Exception"


async def _make_in_one_transaction(pool: ShardPool, wanted: Sequence[ProvisionRequest]) -> dict[str, RowOutcome]:
    try:
        async with pool.transaction(budget=StatementBudget.PAUSE) as connection:
            missing = await find_missing_types(connection, pool.address.shard_id, {one.business_type for one in wanted})
            refused: dict[str, Exception] = {
                one.tenant_id: missing[one.business_type] for one in wanted if one.business_type in missing
            }
            for row in await connection.fetch(QUERIES["find_not_taken"], [one.tenant_id for one in wanted]):
                refused.setdefault(row["id"], RetryableError(describe_drained(pool.address.shard_id)))
            await name_change(connection, MarkOrigin.CREATION)
            made, changed = await _make_tenants(connection, [one for one in wanted if one.tenant_id not in refused])
            await mark_changes(
                connection, [(tenant_id, *control_rules.DEFAULT_ROW) for tenant_id in changed], MarkOrigin.CREATION
            )
            server = await note_server(connection)
    except (StatementFailedError, LostRaceError) as exc:
        if len(wanted) == 1:
            return {wanted[0].tenant_id: exc}
        alone = [await _make_in_one_transaction(pool, [one]) for one in wanted]
        return {tenant_id: outcome for one in alone for tenant_id, outcome in one.items()}
    except Exception as exc:  # noqa: BLE001  # the outcome of each tenant: nothing was made
        return {one.tenant_id: exc for one in wanted}
    return refused | {
        tenant_id: control_rules.error_of(step, tenant_id) or MadeTenant(RESULTS[step], business_type, server)
        for tenant_id, (step, business_type) in made.items()
    }


def describe_drained(shard_id: str) -> str:
    """Return why a drained shard takes no tenants, and what to do."""
    return (
        f"shard {shard_id} was drained, and takes no tenants; retire it in the map or Citrus, or let it take tenants "
        f"again: simplu-worker shards drain {shard_id} --undo --apply"
    )


async def find_missing_types(
    connection: Connection, shard_id: str, names: Collection[str]
) -> dict[str, UnknownBusinessTypeError]:
    """Return the error of each of the types *names* that the shard lacks."""
    missing = await connection.fetch(QUERIES["find_missing_types"], sorted(set(names)))
    known = await connection.fetch(QUERIES["name_types"], NAMED_MAX) if missing else []
    names_there = [row["name"] for row in known]
    return {row["name"]: UnknownBusinessTypeError(row["name"], shard_id=shard_id, known=names_there) for row in missing}


async def _make_tenants(
    connection: Connection, wanted: Sequence[ProvisionRequest]
) -> tuple[dict[str, tuple[control_rules.ControlStep, str]], list[str]]:
    """Return the step taken for each, and its type after that; and those that got a default row."""
    by_id = {one.tenant_id: one for one in wanted}
    names = [one.business_id for one in wanted], [one.location_id for one in wanted]
    ids, types, times = _columns_of(wanted)
    inserted = await connection.fetch(QUERIES["make_tenants"], ids, *names, types, times)
    decided = {row["id"]: (control_rules.ControlStep.MAKE, by_id[row["id"]].business_type) for row in inserted}
    for row in await connection.fetch(QUERIES["lock_tenants_for_control"], [*(by_id.keys() - decided.keys())]):
        one = by_id[row["id"]]
        step = control_rules.step_of_creation(control_rules.tenant_of(row), one)
        is_remade = step is control_rules.ControlStep.REMAKE
        decided[row["id"]] = (step, one.business_type if is_remade else row["business_type"])
    if len(decided) < len(wanted):
        raise LostRaceError("a tenant's row was deleted by another transaction, or its type was removed")

    def of_step(step: control_rules.ControlStep) -> list[ProvisionRequest]:
        return [by_id[tenant_id] for tenant_id, (taken, _) in decided.items() if taken is step]

    for step, query in STEP_QUERIES.items():
        if noted := of_step(step):
            ids, _, times = _columns_of(noted)
            await connection.execute(QUERIES[query], ids, times)
    remade = of_step(control_rules.ControlStep.REMAKE)
    status = await connection.execute(QUERIES["remake_tenants"], *_columns_of(remade)) if remade else "UPDATE 0"
    if affected_count(status) < len(remade):
        raise LostRaceError("the type of a tenant to make again was removed by another transaction")
    if not (fresh := [*of_step(control_rules.ControlStep.MAKE), *remade]):
        return decided, []
    changed = await connection.fetch(QUERIES["add_default_rows"], *_columns_of(fresh))
    await check_registration(connection)
    return decided, [row["id"] for row in changed]


def _columns_of(wanted: Sequence[ProvisionRequest]) -> tuple[list[str], list[str], list[str]]:
    return (
        [one.tenant_id for one in wanted],
        [one.business_type for one in wanted],
        [control_rules.timestamp_text(one.requested_at) for one in wanted],
    )


AT_ONCE: Final = 2  # a shard has few connections, and batches need them too
WAIT_S: Final = 5.0  # messages are handled together: one that waits for longer comes again
SAFE_WITHIN_S: Final = 5.0  # after the commit, for the same reason; it finds its change done then


class ShardSlots:
    """The slots of each shard."""

    def __init__(self) -> None:
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))

    @asynccontextmanager
    async def take(self, shard_id: str) -> AsyncIterator[None]:
        """Have a slot of a shard. Raises `RetryableError` while none becomes free."""
        slots = self._slots[shard_id]
        try:
            async with asyncio.timeout(WAIT_S):
                await slots.acquire()
        except TimeoutError:
            raise RetryableError(f"shard {shard_id}: others of its changes take long") from None
        try:
            yield
        finally:
            slots.release()


REGISTRATIONS_AT_ONCE: Final = 16

log = structlog.get_logger(__name__)


RESULTS: Final = {
    control_rules.ControlStep.MAKE: ProvisionResult.PROVISIONED,
    control_rules.ControlStep.REMAKE: ProvisionResult.PROVISIONED,
    control_rules.ControlStep.RESTORE: ProvisionResult.RESTORED,
    control_rules.ControlStep.NOTE: ProvisionResult.EXISTED,
    control_rules.ControlStep.STALE: ProvisionResult.STALE,
}
TO_LOOK_AT: Final = frozenset({ProvisionResult.PROVISIONED, ProvisionResult.EXISTED})
SPLIT_INTERVAL_S: Final = 300.0
HOME_STATES: Final = frozenset({TenantState.ACTIVE, TenantState.FENCED, TenantState.DESTROYING})


class TenantSplitError(RetryableError):
    """A tenant is on several shards: a person has to decide."""


class SplitTenants:
    """The tenants that several shards call their own, as this replica found them."""

    def __init__(self, locator: Locator, pools: Pools) -> None:
        self._locator = locator
        self._pools = pools
        self._split: set[str] = set()
        self._unsure: set[str] = set()  # not all shards answered

    async def run(self) -> None:
        """Look at them again, and tell those that still are, until cancelled."""
        await repeat_every(SPLIT_INTERVAL_S, lambda: self.find(self._split | self._unsure))

    async def find(self, tenant_ids: Collection[str]) -> dict[str, WorkerError]:
        """Return the errors of those of *tenant_ids* that are on several of the shards that answer."""
        if not tenant_ids:
            return {}
        try:
            found = await fetch_from_all_shards(self._locator, self._pools, QUERIES["find_tenants"], list(tenant_ids))
        except WorkerError as exc:
            self._unsure.update(tenant_ids)
            return dict.fromkeys(tenant_ids, exc)
        homes: defaultdict[str, list[str]] = defaultdict(list)
        rows = {}
        for shard_id, row in sorted(found.rows, key=itemgetter(0)):
            if row["state"] in HOME_STATES:
                homes[row["id"]].append(shard_id)
                rows[row["id"]] = row
        errors: dict[str, WorkerError] = {}
        for tenant_id, shard_ids in homes.items():
            if len(shard_ids) > 1:
                row = rows[tenant_id]
                log.error(
                    "tenant.split", business_id=row["business_id"], location_id=row["location_id"], shard_ids=shard_ids
                )
                errors[tenant_id] = TenantSplitError(f"the tenant has rows on the shards {', '.join(shard_ids)}")
        if found.silent_shard_ids:
            self._unsure.update(tenant_ids)
        else:
            for one in (self._split, self._unsure):
                one.difference_update(tenant_ids)
        self._split.update(errors)
        instruments.TENANTS_SPLIT.set(len(self._split))
        return errors


class Provisioner:
    """Provisions tenants on the shards that the locator names."""

    def __init__(
        self,
        locator: Locator,
        directory: Directory,
        pools: Pools,
        *,
        on_change: OnChange = ignore_changes,
        commits: ReplicationWaiter | None = None,
    ) -> None:
        self._locator = locator
        self._directory = directory
        self._pools = pools
        self._on_change = on_change
        self._commits = commits or ReplicationWaiter(pools)
        self.split = SplitTenants(locator, pools)
        self._rows: Coalescer[str, ProvisionRequest, RowOutcome] = Coalescer(self._make_rows)  # by shard id

    async def provision(self, request: ProvisionRequest) -> ProvisionResult:
        """Make the tenant unless it is there, and wait until its rows are as safe as the shard can make them.

        Raises `PermanentError` for a request that can never succeed, `UnknownBusinessTypeError` while the shard lacks
        the type, and `RetryableError` without an answer, or for a shard that may not be used.
        """
        (answer,) = await self.provision_all([request])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def provision_all(self, requests: Sequence[ProvisionRequest]) -> list[ProvisionAnswer]:
        """Make many tenants, each at most once among *requests*; return for each what `provision` returns or raises.

        Requests of concurrent calls share one transaction a shard.
        """
        answers: dict[str, ProvisionAnswer] = {}
        placed = await self._place(requests, answers)
        async with asyncio.TaskGroup() as tasks:
            for shard, wanted in group_by_shard(placed):
                tasks.create_task(self._make_on(shard, wanted, answers), name=f"provision:{shard.shard_id}")
        # One that exists too: whoever made it may have ended before it looked.
        made = [tenant_id for tenant_id, answer in answers.items() if answer in TO_LOOK_AT]
        answers |= await self.split.find(made)
        for answer in answers.values():
            instruments.PROVISIONING.labels(_outcome_of(answer)).inc()
        return [answers[request.tenant_id] for request in requests]

    async def _place(
        self, requests: Sequence[ProvisionRequest], answers: dict[str, ProvisionAnswer]
    ) -> list[tuple[ShardAddress, ProvisionRequest]]:
        named: dict[str, Registration] = {}

        async def register(request: ProvisionRequest) -> None:
            try:
                named[request.tenant_id] = await self._register(request)
            except Exception as exc:  # noqa: BLE001  # of one request; the others continue
                answers[request.tenant_id] = exc

        await run_at_once(register, requests, most=REGISTRATIONS_AT_ONCE)
        addresses = {tenant_id: registration.address for tenant_id, registration in named.items()}
        homes = await self._directory.homes.find_homes(addresses)
        placed = []
        for request in requests:
            if (registration := named.get(tenant_id := request.tenant_id)) is None:
                continue
            # A tenant registered just now has another home only if Citrus lost a registration. So a silent shard does
            # not keep a new tenant waiting; the shards that answer were asked.
            match homes[tenant_id]:
                case TenantHome(address=address):
                    placed.append((address, request))
                case WorkerError() as error if not (registration.is_new and isinstance(error, HomeUnknownError)):
                    answers[tenant_id] = error
                case _:
                    placed.append((registration.address, request))
        return placed

    async def _register(self, request: ProvisionRequest) -> Registration:
        check_request(request)
        with control_rules.refused_address_as_retryable():
            registration = await self._locator.register(request.business_id, request.location_id, request.business_type)
        if not registration.address.is_active:
            raise RetryableError(f"shard {registration.address.shard_id} is not active")
        return registration

    async def _make_on(
        self, shard: ShardAddress, requests: Sequence[ProvisionRequest], answers: dict[str, ProvisionAnswer]
    ) -> None:
        rows: Sequence[RowOutcome]
        try:
            rows = await self._make_all_on(shard, requests)
        except Exception as exc:  # noqa: BLE001  # of these requests; those of other shards continue
            rows = [exc] * len(requests)
        for request, row in zip(requests, rows, strict=True):
            tenant_id = request.tenant_id
            if isinstance(row, Exception):
                answers[tenant_id] = control_rules.with_shard(row, shard_id=shard.shard_id, tenant_id=tenant_id)
            else:
                answers[tenant_id] = row.result

    async def _make_all_on(self, shard: ShardAddress, requests: Sequence[ProvisionRequest]) -> Sequence[RowOutcome]:
        self._pools.ensure_pool(shard)
        rows = await self._rows.submit(shard.shard_id, requests)
        keys: list[ResourceKey] = []
        for request, row in zip(requests, rows, strict=True):
            self._directory.forget(request.tenant_id)
            if isinstance(row, MadeTenant) and row.result is not ProvisionResult.STALE:
                log.info(
                    "tenant.provisioned",
                    business_id=request.business_id,
                    location_id=request.location_id,
                    business_type=row.business_type,
                    asked_type=request.business_type,
                    shard_id=shard.shard_id,
                    result=row.result,
                )
                # Of an existing tenant too: the process that made it may have ended before its invalidation.
                keys.append(ResourceKey(request.tenant_id, *control_rules.DEFAULT_ROW))
        self._on_change(keys)
        try:
            for server in {row.server for row in rows if isinstance(row, MadeTenant)}:
                await self._commits.wait_for_transaction(shard.shard_id, server, within_s=SAFE_WITHIN_S)
        except RetryableError as exc:
            return [row if isinstance(row, Exception) else exc for row in rows]
        return rows

    async def _make_rows(self, shard_id: str, wanted: Sequence[ProvisionRequest]) -> list[RowOutcome]:
        first = {one.tenant_id: one for one in reversed(wanted)}
        try:
            pool = self._pools.pool_of(shard_id)
            try:
                await ensure_schema(pool)
            except StatementFailedError as exc:  # a fault of the shard, not of a tenant
                raise ShardUnavailableError(str(exc)) from exc
            unique, made = list(first.values()), dict[str, RowOutcome]()
            for start in range(0, len(unique), TRANSACTION_MAX_TENANTS):
                made |= await _make_in_one_transaction(pool, unique[start : start + TRANSACTION_MAX_TENANTS])
        except Exception as exc:  # noqa: BLE001  # the answer to each request
            return [exc] * len(wanted)
        another = RetryableError("another message about the tenant is being applied")
        return [made[one.tenant_id] if one == first[one.tenant_id] else another for one in wanted]


def check_request(request: ProvisionRequest) -> None:
    """Raise `PermanentError` for a tenant that can never be made."""
    for name, value in {"businessId": request.business_id, "locationId": request.location_id}.items():
        if not is_id(value):
            raise PermanentError(f"{name}: expected 1 to {ID_MAX} characters of UTF-8 without U+0000, got {len(value)}")
    check_business_type(request.business_type)


def check_business_type(business_type: str) -> None:
    """Raise `PermanentError` for a text that is the name of no business type, on any shard."""
    if not is_type_name(business_type):
        raise PermanentError(
            f"businessType: expected a letter, then up to 62 letters, digits, _ or -, got {business_type[:64]!r}"
        )


def _outcome_of(answer: ProvisionAnswer) -> ProvisioningOutcome:
    if isinstance(answer, Exception):
        return ProvisioningOutcome.FAILED
    is_made = answer is ProvisionResult.PROVISIONED
    return ProvisioningOutcome.SUCCEEDED if is_made else ProvisioningOutcome.EXISTED


BEFORE_ANY_CONTROL: Final = datetime(1970, 1, 1, tzinfo=UTC)
REPORTED_MAX: Final = 10_000  # tenants with a stored reason, so that each reason is logged once
MADE_RESULTS: Final = frozenset({ProvisionResult.PROVISIONED, ProvisionResult.EXISTED, ProvisionResult.STALE})


TenantName: TypeAlias = tuple[str, str]
"""A business and a location; another pair may have the same tenant id."""


class FirstUse:
    """Makes tenants that *business_info* lists; concurrent calls are made together."""

    def __init__(self, business_info: BusinessFinder, provisioner: Provisioner, locator: Locator, pools: Pools) -> None:
        self._business_info = business_info
        self._provisioner = provisioner
        self._locator = locator
        self._pools = pools
        self._requests: Coalescer[None, ProvisionRequest, str | None] = Coalescer(self._make_all)
        self._reported: dict[str, str] = {}

    async def make_tenant(self, names: Iterable[TenantName]) -> None:
        """Make the tenant of the first of *names*, which all give one id, that business-info lists as active.

        Idempotent. Raises `TenantNotMadeError` with the reason, which is logged once until it changes.
        """
        last_reason = "it has no operations"
        for business_id, location_id in names:
            try:
                business = await self._find_business(business_id, location_id)
                reason = refusal_reason(business, location_id)
            except (RetryableError, PermanentError) as exc:
                business, reason = None, str(exc)
            if business is not None and reason is None:
                request = ProvisionRequest(business_id, location_id, business.business_type, BEFORE_ANY_CONTROL)
                (reason,) = await self._requests.submit(None, [request])
            if reason is None:
                self._reported.pop(tenant_id_of(business_id, location_id), None)
                return
            self._report(business_id, location_id, reason)
            last_reason = reason
        raise TenantNotMadeError(last_reason)

    async def _find_business(self, business_id: str, location_id: str) -> Business | None:
        business = await self._business_info.find(business_id)
        if business is not None and refusal_reason(business, location_id) is not None:
            return await self._business_info.find(business_id, max_age_s=ABSENT_FRESH_S)
        return business

    async def _make_all(self, _: None, requests: Sequence[ProvisionRequest]) -> list[str | None]:
        by_id = {request.tenant_id: request for request in reversed(requests)}
        reasons = await self._make_each(by_id)
        return [
            reasons[request.tenant_id]
            if request == by_id[request.tenant_id]
            else "another business and location with its id are being made"
            for request in requests
        ]

    async def _make_each(self, requests: Mapping[str, ProvisionRequest]) -> dict[str, str | None]:
        try:
            found = await fetch_from_all_shards(self._locator, self._pools, QUERIES["find_tenants"], list(requests))
            possible = await self._locator.list_possible_homes(requests)
        except (RetryableError, PermanentError) as exc:
            return dict.fromkeys(requests, str(exc))
        # A tenant with any other row than a destroyed one was made since it was looked up, and is found now.
        reasons: dict[str, str | None] = dict.fromkeys(row["id"] for _, row in found.rows)
        for shard_id, row in found.rows:
            if row["state"] == TenantState.DESTROYED:
                reasons[row["id"]] = f"it was destroyed on shard {shard_id}; only a SHARD_CREATION makes it again"
        for tenant_id in requests.keys() - reasons.keys():
            silent = {shard.shard_id for shard in possible[tenant_id]}.intersection(found.silent_shard_ids)
            if silent:
                reasons[tenant_id] = f"no answer from shards that may have it: {', '.join(sorted(silent))}"
        absent = [request for tenant_id, request in requests.items() if tenant_id not in reasons]
        made = await self._provisioner.provision_all(absent) if absent else []
        return reasons | {
            request.tenant_id: _failure_reason(answer) for request, answer in zip(absent, made, strict=True)
        }

    def _report(self, business_id: str, location_id: str, error: str) -> None:
        tenant_id = tenant_id_of(business_id, location_id)
        if self._reported.pop(tenant_id, None) != error:
            log.warning("tenant.not_provisioned", business_id=business_id, location_id=location_id, error=error)
        if len(self._reported) >= REPORTED_MAX:
            del self._reported[next(iter(self._reported))]
        self._reported[tenant_id] = error


def _failure_reason(answer: ProvisionAnswer) -> str | None:
    if isinstance(answer, WorkerError):
        return str(answer)
    if isinstance(answer, Exception):
        raise answer  # a bug
    return None if answer in MADE_RESULTS else f"it is {answer}"
