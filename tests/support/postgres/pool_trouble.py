"""Helpers for tests of a pool with problems: short timeouts, callers that get errors, and durations."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import msgspec
import pytest
from support.postgres.databases import QUICK

from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import ShardUnavailableError

# Far more than any test takes: whoever waits for one of these is noticed, however busy the machine is.
UNHURRIED = msgspec.structs.replace(QUICK, acquire_s=60.0, connect_s=60.0, reply_s=60.0, cancel_s=60.0, close_s=60.0)
PATIENT_S = 60.0
AT_ONCE_S = 20.0  # on a busy machine


async def ask(pool: ShardPool, query: str = "SELECT 1") -> object:
    async with pool.connection() as connection:
        return await connection.fetchval(query)


async def unavailable(pool: ShardPool, query: str = "SELECT 1") -> str:
    with pytest.raises(ShardUnavailableError) as caught:
        await ask(pool, query)
    assert caught.value.shard_id == pool.address.shard_id
    return str(caught.value).rpartition(": ")[2]


@contextlib.contextmanager
def within(least_s: float, max_s: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert least_s <= time.monotonic() - started < max_s


async def has_answered(pool: ShardPool) -> bool:
    """Return whether a shard answers; on a busy machine it may not within the pool's short timeouts."""
    try:
        return await ask(pool) == 1
    except ShardUnavailableError:
        return False


async def nothing_is_open(pool: ShardPool) -> bool:
    return pool.counts()["open"] == 0


def forget_probes(pool: ShardPool) -> None:
    pool._shared_probe.forget()
