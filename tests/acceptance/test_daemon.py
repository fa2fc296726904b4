"""The worker as a process: signals, crashes, configuration, HTTP, and how soon a record is seen."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from support.rows import fetch_value
from support.stack_tenants import provision, put_creates

from simplu_local.processes.loopback import HOST, poll_until
from simplu_local.processes.watchdog import running_processes, with_descendants
from simplu_local.processes.worker_process import INHERITED, WorkerProcess, log_tail
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import read_tenant_ids, shard_urls
from simplu_local.workload.workload import Tenant
from simplu_worker import __version__

in_stacks_loop = pytest.mark.asyncio(loop_scope="module")

TENANT = Tenant("clinic", "main", "dental")
STREAM_SHARDS = 2
GRACE_S = 10.0
PATIENCE_S = 60.0
ENDED_WITHIN_S = 60.0  # the exit status tells whether the drain was in time: the rest is for a busy machine
PIPE_BYTES = 4096  # the least that Linux gives a pipe

_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    """Run one stack for this file, with one tenant; at the end no process of it is left, nor of the workers."""
    async with Stack(shards=2, stream_shards=STREAM_SHARDS) as running:
        async with running_worker(running, with_queue=True):
            await provision(running, TENANT, within_s=PATIENCE_S)
        yield running
        family = with_descendants(running.group.pids, running_processes())
    assert family & {process.pid for process in running_processes()} == set()


def environment(stack: Stack, *, with_queue: bool = False, **more: str) -> dict[str, str]:
    env = stack.env | {"KINESIS_LEASE_DURATION_SECONDS": "2", "SHUTDOWN_GRACE_SECONDS": str(GRACE_S)}
    orders = {"SQS_ORDER_EVENTS_QUEUE_URL": "", "SQS_PRIORITY_QUEUE_URL": ""}
    return env | orders | ({} if with_queue else {"SQS_SHARD_CREATION_QUEUE_URL": ""}) | more


@asynccontextmanager
async def running_worker(
    stack: Stack, *, with_queue: bool = False, log_path: Path | None = None, **more: str
) -> AsyncIterator[WorkerProcess]:
    """Run a worker for as long as the context, or until it ends; enter when it is ready.

    Without the control queue it ends sooner: a poll that is under way when the stop comes is waited out.
    """
    number = next(_numbers)
    log_path = log_path or stack.group.directory / f"daemon-{number}.log"
    env = environment(stack, with_queue=with_queue, **more)
    worker = WorkerProcess(stack.group, env, number=number, log_path=log_path)
    worker.start()
    try:
        await worker.wait_ready()
        yield worker
    except BaseException:
        print(log_tail(log_path))  # noqa: T201  (only a failure shows it)
        raise
    finally:
        worker.kill()


async def until_so(ask: Any, *, within_s: float = PATIENCE_S) -> None:
    """Wait until *ask* says yes, and fail when it never does."""
    assert await poll_until(ask, within_s=within_s)


async def shard_of_tenant(stack: Stack) -> str:
    for url in shard_urls(stack.env):
        if TENANT.tenant_id in await read_tenant_ids([url]):
            return url
    raise AssertionError("the tenant is on no shard")


async def latency_s(stack: Stack, request_id: str) -> float | None:
    """Return how long after its arrival an operation was committed; None when it is not in the log."""
    query = "SELECT extract(epoch FROM completed_at - received_at)::float8 FROM operations WHERE request_id = $1"
    found: float | None = await fetch_value(await shard_of_tenant(stack), query, request_id)
    return found


async def applied(stack: Stack, request_id: str) -> float:
    """Wait until an operation is in the log; return its latency in seconds."""

    async def is_there() -> bool:
        return await latency_s(stack, request_id) is not None

    await until_so(is_there)
    return await latency_s(stack, request_id) or 0.0


async def leases(stack: Stack, table: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of a lease table, by default the stack's, that stand for stream shards."""
    async with stack.aws_client("dynamodb") as dynamodb:
        name = table or stack.env["KINESIS_APPLICATION_NAME"]
        reply = await dynamodb.scan(TableName=name, ConsistentRead=True)
    return [row for row in reply["Items"] if row["leaseKey"]["S"].startswith("shardId-")]


async def holds_all(stack: Stack, worker: WorkerProcess, table: str | None = None) -> None:
    """Wait until *worker* holds every lease: those of one that was killed have to expire first."""

    async def is_so() -> bool:
        owners = [row.get("leaseOwner", {"S": ""})["S"] for row in await leases(stack, table)]
        return len(owners) == STREAM_SHARDS and all(f":{worker.pid}:" in owner for owner in owners)

    await until_so(is_so)


