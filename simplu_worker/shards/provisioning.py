"""Make tenants: registered with Citrus, then their rows on the shards named, in one transaction a shard; idempotent.

A missing row is never by itself a reason to make one: an earlier home that still has the tenant would then be split
from the new one for ever (contract §4). So earlier homes are asked first, and while one cannot answer, nobody is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, TypeAlias

import msgspec
import structlog

from simplu_worker.errors import RefusedError, TryAgainLaterError, WorkerError
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.address import AddressRefusedError, ShardAddress
from simplu_worker.shards.citrus import Registration
from simplu_worker.shards.control_rules import ControlledTenant, Step, step_of_creation, trouble_of
from simplu_worker.shards.directory import Directory
from simplu_worker.shards.durability import Server
from simplu_worker.shards.invalidations import OnChange, ResourceKey, ignore_changes
from simplu_worker.shards.locator import Locator
from simplu_worker.shards.pools import Connection, Pools, ShardPool
from simplu_worker.shards.queries import BUSINESS_TYPES, QUERIES
from simplu_worker.shards.safe_commits import SafeCommits, note_server
from simplu_worker.shards.schema import ensure_schema
from simplu_worker.shards.shard_errors import InvalidDataError, LostRaceError, StatementFailedError

REGISTERED_AT_ONCE: Final = 16
DEFAULT_ROW: Final = ("settings", "default")  # resource type and id of the row that `add_default_rows` adds
TRANSACTION_MAX_TENANTS: Final = 100  # so that one stays far below the 30 s that make its created_at worthless

log = structlog.get_logger(__name__)


class ShardNotAllowedError(TryAgainLaterError):
    """The shard that is named may not be used: a person has to mend its address or `DATABASE_ALLOWED_HOSTS`."""


class ProvisionRequest(msgspec.Struct, frozen=True):
    """A tenant to be made, as a `SHARD_CREATION` or a person asks for it."""

    business_id: str
    location_id: str
    business_type: str
    requested_at: datetime

    @property
    def tenant_id(self) -> str:
        """The tenant's id."""
        return tenant_id_of(self.business_id, self.location_id)


class ProvisionResult(StrEnum):
    """What became of the request."""

    PROVISIONED = "provisioned"
    EXISTED = "existed"
    RESTORED = "restored"  # it was to be destroyed, and is not
    STALE = "stale"  # a newer control message was applied to the tenant before


RESULTS: Final = {
    Step.MAKE: ProvisionResult.PROVISIONED,
    Step.REMAKE: ProvisionResult.PROVISIONED,
    Step.RESTORE: ProvisionResult.RESTORED,
    Step.NOTE: ProvisionResult.EXISTED,
    Step.STALE: ProvisionResult.STALE,
}

Answer: TypeAlias = ProvisionResult | Exception


