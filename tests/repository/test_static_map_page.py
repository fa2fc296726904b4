"""docs/routing.md specifies the hash of the static map: its code and its vectors are the worker's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.page_examples import page_examples
from support.requires import ROOT

from simplu_worker.shards.routing.shard_map import ShardMap, hash_of, parse_shard_map

EXAMPLES: Final = {(what, name): text for what, name, text in page_examples(ROOT / "docs" / "routing.md")}
VECTORS: Final[list[dict[str, Any]]] = json.loads(EXAMPLES["vectors", "static map"])
# Texts that are ids too: neither a lone surrogate nor U+0000.
IDS: Final = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


def page_function() -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    names: dict[str, Any] = {}
    exec(EXAMPLES["run", "static map"], names)
    return names["shard_of"]  # type: ignore[no-any-return]  # of the page's code


def written_map(count: int, retired: set[int], tenants: dict[str, str] | None = None) -> dict[str, Any]:
    shards = [
        {"shardId": f"{place}", "connectionString": f"postgresql://u@h/{place}", "retired": place in retired}
        for place in range(count)
    ]
    return {"shards": shards, "tenants": tenants or {}}


def read_map(written: dict[str, Any]) -> ShardMap:
    return parse_shard_map(json.dumps(written).encode(), ())


def test_vectors_of_the_page_are_the_workers() -> None:
    shard_of = page_function()
    assert len(VECTORS) > 5
    for vector in VECTORS:
        written = written_map(vector["shards"], set(vector["retired"]))
        places = [int(read_map(written).shard_of(vector["key"]).shard_id)]
        places.append(int(shard_of(vector["key"], written)["shardId"]))
        assert f"{hash_of(vector['key']):016x}" == vector["hash"], vector
        assert places == [vector["place"]] * 2, vector


@pytest.mark.slow
@given(IDS, st.integers(1, 200), st.sets(st.integers(0, 199)))
def test_code_of_the_page_finds_the_workers_shard(key: str, count: int, retired: set[int]) -> None:
    written = written_map(count, retired - {count - 1})
    assert page_function()(key, written)["shardId"] == read_map(written).shard_of(key).shard_id
