"""The shard that a tenant moves from, and how many tenants more a shard takes."""

from __future__ import annotations

import pytest

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.routing.locator import Capacity
from simplu_worker.transfers.moving.places import TenantPlaces, check_room, room_of
from simplu_worker.vocabulary import TenantState


def places(silent: tuple[str, ...] = (), **states: str) -> TenantPlaces:
    """Return places by shard; `moved:b` is a tenant that moved to b."""
    rows = {name: state.partition(":") for name, state in states.items()}
    return TenantPlaces(
        "b-l",
        {name: TenantState(state) for name, (state, _, _) in rows.items()},
        {name: to or None for name, (_, _, to) in rows.items()},
        silent,
    )


@pytest.mark.parametrize(
    ("found", "source"),
    [
        (places(a="active"), "a"),
        (places(a="fenced", b="ready"), "a"),
        (places(a="active", b="moved:a"), "a"),
        (places(a="moved:b", b="ready"), "a"),
        (places(a="moved:b", b="active"), "a"),
        (places(("c",), a="active"), "a"),
    ],
)
def test_source(found: TenantPlaces, source: str) -> None:
    assert found.source_for("b") == source


@pytest.mark.parametrize(
    ("found", "error", "text"),
    [
        (places(a="active", c="active"), PermanentError, "it has a home on a and on c"),
        (places(b="active"), PermanentError, "its home is shard b already"),
        (places(a="moved:c", c="ready"), PermanentError, "it moves to another shard"),
        (places(a="active", c="incoming"), PermanentError, "has left a copy on c; the tenant stays on shard a; run"),
        (places(a="destroyed"), PermanentError, "destroyed on a$"),
        (places(a="destroying", b="incoming"), PermanentError, "destroyed on a; run: simplu-worker tenants rollback"),
        (places(), PermanentError, "no shard has this tenant; run: tenants provision"),
        (places(("c",), a="moved:b"), RetryableError, "no answer of c, .* run the same command again"),
    ],
)
def test_no_source(found: TenantPlaces, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        found.source_for("b")


@pytest.mark.parametrize(
    ("capacity", "room"),
    [
        (Capacity(1, 4, accepts_new=True), 3),
        (Capacity(1, 4, accepts_new=None), 3),
        (Capacity(1, 4, accepts_new=False), 0),
        (Capacity(5, 4, accepts_new=None), 0),
        (Capacity(5, 4, accepts_new=True), 1),  # what Citrus says counts
        (Capacity(None, 4, accepts_new=True), None),
        (Capacity(5, None, accepts_new=True), None),
        (Capacity(None, None, accepts_new=False), 0),
    ],
)
def test_room_is_by_the_answer_and_else_by_the_numbers(capacity: Capacity, room: int | None) -> None:
    assert room_of(capacity) == room


def test_shard_that_is_full_is_refused_but_to_its_own() -> None:
    check_room("b", Capacity(1, 4, accepts_new=True))
    check_room("b", Capacity(4, 4, accepts_new=False), is_counted=True)
    with pytest.raises(PermanentError, match=r"b is full \(4 of 4\); raise"):
        check_room("b", Capacity(4, 4, accepts_new=False))
