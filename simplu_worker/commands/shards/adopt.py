"""`shards adopt`: adopt the rows that another program wrote on a shard, or print the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import partial
from typing import Any, Final

import msgspec

from simplu_worker.assembly.aws import open_business_info
from simplu_worker.assembly.shards import open_shards
from simplu_worker.commands.moves import show_status, wait_for_killed
from simplu_worker.commands.output import Answer, Line, Part, TransferProgress, first_rows
from simplu_worker.commands.running import known_shard
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.pool import ShardPool, register_secret_of
from simplu_worker.transfers.adoption.adopter import ADOPTION_TIMEOUTS, OLD_TABLE, OURS, Adopter, AdoptionResult
from simplu_worker.transfers.adoption.plan import AdoptionChoices, AdoptionPlan, Layout, Owner
from simplu_worker.vocabulary import TransferKind

TENANTS: Final = {"businessId": "business", "locationId": "location", "businessType": "type", "rows": "rows"}
UNRESOLVED: Final = {"name": "unresolved", "rows": "rows", "reason": "why"}
DUPLICATES: Final = {
    "tenant": "several rows of",
    "resourceType": "type",
    "resourceId": "id",
    "rows": "rows",
    "oldIds": "old ids; the last one, the newest, is taken",
}
FAULTY: Final = {"oldId": "old id", "reason": "cannot be adopted, because"}
LAYOUTS: Final = {
    Layout.JOINED_IDS: "business and location in one column",
    Layout.TWO_IDS: "business and location in two columns",
}


class AdoptMode(StrEnum):
    """How much of the plan is carried out."""

    NOTHING = "planned"
    COPY = "copied"
    ALL = "adopted"


async def adopt_shard(settings: Settings, shard_id: str, mode: AdoptMode, choices: AdoptionChoices) -> Answer:
    """Return the plan of an adoption, or carry out so much of it; it fails if something prevents it."""
    async with open_shards(settings) as shards, open_business_info(settings, attempts=3) as business_info:
        address = known_shard(await shards.locator.list_shards(), shard_id)
        if (refusal := address.refusal) is not None:
            raise PermanentError(refusal)
        register_secret_of(address)
        pool = ShardPool(address, size=2, timeouts=ADOPTION_TIMEOUTS)
        try:
            with TransferProgress() as progress:
                show = partial(show_status, progress, shard_id)
                adopter = Adopter(pool, shards.locator, business_info, show=show)
                plan = await adopter.make_plan()
                if isinstance(plan, AdoptionResult):
                    return _describe_adopted(shard_id, plan, "before")
                refusals = plan.refusals(choices)
                if plan.is_begun and mode is not AdoptMode.NOTHING:
                    await wait_for_killed(pool, shard_id, TransferKind.ADOPTION, OURS)
                if mode is AdoptMode.ALL and not refusals:
                    return _describe_adopted(shard_id, await adopter.adopt(plan, choices), "now")
                is_copy = mode is AdoptMode.COPY and not plan.contents.conflicting_names
                state = AdoptMode.COPY if is_copy else AdoptMode.NOTHING
                if is_copy:
                    await adopter.adopt(plan, None)
        finally:
            await pool.close()
    members = {"shardId": shard_id, "state": state} | plan_members(plan, refusals)
    is_failed = bool(refusals) and not is_copy  # they concern the swap only
    return Answer(members, describe_plan(plan, refusals, state), is_failed=is_failed)


def _describe_adopted(shard_id: str, adopted: AdoptionResult, was: str) -> Answer:
    members = {"shardId": shard_id, "state": AdoptMode.ALL, "oldTable": OLD_TABLE} | msgspec.to_builtins(adopted)
    text = f"adopted {was}, {adopted.row_count} rows of {adopted.tenant_count} tenants"
    return Answer(members, [Line(f"shard {shard_id}: {text}; the old table is {OLD_TABLE}")])


def plan_members(plan: AdoptionPlan, refusals: list[str]) -> dict[str, Any]:
    """Return a plan as JSON members."""
    found = plan.contents
    return {
        "layout": plan.layout,
        "begun": plan.is_begun,
        "rows": plan.row_count,
        "tenants": [_tenant_members(plan, owner) for owner in plan.resolved],
        "unresolved": [_tenant_members(plan, owner) | {"reason": owner.problem} for owner in plan.unresolved],
        "duplicates": {"count": plan.duplicate_count, "first": msgspec.to_builtins(found.duplicates)},
        "faulty": {"count": found.fault_counts.total(), "first": msgspec.to_builtins(found.faulty)},
        "namesInTheWay": found.conflicting_names,
        "refusals": refusals,
    }


def _tenant_members(plan: AdoptionPlan, owner: Owner) -> dict[str, Any]:
    members = {
        "name": owner.source.key,
        "businessId": owner.business_id,
        "locationId": owner.location_id,
        "businessType": owner.business_type,
        "rows": plan.contents.row_counts[owner.source.key],
    }
    return {name: value for name, value in members.items() if value is not None}


def describe_plan(plan: AdoptionPlan, refusals: list[str], state: AdoptMode) -> Iterator[Part]:
    """Yield a plan for people, and the next step."""
    yield Line(
        f"shard {plan.shard_id}: a table resources of another program, {LAYOUTS[plan.layout]}; "
        f"{plan.row_count} rows of {len(plan.resolved)} tenants can be adopted"
    )
    yield from _tables(plan_members(plan, refusals))
    if plan.is_begun:
        yield "an earlier copy was interrupted; it is continued"
    for refusal in refusals:
        yield f"before the swap: {refusal}"
    if state is AdoptMode.COPY:
        yield "copied, and kept up to date; stop the other program, then --apply swaps the tables"
    elif refusals:
        yield "nothing was changed"
    else:
        yield "nothing was changed; --prepare copies while the other program runs, --apply adopts the shard"


def _tables(members: Mapping[str, Any]) -> Iterator[Part]:
    duplicates, faulty = members["duplicates"], members["faulty"]
    for columns, rows, count in (
        (TENANTS, members["tenants"], None),
        (UNRESOLVED, members["unresolved"], None),
        (DUPLICATES, duplicates["first"], duplicates["count"]),
        (FAULTY, faulty["first"], faulty["count"]),
    ):
        yield from first_rows([*columns.values()], [[row.get(name) for name in columns] for row in rows], count=count)
