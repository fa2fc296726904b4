"""Gather the entries of tenants in business-info, Citrus or the shard map, and on the shards, page by page."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from simplu_worker.assembly.shards import Shards
from simplu_worker.business_info.items import Business
from simplu_worker.business_info.table import BusinessInfo, UnreadableBusiness
from simplu_worker.commands.tenants.audit_rules import (
    AuditedRow,
    AuditSubject,
    BusinessListing,
    Difference,
    DifferenceKind,
)
from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import is_id, tenant_id_of
from simplu_worker.shards.postgres.address import AddressRefusedError, ShardAddress
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.vocabulary import TenantState

PAGE_SIZE: Final = 500
BUSINESS_INFO_ATTEMPTS: Final = 5  # of each request, so that one throttled request does not end a scan
LOCATES_AT_ONCE: Final = 16


class ListedTenant(msgspec.Struct, frozen=True):
    """A tenant that business-info lists."""

    business_id: str
    location_id: str
    listing: BusinessListing

    @property
    def tenant_id(self) -> str:
        """The id of the tenant."""
        return tenant_id_of(self.business_id, self.location_id)


class ListingPage(msgspec.Struct, frozen=True):
    """A page of the tenants that business-info lists, and its unreadable entries."""

    tenants: list[ListedTenant]
    unreadable: list[Difference]


class TenantInventory:
    """Reads *business_info* and *shards*; `silent` are the shards that did not answer so far."""

    def __init__(self, business_info: BusinessInfo, shards: Shards, *, page_size: int = PAGE_SIZE) -> None:
        self._business_info = business_info
        self._page_size = page_size
        self._shards = shards
        self.silent: set[str] = set()

    async def read_listed(self) -> AsyncGenerator[ListingPage, None]:
        """Yield the entries of business-info, about a page of tenants at a time."""
        tenants: list[ListedTenant] = []
        async for businesses in self._business_info.scan_pages(page_size=self._page_size):
            unreadable: list[Difference] = []
            for business in businesses:
                unreadable += unreadable_parts(business)
                if isinstance(business, Business):
                    tenants += listed_tenants(business)
            while len(tenants) >= self._page_size or unreadable:
                yield ListingPage(tenants[: self._page_size], unreadable)
                tenants, unreadable = tenants[self._page_size :], []
        if tenants:
            yield ListingPage(tenants, [])

    async def gather_subjects(self, tenants: Sequence[ListedTenant], *, located: bool = True) -> list[AuditSubject]:
        """Return the entries of *tenants*, in their order. Without *located* the routing is not queried."""
        return await self._gather(
            [(tenant.business_id, tenant.location_id, tenant.listing) for tenant in tenants], located=located
        )

    async def read_unlisted(self) -> AsyncIterator[list[AuditSubject]]:
        """Yield the tenants that have a home shard and are not in business-info, a page of a shard at a time.

        Yields each tenant once, with the first of its home shards.
        """
        for address in await self._shards.locator.list_shards():
            async for rows in self._read_pages(address):
                subjects = await self._find_unlisted(rows)
                yield [subject for subject in subjects if _first_home(subject) in {None, address.shard_id}]

    async def locate(self, tenant_id: str) -> tuple[str | None, str | None]:
        """Return the shard to which a tenant is routed, or None and why that shard may not be used, or None twice."""
        try:
            address = await self._shards.locator.locate(tenant_id)
        except AddressRefusedError as exc:
            return None, str(exc)
        return (None if address is None else address.shard_id), None

    async def _gather(
        self, tenants: Sequence[tuple[str, str, BusinessListing | None]], *, located: bool
    ) -> list[AuditSubject]:
        ids = [tenant_id_of(business_id, location_id) for business_id, location_id, _ in tenants]
        rows, silent = await self._fetch_rows(ids)
        names = await self._locate_all(ids) if located else {}
        subjects = []
        for tenant_id, (business_id, location_id, listing) in zip(ids, tenants, strict=True):
            shard_id, refusal = names.get(tenant_id, (None, None))
            subject = AuditSubject(
                business_id, location_id, listing, rows.get(tenant_id, []), shard_id, refusal, silent
            )
            subjects.append(subject)
        return subjects

    async def _fetch_rows(self, tenant_ids: Sequence[str]) -> tuple[Mapping[str, list[AuditedRow]], list[str]]:
        """Return the rows that all shards have of tenants, by id, and the shards that did not answer."""
        survey = await self._shards.gateway.survey("find_tenants", list(tenant_ids))
        self.silent.update(survey.silent_shard_ids)
        rows: defaultdict[str, list[AuditedRow]] = defaultdict(list)
        for shard_id, row in sorted(survey.rows, key=lambda found: found[0]):
            rows[row["id"]].append(_row(shard_id, row))
        return rows, survey.silent_shard_ids

    async def _locate_all(self, tenant_ids: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
        named: dict[str, tuple[str | None, str | None]] = {}
        left = iter(dict.fromkeys(tenant_ids))

        async def locate() -> None:
            for tenant_id in left:
                named[tenant_id] = await self.locate(tenant_id)

        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(LOCATES_AT_ONCE):
                    tasks.create_task(locate(), name=f"inventory:{number}")
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # one is enough: without Citrus there is no audit
        return named

    async def _read_pages(self, address: ShardAddress) -> AsyncIterator[list[AuditedRow]]:
        """Yield the tenants of one shard in pages; end when the shard does not answer."""
        after = ""
        while True:
            try:
                pool = self._shards.pools.ensure_pool(address)
                async with pool.connection() as connection:
                    if not await has_schema(connection, pool):
                        return
                    rows = await connection.fetch(QUERIES["page_tenants"], after, self._page_size)
            except RetryableError:
                self.silent.add(address.shard_id)
                return
            yield [_row(address.shard_id, dict(row)) for row in rows]
            if len(rows) < self._page_size:
                return
            after = rows[-1]["id"]

    async def _find_unlisted(self, rows: Sequence[AuditedRow]) -> list[AuditSubject]:
        """Return the tenants of *rows* that are active on their shard and are not in business-info."""
        living = [row for row in rows if row.state in {TenantState.ACTIVE, TenantState.FENCED}]
        ids = sorted({row.business_id for row in living if is_id(row.business_id)})
        businesses = await self._business_info.find_all(ids)
        absent = [row for row in living if not _is_listed(businesses.get(row.business_id), row.location_id)]
        if not absent:
            return []
        return await self._gather([(row.business_id, row.location_id, None) for row in absent], located=True)


def listed_tenants(business: Business) -> list[ListedTenant]:
    """Return the tenants of a business, in order of location."""
    return [
        ListedTenant(
            business.id, location_id, BusinessListing(business.business_type, location_id not in business.inactive)
        )
        for location_id in sorted(business.locations)
    ]


def unreadable_parts(business: Business | UnreadableBusiness) -> list[Difference]:
    """Return the problems of an item of business-info."""
    problems = [business.problem] if isinstance(business, UnreadableBusiness) else business.problems
    return [Difference(DifferenceKind.UNREADABLE, problem, business.id) for problem in problems]


def _is_listed(business: Business | UnreadableBusiness | None, location_id: str) -> bool:
    """Return whether business-info lists a location, or may: an unreadable business is a difference of its own."""
    return isinstance(business, UnreadableBusiness) or (business is not None and location_id in business.locations)


def _first_home(subject: AuditSubject) -> str | None:
    return min((home.shard_id for home in subject.homes), default=None)


def _row(shard_id: str, row: Mapping[str, Any]) -> AuditedRow:
    return AuditedRow(shard_id, row["business_id"], row["location_id"], row["business_type"], TenantState(row["state"]))
