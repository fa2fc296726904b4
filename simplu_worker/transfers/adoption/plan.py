"""The plan of an adoption: the tenants that own the old table's rows, and the decisions to make first. Pure.

The TypeScript worker had business and location in one column or in two, and data as jsonb or text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.business_info import Business, refusal_reason
from simplu_worker.operations.operation import is_id, tenant_id_of

NAMED_MAX: Final = 1000  # duplicates, and faulty rows, that a plan names

NEEDED: Final = {
    "id": {"bigint", "integer"},
    "resource_type": {"character varying", "text"},
    "resource_id": {"character varying", "text"},
    "data": {"jsonb", "text", "character varying"},
    "created_at": {"timestamp with time zone", "timestamp without time zone"},
    "updated_at": {"timestamp with time zone", "timestamp without time zone"},
}
TEXTS: Final = {"character varying", "text"}


class Layout(StrEnum):
    """The old table's columns that name a tenant, and the script for them."""

    JOINED_IDS = "rows_of_joined_ids"
    TWO_IDS = "rows_of_two_ids"


class AdoptionStep(StrEnum):
    """The steps of an adoption."""

    LOOKING_UP = "looking up tenants"
    COPYING = "copying rows"
    CATCHING_UP = "catching up"
    WATCHING = "watching for writes"
    SWAPPING = "swapping names"
    ENDED = "ended"


class Standing(msgspec.Struct, frozen=True, rename="camel"):
    """How far an adoption is; all but the first two members are of the command at work alone.

    Rows up to the id *copied_to* are copied; triggers record all changes since *copy_to* was the last one.
    """

    copied_to: int = -(2**63)  # the minimum of bigint
    copy_to: int | None = None
    has_owners: bool = False  # of all rows that were read
    is_caught_up: bool = False
    is_quiet: bool = False
    has_ended: bool = False


def next_step(standing: Standing, *, copies_only: bool) -> AdoptionStep:
    """Return the next step; without the last two if it *copies_only*."""
    if standing.has_ended:
        return AdoptionStep.ENDED
    if not standing.has_owners:
        return AdoptionStep.LOOKING_UP
    if standing.copy_to is None or standing.copied_to < standing.copy_to:
        return AdoptionStep.COPYING
    if not standing.is_caught_up:
        return AdoptionStep.CATCHING_UP
    if copies_only:
        return AdoptionStep.ENDED
    return AdoptionStep.SWAPPING if standing.is_quiet else AdoptionStep.WATCHING


class OldTenant(msgspec.Struct, frozen=True):
    """A tenant as the old table names it: by *key* alone, or by business and location too."""

    key: str
    business_id: str | None = None
    location_id: str | None = None

    @property
    def candidates(self) -> list[tuple[str, str]]:
        """The businesses and locations that the source may mean: an id with several `-` is ambiguous."""
        if self.business_id is not None and self.location_id is not None:
            return [(self.business_id, self.location_id)]
        dashes = [index for index, char in enumerate(self.key) if char == "-"]
        return [(self.key[:index], self.key[index + 1 :]) for index in dashes]


class Owner(msgspec.Struct, frozen=True):
    """The tenant of a source; or, with *problem*, why its rows cannot be adopted."""

    source: OldTenant
    business_id: str | None = None
    location_id: str | None = None
    business_type: str | None = None
    problem: str | None = None

    @property
    def tenant_id(self) -> str | None:
        """The tenant's id; None with a problem."""
        if self.problem is not None or self.business_id is None or self.location_id is None:
            return None
        return tenant_id_of(self.business_id, self.location_id)

    @property
    def name(self) -> str:
        """Business and location if they are known, else the old table's key."""
        if self.business_id is not None and self.location_id is not None:
            return f"{self.business_id} {self.location_id}"
        return self.source.key


class DuplicateRows(msgspec.Struct, frozen=True, rename="camel"):
    """Several old rows of one resource of *tenant*, with the ids of the first ones, oldest first."""

    tenant: str
    resource_type: str
    resource_id: str
    rows: int
    old_ids: Sequence[int]


class FaultyRow(msgspec.Struct, frozen=True, rename="camel"):
    """An old row that cannot be a resource, and why."""

    old_id: int
    reason: str


class AdoptionChoices(msgspec.Struct, frozen=True):
    """The decisions that a person has to make."""

    leave_unresolved: bool = False
    leave_faulty: bool = False


class OldContents(msgspec.Struct):
    """The contents of the old table, counted by source; *duplicates* and *faulty* name the first `NAMED_MAX`."""

    row_counts: Counter[str] = msgspec.field(default_factory=Counter)
    fault_counts: Counter[str] = msgspec.field(default_factory=Counter)
    duplicate_counts: Counter[str] = msgspec.field(default_factory=Counter)
    duplicates: list[DuplicateRows] = []
    faulty: list[FaultyRow] = []
    sources: dict[str, OldTenant] = {}
    conflicting_names: list[str] = []

    def add_rows(self, source: OldTenant | None, fault: str | None, row_count: int) -> None:
        """Count rows of one source, or of none, with or without a fault."""
        if fault is not None:
            self.fault_counts[fault] += row_count
        elif source is not None:
            self.row_counts[source.key] += row_count
            self.sources[source.key] = source

    def add_duplicate(self, source_key: str, rows: DuplicateRows) -> None:
        """Count, and perhaps name, a resource with several rows."""
        self.duplicate_counts[source_key] += 1
        if len(self.duplicates) < NAMED_MAX:
            self.duplicates.append(rows)


