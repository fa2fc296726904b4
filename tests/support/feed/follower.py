"""What a receiver of the feed holds for true, by docs/feed.md alone: it shares no code with the worker. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final, NamedTuple

UNDONE: Final = "simplu.undone"
GAP: Final = "simplu.gap"


class Event(NamedTuple):
    id: str
    type: str
    key: str
    shard: str
    incarnation: str
    behind: tuple[tuple[str, int], ...]  # incarnations and the batches behind which they began, the newest first
    position: str
    request: str | None
    undoes: str | None
    reapplies: str | None

    @classmethod
    def of(cls, members: dict[str, Any]) -> Event:
        bounds = [one.rsplit(":", 1) for one in members.get("simplubehind", "").split(",") if one]
        return cls(
            id=members["id"],
            type=members["type"],
            key=members["partitionkey"],
            shard=members["simplushard"],
            incarnation=members["simpluincarnation"],
            behind=tuple((incarnation, int(batch)) for incarnation, batch in bounds),
            position=members["simpluposition"],
            request=members.get("simplurequest"),
            undoes=members.get("simpluundoes"),
            reapplies=members.get("simplureapplies"),
        )

    @property
    def batch(self) -> int:
        return int(self.position.split("-")[0])

    def is_undone_by(self, newer: Event) -> bool:
        later = [batch for incarnation, batch in newer.behind if incarnation > self.incarnation]
        return any(self.batch > batch for batch in later)


class Follower:
    def __init__(self) -> None:
        self.holding: dict[str, Event] = {}
        self.taken_back: dict[str, Event] = {}
        self.gaps: list[Event] = []
        self.late: dict[str, Event] = {}  # came of an earlier incarnation, when a later one had taken them back
        self.arrived = self.repeated = 0
        self._newest: dict[str, Event] = {}
        self._by_shard: defaultdict[str, dict[str, Event]] = defaultdict(dict)

    def take(self, event: Event) -> None:
        """Apply *event*, unless it is a repetition or came too late, and take back what it undoes."""
        self.arrived += 1
        newest = self._newest.setdefault(event.shard, event)
        if event.incarnation < newest.incarnation and event.is_undone_by(newest):
            self.late[event.id] = event
            return
        if event.incarnation > newest.incarnation:
            self._newest[event.shard] = event
            for one in list(self._by_shard[event.shard].values()):
                if one.incarnation < event.incarnation and one.is_undone_by(event):
                    self._take_back(one.shard, one.id)
        if event.undoes is not None:
            self._take_back(event.shard, event.undoes)
        if event.id in self._by_shard[event.shard]:
            self.repeated += 1
            return
        self._by_shard[event.shard][event.id] = event
        if event.type == GAP:
            self.gaps.append(event)
        elif event.type != UNDONE:
            self.holding[event.id] = event

    def _take_back(self, shard: str, event_id: str) -> None:
        self._by_shard[shard].pop(event_id, None)
        if (event := self.holding.pop(event_id, None)) is not None:
            self.taken_back[event_id] = event
