from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.kinesis.leases.lease import (
    HELD_MAX,
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
    text = encode_report(report)
    assert decode_report(text, ME) == report
    assert len(text) < (TEXT_MAX_LENGTH if report.held or report.top else 260)


@given(st.lists(st.builds(HeldTarget, st.text(min_size=200, max_size=600), st.just("gap"), ages), max_size=5))
def test_report_names_held_targets_as_far_as_there_is_room(held: list[HeldTarget]) -> None:
    report = LeaseReport(ME, "1.0", held=first_held(held))
    text = encode_report(report)
    read = decode_report(text, ME)
    assert len(text) <= TEXT_MAX_LENGTH
    assert read is not None
    assert read.held == report.held[: len(read.held)]
    assert len(report.held) == min(len(held), HELD_MAX)
    assert list(report.held) == sorted(report.held, key=lambda one: -one.age_s)


def test_report_names_held_targets_before_tenants() -> None:
    top = tuple(TopTenant(letter * 250, "shard-1", 1.0) for letter in "abc")
    held = (HeldTarget("x" * 300, HoldReason.GAP, 1.0),)
    read = decode_report(encode_report(LeaseReport(ME, held=held, top=top)), ME)
    assert read is not None
    assert (read.held, read.top) == (held, top[:2])


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
