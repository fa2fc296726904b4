"""The time that programs take to start: the worker, `--help`, and a command that asks one shard, beside plain imports.

Also the cost of idling, beside a loop of plain aiobotocore with the same polls. What is compared runs in turns, because
the machine and other programs on it affect all of it alike.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
from support.processes.resource_usage import ValueRange

from benchmarks.throughput.records import BUSINESS_ID
from benchmarks.throughput.runs import Clients, Contender, UsageSampler, inherited_env, run_clients
from benchmarks.throughput.testbed import BenchmarkServers
from simplu_local.processes.loopback import HOST, free_port
from simplu_local.stack.aws import CREDENTIALS

IDLE_SETTLE_S = 8.0
READY_WITHIN_S = 20.0
READY_LOOK_S = 0.005
END_WITHIN_S = 60.0

IMPORTS = ("-c", "import aiobotocore, asyncpg, aiohttp")
HELP = ("-m", "simplu_worker", "--help")
COMMAND = ("-m", "simplu_worker", "tenants", "show", BUSINESS_ID, "0", "--json")


class StartFigures(msgspec.Struct, frozen=True, rename="camel"):
    """Seconds of one round, from the start of each program: to its end, of the worker to the first 200 of `/readyz`."""

    imports_s: float
    help_s: float
    command_s: float
    ready_s: float


class IdleFigures(msgspec.Struct, frozen=True, rename="camel"):
    """The resources that an idle worker uses; the cores that a loop of plain aiobotocore with the same polls uses."""

    stream_shards: int
    client_cores: float
    server_cores: float
    rss_bytes: int
    plain_cores: float


def start_range(rounds: list[StartFigures], name: str) -> ValueRange:
    """Return the range of one figure over all rounds, in seconds."""
    return ValueRange.from_values([getattr(one, name) for one in rounds])


async def measure_starts(servers: BenchmarkServers, *, rounds: int, stream_shards: int = 4) -> list[StartFigures]:
    """Start each program once a round; the stream and the lease table exist."""
    found = []
    async with servers.run_kinesis(0, stream_shards) as kinesis, servers.make_databases(1, commit="on") as databases:
        port = free_port()
        env = inherited_env() | servers.worker_env(kinesis.url, databases, HTTP_PORT=str(port))
        for _ in range(rounds + 1):
            imports_s, help_s, command_s = [
                await asyncio.to_thread(_time_program, arguments, env) for arguments in (IMPORTS, HELP, COMMAND)
            ]
            found.append(StartFigures(imports_s, help_s, command_s, await _time_to_ready(servers, env, port)))
    return found[1:]  # the first round read files from the disk, and created the lease table


def _time_program(arguments: tuple[str, ...], env: Mapping[str, str]) -> float:
    """Return the seconds that a program of Python takes from its start to its end."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], env=dict(env), capture_output=True, timeout=END_WITHIN_S, check=False
    )
    took_s = time.perf_counter() - began
    if done.returncode != 0:
        end = done.stderr.decode(errors="replace")[-300:]
        raise SystemExit(f"expected {' '.join(arguments)} to end with 0, got {done.returncode}: {end}")
    return took_s


async def _time_to_ready(servers: BenchmarkServers, env: Mapping[str, str], port: int) -> float:
    """Return the seconds from the start of a worker to the first 200 of `/readyz`."""
    log_path = servers.group.directory / f"client-{servers.next_number()}.log"
    began = time.perf_counter()
    process = servers.group.spawn([sys.executable, "-m", "simplu_worker", "run"], log_path=log_path, env=dict(env))
    clients = Clients([process], [log_path])
    try:
        while not await asyncio.to_thread(_is_ready, port):
            clients.check_running()
            if time.perf_counter() - began > READY_WITHIN_S:
                raise SystemExit(f"expected the worker to be ready within {READY_WITHIN_S:g} s")
            await asyncio.sleep(READY_LOOK_S)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def _is_ready(port: int) -> bool:
    """Request `/readyz` over a plain socket: the start of an HTTP client would be measured too."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


async def measure_idle(servers: BenchmarkServers, *, seconds: float, stream_shards: int = 16) -> IdleFigures:
    """Return the resources of a worker with *stream_shards* stream shards without new records, and of the plain loop.

    They run one after the other.
    """
    async with servers.run_kinesis(0, stream_shards) as kinesis, servers.make_databases(1, commit="on") as databases:
        async with run_clients(Contender.WORKER, servers, kinesis.url, databases) as clients:
            worker = await measure_rest(servers, clients, seconds)
        async with _run_plain_polls(servers, kinesis.url) as clients:
            plain = await measure_rest(servers, clients, seconds)
    return IdleFigures(stream_shards, worker.client_cores, worker.server_cores, worker.rss_bytes, plain.client_cores)


class RestUsage(NamedTuple):
    """The cores and the memory that a contender uses without work."""

    client_cores: float
    server_cores: float
    rss_bytes: int


async def measure_rest(servers: BenchmarkServers, clients: Clients, seconds: float) -> RestUsage:
    """Return what *clients* use in *seconds*, once they have settled."""
    await asyncio.sleep(IDLE_SETTLE_S)
    sampler = UsageSampler(clients.pids, servers.server_pid)
    sampler.take_sample()
    await asyncio.sleep(seconds)
    clients.check_running()
    sampler.take_sample()
    began, ended = sampler.samples[0], sampler.samples[-1]
    client_s, server_s, _ = sampler.used_between(began.at, ended.at)
    took_s = ended.at - began.at
    return RestUsage(client_s / took_s, server_s / took_s, ended.rss_bytes)


@asynccontextmanager
async def _run_plain_polls(servers: BenchmarkServers, kinesis_url: str) -> AsyncIterator[Clients]:
    log_path = servers.group.directory / f"client-{servers.next_number()}.log"
    command = [sys.executable, "-m", "benchmarks.throughput.plain_polls", "--kinesis-url", kinesis_url]
    process = servers.group.spawn(command, log_path=log_path, env=inherited_env() | CREDENTIALS)
    try:
        yield Clients([process], [log_path])
    finally:
        process.kill()
        process.wait()
