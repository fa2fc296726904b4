from __future__ import annotations

import ctypes
import hashlib
import json
from itertools import count as numbers
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.errors import ConfigurationError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.locator import read_shard_map
from simplu_worker.shards.routing.shard_map import MappedShard, ShardMap, first_problems, jump_hash, parse_shard_map

URL = "postgresql://user:correct-horse@db{}.internal:5432/shard"
KEYS = st.integers(0, 2**64 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def shard(number: int, **more: Any) -> dict[str, Any]:
    return {"shardId": f"shard-{number}", "connectionString": URL.format(number)} | more


def map_of(
    count: int,
    *,
    retired: frozenset[int] = frozenset(),
    was_retired: frozenset[int] = frozenset(),
    tenants: dict[str, str] | None = None,
) -> ShardMap:
    shards = [shard(one, retired=one in retired, wasRetired=one in was_retired) for one in range(count)]
    return parse_shard_map(json.dumps({"shards": shards, "tenants": tenants or {}}).encode(), ())


def names(shards: list[MappedShard]) -> list[str]:
    return [one.shard_id for one in shards]


def paper_hash(key: int, buckets: int) -> int:
    """Return the bucket of *key* as figure 1 of the paper computes it, in C++ and with C's numbers.

    `b = -1, j = 0; while (j < num_buckets) { b = j; key = key * 2862933555777941757ULL + 1;
    j = (b + 1) * (double(1LL << 31) / double((key >> 33) + 1)); } return b;`
    """
    state, b, j = ctypes.c_uint64(key), ctypes.c_int64(-1), ctypes.c_int64(0)
    while j.value < buckets:
        b.value = j.value
        state = ctypes.c_uint64(state.value * 2862933555777941757 + 1)
        j.value = int(ctypes.c_double((b.value + 1) * (float(1 << 31) / float((state.value >> 33) + 1))).value)
    return b.value


def paper_place(key: str, count: int, retired: frozenset[int] = frozenset()) -> int:
    for attempt in numbers():
        text = key + ("" if attempt == 0 else f"#{attempt}")
        number = paper_hash(int(hashlib.md5(text.encode()).hexdigest()[:16], 16), count)
        if number not in retired:
            return number
    raise AssertionError


@pytest.mark.parametrize(
    ("key", "count", "expected"),
    [
        (1, 1, 0),
        (42, 57, 43),
        (10, 1024, 751),
        (0, 1_000_000, 0),
        (2**64 - 1, 10, 9),
        (1673758223894951030, 11, 5),
        (2202, 100001, 15018),
    ],
)
def test_jump_hash_is_the_published_one(key: int, count: int, expected: int) -> None:
    assert jump_hash(key, count) == expected


@given(KEYS, st.integers(1, 5000))
def test_jump_hash_moves_a_key_only_to_the_new_bucket(key: int, count: int) -> None:
    assert jump_hash(key, count + 1) in {jump_hash(key, count), count}


def test_pinned_tenant_is_where_its_pin_says() -> None:
    shard_map = map_of(4, retired=frozenset({2}), tenants={"a-b": "shard-2", "c-d": "shard-0"})

    assert shard_map.shard_of("a-b").shard_id == "shard-2"
    assert shard_map.shard_of("c-d").shard_id == "shard-0"
    assert shard_map.shard_of("e-f").shard_id != "shard-2"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.integers(1, 12))
def test_homes_are_every_place_a_key_had_while_the_map_grew(key: str, count: int) -> None:
    shard_map = map_of(count)
    homes = shard_map.possible_homes(key)

    assert homes[0] == shard_map.shard_of(key)
    assert set(names(homes)) == {f"shard-{paper_place(key, fewer)}" for fewer in range(1, count + 1)}
    assert len(set(names(homes))) == len(homes)


@given(TEXTS, st.data())
def test_homes_are_every_place_a_key_had_while_shards_were_added_and_retired(key: str, data: st.DataObject) -> None:
    count, retired, was_retired = 1, frozenset[int](), frozenset[int]()
    had = {paper_place(key, count)}
    for _ in range(data.draw(st.integers(0, 6))):
        if data.draw(st.booleans()):
            count += data.draw(st.integers(1, 3))
        else:
            retired = frozenset(data.draw(st.sets(st.integers(0, count - 1), max_size=3)))
            was_retired |= retired
            if len(retired) == count:
                count += 1
        had.add(paper_place(key, count, retired))
    homes = names(map_of(count, retired=retired, was_retired=was_retired).possible_homes(key))

    assert homes[0] == f"shard-{paper_place(key, count, retired)}"
    assert {f"shard-{number}" for number in had} <= set(homes)


def test_addresses_of_a_map_name_its_standbys_and_what_is_retired() -> None:
    mapped = MappedShard("a", "postgresql://a/d", replica_connection_string="postgresql://b/d")
    assert mapped.address == ShardAddress("a", "postgresql://a/d", standby_string="postgresql://b/d")
    retired = MappedShard("b", "postgresql://c/d", retired=True)
    assert ShardMap((mapped, retired)).retired_ids == {"b"}
    assert ShardMap((mapped, retired), all_in_place=True).possible_homes("key") == [mapped]


def test_homes_begin_with_the_pin_and_hold_the_hashed_place_too() -> None:
    key = next(f"key-{number}" for number in range(100) if paper_place(f"key-{number}", 3) == 2)
    homes = map_of(3, tenants={key: "shard-0"}).possible_homes(key)

    assert names(homes)[0] == "shard-0"
    assert "shard-2" in names(homes)


