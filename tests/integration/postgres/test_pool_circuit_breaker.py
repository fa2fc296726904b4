"""The pool of a dead shard fails fast, ends hanging uses, and is back within two seconds of the shard."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from support.postgres.databases import copy_shard
from support.postgres.pool_trouble import (
    AT_ONCE_S,
    PATIENT_S,
    UNHURRIED,
    ask,
    forget_probes,
    nothing_is_open,
    unavailable,
    within,
)
from support.postgres.shard_line import TOO_MANY, ShardLine

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_worker.network_errors import NO_ANSWER, NO_SERVER
from simplu_worker.shards.postgres import pool_state
from simplu_worker.shards.postgres.errors import state_words
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.types import ShardUnavailableError
from simplu_worker.timing.circuit_breaker import FAILURES_MAX


@pytest.fixture
def no_probe_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_state, "PROBE_INTERVAL_S", 1000.0)


async def test_pool_fails_fast_when_the_way_to_its_shard_does_not_work(
    no_probe_is_due: None, line: ShardLine, pool: ShardPool
) -> None:
    async with line.refuse_connections():
        assert await poll_until(lambda: nothing_is_open(pool), within_s=PATIENT_S)
        for _ in range(FAILURES_MAX):
            assert await unavailable(pool) == NO_SERVER
    connection_count = line.connection_count

    assert await unavailable(pool) == NO_SERVER
    assert line.connection_count == connection_count
    await pool.probe()
    assert (await ask(pool), pool.is_healthy, pool.last_error) == (1, True, None)


async def test_pool_uses_what_it_has_when_the_server_is_full(line: ShardLine, pool: ShardPool) -> None:
    with line.saying(TOO_MANY):
        async with pool.connection():
            for _ in range(FAILURES_MAX + 1):
                assert await unavailable(pool) == state_words("53300")
            with pytest.raises(ShardUnavailableError, match="53300"):
                await pool.probe()  # there is none to ask on
            assert pool.is_healthy  # by the one it has
        forget_probes(pool)

        await pool.probe()

        assert (await ask(pool), pool.is_healthy, pool.counts()["open"]) == (1, True, 1)


@pytest.mark.slow(1)
async def test_pool_is_used_again_within_two_seconds_when_a_frozen_server_goes_on(
    breakable_server: PostgresServer, no_probe_is_due: None
) -> None:
    timeouts = msgspec.structs.replace(UNHURRIED, probe_s=0.5)
    pool = ShardPool(await copy_shard(breakable_server), size=2, timeouts=timeouts)
    await ask(pool)
    breakable_server.suspend()

    async def stuck() -> None:
        with contextlib.suppress(ShardUnavailableError):
            await ask(pool)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(stuck())
        for _ in range(FAILURES_MAX):
            forget_probes(pool)
            with pytest.raises(ShardUnavailableError, match=NO_ANSWER):
                await pool.probe()
        with within(0, AT_ONCE_S):
            assert await unavailable(pool) == NO_ANSWER
        breakable_server.resume()

        async def is_back() -> bool:
            forget_probes(pool)
            with contextlib.suppress(ShardUnavailableError):
                await pool.probe()
                return True
            return False

        with within(0, AT_ONCE_S):
            assert await poll_until(is_back, within_s=PATIENT_S)
            assert await ask(pool) == 1
    await pool.close()
