"""The report of a lease's owner: as written, and nothing of another writer or of garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.leases.lease_report import (
    LARGE,
    TEXT_MAX_LENGTH,
    HoldRetry,
    LeaseReport,
    RecordRate,
    decode_report,
    decode_retry,
    encode_report,
    encode_retry,
)

ME = "host:17:abc"
numbers = st.none() | st.floats(0, LARGE / 2).map(lambda value: round(value, 3))
reports = st.builds(
    LeaseReport,
    st.just(ME),
    st.sampled_from(["", "1.0"]),
    numbers,
    numbers,
    st.none() | st.integers(0, 10**6),
)


@given(reports)
def test_report_is_read_as_written(report: LeaseReport) -> None:
    """Its text stays far below the kilobyte in which DynamoDB counts."""
    text = encode_report(report)
    assert decode_report(text, ME) == report
    assert len(text) < 200


@pytest.mark.parametrize("owner", [None, "", "other"])
def test_report_of_another_writer_is_none(owner: str | None) -> None:
    """A worker that does not know the attribute left it in the row."""
    assert decode_report(encode_report(LeaseReport(ME)), owner) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        f'{{"by": "{ME}", "lag_s": -1}}',
        f'{{"by": "{ME}", "records_per_s": 1e300}}',
        f'{{"by": "{ME}", "held_count": "many"}}',
        f'{{"by": "{ME}", "version": "{"x" * TEXT_MAX_LENGTH}"}}',
        "\ud800",
    ],
)
def test_report_that_cannot_be_is_none(text: str) -> None:
    """The lease can be used without it."""
    assert decode_report(text, ME) is None


def test_impossible_numbers_are_written_as_possible_ones() -> None:
    """A clock that differs gives a negative lag."""
    text = encode_report(LeaseReport(ME, lag_s=-3.0, records_per_s=float("inf")))
    assert decode_report(text, ME) == LeaseReport(ME, lag_s=0.0, records_per_s=LARGE - 1)


@given(st.builds(HoldRetry, st.text("0123456789abcdef", min_size=16, max_size=16), st.none() | st.text(max_size=150)))
def test_request_is_read_as_written(retry: HoldRetry) -> None:
    """With any name of a target."""
    assert decode_retry(encode_retry(retry)) == retry


def test_request_that_no_owner_would_read_is_not_written() -> None:
    """A name that long is no target's; a person gets the error."""
    with pytest.raises(ValueError, match="held target"):
        encode_retry(HoldRetry("1", "x" * TEXT_MAX_LENGTH))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"request_id": 1}', "\ud800", f'{{"request_id": "{"x" * TEXT_MAX_LENGTH}"}}']
)
def test_request_that_cannot_be_is_none(text: str) -> None:
    """The lease can be used without it."""
    assert decode_retry(text) is None


def test_rate_is_that_since_the_last_renewal() -> None:
    """None without time between two."""
    rate = RecordRate(now=10.0)
    assert rate.note(5, now=10.0) is None
    assert [rate.note(30, now=13.0), rate.note(30, now=14.0)] == [10.0, 0.0]
