from __future__ import annotations

from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from simplu_local.kinesis.fan_out.event_stream import encode_message
from simplu_worker.consumers.kinesis.stream.subscriptions import MessageBuffer

HEADERS = st.dictionaries(st.text("abc:-", min_size=1, max_size=20), st.text(max_size=30), max_size=3)
MESSAGES = st.lists(st.tuples(HEADERS, st.binary(max_size=200)), max_size=5)


@given(messages=MESSAGES, cuts=st.lists(st.integers(1, 60), min_size=1, max_size=200))
def test_messages_are_the_same_in_whatever_parts_they_come(
    messages: list[tuple[dict[str, str], bytes]], cuts: list[int]
) -> None:
    stream = b"".join(encode_message(headers, payload) for headers, payload in messages)
    buffer, other = MessageBuffer(), EventStreamBuffer()
    found: list[tuple[dict[str, str], bytes]] = []
    at = 0
    while at < len(stream):
        part = stream[at : at + cuts[at % len(cuts)]]
        at += len(part)
        buffer.add(part)
        while (message := buffer.take()) is not None:
            found.append((message.headers, bytes(message.payload)))
    other.add_data(stream)
    assert found == messages == [(message.headers, message.payload) for message in other]


GOOD = encode_message({"name": "text"}, b"payload")


def test_size_is_known_before_the_message_is_there() -> None:
    buffer = MessageBuffer()
    buffer.add(GOOD[:11])
    assert buffer.next_size() is None
    buffer.add(GOOD[11:13])
    assert (buffer.next_size(), buffer.take()) == (len(GOOD), None)
