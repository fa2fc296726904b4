"""`tenants audit` and `tenants provision`, which compare business-info, Citrus and the shards page by page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from simplu_worker.assembly.aws import open_business_info
from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.business_info import Business
from simplu_worker.business_info.table import BusinessInfo, UnreadableBusiness
from simplu_worker.commands.output import Answer, Line, first_rows
from simplu_worker.commands.running import parse_tenant_id
from simplu_worker.commands.tenants.rules import (
    AuditedRow,
    AuditSubject,
    BusinessListing,
    Difference,
    DifferenceKind,
    find_differences,
)
from simplu_worker.config.settings import Settings
from simplu_worker.errors import RetryableError, WorkerError
from simplu_worker.operations.operation import is_id
from simplu_worker.shards.postgres.address import AddressRefusedError, ShardAddress
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.routing.directory import DESTROYED_STATES
from simplu_worker.shards.schema.schema_check import has_schema
from simplu_worker.shards.tenants.provisioning import BEFORE_ANY_CONTROL, Provisioner
from simplu_worker.shards.tenants.resource_changes import find_known_types
from simplu_worker.shards.types import ProvisionAnswer, ProvisionRequest, ProvisionResult
from simplu_worker.transfers.patience import run_at_once
from simplu_worker.vocabulary import Absence, TenantState

PAGE_SIZE: Final = 500
BUSINESS_INFO_ATTEMPTS: Final = 5  # of each request, so that one throttled request does not end a scan
LOCATES_AT_ONCE: Final = 16


class ListingPage(msgspec.Struct, frozen=True):
    """A page of the tenants that business-info lists, and its unreadable entries."""

    tenants: list[AuditSubject]
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
        tenants: list[AuditSubject] = []
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

    async def gather_subjects(self, tenants: Sequence[AuditSubject], *, located: bool = True) -> list[AuditSubject]:
        """Return *tenants*, in their order, with their rows and, if *located*, their routing."""
        ids = [tenant.tenant_id for tenant in tenants]
        rows, silent = await self._fetch_rows(ids)
        names = await self._locate_all(ids) if located else {}
        subjects = []
        for tenant in tenants:
            shard_id, refusal = names.get(tenant.tenant_id, (None, None))
            found = {"rows": rows.get(tenant.tenant_id, []), "named_shard_id": shard_id, "refusal": refusal}
            subjects.append(msgspec.structs.replace(tenant, **found, silent=silent))
        return subjects

    async def read_unlisted(self) -> AsyncIterator[list[AuditSubject]]:
        """Yield the tenants that have a home and are not in business-info, each once."""
        for address in await self._shards.locator.list_shards():
            async for rows in self._read_pages(address):
                subjects = await self._find_unlisted(rows)
                yield [subject for subject in subjects if _first_home(subject) in {None, address.shard_id}]

    async def _fetch_rows(self, tenant_ids: Sequence[str]) -> tuple[Mapping[str, list[AuditedRow]], list[str]]:
        survey = await self._shards.gateway.lookups.survey("find_tenants", list(tenant_ids))
        self.silent.update(survey.silent_shard_ids)
        rows: defaultdict[str, list[AuditedRow]] = defaultdict(list)
        for shard_id, row in sorted(survey.rows, key=lambda found: found[0]):
            rows[row["id"]].append(_row(shard_id, row))
        return rows, survey.silent_shard_ids

    async def _locate_all(self, tenant_ids: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
        async def locate(tenant_id: str) -> tuple[str | None, str | None]:
            try:
                address = await self._shards.locator.locate(tenant_id)
            except AddressRefusedError as exc:
                return None, str(exc)
            return None if address is None else address.shard_id, None

        names = dict.fromkeys(tenant_ids)
        return dict(zip(names, await run_at_once(locate, names, most=LOCATES_AT_ONCE), strict=True))

    async def _read_pages(self, address: ShardAddress) -> AsyncIterator[list[AuditedRow]]:
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
        living = [row for row in rows if row.state in {TenantState.ACTIVE, TenantState.FENCED}]
        ids = sorted({row.business_id for row in living if is_id(row.business_id)})
        businesses = await self._business_info.find_all(ids)
        absent = [row for row in living if not _is_listed(businesses.get(row.business_id), row.location_id)]
        if not absent:
            return []
        return await self.gather_subjects([AuditSubject(row.business_id, row.location_id, None) for row in absent])


def listed_tenants(business: Business) -> list[AuditSubject]:
    """Return the tenants of a business, in order of location."""
    return [
        AuditSubject(
            business.id, location_id, BusinessListing(business.business_type, location_id not in business.inactive)
        )
        for location_id in sorted(business.locations)
    ]


def unreadable_parts(business: Business | UnreadableBusiness) -> list[Difference]:
    """Return the problems of an item of business-info."""
    problems = [business.problem] if isinstance(business, UnreadableBusiness) else business.problems
    return [Difference(DifferenceKind.UNREADABLE, problem, business.id) for problem in problems]


def _is_listed(business: Business | UnreadableBusiness | None, location_id: str) -> bool:
    return isinstance(business, UnreadableBusiness) or (business is not None and location_id in business.locations)


def _first_home(subject: AuditSubject) -> str | None:
    return min((home.shard_id for home in subject.homes), default=None)


def _row(shard_id: str, row: Mapping[str, Any]) -> AuditedRow:
    return AuditedRow(shard_id, row["business_id"], row["location_id"], row["business_type"], TenantState(row["state"]))


COLUMNS: Final = ("business", "location", "difference", "detail")


async def audit_tenants(settings: Settings, *, page_size: int = PAGE_SIZE) -> Answer:
    """Return every difference; it fails if there is one."""
    found: list[Difference] = []
    async with open_business_info(settings, attempts=BUSINESS_INFO_ATTEMPTS) as info, open_shards(settings) as shards:
        inventory = TenantInventory(info, shards, page_size=page_size)
        known = await find_known_types(shards.locator, shards.pools)
        listed_count = 0
        async for page in inventory.read_listed():
            listed_count += len(page.tenants)
            found += page.unreadable
            found += _differences(await inventory.gather_subjects(page.tenants), known)
        async for unlisted in inventory.read_unlisted():
            found += _differences(unlisted, known)
    counts = Counter(one.kind.value for one in found)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "no difference"
    rows = [(one.business_id, one.location_id, one.kind, one.detail) for one in found]
    parts = [*first_rows(COLUMNS, rows), Line(f"{listed_count} tenants in business-info: {counted}")]
    members = {"differences": found, "counts": dict(sorted(counts.items())), "tenantsListed": listed_count}
    return Answer(members, parts, sorted(inventory.silent), is_failed=bool(found))


def _differences(subjects: Sequence[AuditSubject], known: Collection[str]) -> list[Difference]:
    return [difference for subject in subjects for difference in find_differences(subject, known_types=known)]


PROVISION_COLUMNS: Final = ("business", "location", "type", "step", "detail")


class ProvisionStep(StrEnum):
    """The planned or completed step for a tenant that business-info lists."""

    MAKE = "make"
    MADE = "made"
    UNREADABLE = "unreadable"
    REFUSED = "refused"  # by a rule: a repetition is refused too
    LEFT = "left"  # destroyed, being destroyed or being moved: a person has to decide
    UNKNOWN = "unknown"  # a shard that may have it does not answer
    FAILED = "failed"


TROUBLES: Final = frozenset(
    {ProvisionStep.UNREADABLE, ProvisionStep.REFUSED, ProvisionStep.UNKNOWN, ProvisionStep.FAILED}
)


class PlannedTenant(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A tenant of business-info without an intact home, with the step for it."""

    step: ProvisionStep
    business_id: str | None = None
    location_id: str | None = None
    business_type: str | None = None
    detail: str | None = None


