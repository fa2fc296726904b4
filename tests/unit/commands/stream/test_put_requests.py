"""Records are cut into requests of PutRecords."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.aws.sqs_queue import FifoIds, OutgoingMessage
from simplu_worker.commands.stream import input_lines
from simplu_worker.commands.stream.input_lines import cut_into_puts, cut_into_sends
from simplu_worker.consumers.kinesis.stream.client import NewRecord


@given(
    records=st.lists(st.builds(NewRecord, st.sampled_from("abcdef"), st.binary(max_size=500)), max_size=60),
    most=st.integers(min_value=1, max_value=10),
    most_bytes=st.integers(min_value=100, max_value=2000),
)
def test_puts_keep_order_within_bounds_and_each_key_once(records: list[NewRecord], most: int, most_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_lines, "PUT_MAX_COUNT", most)
        patch.setattr(input_lines, "PUT_MAX_BYTES", most_bytes)
        puts = list(cut_into_puts(records))
    assert [record for put in puts for record in put] == records
    for put in puts:
        keys = [record.partition_key for record in put]
        size_bytes = sum(len(record.data) + len(record.partition_key) for record in put)
        assert 1 <= len(put) <= most
        assert len(set(keys)) == len(keys)
        assert size_bytes <= most_bytes or len(put) == 1


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([50, 40], [2], id="exactly as much as a put may have"),
        pytest.param([50, 41], [1, 1], id="one byte more"),
        pytest.param([28, 28, 28, 5], [3, 1], id="all records of a put count"),
        pytest.param([200, 10, 10], [1, 2], id="one that is too large goes alone, and the next put starts empty"),
        pytest.param([200, 50, 40], [1, 2], id="the next put has as much as the first"),
        pytest.param([], [], id="nothing"),
    ],
)
def test_put_counts_data_and_keys(sizes: list[int], expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_lines, "PUT_MAX_BYTES", 100)
    records = [NewRecord(f"{number:03}ż", b"x" * size) for number, size in enumerate(sizes)]
    assert [len(put) for put in cut_into_puts(records)] == expected


def test_sends_keep_the_order_of_groups_within_bounds() -> None:
    def messages(*groups: str | None, size: int = 1) -> list[OutgoingMessage]:
        ids = [None if group is None else FifoIds(group, str(number)) for number, group in enumerate(groups)]
        return [OutgoingMessage("x" * size, fifo) for fifo in ids]

    def counts(sent: list[OutgoingMessage]) -> list[int]:
        requests = list(cut_into_sends(sent))
        assert [message for request in requests for message in request] == sent
        return [len(request) for request in requests]

    assert counts(messages(*"abcdefghijklm")) == [10, 3]
    assert counts(messages(*"abacb")) == [2, 3]
    assert counts(messages(*[None] * 12)) == [10, 2]
    assert counts(messages(*"abc", size=131_072)) == [2, 1]


def test_put_has_as_many_records_as_it_may() -> None:
    records = [NewRecord(str(number), b"") for number in range(1001)]
    assert [len(put) for put in cut_into_puts(records)] == [500, 500, 1]
