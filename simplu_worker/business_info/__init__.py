"""Business-info, the DynamoDB table of businesses, their types and locations: its items, and how one is found.

An item is that of the reference implementations: `{id, type, locations: [{id, active, …}], …}`; no other member is
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.operations.operation import ID_MAX, is_id

TYPE_MEMBERS: Final = ("businessType", "type")

Item: TypeAlias = Mapping[str, Mapping[str, Any]]
"""An item as DynamoDB's API returns it: each value under a letter that names its type."""


class UnreadableItemError(ValueError):
    """An item of business-info does not have the shape of a business."""


class Business(msgspec.Struct, frozen=True):
    """A business, with the ids of its locations, its inactive ones, and *problems* of unreadable ones."""

    id: str
    business_type: str
    locations: frozenset[str] = frozenset()
    inactive: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

    @property
    def active(self) -> frozenset[str]:
        """The ids of its active locations."""
        return self.locations - self.inactive


def business_of(item: Item) -> Business:
    """Return the business of an item; raise `UnreadableItemError`. A location without `active` is active."""
    locations, inactive, problems = [], [], []
    for number, location in enumerate(_locations(item), start=1):
        members = location.get("M")
        if not isinstance(members, Mapping) or (location_id := _id(members.get("id"))) is None:
            problems.append(f"location {number}: expected an id of 1 to {ID_MAX} characters")
            continue
        locations.append(location_id)
        if not _is_active(members.get("active")):
            inactive.append(location_id)
    return Business(
        id=_own_id(item),
        business_type=_type(item),
        locations=frozenset(locations),
        inactive=frozenset(inactive),
        problems=tuple(problems),
    )


def id_of(item: Item) -> str | None:
    """Return the id of an item, readable or not; None without a valid id."""
    return _id(item.get("id"))


def refusal_reason(business: Business | None, location_id: str) -> str | None:
    """Return why no tenant may be made for a business at a location by business-info; None if it may."""
    if business is None:
        return "its business is not in business-info"
    if location_id not in business.locations:
        return "its business in business-info has no such location"
    if location_id in business.inactive:
        return "its location is not active in business-info"
    return None


def _own_id(item: Item) -> str:
    own = _id(item.get("id"))
    if own is None:
        raise UnreadableItemError(f"id: expected a string of 1 to {ID_MAX} characters")
    return own


def _type(item: Item) -> str:
    names = {item[name].get("S") for name in TYPE_MEMBERS if name in item and not item[name].get("NULL")}
    if len(names) != 1 or not all(names):
        came = "two different ones" if names and all(names) else "none"
        raise UnreadableItemError(f"type: expected the business's type, a string, got {came}")
    return str(names.pop())


def _locations(item: Item) -> list[Mapping[str, Any]]:
    given = item.get("locations", {"NULL": True})
    if given.get("NULL"):
        return []
    locations = given.get("L")
    if not isinstance(locations, list):
        raise UnreadableItemError("locations: expected a list")
    return locations


def _id(value: Mapping[str, Any] | None) -> str | None:
    text = (value or {}).get("S")
    return text if isinstance(text, str) and is_id(text) else None


def _is_active(value: Mapping[str, Any] | None) -> bool:
    value = value or {}
    return value.get("BOOL") is not False and str(value.get("S")).lower() != "false"


FRESH_S: Final = 300.0  # for an existing business: its type does not change
ABSENT_FRESH_S: Final = 5.0  # for a missing one: it may be created at any time


class UnreadableBusinessError(PermanentError):
    """The item of a business cannot be read; a person has to correct it."""


class BusinessFinder(Protocol):
    """Finds businesses by id; `BusinessInfo` is one."""

    async def find(self, business_id: str, *, max_age_s: float = FRESH_S) -> Business | None:
        """Return a business as it was at most *max_age_s* ago, or None; raise `PermanentError` if it is unreadable."""
