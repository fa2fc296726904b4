"""Which rows and tenants of a source can be taken, and the reason for each that cannot. Pure."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from simplu_worker.business_info.items import Business
from simplu_worker.operations.document_bounds import BOUNDS_TEXT, DOCUMENT_MAX_BYTES, exceeds_bounds
from simplu_worker.operations.operation import ID_MAX, is_id, is_storable, tenant_id_of
from simplu_worker.transfers.adoption.plan import OldTenant
from simplu_worker.transfers.importing.mapping import SourceMapping, TenantMapping
from simplu_worker.vocabulary import TenantState

RESOURCE_ID_MAX: Final = 256  # characters: docs/sending.md
# As Postgres writes them with DateStyle ISO, in UTC: years from 1 to 9999, which all readers can represent.
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+\+00")

# Rows of a tenant in these states are left from before; the tenant has another home, or none.
LEFT_STATES: Final = frozenset({TenantState.MOVED, TenantState.DESTROYED})
SERVING_STATES: Final = frozenset({TenantState.ACTIVE, TenantState.FENCED})

NO_TENANT: Final = "it names no tenant: a column of business or location is null"
NO_KEY: Final = "its key is null"
IS_DUPLICATE: Final = "another row of the tenant has its resource type and id"
NOT_AN_OBJECT: Final = "its document is no JSON object"
TOO_MANY_REFUSED: Final = "over 100,000 of its rows cannot be taken; correct the mapping, or the rows"
TOO_MANY_DUPLICATES: Final = "too many of its rows share a resource id; correct the key in the mapping"


class SourceRow(msgspec.Struct, frozen=True):
    """A row as the source returns it. *document* is None where it is too long to be read with others.

    *error* is the source's error, in words with its code, where it cannot return the document.
    """

    resource_type: str | None
    resource_id: str | None
    created: str
    changed: str
    byte_count: int | None
    document: str | None
    high: int
    low: int
    key_parts: Sequence[str | None] = ()
    error: str | None = None


class RefusedRow(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A row that cannot be a resource. *tenant* are the texts in the columns of business and location."""

    table: str
    tenant: Sequence[str]
    resource_type: str | None
    resource_id: str | None
    reason: str


class SourceTenant(msgspec.Struct):
    """A tenant as the source names it: the texts in its columns, and the number of its rows by table.

    *deleted_count* are rows with a tombstone, which count nowhere else. *stored_names* are those of its business type.
    """

    key: tuple[str, ...]
    row_counts: Counter[str] = msgspec.field(default_factory=Counter)
    deleted_count: int = 0
    business_types: set[str | None] = msgspec.field(default_factory=set)
    stored_names: Mapping[str, str] = {}

    @property
    def row_count(self) -> int:
        """The number of rows to take, or to refuse."""
        return self.row_counts.total()


class NamedTenant(msgspec.Struct, frozen=True):
    """A tenant of the source with its name here; or, with *problem*, why it cannot be imported."""

    source: SourceTenant
    business_id: str | None = None
    location_id: str | None = None
    business_type: str | None = None
    problem: str | None = None

    @property
    def name(self) -> str:
        """The name for people."""
        if self.business_id is None or self.location_id is None:
            return " ".join(self.source.key)
        return f"{self.business_id} {self.location_id}"

    @property
    def tenant_id(self) -> str:
        """The tenant's id; only of one without a problem."""
        return tenant_id_of(self.business_id or "", self.location_id or "")


class PlaceStep(StrEnum):
    """The step for a tenant by the row that a shard has for it."""

    MAKE = "make"  # no shard has it
    CONTINUE = "continue"  # its import was interrupted
    DONE = "done"  # it was imported before
    REFUSE = "refuse"


class HomeFacts(msgspec.Struct, frozen=True):
    """The row of a tenant's id on a shard, and that of its import: of the source of this name, at this step.

    *detail* is JSON; of an activated one its certificate.
    """

    tenant_id: str
    shard_id: str
    business_id: str
    location_id: str
    state: TenantState
    source: str | None = None
    step: str | None = None
    detail: str | None = None


def refusal_of_row(row: SourceRow, duplicates: Collection[tuple[str, str]]) -> str | None:
    """Return why a row cannot be a resource; None if it can. *duplicates* are types and ids.

    Its document was read, unless it is too long; it is looked at only where everything else is right.
    """
    return _refusal_of_ids(row.resource_type, row.resource_id, duplicates) or _refusal_of_content(row)


def _refusal_of_ids(
    resource_type: str | None, resource_id: str | None, duplicates: Collection[tuple[str, str]]
) -> str | None:
    if resource_id is None:
        return NO_KEY
    if resource_type is None or not is_id(resource_type):
        return f"its resource type: expected 1 to {ID_MAX} characters, got {len(resource_type or '')}"
    if not (1 <= len(resource_id) <= RESOURCE_ID_MAX and is_storable(resource_id)):
        return f"its resource id: expected 1 to {RESOURCE_ID_MAX} characters, got {len(resource_id)}"
    return IS_DUPLICATE if (resource_type, resource_id) in duplicates else None


