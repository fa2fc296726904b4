"""What business-info, Citrus and the shards say of one tenant, and where that differs. Pure.

Business-info is what is wanted, Citrus where it is to be, the shards where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

from simplu_worker.operations.admission import TenantState
from simplu_worker.operations.operation import tenant_id_of

# Where a tenant lives. One that is moved away, or on its way in, has its home on another shard.
HOME_STATES = frozenset({TenantState.ACTIVE, TenantState.FENCED, TenantState.DESTROYING})


class DifferenceKind(StrEnum):
    """A difference."""

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


class BusinessListing(msgspec.Struct, frozen=True):
    """What business-info says of a tenant."""

    business_type: str
    is_active: bool = True


class AuditedRow(msgspec.Struct, frozen=True):
    """What a shard says of the tenant with an id."""

    shard_id: str
    business_id: str
    location_id: str
    business_type: str
    state: TenantState


class AuditSubject(msgspec.Struct, frozen=True):
    """One tenant, and all that was found of it.

    *listing* is None where business-info does not have it, *rows* are those of its id on all shards. *named_shard_id*
    is the shard that Citrus or the map names; None where it is not registered, with *refusal* where that shard may not
    be used. *silent* are the shards that did not answer: what is not found may be there.
    """

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
        """The rows that are of this business and location."""
        return [row for row in self.rows if (row.business_id, row.location_id) == (self.business_id, self.location_id)]

    @property
    def homes(self) -> list[AuditedRow]:
        """Its rows on shards where it lives."""
        return [row for row in self.own_rows if row.state in HOME_STATES]

    @property
    def id_taker(self) -> AuditedRow | None:
        """A row of its id that is another pair's, if any."""
        return next((row for row in self.rows if row not in self.own_rows), None)


class Difference(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What is not as it should be."""

    kind: DifferenceKind
    detail: str
    business_id: str | None = None
    location_id: str | None = None


def find_differences(subject: AuditSubject, *, known_types: Sequence[str]) -> list[Difference]:
    """Return all that differs about one tenant, the gravest first; nothing where all agree."""
    found = [
        *_home_differences(subject),
        *_listing_differences(subject, known_types),
        *_registration_differences(subject),
    ]
    return [Difference(kind, detail, subject.business_id, subject.location_id) for kind, detail in found]


def _home_differences(subject: AuditSubject) -> Iterator[tuple[DifferenceKind, str]]:
    homes, id_taker = subject.homes, subject.id_taker
    if len(homes) > 1:
        yield DifferenceKind.TWO_HOMES, f"it lives on shards {_shard_names(homes)}"
    if id_taker is not None and (subject.is_wanted or homes):
        whose = f"business {id_taker.business_id}, location {id_taker.location_id}"
        yield DifferenceKind.ID_TAKEN, f"shard {id_taker.shard_id} has its id {subject.tenant_id} for {whose}"
    if homes and subject.named_shard_id not in {None, *(home.shard_id for home in homes)}:
        yield (
            DifferenceKind.SHARD_DIFFERS,
            f"it lives on shard {_shard_names(homes)}, and is routed to {subject.named_shard_id}",
        )


def _listing_differences(subject: AuditSubject, known_types: Sequence[str]) -> Iterator[tuple[DifferenceKind, str]]:
    listing, homes = subject.listing, subject.homes
    living = [home for home in homes if home.state != TenantState.DESTROYING]
    if listing is None:
        if living:
            yield (
                DifferenceKind.NOT_IN_BUSINESS_INFO,
                f"it lives on shard {_shard_names(living)}, and business-info does not list it",
            )
        return
    if listing.business_type not in known_types:
        yield (
            DifferenceKind.UNKNOWN_TYPE,
            f"expected one of {', '.join(known_types)}, business-info says {listing.business_type}",
        )
    if others := sorted({home.business_type for home in homes} - {listing.business_type}):
        yield DifferenceKind.TYPE_DIFFERS, f"business-info says {listing.business_type}, its shard {', '.join(others)}"
    if not listing.is_active:
        if living:
            yield (
                DifferenceKind.LOCATION_INACTIVE,
                f"it lives on shard {_shard_names(living)}, and its location is not active",
            )
        return
    if ending := [row for row in subject.own_rows if row.state in {TenantState.DESTROYING, TenantState.DESTROYED}]:
        if not living:
            yield (
                DifferenceKind.DESTROYED,
                f"it is {ending[0].state} on shard {_shard_names(ending)}, and business-info lists it",
            )
    elif not homes and not subject.silent and subject.id_taker is None:
        yield DifferenceKind.NO_ROW, _describe_missing_row(subject)


def _registration_differences(subject: AuditSubject) -> Iterator[tuple[DifferenceKind, str]]:
    is_alive = any(home.state != TenantState.DESTROYING for home in subject.homes)
    if subject.refusal is not None:
        yield DifferenceKind.ADDRESS_REFUSED, subject.refusal
    elif subject.named_shard_id is None and (is_alive or (subject.is_wanted and not subject.own_rows)):
        yield DifferenceKind.NOT_IN_CITRUS, "Citrus does not know it"


def _describe_missing_row(subject: AuditSubject) -> str:
    states = f"; only a row that is {subject.own_rows[0].state}" if subject.own_rows else ""
    if subject.named_shard_id is None:
        return f"no shard has its row{states}"
    return f"it is routed to shard {subject.named_shard_id}, and no shard has its row{states}"


def _shard_names(rows: Sequence[AuditedRow]) -> str:
    return " and ".join(sorted(row.shard_id for row in rows))
