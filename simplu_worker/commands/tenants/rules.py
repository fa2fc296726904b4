"""What an audit and a restore of tenants decide. Pure.

Business-info lists the tenants that are wanted, Citrus names the shard of each, and the shards have the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.recovery.recovery_plan import parse_position
from simplu_worker.consumers.kinesis.stream.client import StreamShard
from simplu_worker.consumers.kinesis.stream.positions import SHARD_END, TRIM_HORIZON
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.shards.settling import Transfer
from simplu_worker.shards.types import StreamPosition
from simplu_worker.transfers.restoring import RestoreMode
from simplu_worker.vocabulary import TenantState, TransferStep

# The states of a row on the tenant's home shard. A tenant that has moved away or is arriving has its home elsewhere.
LIVING_STATES = frozenset({TenantState.ACTIVE, TenantState.FENCED})
HOME_STATES = LIVING_STATES | {TenantState.DESTROYING}


class DifferenceKind(StrEnum):
    """The kind of a difference."""

    UNREADABLE = "unreadable"  # an item of business-info, or one of its locations
    UNKNOWN_TYPE = "unknown_type"
    NOT_IN_CITRUS = "not_in_citrus"
    ADDRESS_REFUSED = "address_refused"
    NO_ROW = "no_row"
    NOT_IN_BUSINESS_INFO = "not_in_business_info"
    TYPE_DIFFERS = "type_differs"
    LOCATION_INACTIVE = "location_inactive"
    DESTROYED = "destroyed"
    SHARD_DIFFERS = "shard_differs"
    ID_TAKEN = "id_taken"
    TWO_HOMES = "two_homes"
    CREATE = "create"  # by `tenants provision`, of which the rest is
    CREATED = "created"
    FAILED = "failed"


class BusinessListing(msgspec.Struct, frozen=True):
    """The entry of a tenant in business-info."""

    business_type: str
    is_active: bool = True


class AuditedRow(msgspec.Struct, frozen=True):
    """The row that a shard has for a tenant id."""

    shard_id: str
    business_id: str
    location_id: str
    business_type: str
    state: TenantState


class AuditSubject(msgspec.Struct, frozen=True):
    """One tenant with its entries everywhere; the *silent* shards may have rows too."""

    business_id: str
    location_id: str
    listing: BusinessListing | None
    rows: Sequence[AuditedRow] = ()
    named_shard_id: str | None = None
    refusal: str | None = None
    silent: Sequence[str] = ()

    @property
    def tenant_id(self) -> str:
        """The id of the tenant."""
        return tenant_id_of(self.business_id, self.location_id)

    @property
    def is_wanted(self) -> bool:
        """Whether business-info lists it as active."""
        return self.listing is not None and self.listing.is_active

    @property
    def own_rows(self) -> list[AuditedRow]:
        """The rows of this business and location."""
        return [row for row in self.rows if (row.business_id, row.location_id) == (self.business_id, self.location_id)]

    @property
    def homes(self) -> list[AuditedRow]:
        """The rows on its home shards."""
        return [row for row in self.own_rows if row.state in HOME_STATES]

    @property
    def id_taker(self) -> AuditedRow | None:
        """A row of its id that belongs to another business and location."""
        return next((row for row in self.rows if row not in self.own_rows), None)


class Difference(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A difference between the entries of a tenant."""

    kind: DifferenceKind
    detail: str
    business_id: str | None = None
    location_id: str | None = None


def find_differences(subject: AuditSubject, *, known_types: Collection[str]) -> list[Difference]:
    """Return all differences of one tenant, the gravest first."""
    found = [
        *_home_differences(subject),
        *_listing_differences(subject, known_types),
        *_registration_differences(subject),
    ]
    return [Difference(kind, detail, subject.business_id, subject.location_id) for kind, detail in found]


def plan_tenant(subject: AuditSubject, *, known_types: Collection[str]) -> list[Difference]:
    """Return why no shard has a tenant that business-info lists as active; `CREATE` alone if it is to be created.

    Nothing if a shard has it.
    """
    if subject.homes and all(home.state in LIVING_STATES for home in subject.homes):
        return []
    found = [
        one
        for one in find_differences(subject, known_types=known_types)
        if one.kind is not DifferenceKind.NOT_IN_CITRUS
    ]
    is_absent = [one.kind for one in found] == [DifferenceKind.NO_ROW] and not subject.own_rows
    if is_absent and subject.listing is not None:
        found = [msgspec.structs.replace(found[0], kind=DifferenceKind.CREATE, detail=subject.listing.business_type)]
    unknown = f"no answer from {', '.join(subject.silent)}"
    return found or [Difference(DifferenceKind.NO_ROW, unknown, subject.business_id, subject.location_id)]


