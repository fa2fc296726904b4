"""Files that an address names: what may be read is read in time, and the rest is that shard's trouble alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.citrus.cases import ScriptedCitrus, reply
from support.postgres.databases import ShardMaker
from support.settings import settings_in

from simplu_worker.assembly.shards import Shards, open_shards
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.transfers.importing.source import ImportSource, SourceUnavailableError

OPTIONS = ("sslrootcert", "sslcert", "sslkey", "passfile")


def pipe_in(folder: Path) -> Path:
    """Make a pipe: whoever opens it waits for its other end."""
    folder.mkdir()
    path = folder / "paper.pem"
    os.mkfifo(path)
    return path


@pytest.fixture
async def case(make_shard: ShardMaker, tmp_path: Path) -> AsyncIterator[tuple[Shards, ScriptedCitrus, ShardAddress]]:
    """Give the shards of a worker whose Citrus may name files below `certs`, and a shard that names none."""
    address = await make_shard()
    citrus = ScriptedCitrus()
    async with citrus.opened():
        settings = settings_in({"CITRUS_SERVER_URL": citrus.url, "DATABASE_FILE_FOLDERS": str(tmp_path / "certs")})
        async with open_shards(settings) as shards:
            yield shards, citrus, address


async def use(shards: Shards) -> Any:
    """Use the shard that Citrus names next."""
    address = await shards.locator.locate("clinic-main")
    assert address is not None
    async with shards.pools.ensure_pool(address).connection() as connection:
        return await connection.fetchval("SELECT 1")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("place", ["certs", "elsewhere"])
async def test_shard_is_refused_and_others_go_on_when_citrus_names_a_pipe(
    case: tuple[Shards, ScriptedCitrus, ShardAddress], tmp_path: Path, place: str, option: str
) -> None:
    shards, citrus, address = case
    path = pipe_in(tmp_path / place)
    string = f"postgresql://u@127.0.0.1:1/d?sslmode=require&{option}={path}"
    bad = {"shardId": "shard-bad", "connectionString": string}
    good = {"shardId": address.shard_id, "connectionString": address.connection_string}
    citrus.script.extend([reply(bad), reply(good)])

    with pytest.raises(ShardUnavailableError) as caught:
        await use(shards)
    assert await use(shards) == 1

    expected = "a regular file, got another kind at" if place == "certs" else f"a file below {tmp_path / 'certs'}, got"
    assert f"shard shard-bad at 127.0.0.1:1/d: option {option}: expected {expected} {path}" in str(caught.value)


async def test_import_fails_with_the_reason_when_its_source_names_a_pipe(tmp_path: Path) -> None:
    path = pipe_in(tmp_path / "anywhere")
    source = ImportSource(ShardAddress("source", f"postgresql://u@127.0.0.1:1/d?sslmode=require&sslrootcert={path}"))
    expected = f"IMPORT_SOURCE_URL: option sslrootcert: expected a regular file, .* at {path}"
    with pytest.raises(SourceUnavailableError, match=expected):
        async with source.open_snapshot():
            pass
