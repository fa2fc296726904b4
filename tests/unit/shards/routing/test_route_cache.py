"""What is remembered of tenants, for how long, and how many."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.routing.route_cache import FRESH_S, JITTER, AbsenceCache, BusinessIds, RouteCache, stale_at

INSTANTS = st.floats(0, 1e9)
DRAWS = st.floats(0, 1, exclude_max=True)


@given(INSTANTS, DRAWS)
def test_stale_at_is_a_minute_more_or_less(found_at: float, draw: float) -> None:
    fresh_s = stale_at(found_at, draw=draw) - found_at
    assert FRESH_S * (1 - JITTER) - 1e-6 <= fresh_s <= FRESH_S * (1 + JITTER) + 1e-6


@given(INSTANTS, DRAWS, DRAWS)
def test_stale_at_is_later_for_a_greater_draw(found_at: float, one: float, another: float) -> None:
    first, second = sorted((one, another))
    assert stale_at(found_at, draw=first) <= stale_at(found_at, draw=second)
    assert stale_at(found_at + 1, draw=one) > stale_at(found_at, draw=one)


def test_routes_serve_what_is_past_its_freshness_and_put_it_in_line_once() -> None:
    routes = RouteCache()
    routes.put("used", "shard-1", now=0.0, draw=0.5)
    routes.put("unused", "shard-2", now=0.0, draw=0.5)
    routes.set_time(FRESH_S - 1)
    assert routes.get("used") == "shard-1"
    assert routes.take_due() is None

    routes.set_time(FRESH_S + 1)
    assert [routes.get("used") for _ in range(3)] == ["shard-1"] * 3

    assert routes.due_count == 1
    assert routes.take_due() == ("used", "shard-1")
    assert routes.take_due() is None
    routes.set_time(1e6)
    assert routes.get("used") == "shard-1"  # for as long as there is no answer
    assert routes.due_count == 0
    routes.requeue("used")
    assert routes.take_due() == ("used", "shard-1")
    routes.renew("used", "shard-1", now=1e6, draw=0.5)
    routes.set_time(1e6 + FRESH_S + 1)
    assert routes.get("used") == "shard-1"
    assert routes.due_count == 1
    assert repr(routes) == "RouteCache(2, due=1, invalidated=0)"


def test_routes_never_ask_when_nobody_tells_the_time() -> None:
    routes = RouteCache()
    routes.put("tenant", "shard-1", now=-1e9, draw=0.0)
    assert routes.get("tenant") == "shard-1"
    assert routes.due_count == 0


def test_routes_keep_in_mind_where_a_doubted_tenant_was() -> None:
    routes = RouteCache()
    routes.put("tenant", "shard-1", now=0.0, draw=0.5)
    routes.set_time(100.0)
    routes.get("tenant")
    routes.invalidate("tenant")
    routes.invalidate("nobody")

    routes.renew("tenant", "shard-1", now=100.0, draw=0.5)
    routes.requeue("tenant")

    assert routes.get("tenant") is None
    assert routes.take_due() is None
    assert (routes.last_shard_id("tenant"), routes.last_shard_id("nobody")) == ("shard-1", None)
    routes.put("tenant", "shard-2", now=100.0, draw=0.5)
    routes.renew("tenant", "shard-1", now=500.0, draw=0.5)  # asked for before it moved
    assert (routes.get("tenant"), routes.last_shard_id("tenant")) == ("shard-2", "shard-2")
    assert routes.sample_tenant_id("shard-2") == "tenant"
    assert len(routes) == 1


@given(st.lists(st.integers(0, 300), max_size=600), st.integers(1, 100))
def test_routes_are_bounded_and_keep_those_in_use(tenants: list[int], most: int) -> None:
    routes, absences = RouteCache(max_count=most), AbsenceCache(max_count=most)
    for number in tenants:
        routes.put(str(number), "shard", now=0.0, draw=0.5)
        absences.put(str(number), "unregistered", asked_at=0.0)
        assert routes.get(str(number)) == "shard"
        assert absences.reason(str(number), since=0.0) == "unregistered"
        assert len(routes) <= most
        assert len(absences) <= most
        routes.invalidate(str(number // 2))
    assert len(routes._invalidated) <= most


def test_routes_let_go_first_of_those_that_were_not_asked_for_anew() -> None:
    routes = RouteCache(max_count=3)
    for name in ("one", "two", "three"):
        routes.put(name, "shard", now=0.0, draw=0.5)
    routes.renew("one", "shard", now=60.0, draw=0.5)
    routes.put("four", "shard", now=60.0, draw=0.5)
    assert [routes.get(name) for name in ("one", "two", "three", "four")] == ["shard", None, "shard", "shard"]


def test_absences_are_as_old_as_the_question() -> None:
    absences = AbsenceCache()
    absences.put("tenant", "not_here", asked_at=10.0, searched_at=9.0)
    assert absences.reason("tenant", since=10.0) == "not_here"
    assert absences.reason("tenant", since=10.1) is None
    assert absences.searched_at("tenant") == 9.0
    absences.remove("tenant")
    absences.remove("nobody")
    assert absences.reason("tenant", since=0.0) is None
    assert absences.searched_at("tenant") == -math.inf
    assert repr(absences) == "AbsenceCache(0)"


def test_routes_ask_soon_for_whom_another_shard_is_named() -> None:
    routes = RouteCache()
    routes.put("tenant", "shard-1", now=0.0, draw=0.5)
    for tenant_id in ("tenant", "tenant", "stranger"):
        routes.mark_due(tenant_id)

    assert routes.get("tenant") == "shard-1"
    assert routes.items() == [("tenant", "shard-1")]
    assert routes.take_due() == ("tenant", "shard-1")
    assert routes.take_due() is None


def test_routes_to_an_abandoned_shard_are_forgotten() -> None:
    routes = RouteCache()
    for tenant_id, shard_id in {"here": "shard-1", "gone": "shard-2", "doubted": "shard-2"}.items():
        routes.put(tenant_id, shard_id, now=0.0, draw=0.5)
    routes.invalidate("doubted")
    routes.mark_due("gone")
    routes.remove_shards({"shard-2"})

    assert routes.items() == [("here", "shard-1")]
    assert [routes.last_shard_id(tenant_id) for tenant_id in ("here", "gone", "doubted")] == ["shard-1", None, None]
    assert (routes.sample_tenant_id("shard-1"), routes.sample_tenant_id("shard-2")) == ("here", None)
    assert routes.take_due() is None


def test_route_is_due_at_the_very_time_when_it_is_stale() -> None:
    routes = RouteCache()
    routes.put("tenant", "shard-1", now=0.0, draw=0.5)
    routes.set_time(FRESH_S)
    routes.get("tenant")
    assert routes.due_count == 1


def test_route_that_was_found_again_is_neither_due_nor_invalidated() -> None:
    routes = RouteCache()
    for change in (routes.mark_due, routes.invalidate):
        routes.put("tenant", "shard-1", now=0.0, draw=0.5)
        change("tenant")
        routes.put("tenant", "shard-1", now=0.0, draw=0.5)
        assert repr(routes) == "RouteCache(1, due=0, invalidated=0)"


def test_invalidated_route_is_not_due() -> None:
    routes = RouteCache()
    routes.put("tenant", "shard-1", now=0.0, draw=0.5)
    routes.mark_due("tenant")
    routes.invalidate("tenant")
    assert repr(routes) == "RouteCache(0, due=0, invalidated=1)"


def test_found_again_goes_to_the_end_while_there_is_room() -> None:
    routes, absences = RouteCache(max_count=4), AbsenceCache(max_count=4)
    for name in ("one", "two", "three", "one", "four", "five"):
        routes.put(name, "shard", now=0.0, draw=0.5)
        absences.put(name, "unregistered", asked_at=0.0)
    names = ("one", "two", "three", "four", "five")
    assert [routes.get(name) is None for name in names] == [False, True, False, False, False]
    assert [absences.reason(name, since=0.0) is None for name in names] == [False, True, False, False, False]


def test_invalidated_routes_are_bounded_too() -> None:
    routes = RouteCache(max_count=2)
    for number in range(5):
        routes.put(str(number), "shard", now=0.0, draw=0.5)
        routes.invalidate(str(number))
    assert repr(routes) == "RouteCache(0, due=0, invalidated=2)"


@pytest.mark.parametrize(("max_count", "left"), [(1, 1), (127, 127), (128, 127), (191, 190), (192, 190)])
def test_full_cache_drops_a_sixty_fourth_at_once(max_count: int, left: int) -> None:
    absences = AbsenceCache(max_count=max_count)
    for number in range(max_count + 1):
        absences.put(str(number), "unregistered", asked_at=0.0)
    assert len(absences) == left


def test_absences_are_forgotten_with_a_new_map() -> None:
    absences = AbsenceCache()
    absences.put("tenant", "unregistered", asked_at=0.0)
    absences.clear()
    assert len(absences) == 0


def test_tenant_without_a_route_is_not_asked_for_again() -> None:
    routes = RouteCache()
    routes.requeue("nobody")
    assert routes.due_count == 0


def test_business_ids_tell_whose_a_joined_id_is() -> None:
    known = BusinessIds(max_count=1)
    assert known.is_tenant("a", "b")
    assert known.is_tenant("a", "b-c") is None
    known.put("a-b-c", "a")
    assert [known.is_tenant("a", "b-c"), known.is_tenant("a-b", "c")] == [True, False]
    known.put("d-e-f", "d-e")
    assert known.is_tenant("a", "b-c") is None
