"""Make a tenant: registered with Citrus, then its rows on the shard named, in one transaction; idempotent.

A missing row is never by itself a reason to make one: an earlier home that still has the tenant would then be split
from the new one for ever (contract §4). So earlier homes are asked first, and while one cannot answer, nobody is made.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec
import structlog

from simplu_worker.errors import RefusedError, TryAgainLaterError
from simplu_worker.metrics import instruments
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.address import ShardAddress
from simplu_worker.shards.admission import TenantState
from simplu_worker.shards.directory import Directory, Locator
from simplu_worker.shards.pools import Connection, Pools
from simplu_worker.shards.queries import BUSINESS_TYPES, QUERIES
from simplu_worker.shards.schema import ensure_schema

log = structlog.get_logger(__name__)


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
    STALE = "stale"  # a newer control message was applied to the tenant before


class Provisioner:
    """Provisions tenants on the shards that the locator names."""

    def __init__(self, locator: Locator, directory: Directory, pools: Pools) -> None:
        self._locator = locator
        self._directory = directory
        self._pools = pools

    async def provision(self, request: ProvisionRequest) -> ProvisionResult:
        """Make the tenant unless it is there.

        Raises `RefusedError` for what can never work (unknown business type, another tenant's id, an address that may
        not be used) and `TryAgainLaterError` while somebody who must be asked does not answer.
        """
        try:
            result = await self._provision(request)
        except (RefusedError, TryAgainLaterError):
            instruments.PROVISIONING.labels("failed").inc()
            raise
        if result is not ProvisionResult.STALE:
            outcome = "succeeded" if result is ProvisionResult.PROVISIONED else "existed"
            instruments.PROVISIONING.labels(outcome).inc()
        return result

    async def _provision(self, request: ProvisionRequest) -> ProvisionResult:
        if request.business_type not in BUSINESS_TYPES:
            known = ", ".join(sorted(BUSINESS_TYPES))
            raise RefusedError(f"businessType: expected one of {known}, got {request.business_type[:64]!r}")
        registered = await self._locator.register(request.business_id, request.location_id, request.business_type)
        shard = registered.address
        if not shard.is_active:
            raise TryAgainLaterError(f"shard {shard.shard_id} is not active")
        # A name given just now cannot have another home unless Citrus has forgotten one: those that answer are asked,
        # and one that is down keeps nobody new waiting.
        home = await self._directory.home(request.tenant_id, shard, all_must_answer=not registered.is_new)
        if home is not None:
            shard = home.address
        await ensure_schema(self._pools.pool(shard))
        result = await self._made(shard, request)
        if result is not ProvisionResult.STALE:
            log.info(
                "tenant.provisioned",
                business_id=request.business_id,
                location_id=request.location_id,
                business_type=request.business_type,
                shard_id=shard.shard_id,
                result=result,
            )
        self._directory.forget(request.tenant_id)
        return result

    async def _made(self, shard: ShardAddress, request: ProvisionRequest) -> ProvisionResult:
        async with self._pools.pool(shard).transaction() as connection:
            return await _make_tenant(connection, request)


async def _make_tenant(connection: Connection, request: ProvisionRequest) -> ProvisionResult:
    """Insert the tenant's rows within the transaction of *connection*, or see that they are there."""
    tenant_id = request.tenant_id
    requested_at = request.requested_at.isoformat()  # as text: see `texts_of_times`
    inserted = await connection.fetchval(
        QUERIES["provision_tenant"],
        tenant_id,
        request.business_id,
        request.location_id,
        request.business_type,
        requested_at,
    )
    if inserted is None:
        row = await connection.fetchrow(QUERIES["lock_tenant"], tenant_id)
        if row is None:
            raise TryAgainLaterError("the tenant's row went away")
        if (row["business_id"], row["location_id"]) != (request.business_id, request.location_id):
            raise RefusedError(
                f"businessId, locationId: their id {tenant_id!r} is taken by another business and location; "
                "register it under other ids"
            )
        if request.requested_at < row["control_at"]:
            return ProvisionResult.STALE
        if row["state"] in {TenantState.DESTROYING, TenantState.DESTROYED}:
            raise TryAgainLaterError("the tenant is being destroyed; making it again is not known to this version")
        await connection.execute(QUERIES["note_control"], tenant_id, requested_at)
        return ProvisionResult.EXISTED
    await connection.execute(QUERIES["add_default_row"], tenant_id, request.business_type, requested_at)
    if not await connection.fetchval(QUERIES["is_registration_in_time"]):
        raise TryAgainLaterError("the registering transaction took over 30 s")
    return ProvisionResult.PROVISIONED
