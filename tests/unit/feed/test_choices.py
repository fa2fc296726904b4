"""What a person's word does to a cursor."""

from __future__ import annotations

import pytest

from simplu_worker.errors import PermanentError
from simplu_worker.feed.events import PassEvent, PassSource, Replay, Resume, choose_replay, choose_skip
from simplu_worker.feed.types import POSITION_MAX, HeldTenant, LeftOut, Place
from simplu_worker.vocabulary import FeedStop


@pytest.mark.parametrize(
    ("cursor", "behind", "expected"),
    [
        (Place(90, 3), 50, Replay(50, 90)),
        (Place(50, POSITION_MAX), 50, None),
        (Place(50, 3), 50, None),
        (Place(40, 3), 50, None),
        (Place(90, 3), None, None),
    ],
)
def test_replay_puts_a_cursor_back_only(cursor: Place, behind: int | None, expected: Replay | None) -> None:
    assert choose_replay(cursor, None, (), behind, None) == expected


def held(tenant_id: str, batch_id: int = 5, *, is_passed: bool = False) -> HeldTenant:
    return HeldTenant(1, tenant_id, 2, "a", batch_id, 0, is_passed)


@pytest.mark.parametrize(
    ("until", "tenants", "expected"),
    [
        (60, (), Replay(50, 60, LeftOut(60, 89))),
        (88, (), Replay(50, 88, LeftOut(88, 89))),
        (89, (), Replay(50, 90)),
        (95, (), Replay(50, 90)),
        (50, (), None),
        (0, (), None),
        (60, (held("x", 95), held("y", 80), held("z", 85)), Replay(50, 60, LeftOut(60, 79))),
        (60, (held("x", 55),), Replay(50, 90)),
    ],
)
def test_replay_leaves_out_what_was_delivered_behind_its_end(
    until: int, tenants: tuple[HeldTenant, ...], expected: Replay | None
) -> None:
    assert choose_replay(Place(90, 3), None, tenants, 50, until) == expected


@pytest.mark.parametrize(
    ("cursor", "behind", "until", "expected"),
    [
        (55, 40, 45, Replay(40, 60, LeftOut(60, 89))),
        (55, 40, None, Replay(40, 89)),
        (55, 57, 70, Replay(54, 70, LeftOut(70, 89))),
        (55, 70, 75, Replay(54, 75, LeftOut(75, 89))),
        (55, 70, None, Replay(54, 89)),
        (55, 89, None, None),
        (89, 40, 45, Replay(40, 45, LeftOut(45, 49))),
    ],
)
def test_replay_during_another_one_sends_what_either_asks_for(
    cursor: int, behind: int, until: int | None, expected: Replay | None
) -> None:
    assert choose_replay(Place(cursor, 3), LeftOut(60, 89), (held("x", 50),), behind, until) == expected


@pytest.mark.parametrize(
    ("stopped", "tenants", "tenant_id", "expected"),
    [
        (FeedStop.REFUSED, (), None, Resume(FeedStop.REFUSED, "why", "id-1")),
        (FeedStop.DISABLED, (held("x"),), None, Resume(FeedStop.DISABLED, "why", "id-1")),
        (None, (held("x"), held("y")), "y", PassSource("y", "a")),
        (FeedStop.REFUSED, (held("x"),), "x", PassSource("x", "a")),
        (None, (held("y"), held("x")), None, "name one of the tenants that wait for their source with --tenant: x, y"),
        (None, (held("x", is_passed=True),), None, "the destination has not stopped"),
        (None, (held("x"),), "z", "z does not wait for its source; these tenants do: x"),
        (None, (held("x", is_passed=True),), "x", "x does not wait for its source; these tenants do: none"),
        (FeedStop.REFUSED, (), "z", "these tenants do: none"),
    ],
)
def test_skip_passes_what_is_named_and_nothing_else(
    stopped: FeedStop | None, tenants: tuple[HeldTenant, ...], tenant_id: str | None, expected: object
) -> None:
    if isinstance(expected, str):
        with pytest.raises(PermanentError, match=expected):
            choose_skip(stopped, "why", "id-1", tenants, tenant_id)
    else:
        assert choose_skip(stopped, "why", "id-1", tenants, tenant_id) == expected


def test_skip_passes_an_event_of_a_destination_that_goes_on() -> None:
    assert choose_skip(None, "503", None, (held("x"),), None, "id-2") == PassEvent("id-2")
    with pytest.raises(PermanentError, match="leave out --event"):
        choose_skip(FeedStop.REFUSED, "why", "id-1", (), None, "id-2")
    with pytest.raises(PermanentError, match="expected --tenant or --event"):
        choose_skip(None, None, None, (held("x"),), "x", "id-2")
