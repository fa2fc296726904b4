"""A tenant's new home in the shard map."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from simplu_worker.errors import PermanentError
from simplu_worker.shards.routing.locator import pin_in_file
from simplu_worker.shards.routing.shard_map import ShardMap, parse_shard_map

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