class Provisioner:
    """Provisions tenants on the shards that the locator names."""

    def __init__(
        self,
        locator: Locator,
        directory: Directory,
        pools: Pools,
        *,
        on_change: OnChange = ignore_changes,
        commits: SafeCommits | None = None,
    ) -> None:
        self._locator = locator
        self._directory = directory
        self._pools = pools
        self._on_change = on_change
        self._commits = commits or SafeCommits(pools)

    async def provision(self, request: ProvisionRequest) -> ProvisionResult:
        """Make the tenant unless it is there; it then is as safe as its shard can make it.

        Raises `RefusedError` for what can never work (unknown business type, another tenant's id) and
        `TryAgainLaterError` while somebody who must be asked does not answer, or names a shard that may not be used.
        """
        (answer,) = await self.provision_all([request])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def provision_all(self, requests: Sequence[ProvisionRequest]) -> list[Answer]:
        """Make many tenants, each at most once among *requests*; return for each what `provision` returns or raises.

        What one of them meets is none of the others' trouble.
        """
        answers: dict[str, Answer] = {}
        shards = await self._placed(requests, answers)
        by_shard: dict[str, tuple[ShardAddress, list[ProvisionRequest]]] = {}
        for request in requests:
            if (shard := shards.get(request.tenant_id)) is not None:
                by_shard.setdefault(shard.shard_id, (shard, []))[1].append(request)
        async with asyncio.TaskGroup() as tasks:
            for shard_id, (shard, placed) in by_shard.items():
                tasks.create_task(self._make_on(shard, placed, answers), name=f"provision:{shard_id}")
        for answer in answers.values():
            _count(answer)
        return [answers[request.tenant_id] for request in requests]

    async def _placed(
        self, requests: Sequence[ProvisionRequest], answers: dict[str, Answer]
    ) -> Mapping[str, ShardAddress]:
        """Return the shard on which each tenant is to be, or is; put those without one into *answers*."""
        named: dict[str, Registration] = {}
        at_once = asyncio.Semaphore(REGISTERED_AT_ONCE)

        async def register(request: ProvisionRequest) -> None:
            async with at_once:
                try:
                    named[request.tenant_id] = await self._registered(request)
                except Exception as exc:  # noqa: BLE001  # one request's; the others go on
                    answers[request.tenant_id] = exc

        async with asyncio.TaskGroup() as tasks:
            for request in requests:
                tasks.create_task(register(request), name=f"register:{request.tenant_id}")
        # A name given just now cannot have another home unless Citrus has forgotten one: those that answer are asked,
        # and one that is down keeps nobody new waiting.
        homes = await self._directory.homes(
            {tenant_id: registration.address for tenant_id, registration in named.items()},
            new={tenant_id for tenant_id, registration in named.items() if registration.is_new},
        )
        shards = {}
        for tenant_id, home in homes.items():
            if isinstance(home, WorkerError):
                answers[tenant_id] = home
            else:
                shards[tenant_id] = named[tenant_id].address if home is None else home.address
        return shards

    async def _registered(self, request: ProvisionRequest) -> Registration:
        check_business_type(request.business_type)
        try:
            registered = await self._locator.register(request.business_id, request.location_id, request.business_type)
        except AddressRefusedError as exc:
            raise ShardNotAllowedError(str(exc)) from exc
        if not registered.address.is_active:
            raise TryAgainLaterError(f"shard {registered.address.shard_id} is not active")
        return registered

    async def _make_on(
        self, shard: ShardAddress, requests: Sequence[ProvisionRequest], answers: dict[str, Answer]
    ) -> None:
        try:
            pool = self._pools.pool(shard)
            await ensure_schema(pool)
        except Exception as exc:  # noqa: BLE001  # these requests'; those of other shards go on
            answers |= {request.tenant_id: exc for request in requests}
            return
        for start in range(0, len(requests), TRANSACTION_MAX_TENANTS):
            made, servers = await _made(pool, requests[start : start + TRANSACTION_MAX_TENANTS])
            for request in requests[start : start + TRANSACTION_MAX_TENANTS]:
                self._directory.forget(request.tenant_id)
                _note(request, shard, made[request.tenant_id])
            # Of one that existed, too: that it was made may have been said to nobody.
            self._on_change(
                ResourceKey(tenant_id, *DEFAULT_ROW)
                for tenant_id, answer in made.items()
                if answer in {ProvisionResult.PROVISIONED, ProvisionResult.EXISTED}
            )
            answers |= await self._when_safe(shard.shard_id, made, servers)

    async def _when_safe(
        self, shard_id: str, made: Mapping[str, Answer], servers: Sequence[Server]
    ) -> Mapping[str, Answer]:
        """Return what *made* says once it is safe; until then each is to be asked for again, and will be found made."""
        try:
            for server in servers:
                await self._commits.of_transaction(shard_id, server)
        except TryAgainLaterError as exc:
            return {tenant_id: answer if isinstance(answer, Exception) else exc for tenant_id, answer in made.items()}
        return made


def check_business_type(business_type: str) -> None:
    """Raise `RefusedError`, naming the known ones, when there is no such business type."""
    if business_type not in BUSINESS_TYPES:
        known = ", ".join(sorted(BUSINESS_TYPES))
        raise RefusedError(f"businessType: expected one of {known}, got {business_type[:64]!r}")


async def _made(pool: ShardPool, requests: Sequence[ProvisionRequest]) -> tuple[dict[str, Answer], list[Server]]:
    """Make tenants in one transaction, or in smaller ones when one of them makes it fail; tell on which servers."""
    try:
        async with pool.transaction() as connection:
            made = await _make_tenants(connection, requests)
            server = await note_server(connection)
    except (StatementFailedError, InvalidDataError, LostRaceError) as exc:
        if len(requests) == 1:
            return {requests[0].tenant_id: exc}, []
        half = len(requests) // 2
        (first, its_servers), (second, more) = await _made(pool, requests[:half]), await _made(pool, requests[half:])
        return first | second, its_servers + more
    except Exception as exc:  # noqa: BLE001  # an answer like any other: nothing was made
        return {request.tenant_id: exc for request in requests}, []
    return made, [server]


