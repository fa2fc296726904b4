"""The items of business-info: a business, its type and its locations. Pure.

The shape is that of the reference implementations: `{id, type, locations: [{id, active, …}], …}`; `businessType` is
accepted for `type`. No other member, such as names and addresses, is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec

from simplu_worker.operations.operation import ID_MAX, is_id

TYPE_MEMBERS: Final = ("businessType", "type")

Item: TypeAlias = Mapping[str, Mapping[str, Any]]
"""An item as DynamoDB's API returns it: each value under a letter that names its type."""


class UnreadableItemError(ValueError):
    """An item of business-info does not have the shape of a business."""


class Business(msgspec.Struct, frozen=True):
    """A business, with the ids of all its locations, and of the inactive ones among them.

    *problems* describe the unreadable locations, without their content.
    """

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
    """Return the business of an item; raise `UnreadableItemError` without an id, a type, or a list of locations.

    A location without `active` is active.
    """
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
    """Return False only for an explicit `false`, as a boolean or as text."""
    value = value or {}
    return value.get("BOOL") is not False and str(value.get("S")).lower() != "false"
