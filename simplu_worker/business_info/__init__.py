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


class UnreadableBusinessError(PermanentError):
    """An item, with the id *business_id* if it has one, does not have the shape of a business; a person corrects it."""

    def __init__(self, business_id: str | None, problem: str) -> None:
        super().__init__(f"business-info, business {business_id!r}: {problem}")
        self.id = business_id
        self.problem = problem


class Business(msgspec.Struct, frozen=True):
    """A business, with the ids of its locations, its inactive ones, and *problems* of unreadable ones."""

    id: str
    business_type: str
    locations: frozenset[str] = frozenset()
    inactive: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()


def business_of(item: Item) -> Business:
    """Return the business of an item; raise `UnreadableBusinessError`. A location without `active` is active."""
    business_id = _id(item.get("id"))
    if business_id is None:
        raise UnreadableBusinessError(None, f"id: expected a string of 1 to {ID_MAX} characters")
    types = {item[name].get("S") for name in TYPE_MEMBERS if name in item and not item[name].get("NULL")}
    if len(types) != 1 or not all(types):
        came = "two different ones" if types and all(types) else "none"
        raise UnreadableBusinessError(business_id, f"type: expected the business's type, a string, got {came}")
    given = item.get("locations", {"NULL": True})
    if not isinstance(given.get("L", []), list) or not ("L" in given or given.get("NULL")):
        raise UnreadableBusinessError(business_id, "locations: expected a list")
    locations, inactive, problems = [], [], []
    for number, location in enumerate(given.get("L", []), start=1):
        members = location.get("M")
        if not isinstance(members, Mapping) or (location_id := _id(members.get("id"))) is None:
            problems.append(f"location {number}: expected an id of 1 to {ID_MAX} characters")
            continue
        locations.append(location_id)
        if not _is_active(members.get("active")):
            inactive.append(location_id)
    return Business(business_id, str(types.pop()), frozenset(locations), frozenset(inactive), tuple(problems))


def refusal_reason(business: Business | None, location_id: str) -> str | None:
    """Return why no tenant may be made for a business at a location by business-info; None if it may."""
    if business is None:
        return "its business is not in business-info"
    if location_id not in business.locations:
        return "its business in business-info has no such location"
    if location_id in business.inactive:
        return "its location is not active in business-info"
    return None


def _id(value: Mapping[str, Any] | None) -> str | None:
    text = (value or {}).get("S")
    return text if isinstance(text, str) and is_id(text) else None


def _is_active(value: Mapping[str, Any] | None) -> bool:
    value = value or {}
    return value.get("BOOL") is not False and str(value.get("S")).lower() != "false"


FRESH_S: Final = 300.0  # for an existing business: its type does not change
ABSENT_FRESH_S: Final = 5.0  # for a missing one: it may be created at any time


class BusinessFinder(Protocol):
    """Finds businesses by id; `BusinessInfo` is one."""

    async def find(self, business_id: str, *, max_age_s: float = FRESH_S) -> Business | None:
        """Return a business as it was at most *max_age_s* ago, or None; raise `PermanentError` if it is unreadable."""
