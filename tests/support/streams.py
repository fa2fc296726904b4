"""Streams that are made, or resharded, and then used."""

from __future__ import annotations

from typing import Any

ACTIVE_WITHIN_S, EVERY_S = 60.0, 0.1


async def wait_until_active(kinesis: Any, stream: str) -> None:
    """Wait until *stream* is there and no change of it is under way. Raises botocore's WaiterError."""
    often = {"Delay": EVERY_S, "MaxAttempts": int(ACTIVE_WITHIN_S / EVERY_S)}
    await kinesis.get_waiter("stream_exists").wait(StreamName=stream, WaiterConfig=often)


async def reshard(kinesis: Any, stream: str, count: int) -> None:
    await kinesis.update_shard_count(StreamName=stream, TargetShardCount=count, ScalingType="UNIFORM_SCALING")
    await wait_until_active(kinesis, stream)
