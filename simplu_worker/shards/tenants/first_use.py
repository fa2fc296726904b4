"""Make tenants that Citrus knows and no shard has, when their first operation comes (`PROVISION_ON_FIRST_USE`).

Why it is safe: nobody has to have said that the tenant is new. Business-info must list its location as an active one,
and every shard that is known must say that it has no row of the id, not even that of a destroyed tenant, which only a
control message may bring back. The tenant's `control_at` is the year 1970: any control message counts as newer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol, TypeAlias

import structlog

from simplu_worker.business_info.items import Business, refusal_reason
from simplu_worker.business_info.table import ABSENT_FRESH_S, FRESH_S
from simplu_worker.errors import PermanentError, RetryableError, WorkerError
from simplu_worker.operations.admission import TenantState
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.postgres.pool import Pools
from simplu_worker.shards.routing.locator import Locator
from simplu_worker.shards.routing.shard_query import fetch_from_all_shards
from simplu_worker.shards.types import ProvisionAnswer, ProvisionRequest, ProvisionResult, TenantNotMadeError

BEFORE_ANY_CONTROL: Final = datetime(1970, 1, 1, tzinfo=UTC)
REPORTED_MAX: Final = 10_000  # tenants of which is remembered what was last said about them
MADE_RESULTS: Final = frozenset({ProvisionResult.PROVISIONED, ProvisionResult.EXISTED, ProvisionResult.STALE})

log = structlog.get_logger(__name__)

Name: TypeAlias = tuple[str, str]
"""A business and a location, whose tenant's id can be that of another pair."""


class FindsBusiness(Protocol):
    """What knows businesses; `simplu_worker.business_info.table.BusinessInfo` does."""

    async def find(self, business_id: str, *, max_age_s: float = FRESH_S) -> Business | None:
        """Return a business, as it was *max_age_s* ago or later, or None."""


class Provisions(Protocol):
    """What makes tenants; `simplu_worker.shards.tenants.provisioning.Provisioner` does."""

    async def provision_all(self, requests: Sequence[ProvisionRequest]) -> list[ProvisionAnswer]:
        """Make tenants, no two the same; return for each its result, or the error that it met."""


class _Group:
    """Tenants to be made in one go, and what became of each: None, or why it was not made."""

    def __init__(self) -> None:
        self.requests: dict[str, ProvisionRequest] = {}
        self.answers: dict[str, str | None] | None = None


class FirstUse:
    """Makes tenants by what *business_info* says of them; those that come together are made together."""

    def __init__(self, business_info: FindsBusiness, provisioner: Provisions, locator: Locator, pools: Pools) -> None:
        self._business_info = business_info
        self._provisioner = provisioner
        self._locator = locator
        self._pools = pools
        self._group = _Group()
        self._making = asyncio.Lock()
        self._reported: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"FirstUse(waiting={len(self._group.requests)}, reported={len(self._reported)})"

    async def make_tenant(self, names: Iterable[Name]) -> None:
        """Make the tenant of the first of *names*, which all give one id, that business-info lists as active.

        Idempotent. Raises `TenantNotMadeError`, with why; that is logged once, until it is another reason.
        """
        why = "it has no operations"
        for business_id, location_id in names:
            try:
                business = await self._find_business(business_id, location_id)
                reason = refusal_reason(business, location_id)
            except (RetryableError, PermanentError) as exc:
                business, reason = None, str(exc)
            if business is not None and reason is None:
                request = ProvisionRequest(business_id, location_id, business.business_type, BEFORE_ANY_CONTROL)
                reason = await self._make(request)
            if reason is None:
                self._reported.pop(tenant_id_of(business_id, location_id), None)
                return
            self._report(business_id, location_id, reason)
            why = reason
        raise TenantNotMadeError(why)

    async def _find_business(self, business_id: str, location_id: str) -> Business | None:
        """Return a business; what is remembered of it is no reason to refuse one of its locations."""
        business = await self._business_info.find(business_id)
        if business is not None and refusal_reason(business, location_id) is not None:
            return await self._business_info.find(business_id, max_age_s=ABSENT_FRESH_S)
        return business

    async def _make(self, request: ProvisionRequest) -> str | None:
        """Make one tenant with all that come while others are being made; return None, or why not."""
        group = self._group
        if request != group.requests.setdefault(request.tenant_id, request):
            return "another business and location with its id are being made"
        async with self._making:
            if group.answers is None:  # not by whoever had the turn before
                if self._group is group:
                    self._group = _Group()
                group.answers = await self._make_all(group.requests)
        return group.answers[request.tenant_id]

    async def _make_all(self, requests: Mapping[str, ProvisionRequest]) -> dict[str, str | None]:
        try:
            survey = await fetch_from_all_shards(self._locator, self._pools, "find_tenants", list(requests))
        except (RetryableError, PermanentError) as exc:
            return dict.fromkeys(requests, str(exc))
        if survey.silent_shard_ids:
            error = f"no answer from shards that may have it: {', '.join(survey.silent_shard_ids)}"
            return dict.fromkeys(requests, error)
        # With any other row it was made meanwhile, and is found now.
        answers: dict[str, str | None] = dict.fromkeys(row["id"] for _, row in survey.rows)
        for shard_id, row in survey.rows:
            if row["state"] == TenantState.DESTROYED:
                answers[row["id"]] = f"it was destroyed on shard {shard_id}; only a SHARD_CREATION makes it again"
        absent = [request for tenant_id, request in requests.items() if tenant_id not in answers]
        made = await self._provisioner.provision_all(absent) if absent else []
        return answers | {
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
    """Return None where a shard has the tenant now: a row that came meanwhile is as good."""
    if isinstance(answer, WorkerError):
        return str(answer)
    if isinstance(answer, Exception):
        raise answer  # a bug
    return None if answer in MADE_RESULTS else f"it is {answer}"
