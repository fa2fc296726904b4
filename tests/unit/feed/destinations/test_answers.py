"""What the answers of a receiver over HTTP mean, and where AWS is asked."""

from __future__ import annotations

import pytest

from simplu_worker.feed.destinations import delivery_of, region_of
from simplu_worker.feed.types import Delivered, Delivery, Disabled, Refused, RetryLater

KINDS = [
    ((200, 201, 202, 204, 299), Delivered),
    ((410,), Disabled),
    ((400, 401, 403, 404, 409, 413, 418, 422, 499), Refused),
    ((408, 425, 429), RetryLater),
    ((500, 502, 503, 504, 599, 300, 301, 302, 307, 308, 399), RetryLater),
]


@pytest.mark.parametrize(("status", "kind"), [(status, kind) for statuses, kind in KINDS for status in statuses])
def test_status_decides(status: int, kind: type[Delivery]) -> None:
    assert type(delivery_of("h", status, None)) is kind


def test_errors_name_the_host_and_what_came() -> None:
    assert delivery_of("h.example", 500, None) == RetryLater("h.example: expected a status 2xx, got 500")
    assert delivery_of("h.example", 302, "9") == RetryLater(
        "h.example: expected a status 2xx, got a redirect (302); name its target in FEED_FILE"
    )


HEADERS = [
    *((text, None) for text in (None, "", "soon", "-1", "٣", "Sun, 01 Mar 2026 09:01:00 GMT")),
    ("0", 0.0),
    ("120", 120.0),
    ("99999999999999999999", 3600.0),
]


@pytest.mark.parametrize(("header", "expected"), HEADERS)
def test_retry_after_is_seconds(header: str | None, expected: float | None) -> None:
    assert delivery_of("h", 503, header) == RetryLater("h: expected a status 2xx, got 503", expected)


def test_region_is_that_of_the_arn_or_the_url() -> None:
    assert region_of("arn:aws:kinesis:us-east-1:123456789012:stream/changes", "eu-west-1") == "us-east-1"
    for url in ("https://sqs.us-east-1.amazonaws.com/1/a.fifo", "https://us-east-1.queue.amazonaws.com/1/a.fifo"):
        assert region_of(url, "eu-west-1") == "us-east-1"
    assert [region_of(one, "eu") for one in ("changes", "http://127.0.0.1:4566/1/a.fifo")] == ["eu", "eu"]
