from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.locator import pin_in_file
from simplu_worker.shards.routing.route_cache import RouteCache
from simplu_worker.shards.routing.shard_map import (
    MapChange,
    MappedShard,
    ShardMap,
    change_of,
    parse_shard_map,
    refusals_of,
)
from simplu_worker.shards.routing.shard_query import QueryLimits, query_all_shards
from simplu_worker.vocabulary import Absence


def put(routes: RouteCache, *tenant_ids: str, shard_id: str = "shard-1") -> None:
    for tenant_id in tenant_ids:
        routes.put(tenant_id, shard_id)


def test_routes_keep_in_mind_where_a_doubted_tenant_was() -> None:
    routes = RouteCache()
    put(routes, "tenant")
    for tenant_id in ("tenant", "nobody"):
        routes.forget(tenant_id)
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
    routes = RouteCache(routes_max=most, absences_max=most)
    for number in tenants:
        put(routes, str(number))
        routes.put_absence(f"no {number}", Absence.UNREGISTERED, asked_at=0.0)
        assert routes.get(str(number)) == "shard-1"
        assert routes.absence(f"no {number}") is Absence.UNREGISTERED
        assert len(routes._routes) <= most
        assert len(routes._absences) <= most
        routes.forget(str(number // 2))


def test_oldest_lookup_is_dropped_first() -> None:
    routes = RouteCache(routes_max=4, absences_max=4)
    for name in ("one", "two", "three", "one", "four", "two", "five"):
        put(routes, name)
        routes.put_absence(f"no {name}", Absence.UNREGISTERED, asked_at=0.0)
    for name, is_dropped in (("one", False), ("two", False), ("three", True), ("four", False), ("five", False)):
        assert (routes.get(name) is None, routes.absence(f"no {name}") is None) == (is_dropped, is_dropped)


@pytest.mark.parametrize(("max_count", "left"), [(1, 1), (127, 127), (128, 127), (191, 190), (192, 190)])
def test_full_cache_drops_a_sixty_fourth_at_once(max_count: int, left: int) -> None:
    routes = RouteCache(absences_max=max_count)
    for number in range(max_count + 1):
        routes.put_absence(str(number), Absence.UNREGISTERED, asked_at=0.0)
    assert len(routes._absences) == left


def test_absences_are_as_old_as_the_question_and_end_the_route() -> None:
    routes = RouteCache()
    for tenant_id in ("tenant", "found", "another"):
        put(routes, tenant_id)
        routes.put_absence(tenant_id, Absence.NOT_HERE, asked_at=10.0)
    assert [routes.absence("tenant", since=since) for since in (10.0, 10.1)] == [Absence.NOT_HERE, None]
    assert (routes.get("tenant"), routes.last_shard_id("tenant")) == (None, "shard-1")
    routes.forget("tenant")
    put(routes, "found")
    assert [routes.absence(one) for one in ("tenant", "found", "another")] == [None, None, Absence.NOT_HERE]
    put(routes, "gone", shard_id="shard-2")
    routes.apply_map_change({"shard-2"})
    assert [routes.absence("another"), routes.get("found"), routes.last_shard_id("gone")] == [None, "shard-1", None]


def test_pause_lasts_as_its_row_said() -> None:
    routes = RouteCache()
    put(routes, "free")
    routes.put("held", "shard-1", paused_until=15.0)
    assert [routes.paused_s(name, 12.0) for name in ("free", "held", "nobody")] == [0.0, 3.0, 0.0]
    assert routes.paused_s("held", 15.5) == 0.0
    routes.forget("held")
    assert routes.paused_s("held", 12.0) == 0.0


def test_route_tells_whose_a_joined_id_is() -> None:
    routes = RouteCache()
    assert routes.is_tenant("a", "b")
    assert routes.is_tenant("a", "b-c") is None
    put(routes, "a-b-c")
    assert routes.is_tenant("a", "b-c") is None
    routes.put("a-b-c", "shard-1", business_id="a")
    routes.forget("a-b-c")
    assert [routes.is_tenant("a", "b-c"), routes.is_tenant("a-b", "c")] == [True, False]


SHARDS = [{"shardId": name, "connectionString": f"postgresql://u:p@h/{name}"} for name in ("a", "b", "c")]


def write(path: Path, **members: Any) -> ShardMap:
    path.write_text(json.dumps({"shards": SHARDS, **members}))
    path.chmod(0o640)
    return read(path)


def read(path: Path) -> ShardMap:
    return parse_shard_map(path.read_bytes(), ())


def test_tenant_is_pinned_where_it_is_not_hashed_to(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    before = write(path, tenants={"x-y": "c"})
    owner = (61000, 61001) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown(path, *owner)
    home = before.shard_of("b-l").shard_id
    other = next(name for name in "abc" if name != home)

    pin_in_file(path, {"b-l": other})
    assert read(path).tenants == {"x-y": "c", "b-l": other}
    assert path.stat().st_mode & 0o777 == 0o640
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    pin_in_file(path, {"b-l": home})
    assert read(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["map.json"]


def test_map_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="SHARD_MAP_FILE: expected to write"):
        pin_in_file(tmp_path / "none" / "map.json", {"b-l": "a"})


def test_commands_that_pin_at_one_time_lose_no_pin(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    before = write(path)
    homes = {name: before.shard_of(name).shard_id for name in (f"b-{number}" for number in range(40))}
    pins = {name: next(one for one in "abc" if one != home) for name, home in homes.items()}

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda pin: pin_in_file(path, dict([pin])), pins.items()))

    assert read(path).tenants == pins


A, B, C, D = (MappedShard(name, f"postgresql://u:correct-horse@{name}/d") for name in "abcd")
OLD_B = replace(B, retired=True)
OLD_C = replace(C, retired=True)
BACK_B, NEW_D = (replace(one, was_retired=True) for one in (B, D))
MOVED_B = replace(B, connection_string="postgresql://u:correct-horse@elsewhere/d")
BACKED_B = replace(B, replica_connection_string="postgresql://u:correct-horse@replica/d")


def map_of(*shards: MappedShard, **tenants: str) -> ShardMap:
    return ShardMap(shards=shards, tenants=tenants)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (map_of(A, B), map_of(A, B), MapChange()),
        (map_of(A, B), map_of(A, OLD_B, x="a"), MapChange()),
        (map_of(A), map_of(A, B, C), MapChange(added=(B, C))),
        (map_of(A, B), map_of(A, MOVED_B), MapChange(readdressed=(MOVED_B,))),
        (map_of(A, B), map_of(A, BACKED_B), MapChange(readdressed=(BACKED_B,))),
        (map_of(A, BACKED_B), map_of(A, B), MapChange(readdressed=(B,))),
        (map_of(A, OLD_B, OLD_C), map_of(A, D), MapChange(added=(D,), removed=(OLD_B, OLD_C))),
    ],
    ids=["nothing", "retired and pinned", "added", "readdressed", "replica", "no replica", "left"],
)
def test_change_names_shards_that_come_go_or_are_elsewhere(old: ShardMap, new: ShardMap, expected: MapChange) -> None:
    assert change_of(old, new) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (map_of(A, B), map_of(A, B, C, x="b"), []),
        (map_of(A, B), map_of(A, OLD_B), []),
        (map_of(A, OLD_B), map_of(A, BACK_B), []),
        (map_of(A, OLD_B), map_of(A, B), ['shard b: expected "wasRetired": true']),
        (map_of(A, BACK_B), map_of(A, B), ['shard b: expected "wasRetired": true']),
        (map_of(A, MOVED_B), map_of(A, BACKED_B), []),
        (map_of(A, B, OLD_C), map_of(A, B), []),
        (map_of(A, OLD_B, C), map_of(A, NEW_D, C), []),  # its place is another one's
        (map_of(A, OLD_B, C), map_of(A, D, C), ['shard d: expected "wasRetired": true']),
        (map_of(A, B), map_of(A), ["shard b: "]),
        (map_of(A, B, C), map_of(A, C), ["shard c: expected at place 3", "shard b: "]),
        (map_of(A, OLD_B, C), map_of(A, C), ["shard c: expected at place 3"]),
        (map_of(A, B), map_of(B, A), ["shard b: expected at place 2", "shard a: expected at place 1"]),
        (map_of(A, B), map_of(C, A, B), ["shard a: expected at place 1", "shard b: expected at place 2"]),
    ],
    ids=[
        "grown",
        "retired",
        "taken back",
        "taken back and not said",
        "said no more",
        "readdressed",
        "last left",
        "replaced",
        "replaced and not said",
        "left too early",
        "middle left",
        "retired middle left",
        "turned round",
        "put in front",
    ],
)
def test_map_is_refused_when_it_would_hide_where_tenants_lived(
    old: ShardMap, new: ShardMap, expected: list[str]
) -> None:
    refusals = refusals_of(old, new)

    assert [text for text, start in zip(refusals, expected, strict=True) if not text.startswith(start)] == []
    assert "correct-horse" not in str(refusals)