async def provision_tenant(settings: Settings, business_id: str, location_id: str, business_type: str) -> Answer:
    """Register the tenant and create it; never change one that exists, as any control message is newer.

    It fails for a tenant that is not active.
    """
    tenant_id = parse_tenant_id(business_id, location_id)
    request = ProvisionRequest(business_id, location_id, business_type, BEFORE_ANY_CONTROL)
    async with open_shards(settings) as shards:
        result = await shards.provisioner.provision(request)
        found = await shards.gateway.lookups.find_tenant(tenant_id)
    if isinstance(found, Absence):
        shard_id, state, its_type = None, str(found), business_type
    else:
        shard_id, row = found
        state, its_type = row["state"], row["business_type"]
    if result is ProvisionResult.STALE and state == TenantState.ACTIVE:
        result = ProvisionResult.EXISTED
    is_stale, is_kept = result is ProvisionResult.STALE, its_type != business_type
    line = Line(f"{result}: {business_id} {location_id}, {its_type}, on shard {shard_id or 'unknown'}")
    notes = [f"the tenant keeps its type {its_type}: nothing was changed to {business_type}"] if is_kept else []
    notes += [f"nothing was changed: the tenant is {state}; {_remedy(state)}"] if is_stale else []
    members = {"businessId": business_id, "locationId": location_id, "businessType": its_type}
    return Answer(members | {"result": result, "shardId": shard_id}, [line], is_failed=is_stale, notes=notes)


def _remedy(state: str) -> str:
    if state in DESTROYED_STATES:
        return "to bring it back, send a SHARD_CREATION"
    return "run this again once its move or import has ended"


