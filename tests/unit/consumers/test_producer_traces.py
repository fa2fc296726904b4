from __future__ import annotations

import json

import pytest

from simplu_worker.consumers.producer_traces import MALFORMED, traceparents_of_messages, traceparents_of_records

TEXT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (json.dumps({"traceparent": TEXT, "data": {"a": 1}}).encode(), [TEXT]),
        (json.dumps({"data": {"traceparent": TEXT}}).encode(), []),  # of the resource
        (b'{"traceparent": null}', []),
        (b'{"operation": "create"}', []),
        (b'{"traceparent": 7}', [MALFORMED]),
        (b'{"traceparent": {"a": "b"}}', [MALFORMED]),
        (b'{"traceparent": "\\ud800"}', ["\0"]),  # a lone surrogate is replaced, as everywhere
        (b'{"traceparent": "first", "traceparent": "last"}', ["last"]),
        (b'{"data": ' + b"[" * 600 + b"]" * 600 + b', "traceparent": "deep"}', [MALFORMED]),
        (b'{"traceparent": ' + b"[" * 600 + b"]" * 600 + b"}", [MALFORMED]),
        (b'{"traceparent": "cut', [MALFORMED]),
        (b'\xff{"traceparent": "x"}', [MALFORMED]),
    ],
)
def test_member_of_the_record_itself_is_found(record: bytes, expected: list[str]) -> None:
    assert expected == list(traceparents_of_records([record, b"{}"]))


def test_attribute_of_each_message_is_found() -> None:
    attributes = [{"traceparent": TEXT, "BusinessId": "b"}, {"BusinessId": "b"}, {"Traceparent": "x"}, {}]
    assert list(traceparents_of_messages(attributes)) == [TEXT]
