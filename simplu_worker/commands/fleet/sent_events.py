"""Split a stream of server-sent events, as `GET /events` sends them, into events. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

END: Final = b"\n\n"


class SentEvent(NamedTuple):
    """The name of an event, and its data."""

    name: str
    data: bytes


class EventSplitter:
    """Collects the parts of a stream until an event is complete."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""

    def __repr__(self) -> str:
        return f"EventSplitter({len(self._rest)} bytes)"

    def feed(self, part: bytes) -> Iterator[SentEvent]:
        """Yield the events that *part* completes, without comments. Raises ValueError for one that is too large."""
        *complete, self._rest = (self._rest + part).split(END)
        if len(self._rest) > self._max_bytes:
            raise ValueError(f"expected an event of at most {self._max_bytes} bytes, got a larger one")
        for text in complete:
            members = dict(_member(line) for line in text.split(b"\n") if line and not line.startswith(b":"))
            if b"data" in members:
                yield SentEvent(members.get(b"event", b"message").decode(errors="replace"), members[b"data"])


def _member(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")
