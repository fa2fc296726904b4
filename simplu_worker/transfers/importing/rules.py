"""The rules of an import: which rows and tenants can be taken, certificates, following. Pure."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from simplu_worker.business_info import Business
from simplu_worker.operations.json_record import BOUNDS_TEXT, DOCUMENT_MAX_BYTES, exceeds_bounds
from simplu_worker.operations.operation import ID_MAX, is_id, is_storable, tenant_id_of
from simplu_worker.shards.settling import MovingTenant, Transfer
from simplu_worker.transfers.moving.checksums import TypeSum
from simplu_worker.vocabulary import TenantState, TransferStep

RESOURCE_ID_MAX: Final = 256  # characters: docs/sending.md
# As Postgres writes them with DateStyle ISO, in UTC: years from 1 to 9999, which all readers can represent.
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+\+00")

# Rows of a tenant in these states are left from before; the tenant has another home, or none.
LEFT_STATES: Final = frozenset({TenantState.MOVED, TenantState.DESTROYED})
SERVING_STATES: Final = frozenset({TenantState.ACTIVE, TenantState.FENCED})

NO_TENANT: Final = "it names no tenant: its business_id or its location_id is null"
NO_KEY: Final = "its resource_id is null"
IS_DUPLICATE: Final = "another row of the tenant has its resource type and id"
NOT_AN_OBJECT: Final = "its document is no JSON object"
TOO_MANY_REFUSED: Final = "over 100,000 of its rows cannot be taken; correct the query, or the rows"
TOO_MANY_DUPLICATES: Final = "too many of its rows share a resource id; correct resource_id in the query"


class SourceRow(msgspec.Struct, frozen=True):
    """A row as the source returns it. *document* is None if it is too long, or, without *byte_count*, deleted."""

    resource_type: str
    resource_id: str | None
    created: str | None
    changed: str | None
    byte_count: int | None
    document: str | None
    hash: int

    @property
    def sum(self) -> TypeSum:
        """The row alone as a sum."""
        return TypeSum(1, self.byte_count or 0, self.hash)


class RefusedRow(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A row that cannot be a resource. *tenant* are the texts of business and location, if it has both."""

    tenant: Sequence[str]
    resource_type: str
    resource_id: str | None
    reason: str


class SourceTenant(msgspec.Struct, frozen=True):
    """A tenant of the source, with the number of its rows by query, and the stored names of its business type.

    With *problem* it cannot be imported.
    """

    business_id: str
    location_id: str
    row_counts: Mapping[str, int] = {}
    business_type: str | None = None
    stored_names: Mapping[str, str] = {}
    problem: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The business and the location."""
        return self.business_id, self.location_id

    @property
    def row_count(self) -> int:
        """The number of its rows, deleted ones included."""
        return sum(self.row_counts.values())

    @property
    def name(self) -> str:
        """The name for people."""
        return " ".join(self.key)

    @property
    def tenant_id(self) -> str:
        """The tenant's id; only of one without a problem."""
        return tenant_id_of(*self.key)


class ImportState(StrEnum):
    """The state of a tenant after a run, or the step that is planned for it."""

    IMPORT = "import"  # planned: no shard has it
    CONTINUE = "continue"  # planned: an earlier run was interrupted
    IMPORTED = "imported"  # copied, verified and active
    THERE = "there"  # imported by an earlier run
    FOLLOWED = "followed"  # copied, and kept up to date; still held
    DISCARD = "discard"  # planned
    DISCARDED = "discarded"  # its rows are deleted
    REFUSED = "refused"  # a person has to correct something
    LEFT = "left"  # copied, but for rows that cannot be taken; still held
    FAILED = "failed"  # a dependency failed: run it again


TROUBLES = frozenset({ImportState.REFUSED, ImportState.LEFT, ImportState.FAILED})


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


def _refusal_of_ids(resource_type: str, resource_id: str | None, duplicates: Collection[tuple[str, str]]) -> str | None:
    if resource_id is None:
        return NO_KEY
    if not (1 <= len(resource_id) <= RESOURCE_ID_MAX and is_storable(resource_id)):
        return f"its resource id: expected 1 to {RESOURCE_ID_MAX} characters, got {len(resource_id)}"
    return IS_DUPLICATE if (resource_type, resource_id) in duplicates else None


def _refusal_of_content(row: SourceRow) -> str | None:
    if is_deleted(row):
        return None
    if not (_TIME.fullmatch(row.created or "") and _TIME.fullmatch(row.changed or "")):
        return f"its times: expected years from 1 to 9999, got {row.created or 'none'} and {row.changed or 'none'}"
    if (row.byte_count or 0) > DOCUMENT_MAX_BYTES:
        return f"its document: expected {BOUNDS_TEXT}"
    if row.document is None or not row.document.startswith("{"):
        return NOT_AN_OBJECT
    return f"its document: expected {BOUNDS_TEXT}" if exceeds_bounds(row.document.encode()) else None


def is_deleted(row: SourceRow) -> bool:
    """Return whether the query has null in place of the document: such a row is not taken."""
    return row.byte_count is None


