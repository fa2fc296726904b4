"""The rules of an import: which rows and tenants can be taken, checksums, pace, certificates, following. Pure.

The checksum of a set of rows is the sum of a hash of each row, in two halves of 64 bits, with their number. Both
servers compute the hashes, of type, id, the document as Postgres writes it, and both times.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import msgspec

from simplu_worker.business_info import Business
from simplu_worker.operations.json_record import BOUNDS_TEXT, DOCUMENT_MAX_BYTES, exceeds_bounds
from simplu_worker.operations.operation import ID_MAX, is_id, is_storable, tenant_id_of
from simplu_worker.transfers.adoption.plan import OldTenant
from simplu_worker.transfers.importing.mapping import SourceMapping, TableMapping, TenantMapping
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
    """A row as the source returns it. *document* is None if it is too long; *error* tells why it cannot be returned."""

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

    *deleted_count* rows have a tombstone. *stored_names* are those of its business type.
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
    """The row of a tenant's id on a shard, and that of its import; *detail* is JSON, in the end the certificate."""

    tenant_id: str
    shard_id: str
    business_id: str
    location_id: str
    state: TenantState
    source: str | None = None
    step: str | None = None
    detail: str | None = None


def refusal_of_row(row: SourceRow, duplicates: Collection[tuple[str, str]]) -> str | None:
    """Return why a row cannot be a resource; None if it can. *duplicates* are types and ids."""
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
    """Return whether the document of a row is long, and may be stored."""
    return row.document is None and row.byte_count is not None and row.byte_count <= DOCUMENT_MAX_BYTES


def pairs_of(source: SourceTenant, mapping: TenantMapping) -> list[tuple[str, str]]:
    """Return the businesses and locations that a tenant may be: several for a joined id with dashes."""
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
    """Return a tenant with its name and type. *businesses* are those of business-info by id, or a problem."""

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
    """Return *tenants*, with a problem for those with one id: `a-b` + `c` is `a` + `b-c`."""
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

    A tenant that was imported from *source* is done, unless it is destroyed.
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


class ImportCertificate(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The proof that a tenant's rows are those of the source, kept in the journal of its shard.

    *refused* were not taken, *deleted* have a tombstone.
    """

    business_id: str
    location_id: str
    business_type: str
    shard_id: str
    source: str
    snapshot_at: str
    mapping: str
    rows: int
    bytes: int
    checksum: str
    verified_at: str
    worker_version: str
    tables: dict[str, int] = {}
    refused: dict[str, int] = {}
    deleted: int = 0


class ImportState(StrEnum):
    """The state of a tenant after a run, or the step that is planned for it."""

    IMPORT = "import"  # planned
    CONTINUE = "continue"  # planned: an earlier run was interrupted
    IMPORTED = "imported"  # copied, verified and active
    THERE = "there"  # imported by an earlier run
    FOLLOWED = "followed"  # copied, and kept up to date; still held
    DISCARD = "discard"  # planned
    DISCARDED = "discarded"  # its rows are deleted
    REFUSED = "refused"  # a person has to correct something
    LEFT = "left"  # copied, but for rows that cannot be taken; still held
    FAILED = "failed"  # a dependency failed: run it again


class TenantReport(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One tenant in the plan, or after a run. *rows* and *bytes* are those that can be taken, or were."""

    state: ImportState
    name: str
    business_id: str | None = None
    location_id: str | None = None
    business_type: str | None = None
    shard_id: str | None = None
    rows: int = 0
    bytes: int = 0
    refused: dict[str, int] = {}
    deleted: int = 0
    detail: str | None = None
    certificate: ImportCertificate | None = None


TROUBLES = frozenset({ImportState.REFUSED, ImportState.LEFT, ImportState.FAILED})


def parse_certificate(text: str | None) -> ImportCertificate | None:
    """Return the certificate in the journal's details; None if they have none."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=ImportCertificate)
    except msgspec.ValidationError:
        return None


HALF: int = 1 << 64


class RowChecksum(msgspec.Struct):
    """The checksum of the rows added so far."""

    row_count: int = 0
    high: int = 0
    low: int = 0

    def add(self, high: int, low: int, *, row_count: int = 1) -> None:
        """Add the hash of a row, or the sums of several."""
        self.row_count += row_count
        self.high = (self.high + high) % HALF
        self.low = (self.low + low) % HALF

    @property
    def text(self) -> str:
        """The hash as 32 hexadecimal digits, without the number of rows."""
        return f"{self.high:016x}{self.low:016x}"


FOLLOWING: Final = "following"  # the step in the journal
# A row has the time at which its transaction set the column, and is seen only after the commit. Transactions that took
# longer than this are found by the comparison at the cut-over.
OVERLAP: Final = timedelta(minutes=5)
STOP_WRITERS: Final = (
    "stop the writers of the source before --apply without --follow: rows that change after its snapshot are not taken"
)


class FollowState(msgspec.Struct, frozen=True, rename="camel"):
    """The digest of the mapping of an import that follows, and the time of the last snapshot."""

    mapping: str
    followed_to: datetime


def followed_since(step: str, detail: Mapping[str, Any], *, mapping: str) -> datetime | None:
    """Return since when rows may have changed that were not copied; None to copy the tenant whole."""
    if step != FOLLOWING:
        return None
    try:
        state = msgspec.convert(detail, FollowState)
    except msgspec.ValidationError:
        return None
    return state.followed_to - OVERLAP if state.mapping == mapping else None


def follow_notes(tables: Iterable[TableMapping]) -> list[str]:
    """Return what people have to know: stopped writers, and tables that cannot be followed, or only in part."""
    every = list(tables)
    unfollowed = [table.name for table in every if table.changed is None]
    without_tombstone = [table.name for table in every if table.changed is not None and table.deleted is None]
    notes = [STOP_WRITERS]
    if unfollowed:
        notes.append(
            f"without a change column --follow sees no change of {', '.join(unfollowed)}; a tenant with one is copied"
            " again at the cut-over"
        )
    if without_tombstone:
        notes.append(
            f"without a tombstone column --follow sees no deletion in {', '.join(without_tombstone)}; a tenant with one"
            " is copied again at the cut-over"
        )
    return notes
