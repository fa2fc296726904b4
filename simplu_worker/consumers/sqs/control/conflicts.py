"""Which messages of one batch may be handled at the same time, and which have to wait for which. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec


class MessageSubject(msgspec.Struct, frozen=True):
    """What a message is about: a tenant, or with *business_id* alone every tenant of a business; and its FIFO group.

    What cannot be read is about nothing.
    """

    tenant_id: str | None = None
    business_id: str | None = None
    group_id: str | None = None

    def meets(self, other: MessageSubject) -> bool:
        """Tell whether the two must be handled one after the other."""
        if self.group_id is not None and self.group_id == other.group_id:
            return True
        if self.business_id is None or other.business_id is None:
            return False
        if self.tenant_id is None or other.tenant_id is None:
            return self.business_id == other.business_id
        return self.tenant_id == other.tenant_id


def turns_of(claims: Sequence[MessageSubject]) -> list[list[int]]:
    """Return the places of *claims* in turns: in one turn no two meet, and each comes after all that it has to."""
    turn_by_place: list[int] = []
    for place, claim in enumerate(claims):
        earlier = (turn_by_place[other] for other in range(place) if claim.meets(claims[other]))
        turn_by_place.append(max(earlier, default=-1) + 1)
    turns: list[list[int]] = [[] for _ in range(max(turn_by_place, default=-1) + 1)]
    for place, turn in enumerate(turn_by_place):
        turns[turn].append(place)
    return turns


def first_before(claims: Sequence[MessageSubject], place: int, undecided: Collection[int]) -> int | None:
    """Return the first of the *undecided* that the one at *place* has to wait for; one of its own group if there is.

    None when it may be handled.
    """
    before = [other for other in sorted(undecided) if other < place and claims[place].meets(claims[other])]
    own = [other for other in before if is_of_group(claims[place], claims[other])]
    return next(iter(own or before), None)


def is_of_group(claim: MessageSubject, other: MessageSubject) -> bool:
    """Tell whether both are of the same FIFO group."""
    return claim.group_id is not None and claim.group_id == other.group_id
