from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.commands.fleet.replica_client import EventSplitter, SentEvent

STREAM = b'event: status\ndata: {"a": 1}\n\n: alive\n\nevent: fleet\ndata: {"b": 2}\n\ndata: {}\n\nevent: half'
EVENTS = [SentEvent("status", b'{"a": 1}'), SentEvent("fleet", b'{"b": 2}'), SentEvent("message", b"{}")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    splitter = EventSplitter(1000)
    ends = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[begin:end] for begin, end in itertools.pairwise(ends)]
    assert [event for part in parts for event in splitter.feed(part)] == EVENTS


def test_event_is_refused_when_it_is_too_large() -> None:
    splitter = EventSplitter(100)
    assert list(splitter.feed(b"data: " + b"x" * 94)) == []
    with pytest.raises(ValueError, match="at most 100 bytes"):
        list(splitter.feed(b"x"))