async def provision_listed(settings: Settings, *, apply: bool, page_size: int = PAGE_SIZE) -> Answer:
    """Plan to create every active tenant of business-info that no shard has; with *apply* create them.

    Idempotent. It fails if a tenant cannot be created, or not now.
    """
    steps: list[PlannedTenant] = []
    there_count = 0
    async with open_business_info(settings, attempts=BUSINESS_INFO_ATTEMPTS) as info, open_shards(settings) as shards:
        inventory = TenantInventory(info, shards, page_size=page_size)
        known = await find_known_types(shards.locator, shards.pools)
        async for page in inventory.read_listed():
            planned = await _plan_page(inventory, page, known)
            there_count += sum(tenant.is_wanted for tenant in page.tenants) + len(page.unreadable)
            there_count -= len(planned)
            steps += await _carry_out(shards.provisioner, planned) if apply else planned
    counts = {step.value: count for step, count in sorted(Counter(one.step for one in steps).items())}
    counted = "".join(f", {count} {step}" for step, count in counts.items())
    parts = [
        *first_rows(PROVISION_COLUMNS, list(map(_provision_row, steps))),
        Line(f"{there_count} there{counted}"),
        "nothing was changed; --apply creates them" if ProvisionStep.MAKE in counts else None,
    ]
    members = {"tenants": steps, "counts": counts, "there": there_count}
    is_failed = any(one.step in TROUBLES for one in steps)
    return Answer(members | {"shardsWithoutAnswer": sorted(inventory.silent)}, parts, is_failed=is_failed)


def plan_tenant(subject: AuditSubject, known_types: Collection[str]) -> PlannedTenant | None:
    """Return the step for a tenant that business-info lists as active; None if a shard has it."""
    listing = subject.listing
    business_type = None if listing is None else listing.business_type

    def planned(step: ProvisionStep, detail: str | None = None) -> PlannedTenant:
        return PlannedTenant(step, subject.business_id, subject.location_id, business_type, detail)

    if subject.id_taker is not None:
        id_taker = subject.id_taker
        return planned(
            ProvisionStep.REFUSED,
            f"its id is taken by business {id_taker.business_id}, location {id_taker.location_id}",
        )
    if subject.homes and all(home.state != TenantState.DESTROYING for home in subject.homes):
        return None
    if subject.own_rows:
        row = subject.own_rows[0]
        return planned(ProvisionStep.LEFT, f"it is {row.state} on shard {row.shard_id}")
    if business_type not in known_types:
        return planned(ProvisionStep.REFUSED, f"expected one of {', '.join(known_types)}")
    if subject.silent:
        return planned(ProvisionStep.UNKNOWN, f"no answer from {', '.join(subject.silent)}")
    return planned(ProvisionStep.MAKE)


async def _plan_page(
    inventory: TenantInventory, page: ListingPage, known_types: Collection[str]
) -> list[PlannedTenant]:
    subjects = await inventory.gather_subjects([tenant for tenant in page.tenants if tenant.is_wanted], located=False)
    planned = [PlannedTenant(ProvisionStep.UNREADABLE, one.business_id, detail=one.detail) for one in page.unreadable]
    ids: set[str] = set()
    for subject in subjects:
        step = plan_tenant(subject, known_types)
        if step is not None and step.step is ProvisionStep.MAKE and subject.tenant_id in ids:
            detail = f"another listed business and location have its id {subject.tenant_id}: {DifferenceKind.ID_TAKEN}"
            step = msgspec.structs.replace(step, step=ProvisionStep.REFUSED, detail=detail)
        ids.add(subject.tenant_id)
        if step is not None:
            planned.append(step)
    return planned


async def _carry_out(provisioner: Provisioner, planned: Sequence[PlannedTenant]) -> list[PlannedTenant]:
    wanted = [(one, request) for one in planned if (request := _provision_request(one)) is not None]
    answers = await provisioner.provision_all([request for _, request in wanted])
    results = {id(one): _with_result(one, answer) for (one, _), answer in zip(wanted, answers, strict=True)}
    return [results.get(id(one), one) for one in planned]


def _provision_request(planned: PlannedTenant) -> ProvisionRequest | None:
    match planned:
        case PlannedTenant(
            step=ProvisionStep.MAKE, business_id=str(business), location_id=str(location), business_type=str(kind)
        ):
            return ProvisionRequest(business, location, kind, BEFORE_ANY_CONTROL)
        case _:
            return None


def _with_result(planned: PlannedTenant, answer: ProvisionAnswer) -> PlannedTenant:
    match answer:
        case WorkerError():
            return msgspec.structs.replace(planned, step=ProvisionStep.FAILED, detail=str(answer))
        case Exception():
            raise answer  # a bug
        case ProvisionResult.PROVISIONED:
            return msgspec.structs.replace(planned, step=ProvisionStep.MADE)
        case _:
            return msgspec.structs.replace(
                planned, step=ProvisionStep.MADE, detail="by another worker or command at the same time"
            )


def _provision_row(planned: PlannedTenant) -> tuple[object, ...]:
    return planned.business_id, planned.location_id, planned.business_type, planned.step, planned.detail