def test_map_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    replica = URL.format("-replica")
    path.write_text(json.dumps({"shards": [shard(0), shard(1, retired=True, replicaConnectionString=replica)]}))

    shard_map = read_shard_map(path, ("db*.internal",))

    assert names(list(shard_map.shards)) == ["shard-0", "shard-1"]
    assert [one.retired for one in shard_map.shards] == [False, True]
    assert shard_map.shards[1].replica_connection_string == replica
    assert shard_map.shards[0].address.connection_string == URL.format(0)
    assert shard_map.tenants == {}


PASSWORD_URL = "postgresql://u:correct-horse@a.internal/d"
BAD_MAPS: list[tuple[str, Any, list[str]]] = [
    ("no shard", {"shards": []}, ["SHARD_MAP_FILE: expected at least one shard"]),
    ("all retired", {"shards": [shard(0, retired=True)]}, ["not retired"]),
    ("twice", {"shards": [shard(0), shard(1), shard(0)]}, ["shard shard-0: listed twice"]),
    (
        "one place for two",
        {"shards": [shard(0), shard(1, connectionString=URL.format(0).replace("user", "other"))]},
        ["shard shard-1: expected a database of its own, got that of shard shard-0"],
    ),
    ("pin to nowhere", {"shards": [shard(0)], "tenants": {"a-b": "shard-9"}}, ["tenant a-b: pinned to shard-9"]),
    ("no id", {"shards": [shard(0, shardId="")]}, ["shard id"]),
    ("other scheme", {"shards": [shard(0, connectionString="mysql://u:correct-horse@h/d")]}, ["shard-0", "postgresql"]),
    ("replica", {"shards": [shard(0, replicaConnectionString="postgresql://u:correct-horse@evil/d")]}, ["evil"]),
    ("unknown member", {"shards": [shard(0)], "shardz": []}, ["shardz"]),
    ("unknown member of a shard", {"shards": [shard(0, weight=3)]}, ["weight"]),
    ("wrong type", {"shards": [shard(0, connectionString=["correct-horse"])]}, ["connectionString"]),
    ("pin to an address", {"shards": [shard(0)], "tenants": {"a-b": PASSWORD_URL}}, ["tenant a-b", "not shown"]),
    ("tenant of an address", {"shards": [shard(0)], "tenants": {PASSWORD_URL: "shard-9"}}, ["shard-9", "not shown"]),
    ("member of an address", {"shards": [shard(0, **{PASSWORD_URL: 1})]}, ["not shown"]),
    (
        "many pins to nowhere",
        {"shards": [shard(0)], "tenants": {f"a-{number}": "shard-9" for number in range(100)}},
        ["tenant a-9: pinned to shard-9", "and 90 more like that"],
    ),
    (
        "many at once",
        {
            "shards": [shard(0), shard(0), shard(1, connectionString="postgresql://u:correct-horse@evil/d")],
            "tenants": {"a-b": "shard-8", "c-d": "shard-9"},
        },
        ["shard-0: listed twice", "shard-8", "shard-9", "evil"],
    ),
]


@pytest.mark.parametrize(("content", "expected"), [bad[1:] for bad in BAD_MAPS], ids=[bad[0] for bad in BAD_MAPS])
def test_bad_map_is_refused_with_every_problem_and_no_secret(content: Any, expected: list[str]) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_shard_map(json.dumps(content).encode(), ("*.internal",))

    assert all(problem.startswith("SHARD_MAP_FILE: ") for problem in raised.value.problems)
    assert [text for text in expected if text not in str(raised.value)] == []
    assert "correct-horse" not in str(raised.value)


@pytest.mark.parametrize(
    ("count", "expected"), [(2, ["a", "b", "c"]), (3, ["a", "b", "c"]), (1, ["a"]), (4, ["a", "b", "c"])]
)
def test_first_problems_are_all_unless_there_are_more(count: int, expected: list[str]) -> None:
    problems, more = ["a", "b", "c"], {2: ["and 1 more like that"], 1: ["and 2 more like that"]}
    assert first_problems(problems, count) == [*expected[:count], *more.get(count, [])]


@pytest.mark.slow
@given(TEXTS)
def test_key_is_at_its_first_place_when_all_shards_are_retired(key: str) -> None:
    every = ShardMap(tuple(MappedShard(f"shard-{number}", "", retired=True) for number in range(3)))
    assert every.shard_of(key) is every.shards[paper_place(key, 3)]
    assert sorted(names(every.possible_homes(key))) == ["shard-0", "shard-1", "shard-2"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"\xff": 1}', b'{"shards": [' + b"[" * 100_000])
def test_bad_map_is_refused_when_it_is_no_json(content: bytes) -> None:
    with pytest.raises(ConfigurationError, match="SHARD_MAP_FILE: "):
        parse_shard_map(content, ())


def test_map_is_refused_when_its_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"SHARD_MAP_FILE: .*absent\.json, got: No such file"):
        read_shard_map(tmp_path / "absent.json", ())


def test_map_never_shows_a_connection_string() -> None:
    shard_map = map_of(2)

    for shown in (repr(shard_map), str(shard_map), f"{shard_map.shards[0]}", repr(shard_map.shards[0].address)):
        assert "correct-horse" not in shown
