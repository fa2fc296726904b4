"""Which connection is closed for a new one, and how many requests have a place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.status.connection_order import ConnectionOrder, Places


def full_of_views(names: str) -> ConnectionOrder[str]:
    """Return an order at its limit, whose connections have a complete request each."""
    order = ConnectionOrder[str](len(names))
    for name in names:
        order.add(name)
        order.view(name)
    return order


def test_nothing_is_closed_below_the_limit() -> None:
    order = ConnectionOrder[str](2)
    assert [order.add("a"), order.add("b")] == [None, None]
    assert repr(order) == "ConnectionOrder(2 receiving, 0 viewing, 0 sending, 0 lasting, at most 2)"


def test_the_one_that_waits_longest_for_a_request_is_closed_first() -> None:
    order = ConnectionOrder[str](4)
    for name in "abcd":
        order.add(name)
    order.view("a")
    order.view("b")
    order.send("b")
    order.view("c")
    order.send("c")
    order.receive("c")
    assert [order.add(name) for name in "xy"] == ["d", "c"]
    assert repr(order) == "ConnectionOrder(2 receiving, 1 viewing, 1 sending, 0 lasting, at most 4)"


def test_the_one_whose_answer_is_taken_slowest_is_closed_when_all_others_have_a_request() -> None:
    order = full_of_views("ab")
    order.send("b")
    assert order.add("x") == "b"
    order.view("x")
    assert order.add("y") == "y"
    assert len(order) == 2


def test_the_answer_that_has_lasted_longest_gives_way_in_place_of_the_new_connection() -> None:
    order = full_of_views("abc")
    order.last("b")
    order.last("a")
    assert order.add("x") == "b"
    order.view("x")
    order.view("a")  # it lasts no longer
    assert order.add("y") == "y"


def test_a_closed_connection_stays_removed() -> None:
    order = ConnectionOrder[str](1)
    order.add("a")
    assert order.add("b") == "a"
    order.view("a")
    order.send("a")
    order.receive("a")
    order.remove("a")
    order.remove("a")
    assert repr(order) == "ConnectionOrder(1 receiving, 0 viewing, 0 sending, 0 lasting, at most 1)"


@given(st.lists(st.tuples(st.sampled_from(["add", "view", "send", "last", "receive", "remove"]), st.integers(0, 6))))
def test_there_are_never_more_than_allowed(steps: list[tuple[str, int]]) -> None:
    order = ConnectionOrder[int](3)
    opened: set[int] = set()
    for step, connection in steps:
        if step == "add" and connection in opened:
            continue
        closed = getattr(order, step)(connection)
        if step == "add":
            opened = (opened | {connection}) - {closed}
        elif step == "remove":
            opened.discard(connection)
        assert len(order) == len(opened) <= 3


def test_places_are_limited_for_a_path_and_for_all() -> None:
    places = Places(each_max=2, all_max=3)
    assert [places.take(path) for path in ("a", "a", "a", "b", "b")] == [True, True, False, True, False]
    places.free("a")
    assert [places.take(path) for path in ("b", "a")] == [True, False]