async def _make_tenants(connection: Connection, requests: Sequence[ProvisionRequest]) -> dict[str, Answer]:
    """Insert the tenants' rows within the transaction of *connection*, or see that they are there."""
    by_id = {request.tenant_id: request for request in requests}
    steps = await _steps(connection, requests)
    made = set(await _make(connection, [by_id[tenant_id] for tenant_id in _of(steps, Step.MAKE)]))
    # What was not there a moment ago, and is now: somebody else has just made it.
    steps |= await _steps(
        connection, [by_id[tenant_id] for tenant_id in _of(steps, Step.MAKE) if tenant_id not in made]
    )
    if not made.issuperset(_of(steps, Step.MAKE)):
        raise LostRaceError("a tenant's row came and went away")
    for step, query in ((Step.RESTORE, "restore_tenants"), (Step.NOTE, "note_control")):
        if noted := _of(steps, step):
            await connection.execute(QUERIES[query], noted, [_text_of_time(by_id[tenant_id]) for tenant_id in noted])
    await _make_again(connection, [by_id[tenant_id] for tenant_id in _of(steps, Step.REMAKE)])
    return {tenant_id: trouble_of(step, tenant_id) or RESULTS[step] for tenant_id, step in steps.items()}


async def _steps(connection: Connection, requests: Sequence[ProvisionRequest]) -> dict[str, Step]:
    if not requests:
        return {}
    rows = await connection.fetch(QUERIES["lock_tenants_for_control"], [request.tenant_id for request in requests])
    tenants = {row["id"]: ControlledTenant.of(row) for row in rows}
    return {
        request.tenant_id: step_of_creation(
            tenants.get(request.tenant_id), request.business_id, request.location_id, request.requested_at
        )
        for request in requests
    }


def _of(steps: Mapping[str, Step], step: Step) -> list[str]:
    return sorted(tenant_id for tenant_id, its in steps.items() if its is step)


async def _make(connection: Connection, requests: Sequence[ProvisionRequest]) -> list[str]:
    """Insert rows of new tenants; return the ids of those that were not there."""
    if not requests:
        return []
    rows = await connection.fetch(
        QUERIES["make_tenants"],
        [request.tenant_id for request in requests],
        [request.business_id for request in requests],
        [request.location_id for request in requests],
        [request.business_type for request in requests],
        [_text_of_time(request) for request in requests],
    )
    made = {row["id"] for row in rows}
    await _add_default_rows(connection, [request for request in requests if request.tenant_id in made])
    return sorted(made)


async def _make_again(connection: Connection, requests: Sequence[ProvisionRequest]) -> None:
    if requests:
        await connection.execute(QUERIES["remake_tenants"], *_kinds_and_times(requests))
        await _add_default_rows(connection, requests)


async def _add_default_rows(connection: Connection, requests: Sequence[ProvisionRequest]) -> None:
    if requests:
        await connection.execute(QUERIES["add_default_rows"], *_kinds_and_times(requests))
    if not await connection.fetchval(QUERIES["is_registration_in_time"]):
        raise TryAgainLaterError("the registering transaction took over 30 s")


def _kinds_and_times(requests: Sequence[ProvisionRequest]) -> tuple[list[str], list[str], list[str]]:
    return (
        [request.tenant_id for request in requests],
        [request.business_type for request in requests],
        [_text_of_time(request) for request in requests],
    )


def _text_of_time(request: ProvisionRequest) -> str:
    return request.requested_at.isoformat()  # as text: see `texts_of_times`


def _note(request: ProvisionRequest, shard: ShardAddress, answer: Answer) -> None:
    if isinstance(answer, ProvisionResult) and answer is not ProvisionResult.STALE:
        log.info(
            "tenant.provisioned",
            business_id=request.business_id,
            location_id=request.location_id,
            business_type=request.business_type,
            shard_id=shard.shard_id,
            result=answer,
        )


def _count(answer: Answer) -> None:
    match answer:
        case Exception():
            instruments.PROVISIONING.labels("failed").inc()
        case ProvisionResult.PROVISIONED:
            instruments.PROVISIONING.labels("succeeded").inc()
        case ProvisionResult.EXISTED | ProvisionResult.RESTORED:
            instruments.PROVISIONING.labels("existed").inc()
        case ProvisionResult.STALE:
            pass