async def get(worker: WorkerProcess, path: str, *, token: str | None = None) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession() as session, session.get(worker.url + path, headers=headers) as answer:
        return answer.status, await answer.text()


async def bytes_in_hand(stack: Stack, worker: WorkerProcess) -> int:
    _, body = await get(worker, "/status", token=stack.env["API_TOKEN"])
    return int(json.loads(body)["prefetch"]["usedBytes"])


async def put_in_frost(stack: Stack, worker: WorkerProcess, request_id: str) -> None:
    """Freeze all shards, put an operation, and wait until *worker* has it in hand: its drain waits for it.

    One before it is applied first: the worker has nothing else in hand then.
    """

    async def has_nothing() -> bool:
        return await bytes_in_hand(stack, worker) == 0

    async def has_it() -> bool:
        return await bytes_in_hand(stack, worker) > 0

    await put_creates(stack, TENANT, f"before-{request_id}")
    await applied(stack, f"before-{request_id}")
    await until_so(has_nothing)
    for server in stack.servers.values():
        server.suspend()
    await put_creates(stack, TENANT, request_id)
    await until_so(has_it)


def thaw(stack: Stack) -> None:
    for server in stack.servers.values():
        server.resume()


def run_command(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with nothing of this process's own AWS or worker settings."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "simplu_worker", *arguments],
        env=inherited | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def ended(worker: WorkerProcess, *, within_s: float) -> int:
    """Wait for the end of a worker; return its exit status."""
    process = worker._process
    assert process is not None

    async def is_over() -> bool:
        return process.poll() is not None

    assert await poll_until(is_over, within_s=within_s), log_tail(worker.log_path)
    return int(process.returncode)


@in_stacks_loop
async def test_worker_drains_and_releases_its_leases_at_sigterm(stack: Stack) -> None:
    async with running_worker(stack, with_queue=True) as worker:
        await holds_all(stack, worker)
        ids = [f"drained-{number}" for number in range(20)]
        await put_creates(stack, TENANT, *ids)
        await applied(stack, ids[-1])
        worker.send_signal(signal.SIGTERM)
        assert await ended(worker, within_s=ENDED_WITHIN_S) == 0, log_tail(worker.log_path)
    released = await leases(stack)

    assert [row for row in released if "leaseOwner" in row] == []
    assert any(row["checkpoint"]["S"].isdigit() for row in released)
    events = [json.loads(line)["event"] for line in worker.log_path.read_text().splitlines()]
    assert [events.count(event) for event in ("worker.ready", "worker.draining", "worker.stopped")] == [1, 1, 1]
    assert events[-1] == "worker.stopped"


@pytest.mark.slow(4)
@in_stacks_loop
async def test_worker_still_drains_when_a_shard_is_frozen(stack: Stack) -> None:
    # A fifth of it is for giving the leases back, after the batch was waited for: enough on a busy machine.
    async with running_worker(stack, SHUTDOWN_GRACE_SECONDS="6") as worker:
        await holds_all(stack, worker)
        try:
            await put_in_frost(stack, worker, "in-frost")
            worker.send_signal(signal.SIGTERM)
            assert await ended(worker, within_s=ENDED_WITHIN_S) == 0, log_tail(worker.log_path)
        finally:
            thaw(stack)
    assert [row for row in await leases(stack) if "leaseOwner" in row] == []

    async with running_worker(stack) as worker:
        await applied(stack, "in-frost")
        await worker.stop(within_s=ENDED_WITHIN_S)


@pytest.mark.slow(4)
@in_stacks_loop
async def test_worker_ends_at_once_when_it_gets_a_second_signal(stack: Stack) -> None:
    async with running_worker(stack, SHUTDOWN_GRACE_SECONDS="60") as worker:
        await holds_all(stack, worker)

        async def drains() -> bool:
            return '"worker.draining"' in worker.log_path.read_text()

        try:
            await put_in_frost(stack, worker, "at-second-signal")
            worker.send_signal(signal.SIGTERM)
            await until_so(drains)
            worker.check_running()
            worker.send_signal(signal.SIGINT)
            assert await ended(worker, within_s=20) == 1  # the drain alone would take 48 s, and end with 0
        finally:
            thaw(stack)


@pytest.mark.slow(4)
@in_stacks_loop
@pytest.mark.skipif(sys.platform != "linux", reason="expected Linux, where the size of a pipe can be set")
async def test_worker_goes_on_when_nobody_reads_its_log(stack: Stack, tmp_path: Path) -> None:
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        async with running_worker(stack, log_path=pipe, LOG_LEVEL="debug") as worker:

            async def is_full() -> bool:
                return not select.select([], [writer], [], 0)[1]

            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            try:
                await until_so(is_full)
            finally:
                os.close(writer)
            await put_creates(stack, TENANT, "on-full-pipe")
            await applied(stack, "on-full-pipe")
            live, _ = await get(worker, "/livez")
            worker.send_signal(signal.SIGTERM)
            status = await ended(worker, within_s=ENDED_WITHIN_S)
    finally:
        os.close(reader)

    assert (live, status) == (200, 0)


@pytest.mark.slow(4)
@in_stacks_loop
async def test_worker_answers_over_http(stack: Stack) -> None:
    token = stack.env["API_TOKEN"]
    async with running_worker(stack) as worker:
        await put_creates(stack, TENANT, "asked-for")
        await applied(stack, "asked-for")
        protected = ("/status", "/shards", "/operations/asked-for", "/tenants/clinic/main")
        opened = {path: (await get(worker, path))[0] for path in ("/livez", "/readyz", "/metrics", "/", "/nowhere")}
        refused = {(await get(worker, path, token=wrong))[0] for path in protected for wrong in (None, "wrong")}
        allowed = {path: await get(worker, path, token=token) for path in protected}
        _, metrics = await get(worker, "/metrics")
        with socket.socket() as probe:
            assert probe.connect_ex((HOST, worker.port)) == 0
        taken = await asyncio.to_thread(
            run_command, "run", env=environment(stack, HTTP_PORT=str(worker.port), LOG_FORMAT="json")
        )
        await worker.stop(within_s=ENDED_WITHIN_S)

    assert opened == {"/livez": 200, "/readyz": 200, "/metrics": 200, "/": 200, "/nowhere": 404}
    assert refused == {401}
    assert {status for status, _ in allowed.values()} == {200}
    operation = json.loads(allowed["/operations/asked-for"][1])
    assert (operation["status"], operation["operation"], operation["resourceId"]) == (
        "succeeded",
        "create",
        "asked-for",
    )
    (build,) = [line for line in metrics.splitlines() if line.startswith("simplu_build_info{")]
    assert f'version="{__version__}"' in build
    assert 'simplu_operations_total{operation="create",outcome="succeeded",source="kinesis"}' in metrics
    status = json.loads(allowed["/status"][1])
    assert status["version"] == __version__
    assert "shard-1" in {shard["shardId"] for shard in status["shards"]}
    assert [server.password for server in stack.servers.values() if server.password in repr(allowed)] == []

    assert taken.returncode == 1
    (line,) = [line for line in taken.stdout.splitlines() if json.loads(line)["level"] == "error"]
    assert f"expected to listen on {HOST}:{worker.port}" in json.loads(line)["error"]
    assert "Traceback" not in taken.stdout + taken.stderr


def test_worker_names_all_problems_of_settings_and_no_secret(tmp_path: Path) -> None:
    secret = "planted-secret-7f3a"
    secret_file = tmp_path / "token"
    secret_file.write_text(f"{secret} with spaces\n")
    wrong = {
        "AWS_REGION": "us-east-1",
        "KINESIS_STREAM_NAME": "stream",
        "KINESIS_SHARD_COUNT": "zero",
        "HTTP_PORT": "99999",
        "CITRUS_SERVER_URL": f"ftp://user:{secret}@citrus.internal",
        "CITRUS_API_KEY_FILE": str(secret_file),
        "SHARD_MAP_FILE": str(tmp_path / "absent.json"),
        "API_TOKEN": secret,
        "API_VIEWER_TOKEN": secret,
        "DATABASE_PASSWORD": secret,
        "DATABASE_PASSWORD_FILE": str(secret_file),
        "LOG_LEVEL": "loud",
    }

    result = run_command("run", env=wrong)

    named = (
        "KINESIS_SHARD_COUNT",
        "HTTP_PORT",
        "CITRUS_SERVER_URL",
        "CITRUS_API_KEY",
        "SHARD_MAP_FILE",
        "API_VIEWER_TOKEN",
    )
    missing = [
        name
        for name in (*named, "DATABASE_PASSWORD", "LOG_LEVEL", "SQS_DEAD_LETTER_QUEUE_URL")
        if not any(line.startswith(name) for line in result.stderr.splitlines())
    ]
    assert (result.returncode, missing) == (78, []), result.stderr
    assert secret not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["run", "--nonsense"], ["stack"], ["demo", "--operations", "many"]]
)
def test_command_line_says_what_is_wrong(arguments: list[str]) -> None:
    result = run_command(*arguments)

    assert result.returncode == 2, result.stdout + result.stderr
    assert (arguments[-1] if len(arguments) > 1 else arguments[0]).strip("-") in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
