"""The steps of a rollback, by the journals."""

from __future__ import annotations

import pytest

from simplu_worker.shards.settling import Departure
from simplu_worker.transfers.moving.balance import WayBack, way_back


def journal(target_id: str, step: str) -> Departure:
    return Departure(target_id, 1, step, {})


@pytest.mark.parametrize(
    ("copies", "came_from", "last_departure", "last_move", "way"),
    [
        # Nothing but a move that has ended.
        ((), "a", None, journal("b", "done"), WayBack((), back_to="a")),
        ((), "a", None, None, WayBack((), back_to="a")),
        ((), None, None, None, WayBack(())),
        # A move that has not committed.
        (("c",), None, journal("c", "open"), None, WayBack(("c",))),
        (("c",), "a", journal("c", "open"), journal("b", "done"), WayBack(("c",))),
        (("c",), None, None, None, WayBack(("c",))),
        # The same before its copy has begun, or after it is gone.
        ((), "a", journal("c", "open"), journal("b", "done"), WayBack(("c",))),
        ((), "a", journal("c", "undoing"), journal("b", "done"), WayBack(("c",))),
        ((), "a", journal("c", "undone"), journal("b", "done"), WayBack((), back_to="a")),
        ((), "a", journal("gone", "open"), journal("b", "done"), WayBack((), back_to="a")),
        # A move back that was stopped, also beside the copy of another move.
        (("a",), "a", journal("a", "open"), journal("b", "done"), WayBack((), back_to="a")),
        ((), "a", journal("a", "open"), journal("b", "done"), WayBack((), back_to="a")),
        (("a", "c"), "a", journal("a", "open"), journal("b", "done"), WayBack(("c",), back_to="a")),
        # A move that has committed without a certificate is ended, and then taken back.
        ((), "a", None, journal("b", "committed"), WayBack((), ends_last_move=True, back_to="a")),
        ((), "a", journal("a", "undone"), journal("b", "committed"), WayBack((), ends_last_move=True, back_to="a")),
        ((), "a", journal("c", "done"), journal("b", "committed"), WayBack((), ends_last_move=True, back_to="a")),
        ((), "a", None, journal("c", "committed"), WayBack((), back_to="a")),
        # A move back that has committed is ended, and no more.
        ((), "a", journal("a", "done"), journal("b", "committed"), WayBack((), ends_last_move=True, returned_from="a")),
        ((), "a", journal("a", "done"), journal("b", "done"), WayBack((), back_to="a", returned_from="a")),
    ],
)
def test_steps(
    copies: tuple[str, ...],
    came_from: str | None,
    last_departure: Departure | None,
    last_move: Departure | None,
    way: WayBack,
) -> None:
    found = way_back(
        "b", copies, came_from=came_from, last_departure=last_departure, last_move=last_move, known=("a", "b", "c")
    )
    assert found == way


@pytest.mark.parametrize(("copies", "undone"), [((), ()), (("a",), ("a",)), (("c", "a"), ("a", "c"))])
def test_tenant_that_is_to_stay_is_moved_nowhere(copies: tuple[str, ...], undone: tuple[str, ...]) -> None:
    found = way_back(
        "b",
        copies,
        came_from="a",
        last_departure=None,
        last_move=journal("b", "committed"),
        known=("a", "b", "c"),
        stay=True,
    )
    assert found == WayBack(undone)
