"""What a person's word does to a cursor."""

from __future__ import annotations

import pytest

from simplu_worker.errors import PermanentError
from simplu_worker.feed.choices import PassSource, Resume, choose_skip, replay_place
from simplu_worker.feed.places import POSITION_MAX, HeldTenant, Place
from simplu_worker.vocabulary import FeedStop


@pytest.mark.parametrize(
    ("cursor", "from_batch_id", "expected"),
    [
        (Place(90, 3), 50, Place(50, POSITION_MAX)),
        (Place(50, POSITION_MAX), 50, None),
        (Place(50, 3), 50, None),
        (Place(40, 3), 50, None),
        (Place(90, 3), None, None),
    ],
)
def test_replay_puts_a_cursor_back_only(cursor: Place, from_batch_id: int | None, expected: Place | None) -> None:
    """What the destination did not get yet comes anyway, and is not passed by a replay."""
    assert replay_place(cursor, from_batch_id) == expected


def held(tenant_id: str, *, is_passed: bool = False) -> HeldTenant:
    """Return a tenant that waits for the source `a`."""
    return HeldTenant(1, tenant_id, 2, "a", 5, 0, is_passed)


@pytest.mark.parametrize(
    ("stopped", "tenants", "tenant_id", "expected"),
    [
        (FeedStop.REFUSED, (), None, Resume(FeedStop.REFUSED, "why", "id-1")),
        (FeedStop.DISABLED, (held("x"),), None, Resume(FeedStop.DISABLED, "why", "id-1")),
        (None, (held("x"), held("y")), "y", PassSource("y", "a")),
        (FeedStop.REFUSED, (held("x"),), "x", PassSource("x", "a")),
        (None, (held("y"), held("x")), None, "expected --tenant, out of those that wait for their source: x, y"),
        (None, (held("x", is_passed=True),), None, "expected a destination that has stopped"),
        (None, (held("x"),), "z", "out of x; got z"),
        (None, (held("x", is_passed=True),), "x", "out of none; got x"),
        (FeedStop.REFUSED, (), "z", "out of none; got z"),
    ],
)
def test_skip_passes_what_is_named_and_nothing_else(
    stopped: FeedStop | None, tenants: tuple[HeldTenant, ...], tenant_id: str | None, expected: object
) -> None:
    """A stopped destination without a tenant, a waiting tenant by its name; else the error says what there is."""
    if isinstance(expected, str):
        with pytest.raises(PermanentError, match=expected):
            choose_skip(stopped, "why", "id-1", tenants, tenant_id)
    else:
        assert choose_skip(stopped, "why", "id-1", tenants, tenant_id) == expected