def _home_differences(subject: AuditSubject) -> Iterator[tuple[DifferenceKind, str]]:
    homes, id_taker = subject.homes, subject.id_taker
    if len(homes) > 1:
        yield DifferenceKind.TWO_HOMES, f"it has a home on each of the shards {_shard_names(homes)}"
    if id_taker is not None and (subject.is_wanted or homes):
        owner = f"business {id_taker.business_id}, location {id_taker.location_id}"
        yield DifferenceKind.ID_TAKEN, f"shard {id_taker.shard_id} has its id {subject.tenant_id} for {owner}"
    if homes and subject.named_shard_id not in {None, *(home.shard_id for home in homes)}:
        yield (
            DifferenceKind.SHARD_DIFFERS,
            f"its home is on shard {_shard_names(homes)}, and it is routed to {subject.named_shard_id}",
        )


def _listing_differences(subject: AuditSubject, known_types: Collection[str]) -> Iterator[tuple[DifferenceKind, str]]:
    listing, homes = subject.listing, subject.homes
    living = [home for home in homes if home.state in LIVING_STATES]
    if listing is None:
        if living:
            yield (
                DifferenceKind.NOT_IN_BUSINESS_INFO,
                f"its home is on shard {_shard_names(living)}, and business-info does not list it",
            )
        return
    if listing.business_type not in known_types:
        yield (
            DifferenceKind.UNKNOWN_TYPE,
            f"expected one of {', '.join(known_types)}, business-info has {listing.business_type}",
        )
    if others := sorted({home.business_type for home in homes} - {listing.business_type}):
        yield DifferenceKind.TYPE_DIFFERS, f"business-info has {listing.business_type}, its shard {', '.join(others)}"
    if not listing.is_active:
        if living:
            yield (
                DifferenceKind.LOCATION_INACTIVE,
                f"its home is on shard {_shard_names(living)}, and its location is not active",
            )
        return
    if ending := [row for row in subject.own_rows if row.state in {TenantState.DESTROYING, TenantState.DESTROYED}]:
        if not living:
            yield (
                DifferenceKind.DESTROYED,
                f"it is {ending[0].state} on shard {_shard_names(ending)}, and business-info lists it",
            )
    elif not (homes or subject.silent or subject.id_taker):
        yield DifferenceKind.NO_ROW, _describe_missing_row(subject)


def _registration_differences(subject: AuditSubject) -> Iterator[tuple[DifferenceKind, str]]:
    is_alive = any(home.state in LIVING_STATES for home in subject.homes)
    if subject.refusal is not None:
        yield DifferenceKind.ADDRESS_REFUSED, subject.refusal
    elif subject.named_shard_id is None and (is_alive or (subject.is_wanted and not subject.own_rows)):
        yield DifferenceKind.NOT_IN_CITRUS, "Citrus does not know the tenant"


def _describe_missing_row(subject: AuditSubject) -> str:
    states = f"; only a row that is {subject.own_rows[0].state}" if subject.own_rows else ""
    if subject.named_shard_id is None:
        return f"no shard has its row{states}"
    return f"it is routed to shard {subject.named_shard_id}, and no shard has its row{states}"


def _shard_names(rows: Sequence[AuditedRow]) -> str:
    return " and ".join(sorted(row.shard_id for row in rows))


class BackupFacts(msgspec.Struct, frozen=True):
    """The rows of a backup, and the stream with its leases as they are now."""

    rows: Mapping[str, StreamPosition]
    first_tenant_at: datetime | None
    stream_shards: Iterable[StreamShard]
    leases: Mapping[str, Lease]
    tenant_wait: timedelta
    now: datetime


def missing_ages(facts: BackupFacts) -> dict[str, timedelta]:
    """Return by stream shard the age of the oldest record that the backup lacks; none where no worker is ahead of it.

    A stream shard without a row is read from about the first tenant on, or from its parents' rows.
    """
    began_at = facts.first_tenant_at and facts.first_tenant_at - facts.tenant_wait
    since = {
        name: row.pending_since or began_at
        for name, row in facts.rows.items()
        if not _is_level(facts.leases.get(name), row, facts.now)
    }
    rootless = {one.stream_shard_id for one in facts.stream_shards if not one.parents}
    since |= dict.fromkeys(rootless - facts.rows.keys(), began_at)
    return {name: facts.now - at for name, at in sorted(since.items()) if at is not None}


