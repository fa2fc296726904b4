from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.leases.lease import (
    TEXT_MAX_LENGTH,
    TOP_MAX,
    HeldTarget,
    HoldRetry,
    LeaseReport,
    RecordRate,
    TopTenant,
    decode_report,
    decode_retry,
    encode_report,
    encode_retry,
    first_held,
)
from simplu_worker.vocabulary import HoldReason

ME = "host:17:abc"
ages = st.floats(0, 1e6).map(lambda value: round(value, 3))
numbers = st.none() | st.floats(0, 1e6).map(lambda value: round(value, 3))
reports = st.builds(
    LeaseReport,
    st.just(ME),
    st.sampled_from(["", "1.0"]),
    numbers,
    numbers,
    st.none() | st.integers(0, 10**6),
    st.lists(st.builds(HeldTarget, st.text(max_size=60), st.sampled_from(["gap", "moving"]), ages), max_size=3).map(
        tuple
    ),
    numbers,
    st.none() | st.integers(0, 10**6),
    st.lists(st.builds(TopTenant, st.text(max_size=30), st.text(max_size=10), ages), max_size=TOP_MAX).map(tuple),
)


@given(reports)
def test_report_is_read_as_written(report: LeaseReport) -> None:
    assert decode_report(encode_report(report), ME) == report


def test_report_names_the_oldest_held_targets() -> None:
    held = [HeldTarget(str(age), HoldReason.GAP, age) for age in (1.0, 4.0, 2.0, 3.0)]
    assert [one.age_s for one in first_held(held)] == [4.0, 3.0, 2.0]


@pytest.mark.parametrize("owner", [None, "", "other"])
def test_report_of_another_writer_is_none(owner: str | None) -> None:
    assert decode_report(encode_report(LeaseReport(ME)), owner) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        f'{{"by": "{ME}", "lag_s": -1}}',
        f'{{"by": "{ME}", "held_count": "many"}}',
        f'{{"by": "{ME}", "held": [["shard a", "gap", -1.0]]}}',
    ],
)
def test_report_that_cannot_be_is_none(text: str) -> None:
    assert decode_report(text, ME) is None


@given(st.builds(HoldRetry, st.text("0123456789abcdef", min_size=16, max_size=16), st.none() | st.text(max_size=150)))
def test_request_is_read_as_written(retry: HoldRetry) -> None:
    assert decode_retry(encode_retry(retry)) == retry


def test_request_that_no_owner_would_read_is_not_written() -> None:
    with pytest.raises(ValueError, match="held target"):
        encode_retry(HoldRetry("1", "x" * TEXT_MAX_LENGTH))


def test_rate_is_that_since_the_last_renewal() -> None:
    rate = RecordRate(now=10.0)
    assert rate.note(5, now=10.0) is None
    assert [rate.note(30, now=13.0), rate.note(30, now=14.0)] == [10.0, 0.0]
