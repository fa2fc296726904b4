"""The ids of incarnations, by which receivers know the newer one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.feed.incarnations import incarnation_id


@given(first=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)), later_ms=st.integers(1, 10**12))  # noqa: DTZ001
def test_id_of_a_newer_incarnation_is_greater(first: datetime, later_ms: int) -> None:
    """By a millisecond or by decades, whatever the noise: receivers compare ids as texts."""
    at = first.replace(tzinfo=UTC)
    assert incarnation_id(at, "ffff") < incarnation_id(at + timedelta(milliseconds=later_ms), "0000")