def _is_level(lease: Lease | None, row: StreamPosition, now: datetime) -> bool:
    if row.pending_from == SHARD_END.checkpoint:
        return True
    if lease is None:
        return False
    if row.pending_from == TRIM_HORIZON.checkpoint:
        return lease.checkpoint <= TRIM_HORIZON
    return lease.checkpoint <= parse_position(row.pending_from, now).position


RETENTION_SPARE: Final = timedelta(hours=1)  # of the stream, for the restore itself and the catch-up
LOG_SHARE: Final = 0.9  # of the log's retention
REPEATED_WITHIN: Final = timedelta(hours=24)  # a restore in the same mode may be the same one by mistake


def refusal_of_database(backup: Mapping[str, Any], live: Mapping[str, Any]) -> str | None:
    """Return why the database at BACKUP_URL is no backup: its rows would be deleted too."""
    if backup["is_standby"]:
        return "expected a server that takes writes, got a standby, which follows another one; promote it first"
    if (backup["started_at"], backup["database"]) == (live["started_at"], live["database"]):
        return "expected a backup, got the database of the shard itself"
    return None


def refusal_of_rows(backup: Mapping[str, Any] | None, live: Mapping[str, Any], mode: RestoreMode) -> str | None:
    """Return why the tenant's rows in a backup cannot take the place of the live ones.

    *backup* and *live* are its rows of `tenants`.
    """
    if backup is None:
        return "expected the tenant in the backup, got none: it was made later; take a newer backup"
    if (backup["business_id"], backup["location_id"]) != (live["business_id"], live["location_id"]):
        return "expected the tenant in the backup, got another business and location with its id"
    if backup["state"] != TenantState.ACTIVE:  # a fenced one may have a part of its rows, during a restore
        return f"expected an active tenant in the backup, got one that is {backup['state']} there; take another backup"
    if backup["business_type"] != live["business_type"]:
        return f"expected the business type {live['business_type']} in the backup, got {backup['business_type']}"
    if mode is RestoreMode.CATCH_UP and backup["created_at"] != live["created_at"]:
        return (
            "expected the tenant that is in the backup, got one that was destroyed and made again since: no operation "
            "from before is applied to it; restore it with --as-of-backup"
        )
    return None


def refusal_of_positions(ages: Mapping[str, timedelta], *, retention: timedelta, log_kept: timedelta) -> str | None:
    """Return why the stream cannot be read again from the positions in a backup, by `missing_ages`.

    The logs of other tenants, kept for *log_kept*, have to drop what comes again.
    """
    for name, age in ages.items():
        got = f"got one of {_hours(age)} h ago ({name}); take a newer backup, or restore the tenant with --as-of-backup"
        if age > retention - RETENTION_SPARE:
            return (
                f"expected positions that the stream has for another {_hours(RETENTION_SPARE)} h at least, with its "
                f"retention of {_hours(retention)} h, {got}"
            )
        if age > log_kept * LOG_SHARE:
            return (
                f"expected positions from the last {_hours(log_kept * LOG_SHARE)} h, which the logs of all tenants "
                f"reach back to, {got}"
            )
    return None


def refusal_of_repetition(journal: Transfer | None, mode: RestoreMode, export: Path | None) -> str | None:
    """Return why the command would restore a tenant twice by mistake; another file as *export* shows the intent."""
    if journal is None or (journal.step, journal.detail["mode"]) != (TransferStep.DONE, mode):
        return None
    age = journal.read_at - journal.updated_at
    is_same_file = export is None or str(export.absolute()) == journal.export
    if age > REPEATED_WITHIN or not is_same_file:
        return None
    return (
        f"expected a tenant that was not restored within {_hours(REPEATED_WITHIN)} h, got one that was restored with "
        f"--{mode} {_hours(age)} h ago, and continues: a second restore undoes what it has applied since. If you want "
        f"that, name another file than {journal.export} with --export"
    )


def _hours(time: timedelta) -> str:
    return f"{time.total_seconds() / 3600:.1f}".removesuffix(".0")
