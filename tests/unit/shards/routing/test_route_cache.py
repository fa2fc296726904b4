"""What is remembered of tenants, for how long, and how many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.routing.route_cache import AbsenceCache, RouteCache
from simplu_worker.vocabulary import Absence


def put(routes: RouteCache, *tenant_ids: str, shard_id: str = "shard-1") -> None:
    for tenant_id in tenant_ids:
        routes.put(tenant_id, shard_id)


def test_routes_keep_in_mind_where_a_doubted_tenant_was() -> None:
    routes = RouteCache()
    put(routes, "tenant")
    for tenant_id in ("tenant", "nobody"):
        routes.invalidate(tenant_id)
        assert routes.get(tenant_id) is None
    assert (routes.last_shard_id("tenant"), routes.last_shard_id("nobody")) == ("shard-1", None)
    put(routes, "tenant", shard_id="shard-2")
    assert (routes.get("tenant"), routes.last_shard_id("tenant")) == ("shard-2", "shard-2")


def test_routes_to_removed_shards_are_forgotten() -> None:
    routes = RouteCache()
    put(routes, "gone", "here", shard_id="shard-2")
    put(routes, "here")
    for shard_ids in (set[str](), {"shard-2"}):
        assert routes.get("gone") == "shard-2"
        routes.remove_shards(shard_ids)
    assert [routes.last_shard_id(tenant_id) for tenant_id in ("here", "gone")] == ["shard-1", None]


@given(st.lists(st.integers(0, 300), max_size=600), st.integers(1, 100))
def test_routes_are_bounded_and_keep_those_in_use(tenants: list[int], most: int) -> None:
    routes, absences = RouteCache(max_count=most), AbsenceCache(max_count=most)
    for number in tenants:
        put(routes, str(number))
        absences.put(str(number), Absence.UNREGISTERED, asked_at=0.0)
        assert routes.get(str(number)) == "shard-1"
        assert absences.get(str(number)) is Absence.UNREGISTERED
        assert len(routes._routes) <= most
        assert len(absences._absences) <= most
        routes.invalidate(str(number // 2))


def test_oldest_lookup_is_dropped_first() -> None:
    routes, absences = RouteCache(max_count=4), AbsenceCache(max_count=4)
    for name in ("one", "two", "three", "one", "four", "two", "five"):
        put(routes, name)
        absences.put(name, Absence.UNREGISTERED, asked_at=0.0)
    names = ("one", "two", "three", "four", "five")
    for get in (routes.get, absences.get):
        assert [get(name) is None for name in names] == [False, False, True, False, False]


@pytest.mark.parametrize(("max_count", "left"), [(1, 1), (127, 127), (128, 127), (191, 190), (192, 190)])
def test_full_cache_drops_a_sixty_fourth_at_once(max_count: int, left: int) -> None:
    absences = AbsenceCache(max_count=max_count)
    for number in range(max_count + 1):
        absences.put(str(number), Absence.UNREGISTERED, asked_at=0.0)
    assert len(absences._absences) == left


def test_absences_are_as_old_as_the_question() -> None:
    absences = AbsenceCache()
    absences.put("tenant", Absence.NOT_HERE, asked_at=10.0)
    assert [absences.get("tenant", since=since) for since in (10.0, 10.1)] == [Absence.NOT_HERE, None]
    absences.put("another", Absence.NOT_HERE, asked_at=10.0)
    for tenant_id in ("tenant", "nobody"):
        absences.remove(tenant_id)
        assert absences.get(tenant_id) is None
    assert absences.get("another") is Absence.NOT_HERE
    absences.clear()
    assert absences.get("another") is None


def test_pause_lasts_as_its_row_said() -> None:
    routes = RouteCache()
    put(routes, "free")
    routes.put("held", "shard-1", paused_until=15.0)
    assert [routes.paused_s(name, 12.0) for name in ("free", "held", "nobody")] == [0.0, 3.0, 0.0]
    assert routes.paused_s("held", 15.5) == 0.0
    routes.invalidate("held")
    assert routes.paused_s("held", 12.0) == 0.0


def test_route_tells_whose_a_joined_id_is() -> None:
    routes = RouteCache()
    assert routes.is_tenant("a", "b")
    assert routes.is_tenant("a", "b-c") is None
    put(routes, "a-b-c")
    assert routes.is_tenant("a", "b-c") is None
    routes.put("a-b-c", "shard-1", business_id="a")
    routes.invalidate("a-b-c")
    assert [routes.is_tenant("a", "b-c"), routes.is_tenant("a-b", "c")] == [True, False]
