"""The router's hash places tenants as the worker's does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from simplu_router import MapFile, ShardUnavailableError
from simplu_router.places import place_of
from support.requires import ROOT

VECTORS: Final = json.loads((ROOT / "docs" / "examples" / "static_map_vectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case['key']} of {case['shards']}, {case['retired']}")
def test_router_places_a_tenant_as_the_vector_says(case: dict[str, Any]) -> None:
    assert place_of(case["key"], case["shards"], case["retired"]) == case["place"]


async def test_map_file_names_a_pin_before_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    shards = [{"shardId": name, "connectionString": f"postgresql://h/{name}"} for name in "abcd"]
    path.write_text(json.dumps({"shards": shards, "tenants": {"smile-hamburg": "a"}}))
    places = MapFile(path)
    assert list(await places.list_shards()) == ["a", "b", "c", "d"]
    assert (await places.find_shard("smile-berlin"), await places.find_shard("smile-hamburg")) == ("b", "a")


async def test_map_file_that_is_missing_is_an_unavailable_map(tmp_path: Path) -> None:
    with pytest.raises(ShardUnavailableError, match="cannot be read"):
        await MapFile(tmp_path / "none.json").list_shards()