def test_map_is_refused_in_a_few_lines_when_all_of_it_is_wrong() -> None:
    shards = [MappedShard(f"shard-{number}", "") for number in range(500)]

    assert refusals_of(map_of(*shards), map_of(*reversed(shards)))[-1] == "and 490 more like that"


ADDRESSES = [ShardAddress(f"s{number}", "") for number in range(10)]
PATIENT = QueryLimits(answer_s=60.0, all_s=60.0, at_once=64)


class Asked:
    def __init__(self, *, mute: frozenset[str] = frozenset()) -> None:
        self.mute = mute
        self.at_once = 0
        self.at_once_max = 0

    async def __call__(self, shard: ShardAddress) -> str:
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        try:
            await (asyncio.Event().wait() if shard.shard_id in self.mute else asyncio.sleep(0))
        finally:
            self.at_once -= 1
        return shard.shard_id


async def test_answers_come_from_all_who_give_one() -> None:
    async def ask(shard: ShardAddress) -> str:
        if shard.shard_id == "s3":
            raise RetryableError("down")
        return shard.shard_id

    answers = await query_all_shards(ADDRESSES, ask, limits=PATIENT)
    assert answers == {shard.shard_id: shard.shard_id for shard in ADDRESSES if shard.shard_id != "s3"}


async def test_silent_shard_is_given_up_after_its_deadline() -> None:
    asked = Asked(mute=frozenset({"s0", "s1"}))
    answers = await query_all_shards(ADDRESSES, asked, limits=QueryLimits(answer_s=0.05, all_s=60.0, at_once=2))
    assert sorted(answers) == [f"s{number}" for number in range(2, 10)]


async def test_shard_gives_no_answer_when_its_query_fails_by_a_defect() -> None:
    async def ask(shard: ShardAddress) -> str:
        if shard is ADDRESSES[0]:
            raise RuntimeError
        return "here"

    assert await query_all_shards(ADDRESSES[:2], ask, limits=PATIENT) == {ADDRESSES[1].shard_id: "here"}
