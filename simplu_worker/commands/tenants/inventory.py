"""`tenants audit` and `tenants provision`, which compare business-info, Citrus and the shards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

import msgspec

from simplu_worker.assembly.aws import open_business_info
from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.business_info import UnreadableBusinessError
from simplu_worker.business_info.table import BusinessInfo
from simplu_worker.commands.output import Answer, Line, Part, first_rows
from simplu_worker.commands.running import parse_tenant_id
from simplu_worker.commands.tenants.rules import (
    LIVING_STATES,
    AuditedRow,
    AuditSubject,
    BusinessListing,
    Difference,
    DifferenceKind,
    find_differences,
    plan_tenant,
)
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.shards.routing.directory import DESTROYED_STATES
from simplu_worker.shards.routing.shard_query import locate_all
from simplu_worker.shards.tenants.provisioning import BEFORE_ANY_CONTROL, Provisioner
from simplu_worker.shards.tenants.resource_changes import find_known_types
from simplu_worker.shards.types import ProvisionRequest, ProvisionResult
from simplu_worker.vocabulary import Absence, TenantState

PAGE_SIZE: Final = 500
BUSINESS_INFO_ATTEMPTS: Final = 5  # of each request, so that one throttled request does not end a scan
COLUMNS: Final = ("business", "location", "difference", "detail")
TROUBLES: Final = frozenset(
    {DifferenceKind.UNREADABLE, DifferenceKind.UNKNOWN_TYPE, DifferenceKind.ID_TAKEN, DifferenceKind.FAILED}
)


class Inventory(msgspec.Struct, frozen=True):
    """The rows of all shards by tenant id, and the shards that did not answer."""

    rows: dict[str, list[AuditedRow]]
    silent: list[str]

    def subject(self, business_id: str, location_id: str, listing: BusinessListing | None = None) -> AuditSubject:
        """Return a tenant with its rows."""
        subject = AuditSubject(business_id, location_id, listing, silent=self.silent)
        return msgspec.structs.replace(subject, rows=self.rows.get(subject.tenant_id, []))


async def _read_rows(shards: Shards) -> Inventory:
    survey = await shards.gateway.lookups.survey("list_tenants")
    rows: defaultdict[str, list[AuditedRow]] = defaultdict(list)
    for shard_id, row in sorted(survey.rows, key=lambda found: found[0]):
        names = row["business_id"], row["location_id"]
        rows[row["id"]].append(AuditedRow(shard_id, *names, row["business_type"], TenantState(row["state"])))
    return Inventory(rows, sorted(survey.silent_shard_ids))


async def _read_listed(
    info: BusinessInfo, inventory: Inventory, page_size: int
) -> AsyncIterator[tuple[list[AuditSubject], list[Difference]]]:
    """Yield the tenants that business-info lists, in order, and its unreadable entries, a page at a time."""
    async for businesses in info.scan_pages(page_size=page_size):
        tenants: list[AuditSubject] = []
        unreadable: list[Difference] = []
        for one in businesses:
            problems = [one.problem] if isinstance(one, UnreadableBusinessError) else one.problems
            unreadable += [Difference(DifferenceKind.UNREADABLE, problem, one.id) for problem in problems]
            if not isinstance(one, UnreadableBusinessError):
                listings = {
                    name: BusinessListing(one.business_type, name not in one.inactive) for name in one.locations
                }
                tenants += [inventory.subject(one.id, name, listings[name]) for name in sorted(listings)]
        yield tenants, unreadable


async def audit_tenants(settings: Settings, *, page_size: int = PAGE_SIZE) -> Answer:
    """Return every difference; it fails if there is one."""
    found: list[Difference] = []
    listed: set[tuple[str, str]] = set()
    async with open_business_info(settings, attempts=BUSINESS_INFO_ATTEMPTS) as info, open_shards(settings) as shards:
        known = await find_known_types(shards.locator, shards.pools)
        inventory = await _read_rows(shards)
        async for tenants, unreadable in _read_listed(info, inventory, page_size):
            listed.update((one.business_id, one.location_id) for one in tenants)
            found += [*unreadable, *await _find_differences(shards, tenants, known)]
        unreadable_ids = {one.business_id for one in found if one.kind is DifferenceKind.UNREADABLE}
        living = [row for rows in inventory.rows.values() for row in rows if row.state in LIVING_STATES]
        names = dict.fromkeys((row.business_id, row.location_id) for row in living)
        unlisted = [name for name in names if name not in listed and name[0] not in unreadable_ids]
        found += await _find_differences(shards, [inventory.subject(*name) for name in unlisted], known)
    members = {"differences": found, "counts": _counts(found), "tenantsListed": len(listed)}
    parts = _describe(found, f"{len(listed)} tenants in business-info", "no difference")
    return Answer(members, parts, inventory.silent, is_failed=bool(found))


async def _find_differences(
    shards: Shards, subjects: Sequence[AuditSubject], known_types: Iterable[str]
) -> list[Difference]:
    named, errors = await locate_all(shards.locator, dict.fromkeys(one.tenant_id for one in subjects))
    located = [
        msgspec.structs.replace(
            one,
            named_shard_id=None if (address := named.get(one.tenant_id)) is None else address.shard_id,
            refusal=errors.get(one.tenant_id),
        )
        for one in subjects
    ]
    return [difference for one in located for difference in find_differences(one, known_types=[*known_types])]


def _counts(found: Iterable[Difference]) -> dict[str, int]:
    return dict(sorted(Counter(one.kind.value for one in found).items()))


def _describe(found: Sequence[Difference], told: str, nothing: str) -> list[Part]:
    counted = ", ".join(f"{count} {kind}" for kind, count in _counts(found).items()) or nothing
    rows = [(one.business_id, one.location_id, one.kind, one.detail) for one in found]
    return [*first_rows(COLUMNS, rows), Line(f"{told}: {counted}")]


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
    is_stale = result is ProvisionResult.STALE
    parts: list[Part] = [Line(f"{result}: {business_id} {location_id}, {its_type}, on shard {shard_id or 'unknown'}")]
    if its_type != business_type:
        parts.append(f"the tenant keeps its type {its_type}: nothing was changed to {business_type}")
    if is_stale:
        parts.append(f"nothing was changed: the tenant is {state}; {_remedy(state)}")
    members = {"businessId": business_id, "locationId": location_id, "businessType": its_type}
    return Answer(members | {"result": result, "shardId": shard_id}, parts, is_failed=is_stale)


def _remedy(state: str) -> str:
    if state in DESTROYED_STATES:
        return "to bring it back, send a SHARD_CREATION"
    return "run this again once its move or import has ended"


async def provision_listed(settings: Settings, *, apply: bool, page_size: int = PAGE_SIZE) -> Answer:
    """Plan to create every active tenant of business-info that no shard has; with *apply* create them.

    Idempotent. It fails if a tenant cannot be created, or not now.
    """
    found: list[Difference] = []
    there_count = 0
    async with open_business_info(settings, attempts=BUSINESS_INFO_ATTEMPTS) as info, open_shards(settings) as shards:
        known = await find_known_types(shards.locator, shards.pools)
        inventory = await _read_rows(shards)
        async for tenants, unreadable in _read_listed(info, inventory, page_size):
            planned = [(one, plan_tenant(one, known_types=known)) for one in tenants if one.is_wanted]
            there_count += sum(not differences for _, differences in planned)
            found += unreadable
            wanted = [one for one, differences in planned if any(map(_is_create, differences))]
            differences = [one for _, of_one in planned for one in of_one]
            if apply:
                differences = [one for one in differences if not _is_create(one)]
                found += await _create(shards.provisioner, wanted)
            found += differences
    parts = [
        *_describe(found, f"{there_count} there", "nothing to create"),
        "nothing was changed; --apply creates them" if any(map(_is_create, found)) else None,
    ]
    members = {"tenants": found, "counts": _counts(found), "there": there_count}
    return Answer(members, parts, inventory.silent, is_failed=any(one.kind in TROUBLES for one in found))


def _is_create(one: Difference) -> bool:
    return one.kind is DifferenceKind.CREATE


async def _create(provisioner: Provisioner, subjects: Sequence[AuditSubject]) -> list[Difference]:
    first = {one.tenant_id: one for one in reversed(subjects)}
    requests = [
        ProvisionRequest(one.business_id, one.location_id, one.listing.business_type, BEFORE_ANY_CONTROL)
        for one in first.values()
        if one.listing is not None
    ]
    created = [
        Difference(DifferenceKind.ID_TAKEN, "another one that is listed has its id", one.business_id, one.location_id)
        for one in subjects
        if first[one.tenant_id] is not one
    ]
    for request, answer in zip(requests, await provisioner.provision_all(requests), strict=True):
        if isinstance(answer, Exception) and not isinstance(answer, WorkerError):
            raise answer  # a bug
        kind = DifferenceKind.FAILED if isinstance(answer, WorkerError) else DifferenceKind.CREATED
        created.append(Difference(kind, str(answer), request.business_id, request.location_id))
    return created
