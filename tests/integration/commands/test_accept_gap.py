"""`shards accept-gap`: the gaps of one shard or of all, and the shards that cannot accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.citrus.cases import silent
from support.postgres.databases import ShardMaker, execute
from support.settings import settings_of

from simplu_worker.commands.output import show
from simplu_worker.commands.shards.gaps import accept_gaps
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.address import ShardAddress

MAKE_ROWS = """
INSERT INTO stream_positions (stream, stream_shard_id, pending_from, parents_done, token, gap_from, gap_found_at)
SELECT 'stream', one.id, one.pending_from, true, gen_random_uuid(), one.gap_from, now()
FROM (VALUES ('s-0', '5/0', '5/0'), ('s-1', '6/0', '5/0'), ('s-2', '5/0', NULL)) AS one (id, pending_from, gap_from)
"""


async def answer_of(
    capfd: pytest.CaptureFixture[str], settings: Settings, shard_id: str | None = None, *, apply: bool = True
) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    status = await show(accept_gaps(settings, shard_id, apply=apply), as_json=True)
    answer: dict[str, Any] = json.loads(capfd.readouterr().out)
    return status, answer


async def held_shard(make_shard: ShardMaker, shard_id: str) -> ShardAddress:
    address = await make_shard(shard_id)
    await execute(address.connection_string, MAKE_ROWS)
    return address


async def test_gap_of_one_shard_is_accepted_once(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path, await held_shard(make_shard, "a"), await held_shard(make_shard, "b"))
    status, planned = await answer_of(capfd, settings, "a", apply=False)
    assert (status, planned["applied"]) == (0, False)
    status, answer = await answer_of(capfd, settings, "a")
    assert answer == planned | {"applied": True}
    (accepted,) = answer["gaps"]
    assert (status, answer["shardsWithoutAnswer"], accepted.pop("foundAt") != "") == (0, [], True)
    assert accepted == {"shardId": "a", "stream": "stream", "streamShard": "s-0", "position": "5/0"}
    status, answer = await answer_of(capfd, settings, "a")
    assert (status, answer["gaps"]) == (1, [])
    with pytest.raises(PermanentError, match="expected a shard out of a, b; got c"):
        await show(accept_gaps(settings, "c", apply=True), as_json=True)


@pytest.mark.slow(0.3)
async def test_gaps_of_all_shards_are_accepted_where_they_can_be(
    make_shard: ShardMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = await make_shard("c-other")
    await execute(other.connection_string, "DELETE FROM schema_migrations")
    empty = await make_shard("d-empty", is_empty=True)
    held = await held_shard(make_shard, "a"), await held_shard(make_shard, "b")
    settings = settings_of(tmp_path, *held, other, empty, silent("e-down"))
    status, answer = await answer_of(capfd, settings)
    assert (status, [one["shardId"] for one in answer["gaps"]]) == (1, ["a", "b"])
    assert answer["shardsWithoutAnswer"] == ["c-other", "e-down"]
    status, answer = await answer_of(capfd, settings_of(tmp_path, *held))
    assert (status, answer["gaps"]) == (0, [])
