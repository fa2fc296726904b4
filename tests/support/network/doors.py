"""A program: asks each door to a vendor at each fault, and prints the errors as JSON, by door and fault.

A process of its own, because aiohttp reads `SSL_CERT_FILE` when it is imported. Its argument is the folder that
`make_certificates` filled.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path

import aiohttp
from support.feed.events import feed_event
from support.network.faults import CA_FILE, Fault, serving_faults

from simplu_worker.aws.clients import open_client, translate_errors
from simplu_worker.cache.redis_commands import RedisCommands
from simplu_worker.commands.fleet.replica_client import ReplicaClient
from simplu_worker.errors import RetryableError
from simplu_worker.feed.destinations import open_webhook
from simplu_worker.feed.feed_file import AllowedHosts
from simplu_worker.feed.types import RetryLater
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import ShardPool
from simplu_worker.shards.postgres.statement_timeouts import ShardTimeouts
from simplu_worker.shards.routing.citrus import open_citrus

PASSWORD = "swordfish"
SILENCE_S = 0.5
PATIENCE_S = 20.0  # where something comes, however busy the machine

Ask = Callable[[str, int, bool, float], Awaitable[object]]  # of host, port, whether by TLS, and the time for an answer


async def main(folder: Path) -> dict[str, dict[str, str]]:
    async def ask_aws(host: str, port: int, by_tls: bool, timeout_s: float) -> None:  # noqa: FBT001
        async with open_client(
            "dynamodb",
            region="eu-west-1",
            endpoint_url=_url("http", host, port, by_tls=by_tls),
            read_timeout_s=timeout_s,
            connect_timeout_s=timeout_s,
        ) as client:
            with translate_errors():
                await client.list_tables()

    async def ask_citrus(host: str, port: int, by_tls: bool, timeout_s: float) -> None:  # noqa: FBT001
        url = _url("http", host, port, by_tls=by_tls)
        async with open_citrus(url, api_key=PASSWORD, timeout_s=timeout_s, attempts=1, allowed_hosts=()) as citrus:
            await citrus.list_shards()

    async def ask_replica(host: str, port: int, by_tls: bool, timeout_s: float) -> None:  # noqa: FBT001
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session:
            await ReplicaClient(session, _url("http", host, port, by_tls=by_tls)).ask("GET", "/status")

    async def ask_redis(host: str, port: int, by_tls: bool, timeout_s: float) -> None:  # noqa: FBT001
        options = f"?ssl_ca_certs={folder / CA_FILE}" if by_tls else ""
        url = f"{_url('redis', host, port, by_tls=by_tls, user=f':{PASSWORD}@')}/0{options}"
        redis = RedisCommands(url, on_connect=None, call_timeout_s=timeout_s)
        try:
            await redis.ping()
        finally:
            await redis.close()

    async def ask_postgres(host: str, port: int, by_tls: bool, timeout_s: float) -> None:  # noqa: FBT001
        options = f"sslmode=verify-full&sslrootcert={folder / CA_FILE}" if by_tls else "sslmode=disable"
        address = ShardAddress("shard-1", f"postgresql://worker:{PASSWORD}@{host}:{port}/d?{options}")
        pool = ShardPool(address, size=1, timeouts=ShardTimeouts(connect_s=timeout_s))
        try:
            async with pool.connection():
                pass
        finally:
            await pool.close()

    async def ask_webhook(host: str, port: int, by_tls: bool, timeout_s: float) -> None:  # noqa: FBT001
        allowed = AllowedHosts(patterns=("*",), networks=(ip_network("127.0.0.0/8"),))
        url, secret = _url("http", host, port, by_tls=by_tls), base64.b64encode(bytes(32)).decode()
        async with open_webhook(url, [secret], allowed, timeout_s=timeout_s) as webhook:
            for delivery in await webhook.publish([feed_event()]):
                if isinstance(delivery, RetryLater):
                    raise RetryableError(delivery.error)

    doors: dict[str, Ask] = {
        "AWS": ask_aws,
        "Citrus": ask_citrus,
        "Postgres": ask_postgres,
        "Redis": ask_redis,
        "replica": ask_replica,
        "webhook": ask_webhook,
    }
    return {name: await _ask_all(ask, folder, is_postgres=name == "Postgres") for name, ask in doors.items()}


def _url(scheme: str, host: str, port: int, *, by_tls: bool, user: str = "") -> str:
    return f"{scheme}{'s' if by_tls else ''}://{user}{host}:{port}"


async def _ask_all(ask: Ask, folder: Path, *, is_postgres: bool) -> dict[str, str]:
    async with serving_faults(folder, is_postgres=is_postgres) as places:
        return {fault: await _error_of(ask, *place, fault) for fault, place in places.items()}


async def _error_of(ask: Ask, host: str, port: int, fault: Fault) -> str:
    try:
        await ask(host, port, fault.is_asked_by_tls, SILENCE_S if fault is Fault.SILENT else PATIENCE_S)
    except RetryableError as exc:
        return str(exc).replace(f"{host}:{port}", "ADDRESS")
    return "no error"


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))))  # noqa: T201
