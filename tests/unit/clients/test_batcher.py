"""The batcher of the clients: records of a key are accepted in their order, whatever the answers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simplu_client.batcher import MAX_RECORDS, Answer, Batcher, Limits, Record
from support.clients.cases import Run, read_cases

KEYS = "abc"


@pytest.mark.parametrize("case", read_cases("batcher"), ids=lambda case: case["name"])
def test_batcher_does_what_the_case_says(case: dict[str, Any]) -> None:
    run = Run()
    for step in case["steps"]:
        expected = {
            name: value
            for name, value in step.items()
            if name in {"expect", "expectCount", "expectOperations", "accepted", "givenUp"}
        }
        assert run.do(step) == expected, step


class Stream:
    def __init__(self, data: st.DataObject) -> None:
        self._data = data
        self.records: dict[str, list[int]] = defaultdict(list)

    def put(self, record: Record[int]) -> Answer:
        key = record[0].key
        kind = self._data.draw(st.sampled_from(["accepted", "refused", "unknown, and there", "unknown, and not there"]))
        if kind in {"accepted", "unknown, and there"}:
            self.records[key] += [one.item for one in record]
        return Answer(f"s{ord(key) % 2}") if kind == "accepted" else Answer(None, kind.startswith("unknown"))


@pytest.mark.slow
@given(st.data())
def test_stream_has_each_key_in_its_order_and_nothing_is_lost(data: st.DataObject) -> None:
    batcher: Batcher[int] = Batcher(Limits(give_up_s=300, base_s=10, max_s=100))
    stream, now, requests = Stream(data), 0.0, list[list[Record[int]]]()
    added: dict[str, list[int]] = defaultdict(list)
    accepted: set[int] = set()
    given_up: set[int] = set()
    numbers = itertools.count()
    for _ in range(data.draw(st.integers(1, 30))):
        now += data.draw(st.sampled_from([0.0, 5.0, 60.0]))
        action = data.draw(st.sampled_from(["add", "batch", "answer"]))
        if action == "add":
            for key in data.draw(st.lists(st.sampled_from(KEYS), max_size=5)):
                number = next(numbers)
                batcher.add(number, key, 1)
                added[key].append(number)
        elif action == "batch":
            batch = batcher.next_batch(now)
            busy = [record[0].key for request in [*requests, batch] for record in request]
            assert len(busy) == len(set(busy))
            assert len(batch) <= MAX_RECORDS
            requests += [batch] if batch else []
        elif requests:
            batch = requests.pop(data.draw(st.integers(0, len(requests) - 1)))
            settled = batcher.settle(batch, [stream.put(record) for record in batch], now=now, draw=0.0)
            accepted |= {one.item for one in settled.accepted}
            given_up |= {one.item for one in settled.given_up}
    left = {one.item for one in batcher.drain()}

    assert len(accepted) + len(given_up) + len(left) == sum(map(len, added.values()))
    assert accepted <= {number for records in stream.records.values() for number in records}
    for key, records in stream.records.items():
        firsts = list(dict.fromkeys(records))
        assert firsts == sorted(firsts), key
        assert set(added[key][: len(firsts)]) - set(firsts) <= given_up
    assert batcher.count == batcher.size_bytes == 0