def _refusal_of_content(row: SourceRow) -> str | None:
    if row.error is not None:
        return f"the source cannot return it as JSON: {row.error}"
    if not (_TIME.fullmatch(row.created) and _TIME.fullmatch(row.changed)):
        return f"its times: expected years from 1 to 9999, got {row.created} and {row.changed}"
    if row.byte_count is not None and row.byte_count > DOCUMENT_MAX_BYTES:
        return f"its document: expected {BOUNDS_TEXT}"
    if row.document is None or not row.document.startswith("{"):
        return NOT_AN_OBJECT
    return f"its document: expected {BOUNDS_TEXT}" if exceeds_bounds(row.document.encode()) else None


def must_be_read_alone(row: SourceRow) -> bool:
    """Return whether the document of a row is to be read alone: it is long, and may be stored all the same."""
    return row.document is None and row.byte_count is not None and row.byte_count <= DOCUMENT_MAX_BYTES


def pairs_of(source: SourceTenant, mapping: TenantMapping) -> list[tuple[str, str]]:
    """Return the businesses and locations that a tenant of the source may be: several for a joined id with dashes."""
    if mapping.joined:
        return OldTenant(source.key[0]).candidates
    business, *locations = source.key
    return [(business, locations[0] if locations else mapping.location or "")]


def needs_business_info(source: SourceTenant, mapping: SourceMapping) -> bool:
    """Return whether only business-info has the name or the type of a tenant."""
    is_named = len(pairs_of(source, mapping.tenants)) < 2  # one pair, or none at all
    return not is_named or (mapping.tenants.business_type is None and not mapping.has_own_types)


def name_tenant(
    source: SourceTenant,
    mapping: SourceMapping,
    businesses: Mapping[str, Business | str | None],
    *,
    known_types: Collection[str],
) -> NamedTenant:
    """Return a tenant with its name and type. *businesses* are those of business-info by id, a text for a problem."""

    def refused(problem: str) -> NamedTenant:
        return NamedTenant(source, problem=problem)

    pairs = [pair for pair in pairs_of(source, mapping.tenants) if all(map(is_id, pair))]
    if not pairs:
        return refused(f"expected a business and a location of 1 to {ID_MAX} characters each")
    if len(pairs) > 1:
        listed = [pair for pair in pairs if _has_location(businesses.get(pair[0]), pair[1])]
        if len(listed) != 1:
            found = ", ".join(" ".join(pair) for pair in listed) or "none"
            return refused(f"expected one business and location in business-info that its id may be, got {found}")
        pairs = listed
    business_id, location_id = pairs[0]
    kind = _business_type(source, mapping, businesses.get(business_id))
    if kind not in known_types:
        return NamedTenant(
            source,
            business_id,
            location_id,
            problem=f"its business type: expected one of {', '.join(sorted(known_types))}, got {kind or 'none'}",
        )
    return NamedTenant(source, business_id, location_id, kind)


def without_collisions(tenants: Iterable[NamedTenant]) -> list[NamedTenant]:
    """Return *tenants*, with a problem for those with one id: `a-b` + `c` is `a` + `b-c` (docs/reading.md)."""
    every = list(tenants)
    counts = Counter(one.tenant_id for one in every if one.problem is None)
    return [
        one
        if one.problem is not None or counts[one.tenant_id] == 1
        else msgspec.structs.replace(one, problem=f"another tenant of the source has its id {one.tenant_id}")
        for one in every
    ]


def place_of(
    tenant: NamedTenant, homes: Sequence[HomeFacts], *, source: str
) -> tuple[PlaceStep, HomeFacts | None, str | None]:
    """Return the step for a tenant by its rows on all shards, the row that decides, and the reason of a refusal.

    A tenant that was imported from *source* is done, wherever it has moved since or moves now, unless it is destroyed.
    """
    living = [home for home in homes if home.state not in LEFT_STATES]
    if sum(home.state in SERVING_STATES for home in living) == 1:
        for one in homes:
            if (one.source, one.step) == (source, "activated") and _is_of(tenant, one):
                return PlaceStep.DONE, one, None
    if len(living) > 1:
        shards = " and ".join(sorted(home.shard_id for home in living))
        return PlaceStep.REFUSE, living[0], f"the shards {shards} have it"
    if not homes:
        return PlaceStep.MAKE, None, None
    home = living[0] if living else homes[0]
    where = f"shard {home.shard_id}"
    if not _is_of(tenant, home):
        return (
            PlaceStep.REFUSE,
            home,
            f"{where} has its id for business {home.business_id}, location {home.location_id}",
        )
    if home.step is not None and home.state == TenantState.INCOMING:
        if home.source == source:
            return PlaceStep.CONTINUE, home, None
        remedy = f"discard that import first, by --discard --source {shlex.quote(home.source or '')}"
        return PlaceStep.REFUSE, home, f"{where} has it from the database {home.source}; {remedy}"
    return PlaceStep.REFUSE, home, f"{where} has it already, {home.state}"


def _is_of(tenant: NamedTenant, home: HomeFacts) -> bool:
    return (home.business_id, home.location_id) == (tenant.business_id, tenant.location_id)


def _business_type(source: SourceTenant, mapping: SourceMapping, business: Business | str | None) -> str | None:
    if mapping.tenants.business_type is not None:
        return mapping.tenants.business_type
    if mapping.has_own_types:
        kinds = sorted(kind or "none" for kind in source.business_types)
        return kinds[0] if len(kinds) == 1 else " and ".join(kinds)
    return business.business_type if isinstance(business, Business) else business


def _has_location(business: Business | str | None, location_id: str) -> bool:
    return isinstance(business, Business) and location_id in business.locations
