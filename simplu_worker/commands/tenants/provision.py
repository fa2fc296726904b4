"""`tenants provision`: create one tenant, or all that business-info lists and no shard has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.assembly.aws import open_business_info
from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.output.display import print_json, print_line, print_note
from simplu_worker.commands.output.streamed_list import StreamedList
from simplu_worker.commands.requirements import parse_tenant_id, require_settings
from simplu_worker.commands.tenants.audit_rules import AuditSubject, DifferenceKind
from simplu_worker.commands.tenants.inventory import BUSINESS_INFO_ATTEMPTS, PAGE_SIZE, ListingPage, TenantInventory
from simplu_worker.config.settings import Settings
from simplu_worker.errors import WorkerError
from simplu_worker.shards.routing.directory import DESTROYED_STATES
from simplu_worker.shards.tenants.first_use import BEFORE_ANY_CONTROL
from simplu_worker.shards.tenants.known_types import find_known_types
from simplu_worker.shards.tenants.provisioning import Provisioner
from simplu_worker.shards.types import ProvisionAnswer, ProvisionRequest, ProvisionResult
from simplu_worker.vocabulary import Absence, TenantState

COLUMNS: Final = ("business", "location", "type", "step", "detail")


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
    """A tenant that business-info lists as active and that has no intact home, with the step for it."""

    step: ProvisionStep
    business_id: str | None = None
    location_id: str | None = None
    business_type: str | None = None
    detail: str | None = None


async def provision_tenant(
    settings: Settings, business_id: str, location_id: str, business_type: str, *, as_json: bool
) -> int:
    """Register the tenant and create it on its shard; never change one that exists, as any control message is newer.

    Return 1 for a tenant that is not active: destroyed, being destroyed, or being moved.
    """
    require_settings(settings, routes=True)
    tenant_id = parse_tenant_id(business_id, location_id)
    request = ProvisionRequest(business_id, location_id, business_type, BEFORE_ANY_CONTROL)
    async with open_shards(settings) as shards:
        result = await shards.provisioner.provision(request)
        found = await shards.gateway.find_tenant(tenant_id)
    if isinstance(found, Absence):
        shard_id, state, its_type = None, str(found), business_type
    else:
        shard_id, row = found
        state, its_type = row["state"], row["business_type"]
    if result is ProvisionResult.STALE and state == TenantState.ACTIVE:
        result = ProvisionResult.EXISTED
    if as_json:
        members = {"businessId": business_id, "locationId": location_id, "businessType": its_type}
        print_json(members | {"result": result, "shardId": shard_id})
    else:
        print_line(f"{result}: {business_id} {location_id}, {its_type}, on shard {shard_id or 'unknown'}")
    if its_type != business_type:
        print_note(f"the tenant keeps its type {its_type}: nothing was changed to {business_type}")
    if result is ProvisionResult.STALE:
        print_note(f"nothing was changed: the tenant is {state}; {_remedy(state)}")
    return 1 if result is ProvisionResult.STALE else 0


def _remedy(state: str) -> str:
    if state in DESTROYED_STATES:
        return "to bring it back, send a SHARD_CREATION"
    return "run this again once its move or import has ended"


async def provision_listed(settings: Settings, *, apply: bool, as_json: bool, page_size: int = PAGE_SIZE) -> int:
    """Plan to create every active tenant of business-info that no shard has; with *apply* create them. Idempotent.

    A destroyed tenant is not created again, and any control message counts as newer. Returns 1 if a tenant cannot be
    created, or not now.
    """
    require_settings(settings, routes=True)
    counts: Counter[ProvisionStep] = Counter()
    there_count = 0
    shown: StreamedList[PlannedTenant] = StreamedList("tenants", COLUMNS, _row, as_json=as_json)
    async with open_business_info(settings, attempts=BUSINESS_INFO_ATTEMPTS) as info, open_shards(settings) as shards:
        inventory = TenantInventory(info, shards, page_size=page_size)
        known = await find_known_types(shards.locator, shards.pools)
        async for page in inventory.read_listed():
            planned = await _plan_page(inventory, page, known)
            there_count += sum(tenant.listing.is_active for tenant in page.tenants) + len(page.unreadable)
            there_count -= len(planned)
            if apply:
                planned = await _carry_out(shards.provisioner, planned)
            counts.update(one.step for one in planned)
            shown.add(planned)
    steps = {step.value: count for step, count in sorted(counts.items())}
    shown.finish({"counts": steps, "there": there_count, "shardsWithoutAnswer": sorted(inventory.silent)})
    if not as_json:
        counted = "".join(f", {count} {step}" for step, count in steps.items())
        print_line(f"{there_count} there{counted}")
        if counts[ProvisionStep.MAKE]:
            print_note("nothing was changed; --apply creates them")
    return 1 if TROUBLES & counts.keys() else 0


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
    """Return the plan for a page. Routing is not queried: creating a tenant finds out whether it is registered."""
    subjects = await inventory.gather_subjects(
        [tenant for tenant in page.tenants if tenant.listing.is_active], located=False
    )
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
    """Create the tenants that are planned so; return all of *planned*, with the results."""
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


def _row(planned: PlannedTenant) -> tuple[object, ...]:
    return planned.business_id, planned.location_id, planned.business_type, planned.step, planned.detail
