"""Room that the shards and destinations of one process share: those that use any have equal parts of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar
from weakref import WeakSet

User = TypeVar("User")


class Budget(Generic[User]):
    """*total* in equal parts, each at least *least*, without which a user could not work, and at most *most*.

    `part` is what each user may use now; of one that uses nothing yet, what it may begin with.
    """

    def __init__(self, total: int, *, least: int, most: int) -> None:
        self._total = total
        self._least = least
        self._most = most
        self._users: WeakSet[User] = WeakSet()  # that of a shard which is gone uses nothing
        self.part = most

    def __repr__(self) -> str:
        return f"Budget({self._total}, users={len(self._users)})"

    @property
    def users(self) -> Iterable[User]:
        """Those that use a part."""
        return list(self._users)

    def enter(self, user: User) -> None:
        """Note that *user* uses a part: those of all others may be smaller from now on."""
        self._users.add(user)
        self._divide()

    def leave(self, user: User) -> None:
        """Note that *user* uses nothing any more."""
        self._users.discard(user)
        self._divide()

    def _divide(self) -> None:
        self.part = min(max(self._total // max(len(self._users), 1), self._least), self._most)
