"""Make tenants that Citrus knows and no shard has, when their first operation comes (`PROVISION_ON_FIRST_USE`).

Why this is safe without a control message: business-info must list the location as active, and every shard that may
have the tenant must answer that it has no row of the id, not even that of a destroyed tenant, which only a control
message may make again. The tenant's `control_at` is the year 1970, so that any control message is newer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypeAlias

import structlog

from simplu_worker.business_info.finder import ABSENT_FRESH_S, BusinessFinder
from simplu_worker.business_info.items import Business, refusal_reason
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.coalescing import Coalescer
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards
from simplu_worker.shards.tenants.provisioning import Provisioner
from simplu_worker.shards.types import ProvisionAnswer, ProvisionRequest, ProvisionResult, TenantNotMadeError
from simplu_worker.vocabulary import TenantState

BEFORE_ANY_CONTROL: Final = datetime(1970, 1, 1, tzinfo=UTC)
REPORTED_MAX: Final = 10_000  # tenants with a stored reason, so that each reason is logged once
MADE_RESULTS: Final = frozenset({ProvisionResult.PROVISIONED, ProvisionResult.EXISTED, ProvisionResult.STALE})

log = structlog.get_logger(__name__)

TenantName: TypeAlias = tuple[str, str]
"""A business and a location; another pair may have the same tenant id."""


class FirstUse:
    """Makes tenants that *business_info* lists; concurrent calls are made together."""

    def __init__(self, business_info: BusinessFinder, provisioner: Provisioner, locator: Locator, pools: Pools) -> None:
        self._business_info = business_info
        self._provisioner = provisioner
        self._locator = locator
        self._pools = pools
        self._requests: Coalescer[ProvisionRequest, str | None] = Coalescer(self._make_all)
        self._reported: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"FirstUse({self._requests!r}, reported={len(self._reported)})"

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
                (reason,) = await self._requests.submit([request])
            if reason is None:
                self._reported.pop(tenant_id_of(business_id, location_id), None)
                return
            self._report(business_id, location_id, reason)
            last_reason = reason
        raise TenantNotMadeError(last_reason)

    async def _find_business(self, business_id: str, location_id: str) -> Business | None:
        """Return a business, read again if its cached item would be a reason to refuse the location."""
        business = await self._business_info.find(business_id)
        if business is not None and refusal_reason(business, location_id) is not None:
            return await self._business_info.find(business_id, max_age_s=ABSENT_FRESH_S)
        return business

    async def _make_all(self, requests: Sequence[ProvisionRequest]) -> list[str | None]:
        """Make tenants; return for each None, or why it was not made. Of two with one id the first is made."""
        by_id: dict[str, ProvisionRequest] = {}
        for request in requests:
            by_id.setdefault(request.tenant_id, request)
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
    """Return None if a shard has the tenant now, made by this call or by another one."""
    if isinstance(answer, WorkerError):
        return str(answer)
    if isinstance(answer, Exception):
        raise answer  # a bug
    return None if answer in MADE_RESULTS else f"it is {answer}"
