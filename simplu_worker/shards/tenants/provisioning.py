"""Make tenants: registered with Citrus, then their rows on the shards named, then confirmed; idempotent.

A missing row is never by itself a reason to make one: an earlier home that still has the tenant would then be split
from the new one for ever (contract §4). So earlier homes are asked first, and while one cannot answer, nobody is made.

Three steps, each of which may be the last before a crash. *Registered*: Citrus names a shard; the next try is told
where (409). *Provisioned*: tenant and default row are there, in one commit; the next try finds them. *Confirmed*:
nobody made the tenant elsewhere meanwhile (`confirming`); the row says whether that is known, or the next try asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import structlog

from simplu_worker.cache.invalidations import OnChange, ResourceKey, ignore_changes
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import ID_MAX, is_id
from simplu_worker.shards.apply.commit_safety import ReplicationWaiter
from simplu_worker.shards.apply.durability import Server
from simplu_worker.shards.postgres.address import AddressRefusedError, ShardAddress
from simplu_worker.shards.postgres.coalescing import Coalescer
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.citrus import Registration
from simplu_worker.shards.routing.directory import Directory
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.tenant_homes import EarlierHomeUnavailableError, TenantHome
from simplu_worker.shards.schema.schema_check import ensure_schema
from simplu_worker.shards.schema.sql_files import BUSINESS_TYPES
from simplu_worker.shards.tenants.control_rules import ControlStep
from simplu_worker.shards.tenants.home_confirmation import HomeConfirmer, HomeUndoneError, PlacedTenant
from simplu_worker.shards.tenants.tenant_rows import DEFAULT_ROW, RowOutcome, RowResult, make_rows
from simplu_worker.shards.types import ProvisionAnswer, ProvisionRequest, ProvisionResult, ShardNotAllowedError

REGISTRATIONS_AT_ONCE: Final = 16

log = structlog.get_logger(__name__)


RESULTS: Final = {
    ControlStep.MAKE: ProvisionResult.PROVISIONED,
    ControlStep.REMAKE: ProvisionResult.PROVISIONED,
    ControlStep.RESTORE: ProvisionResult.RESTORED,
    ControlStep.NOTE: ProvisionResult.EXISTED,
    ControlStep.STALE: ProvisionResult.STALE,
}
# The others were there before, and confirmed.
TO_CONFIRM: Final = frozenset({ProvisionResult.PROVISIONED, ProvisionResult.EXISTED})


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
        self.confirmer = HomeConfirmer(locator, pools, on_change=on_change, on_undone=directory.forget)
        self._coalescers: dict[str, Coalescer[ProvisionRequest, RowOutcome]] = {}  # by shard id

    async def provision(self, request: ProvisionRequest) -> ProvisionResult:
        """Make the tenant unless it is there; it then is as safe as its shard can make it.

        Raises `PermanentError` for what can never work (unknown business type, another tenant's id) and
        `RetryableError` while somebody who must be asked does not answer, or names a shard that may not be used.
        """
        (answer,) = await self.provision_all([request])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def provision_all(self, requests: Sequence[ProvisionRequest]) -> list[ProvisionAnswer]:
        """Make many tenants, each at most once among *requests*; return for each what `provision` returns or raises.

        What one of them meets is none of the others' trouble. Those that are asked for at the same time, by other
        calls, are made with them, in one transaction a shard.
        """
        answers = await self._make(requests)
        undone = [request for request in requests if isinstance(answers[request.tenant_id], HomeUndoneError)]
        if undone:  # they are somewhere else, and found there
            answers |= await self._make(undone)
        for answer in answers.values():
            _count(answer)
        return [answers[request.tenant_id] for request in requests]

    async def _make(self, requests: Sequence[ProvisionRequest]) -> dict[str, ProvisionAnswer]:
        answers: dict[str, ProvisionAnswer] = {}
        placed = await self._place(requests, answers)
        by_shard: dict[str, tuple[ShardAddress, list[ProvisionRequest]]] = {}
        for request in requests:
            if (place := placed.get(request.tenant_id)) is not None:
                by_shard.setdefault(place.shard.shard_id, (place.shard, []))[1].append(request)
        async with asyncio.TaskGroup() as tasks:
            for shard_id, (shard, wanted) in by_shard.items():
                tasks.create_task(self._make_on(shard, wanted, answers), name=f"provision:{shard_id}")
        answers |= await self.confirmer.confirm(
            [place for tenant_id, place in placed.items() if answers[tenant_id] in TO_CONFIRM]
        )
        return answers

    async def _place(
        self, requests: Sequence[ProvisionRequest], answers: dict[str, ProvisionAnswer]
    ) -> Mapping[str, PlacedTenant]:
        """Return the shard on which each tenant is to be, or is; put those without one into *answers*."""
        named: dict[str, Registration] = {}
        at_once = asyncio.Semaphore(REGISTRATIONS_AT_ONCE)

        async def register(request: ProvisionRequest) -> None:
            async with at_once:
                try:
                    named[request.tenant_id] = await self._register(request)
                except Exception as exc:  # noqa: BLE001  # one request's; the others go on
                    answers[request.tenant_id] = exc

        async with asyncio.TaskGroup() as tasks:
            for request in requests:
                tasks.create_task(register(request), name=f"register:{request.tenant_id}")
        homes = await self._directory.find_homes(
            {tenant_id: registration.address for tenant_id, registration in named.items()}
        )
        placed = {}
        for request in requests:
            tenant_id = request.tenant_id
            if tenant_id not in named:
                continue
            home, registration = homes[tenant_id], named[tenant_id]
            # A name given just now cannot have another home unless Citrus has forgotten one: those that answer are
            # asked, and one that is down keeps nobody new waiting.
            is_passed_over = registration.is_new and isinstance(home, EarlierHomeUnavailableError)
            if isinstance(home, WorkerError) and not is_passed_over:
                answers[tenant_id] = home
                continue
            placed[tenant_id] = PlacedTenant(
                request.business_id,
                request.location_id,
                request.business_type,
                home.address if isinstance(home, TenantHome) else registration.address,
                is_new=registration.is_new,
            )
        return placed

    async def _register(self, request: ProvisionRequest) -> Registration:
        check_request(request)
        try:
            registered = await self._locator.register(request.business_id, request.location_id, request.business_type)
        except AddressRefusedError as exc:
            raise ShardNotAllowedError(str(exc)) from exc
        if not registered.address.is_active:
            raise RetryableError(f"shard {registered.address.shard_id} is not active")
        return registered

    async def _make_on(
        self, shard: ShardAddress, requests: Sequence[ProvisionRequest], answers: dict[str, ProvisionAnswer]
    ) -> None:
        turns = self._coalescers.get(shard.shard_id)
        if turns is None:
            turns = self._coalescers[shard.shard_id] = Coalescer(lambda wanted: self._make_rows(shard.shard_id, wanted))
        try:
            self._pools.ensure_pool(shard)
            rows = await turns.submit(requests)
        except Exception as exc:  # noqa: BLE001  # these requests'; those of other shards go on
            answers |= {request.tenant_id: exc for request in requests}
            return
        made: dict[str, ProvisionAnswer] = {}
        for request, row in zip(requests, rows, strict=True):
            self._directory.forget(request.tenant_id)
            made[request.tenant_id] = RESULTS[row.step] if isinstance(row, RowResult) else row
            _log_result(request, shard, made[request.tenant_id])
        # Of one that existed, too: that it was made may have been said to nobody.
        self._on_change(
            ResourceKey(tenant_id, *DEFAULT_ROW) for tenant_id, answer in made.items() if answer in TO_CONFIRM
        )
        answers |= await self._wait_until_safe(
            shard.shard_id, made, {row.server for row in rows if isinstance(row, RowResult)}
        )

    async def _make_rows(self, shard_id: str, wanted: Sequence[ProvisionRequest]) -> list[RowOutcome]:
        """Make all that has come for one shard, with one look at its schema."""
        try:
            pool = self._pools.pool_of(shard_id)
            await ensure_schema(pool)
            return await make_rows(pool, wanted)
        except Exception as exc:  # noqa: BLE001  # an answer to each that has come
            return [exc] * len(wanted)

    async def _wait_until_safe(
        self, shard_id: str, made: Mapping[str, ProvisionAnswer], servers: Collection[Server]
    ) -> Mapping[str, ProvisionAnswer]:
        """Return what *made* says once it is safe; until then each is to be asked for again, and will be found made."""
        try:
            for server in servers:
                await self._commits.wait_for_transaction(shard_id, server)
        except RetryableError as exc:
            return {tenant_id: answer if isinstance(answer, Exception) else exc for tenant_id, answer in made.items()}
        return made


def check_request(request: ProvisionRequest) -> None:
    """Raise `PermanentError` for what can never be made: before anybody is told of it."""
    for name, value in {"businessId": request.business_id, "locationId": request.location_id}.items():
        if not is_id(value):
            raise PermanentError(f"{name}: expected 1 to {ID_MAX} characters of UTF-8 without U+0000, got {len(value)}")
    check_business_type(request.business_type)


def check_business_type(business_type: str) -> None:
    """Raise `PermanentError`, naming the known ones, when there is no such business type."""
    if business_type not in BUSINESS_TYPES:
        known = ", ".join(sorted(BUSINESS_TYPES))
        raise PermanentError(f"businessType: expected one of {known}, got {business_type[:64]!r}")


def _log_result(request: ProvisionRequest, shard: ShardAddress, answer: ProvisionAnswer) -> None:
    if isinstance(answer, ProvisionResult) and answer is not ProvisionResult.STALE:
        log.info(
            "tenant.provisioned",
            business_id=request.business_id,
            location_id=request.location_id,
            business_type=request.business_type,
            shard_id=shard.shard_id,
            result=answer,
        )


def _count(answer: ProvisionAnswer) -> None:
    match answer:
        case Exception():
            instruments.PROVISIONING.labels("failed").inc()
        case ProvisionResult.PROVISIONED:
            instruments.PROVISIONING.labels("succeeded").inc()
        case ProvisionResult.EXISTED | ProvisionResult.RESTORED:
            instruments.PROVISIONING.labels("existed").inc()
        case ProvisionResult.STALE:
            pass