def name_tenant(
    tenant: SourceTenant,
    business: Business | str | None,
    *,
    business_type: str | None,
    known_types: Mapping[str, Mapping[str, str]],
) -> SourceTenant:
    """Return a tenant with its type, or with a problem: *business_type*, or that of *business*, of business-info.

    A text in place of the business is a problem. *known_types* have the stored names of their resource types.
    """
    if not all(map(is_id, tenant.key)):
        return replace(tenant, problem=f"expected a business and a location of 1 to {ID_MAX} characters each")
    kind = business_type or (business.business_type if isinstance(business, Business) else business)
    stored_names = known_types.get(kind or "")
    if stored_names is None:
        problem = f"its business type: expected one of {', '.join(sorted(known_types))}, got {kind or 'none'}"
        return replace(tenant, problem=problem)
    return replace(tenant, business_type=kind, stored_names=stored_names)


def without_collisions(tenants: Sequence[SourceTenant]) -> list[SourceTenant]:
    """Return *tenants*, with a problem for those with one id: `a-b` + `c` is `a` + `b-c`."""
    counts = Counter(one.tenant_id for one in tenants if one.problem is None)
    return [
        one
        if one.problem is not None or counts[one.tenant_id] == 1
        else replace(one, problem=f"another tenant of the source has its id {one.tenant_id}")
        for one in tenants
    ]


def place_of(
    tenant: SourceTenant, homes: Sequence[HomeFacts], *, source: str
) -> tuple[ImportState, HomeFacts | None, str | None]:
    """Return the step for a tenant by its rows on all shards, the row that decides, and the reason of a refusal.

    A tenant that was imported from *source* is done, unless it is destroyed.
    """
    living = [home for home in homes if home.state not in LEFT_STATES]
    if sum(home.state in SERVING_STATES for home in living) == 1:
        for one in homes:
            if (one.source, one.step) == (source, TransferStep.DONE) and _is_of(tenant, one):
                return ImportState.THERE, one, None
    if len(living) > 1:
        shards = " and ".join(sorted(home.shard_id for home in living))
        return ImportState.REFUSED, living[0], f"the shards {shards} have it"
    if not homes:
        return ImportState.IMPORT, None, None
    home = living[0] if living else homes[0]
    where = f"shard {home.shard_id}"
    if not _is_of(tenant, home):
        return (
            ImportState.REFUSED,
            home,
            f"{where} has its id for business {home.business_id}, location {home.location_id}",
        )
    if home.step is not None and home.state == TenantState.INCOMING:
        if home.source == source:
            return ImportState.CONTINUE, home, None
        remedy = f"discard that import first, by --discard --source {shlex.quote(home.source or '')}"
        return ImportState.REFUSED, home, f"{where} has it from the database {home.source}; {remedy}"
    return ImportState.REFUSED, home, f"{where} has it already, {home.state}"


def _is_of(tenant: SourceTenant, home: HomeFacts) -> bool:
    return (home.business_id, home.location_id) == (tenant.business_id, tenant.location_id)


class ImportCertificate(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The proof that a tenant's rows are those of the source, kept in the journal of its shard.

    *queries* is their digest. *refused* were not taken, *deleted* neither, as their documents are null.
    """

    source: str
    snapshot_at: str
    queries: str
    rows: int
    bytes: int
    checksum: str
    verified_at: str
    worker_version: str
    types: dict[str, int] = {}
    refused: dict[str, int] = {}
    deleted: int = 0


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


def report_of(
    tenant: SourceTenant,
    state: ImportState,
    shard_id: str | None = None,
    detail: str | None = None,
    certificate: ImportCertificate | None = None,
) -> TenantReport:
    """Return a report on a tenant; with the rows of the certificate of an earlier run."""
    rows, size = (0, 0) if certificate is None else (certificate.rows, certificate.bytes)
    names = tenant.name, *tenant.key, tenant.business_type
    return TenantReport(state, *names, shard_id, rows, size, detail=detail, certificate=certificate)


# A row has the time at which its transaction set the column, and is seen only after the commit. Transactions that took
# longer than this are found by the comparison at the cut-over.
OVERLAP: Final = timedelta(minutes=5)


class FollowState(msgspec.Struct, frozen=True, rename="camel"):
    """The digest of the queries of an import that follows, and the time of the last snapshot."""

    queries: str
    followed_to: datetime


class ImportSituation(StrEnum):
    """The next step of an import."""

    COPY = "copy"  # the tenant whole
    CATCH_UP = "catch up"  # it was copied, and followed
    ENDED = "ended"  # this command has activated it, and got no answer
    TAKEN = "taken"  # by another command


def situation_of(
    tenant: MovingTenant | None, journal: Transfer | None, *, own: str, earlier: str | None, queries: str
) -> ImportSituation:
    """Return the next step by the tenant's row and the journal of its shard.

    *own* is the token of this command, *earlier* the one that it has found, *queries* the digest of its queries.
    """
    if tenant is None or journal is None or journal.token not in {own, earlier}:
        return ImportSituation.TAKEN
    if journal.step == TransferStep.DONE:
        return ImportSituation.ENDED if journal.token == own else ImportSituation.TAKEN
    if tenant.state is not TenantState.INCOMING:
        return ImportSituation.TAKEN
    is_followed = changed_since(journal.detail, queries=queries) is not None
    return ImportSituation.CATCH_UP if is_followed else ImportSituation.COPY


def changed_since(detail: Mapping[str, Any], *, queries: str) -> datetime | None:
    """Return since when rows may have changed that were not copied; None to copy the tenant whole."""
    if detail.get("queries") != queries or "followedTo" not in detail:
        return None
    return msgspec.convert(detail, FollowState).followed_to - OVERLAP
