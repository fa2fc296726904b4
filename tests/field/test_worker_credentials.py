"""The worker with the role of a service account: it outlives every trouble of its credentials, and says so."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
import asyncpg
import pytest
from support.field.identities import Health, Identities, WebIdentity, base_env
from support.stack_tenants import provision, put_creates

from simplu_local.processes.loopback import poll_until
from simplu_local.processes.worker_process import WorkerProcess, log_tail
from simplu_local.stack.aws import CREDENTIALS
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import shard_urls
from simplu_local.workload.workload import Tenant

PATIENCE_S = 60.0
BACK_S = 30.0  # "within seconds", on a machine that does other things too
TENANT = Tenant("clinic", "main", "dental")


class World:
    def __init__(self, stack: Stack, source: WebIdentity) -> None:
        endpoints = {name: value for name, value in stack.env.items() if name not in CREDENTIALS}
        # The default queue of dead letters is made at the start, which needs credentials too.
        self.env = base_env(source.identities) | endpoints | source.env() | {"SQS_DEAD_LETTER_QUEUE_URL": ""}
        self.stack = stack
        self.worker = WorkerProcess(stack.group, self.env, number=1)

    async def get(self, path: str, *, as_operator: bool = False) -> tuple[int, dict[str, Any]]:
        headers = self.worker.operator if as_operator else {}
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(self.worker.url + path, headers=headers) as answer,
            ):
                return answer.status, await answer.json()
        except aiohttp.ClientError:
            self.worker.check_running()
            return 0, {}

    async def until_unready(self) -> None:
        expected = {"status": "unavailable", "reason": "credentials_unavailable"}

        async def is_so() -> bool:
            return await self.get("/readyz") == (503, expected)

        assert await poll_until(is_so, within_s=PATIENCE_S)

    async def seconds_to_ready(self) -> float:
        began = time.monotonic()

        async def is_so() -> bool:
            return (await self.get("/readyz"))[0] == 200

        assert await poll_until(is_so, within_s=PATIENCE_S)
        return time.monotonic() - began

    async def until_applied(self, *request_ids: str) -> None:
        query = "SELECT count(*) FROM operations WHERE request_id = ANY($1)"
        connection = await asyncpg.connect(shard_urls(self.stack.env)[0])

        async def is_so() -> bool:
            return bool(await connection.fetchval(query, request_ids) == len(request_ids))

        try:
            assert await poll_until(is_so, within_s=PATIENCE_S)
        finally:
            await connection.close()


@pytest.mark.slow(40)
async def test_worker_goes_on_whatever_its_credentials_do(identities: Identities) -> None:
    source = WebIdentity(identities)
    source.make(Health.AWAY)
    async with Stack(shards=1, stream_shards=1) as stack:
        world = World(stack, source)
        world.worker.start()
        try:
            await world.until_unready()
            _, answer = await world.get("/readyz", as_operator=True)
            assert f"{identities.folder}/token: No such file or directory" in answer["detail"]
            assert (await world.get("/livez"))[0] == 200
            source.make(Health.WELL)
            assert await world.seconds_to_ready() < BACK_S
            await provision(stack, TENANT, within_s=PATIENCE_S)
            for trouble in (Health.AWAY, Health.GARBAGE):
                ids = [f"{trouble.name}-{number}" for number in range(20)]
                began, issued = time.monotonic(), identities.issued_count
                async with asyncio.timeout(PATIENCE_S):  # credentials end under this load
                    while time.monotonic() - began < 2 * identities.life_s or identities.issued_count == issued:
                        await put_creates(stack, TENANT, f"{trouble.name}-load-{time.monotonic()}")
                source.make(trouble)
                await world.until_unready()
                assert (await world.get("/livez"))[0] == 200
                await put_creates(stack, TENANT, *ids)
                source.make(Health.WELL)
                assert await world.seconds_to_ready() < BACK_S
                await world.until_applied(*ids)
            await world.worker.stop(within_s=PATIENCE_S)
        except BaseException:
            print(log_tail(world.worker.log_path))  # noqa: T201 - only a failure shows it
            raise
        finally:
            world.worker.kill()


@pytest.mark.slow(6)
async def test_check_names_the_credentials(identities: Identities) -> None:
    source = WebIdentity(identities)
    shard = {"DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": "1", "DATABASE_NAME": "d", "DATABASE_USERNAME": "u"}
    queues = {f"SQS_{name}_QUEUE_URL": f"http://127.0.0.1:1/1/{name}" for name in ("ORDER_EVENTS", "DEAD_LETTER")}
    env = base_env(identities) | source.env() | shard | queues
    found = []
    for health in (Health.AWAY, Health.GARBAGE, Health.WELL):
        source.make(health)
        status, report = await check(env)
        assert status == 1  # there is no shard
        found.append(next(one for one in report["dependencies"] if one["dependency"] == "credentials"))
    assert [one["status"] for one in found] == ["failed", "failed", "ok"]
    assert "No such file or directory" in found[0]["result"]
    assert "got something else" in found[1]["result"] or "invalid XML" in found[1]["result"]
    assert found[2]["result"] == "found by assume-role-with-web-identity"


async def check(env: dict[str, str]) -> tuple[int, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simplu_worker", "check", "--json"),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert stdout, stderr.decode()
    return process.returncode or 0, json.loads(stdout)
