"""How safe a commit on a shard is, decided from the replication facts of its server. Pure.

A message is deleted only when its commit is as safe as its shard can make it:

- with `synchronous_standby_names`, when a later commit has been confirmed as the server's owner configured it;
- otherwise when every standby that keeps up has it on disk. One that lags or is gone is awaited for a minute (the
  default `wal_sender_timeout`): a permanently lagging copy must not stop a queue;
- otherwise when the server itself has it on disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from simplu_worker.vocabulary import CommitSafety

KEEPS_UP_S: Final = 5.0  # a standby further behind does not keep up
GRACE_S: Final = 60.0  # how long such a standby is still awaited
SPACING_S: Final = 1.0  # between the remembered positions


class Server(msgspec.Struct, frozen=True, order=True):
    """One run of one server on one timeline: positions in its log compare only with each other.

    Later runs are greater.
    """

    timeline: str
    started_at: datetime


class Standby(msgspec.Struct, frozen=True):
    """A receiver of the server's log. *state* is None if the role may not see it, *flushed* while it is unknown."""

    name: str
    state: str | None
    flushed: int | None

    @property
    def is_hidden(self) -> bool:
        """Whether it has no slot, and the role may not see its state."""
        return self.state is None and self.flushed is None


_standbys: Final = msgspec.json.Decoder(tuple[Standby, ...])


class ReplicationFacts(msgspec.Struct, frozen=True):
    """The facts of one answer of a server; *position* is behind every commit that was visible then."""

    server: Server
    position: int
    synchronous_commit: str
    synchronous_standby_names: str
    fsync: bool
    standbys: tuple[Standby, ...] = ()

    @property
    def is_synchronous(self) -> bool:
        """Whether a commit can be made to wait for the standbys that the server names."""
        return bool(self.synchronous_standby_names.strip())

    @property
    def needs_write(self) -> bool:
        """Whether only another commit, made to wait, proves that earlier ones are safe.

        A commit's own answer does not: its wait may have been cut short, and commits of others may never have waited.
        """
        return self.is_synchronous or self.synchronous_commit == "off"


def facts_of(columns: Sequence[Any]) -> ReplicationFacts:
    """Return the facts of the columns `replication_facts` (durability.sql), in their order."""
    timeline, started_at, position, commit, names, fsync, standbys = columns
    return ReplicationFacts(Server(timeline, started_at), position, commit, names, fsync, _standbys.decode(standbys))


class StandbyWatch:
    """The standbys of one server that are awaited, followed from answer to answer."""

    def __init__(self) -> None:
        self._facts: ReplicationFacts | None = None
        self._flushed: dict[str, int] = {}
        self._kept_up_at: dict[str, float] = {}
        self._positions: list[tuple[float, int]] = []  # time, and end of the log; oldest first

    def note(self, facts: ReplicationFacts, *, now: float) -> None:
        """Note the newest facts.

        Those of another server replace all. Standbys connect again within seconds of a restart.
        """
        if self._facts is not None and facts.server != self._facts.server:
            self._positions.clear()
            if facts.server.timeline != self._facts.server.timeline:  # a promoted standby does not come back as one
                self._kept_up_at.clear()
        self._facts = facts
        self._flushed = _flushed_by_name(facts.standbys)
        due = self._required_position(facts.position, now=now)
        for name, flushed in self._flushed.items():
            if flushed >= due:
                self._kept_up_at[name] = now
        self._kept_up_at = {name: at for name, at in self._kept_up_at.items() if now - at <= GRACE_S}

    @property
    def server(self) -> Server | None:
        """The server of the newest facts."""
        return None if self._facts is None else self._facts.server

    @property
    def awaited(self) -> list[str]:
        """The names of the standbys that are awaited."""
        return sorted(self._kept_up_at)

    def standbys_behind(self, position: int) -> list[str]:
        """Return the awaited standbys that are not known to have *position* on disk."""
        return [name for name in self.awaited if self._flushed.get(name, -1) < position]

    @property
    def safety(self) -> CommitSafety:
        """How safe a commit is once `standbys_behind` is empty, and with `needs_write` a later one has waited."""
        facts = self._facts
        if facts is None:
            return CommitSafety.UNKNOWN
        if facts.is_synchronous:
            return CommitSafety.SYNCHRONOUS
        if self._kept_up_at:
            return CommitSafety.REPLICATED
        if any(standby.is_hidden for standby in facts.standbys):
            return CommitSafety.UNKNOWN
        if facts.standbys:
            return CommitSafety.LAGGING
        return CommitSafety.LOCAL if facts.fsync else CommitSafety.VOLATILE

    def _required_position(self, position: int, *, now: float) -> int:
        if not self._positions or now - self._positions[-1][0] >= SPACING_S:
            self._positions.append((now, position))
        old = sum(1 for at, _ in self._positions if now - at >= KEEPS_UP_S)
        if not old:
            return 0
        del self._positions[: old - 1]
        return self._positions[0][1]


def _flushed_by_name(standbys: Sequence[Standby]) -> dict[str, int]:
    by_name: defaultdict[str, list[int]] = defaultdict(list)
    for standby in standbys:
        if standby.flushed is not None and standby.state in {None, "streaming"}:
            by_name[standby.name].append(standby.flushed)
    return {name: min(flushed) for name, flushed in by_name.items()}
