"""What a receiver of the feed holds for true, by docs/feed.md alone: it shares no code with the worker. Pure."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

RESET: Final = "simplu.reset"
GAP: Final = "simplu.gap"


class Event(NamedTuple):
    id: str
    type: str
    key: str
    shard: str
    incarnation: str
    position: str
    request: str | None

    @classmethod
    def of(cls, members: dict[str, Any]) -> Event:
        return cls(
            id=members["id"],
            type=members["type"],
            key=members["partitionkey"],
            shard=members["simplushard"],
            incarnation=members["simpluincarnation"],
            position=members["simpluposition"],
            request=members.get("simplurequest"),
        )

    @property
    def batch(self) -> int:
        return int(self.position.split("-")[0])

    def is_reset_by(self, reset: Event, incarnation: str) -> bool:
        """Return whether *reset* takes back this event, which came last in *incarnation*."""
        return reset.shard == self.shard and reset.incarnation > incarnation and reset.batch < self.batch


class Follower:
    def __init__(self) -> None:
        self.holding: dict[str, Event] = {}
        self.taken_back: dict[str, Event] = {}
        self.gaps: list[Event] = []
        self.late: dict[str, Event] = {}  # were sent before a reset that came before them
        self.arrived = self.repeated = 0
        self._resets: dict[str, Event] = {}
        self._incarnations: dict[str, str] = {}  # in which each event came last

    def take(self, event: Event) -> None:
        """Apply *event*, unless it is a repetition or came too late, and take back what it voids."""
        self.arrived += 1
        if event.type == RESET:
            self._resets[event.id] = event
            for one in [*self.holding.values()]:
                if one.is_reset_by(event, self._incarnations[one.id]):
                    self.taken_back[one.id] = self.holding.pop(one.id)
        elif any(event.is_reset_by(one, event.incarnation) for one in self._resets.values()):
            self.late[event.id] = event
        elif event.id in self.holding:
            self.repeated += 1
            self._incarnations[event.id] = max(event.incarnation, self._incarnations[event.id])
        else:
            self.holding[event.id], self._incarnations[event.id] = event, event.incarnation
            self.gaps += [event] * (event.type == GAP)