class AdoptionPlan(msgspec.Struct, frozen=True):
    """The plan of an adoption."""

    shard_id: str
    layout: Layout
    contents: OldContents
    owners: Mapping[str, Owner]
    is_begun: bool = False

    @property
    def resolved(self) -> list[Owner]:
        """The owners of rows that can be adopted, by name."""
        return sorted((owner for owner in self.owners.values() if owner.problem is None), key=lambda one: one.name)

    @property
    def unresolved(self) -> list[Owner]:
        """The owners of rows that cannot be adopted, by name."""
        return sorted((owner for owner in self.owners.values() if owner.problem is not None), key=lambda one: one.name)

    @property
    def row_count(self) -> int:
        """How many rows can be adopted, all duplicates included."""
        return sum(self.contents.row_counts[owner.source.key] for owner in self.resolved)

    @property
    def duplicate_count(self) -> int:
        """How many adoptable resources have several rows."""
        return sum(self.contents.duplicate_counts[owner.source.key] for owner in self.resolved)

    def refusals(self, choices: AdoptionChoices) -> list[str]:
        """Return what prevents the swap, each with the change or choice that removes it."""
        refusals = []
        if names := self.contents.conflicting_names:
            refusals.append(
                f"beside the old table there is {', '.join(names)} already; rename the tables, types or functions with "
                "these names"
            )
        if self.unresolved and not choices.leave_unresolved:
            row_count = sum(self.contents.row_counts[owner.source.key] for owner in self.unresolved)
            refusals.append(
                f"unresolved tenants: {len(self.unresolved)}, with {row_count} rows; correct the reasons listed, "
                "or leave their rows in the old table with --leave-unresolved"
            )
        if (fault_count := self.contents.fault_counts.total()) and not choices.leave_faulty:
            refusals.append(
                f"rows that cannot be resources: {fault_count}; correct them, "
                "or leave them in the old table with --leave-faulty"
            )
        return refusals


def layout_of(columns: Mapping[str, str]) -> Layout | str:
    """Return the layout of a table with *columns*, types by name; or, as text, what is wrong with one."""
    needed = dict(NEEDED)
    if "business_location_id" in columns:
        layout, needed["business_location_id"] = Layout.JOINED_IDS, TEXTS
    else:
        layout, needed["business_id"], needed["location_id"] = Layout.TWO_IDS, TEXTS, TEXTS
    for name, types in needed.items():
        if columns.get(name) not in types:
            came = f"of type {columns[name]}" if name in columns else "none"
            wanted = "business_location_id, or business_id and location_id," if name == "business_id" else name
            return f"expected a table resources with a column {wanted} of type {' or '.join(sorted(types))}, got {came}"
    return layout


def owner_of(
    source: OldTenant,
    businesses: Mapping[str, Business | str | None],
    named_shard_id: str | None,
    *,
    shard_id: str,
    types: Iterable[str],
) -> Owner:
    """Return the tenant of *source*: the only pair in business-info, if it is routed to this shard.

    *businesses* are the candidates by id (a text: unreadable), *named_shard_id* is that of its tenant.
    """

    def unresolved(problem: str, pair: tuple[str, str] | None = None) -> Owner:
        business_id, location_id = pair or (source.business_id, source.location_id)
        return Owner(source, business_id, location_id, problem=problem)

    for business_id, _ in source.candidates:
        if isinstance(problem := businesses.get(business_id), str):
            return unresolved(problem)
    known = {
        (business_id, location_id): business
        for business_id, location_id in source.candidates
        if isinstance(business := businesses.get(business_id), Business) and location_id in business.locations
    }
    if not known:
        return unresolved(_why_unknown(source, businesses))
    if len(known) > 1:
        return unresolved(f"expected one business and location, got {', '.join(' '.join(pair) for pair in known)}")
    ((pair, business),) = known.items()
    if business.business_type not in types:
        return unresolved(
            f"its type in business-info, {business.business_type[:64]!r}, is none of {', '.join(sorted(types))}", pair
        )
    if named_shard_id is None:
        return unresolved("it is not registered; register it on this shard", pair)
    if named_shard_id != shard_id:
        return unresolved(f"it is routed to shard {named_shard_id}; route it to this one", pair)
    return Owner(source, *pair, business.business_type)


def without_collisions(owners: Iterable[Owner]) -> dict[str, Owner]:
    """Return *owners* by source, with a problem for those with one id: `a-b` + `c` is `a` + `b-c`."""
    by_key = {owner.source.key: owner for owner in owners}
    counts = Counter(owner.tenant_id for owner in by_key.values() if owner.tenant_id is not None)
    return {
        key: owner
        if owner.tenant_id is None or counts[owner.tenant_id] == 1
        else msgspec.structs.replace(owner, problem=f"another business and location have its id {owner.tenant_id}")
        for key, owner in by_key.items()
    }


def _why_unknown(source: OldTenant, businesses: Mapping[str, Business | str | None]) -> str:
    candidates = [pair for pair in source.candidates if all(is_id(part) for part in pair)]
    if not candidates:
        return "expected a business and a location of 1 to 128 characters each"
    there = [business_id for business_id, _ in candidates if businesses.get(business_id) is not None]
    if len(candidates) == 1 or not there:
        (business_id, location_id), business = candidates[0], businesses.get(candidates[0][0])
        if len(candidates) == 1 and not isinstance(business, str):
            return refusal_reason(business, location_id) or f"business {business_id} is not in business-info"
        return "none of the possible businesses is in business-info"
    return f"business-info has {', '.join(there)}, which has no such location"
