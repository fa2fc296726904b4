from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.reader_world import Readers

from simplu_worker.consumers.kinesis.fleet.position_sync import PositionSync
from simplu_worker.consumers.kinesis.holding.ownership import Ownership
from simplu_worker.consumers.kinesis.reader.stream_shard_reader import StreamShardReader
from simplu_worker.consumers.kinesis.recovery.recovery_plan import Lineage
from simplu_worker.consumers.kinesis.recovery.shard_positions import RowsReader, ShardPositions
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.timing.clock import utc_now


async def test_rows_are_unlocked_when_a_visit_fails_on_one_of_them() -> None:
    def told() -> Lineage:
        return Lineage()

    def untold() -> Lineage:
        raise LookupError("the ancestors")

    async def list_shard_ids() -> list[str]:
        return ["shard-1"]

    gateway = cast("ShardGateway", SimpleNamespace(list_shard_ids=list_shard_ids))
    positions: list[ShardPositions] = []
    for number, lineage in enumerate((told, untold, told)):
        state: Any = SimpleNamespace(stream_name="stream", stream_shard_id=f"a-{number}", checkpoint_at_start=None)
        state.lineage = lineage
        one = ShardPositions(
            gateway,
            cast("Ownership", None),
            cast("RowsReader", state),
            tenant_wait=timedelta(seconds=1),
            utc=utc_now,
        )
        positions.append(one)
    readers: list[Any] = [SimpleNamespace(shard_positions=one, is_backfilling=lambda _: False) for one in positions]
    sync = PositionSync(gateway, "stream", Readers(cast("list[StreamShardReader]", readers)))
    with pytest.raises(ExceptionGroup, match="unhandled"):
        await sync.run(asyncio.Event())
    assert [one.position_on("shard-1").lock.locked() for one in positions] == [False, False, False]
