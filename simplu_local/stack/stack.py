"""The embedded stack: Postgres servers, the local AWS and the local Citrus, started and stopped together."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import shlex
import shutil
import signal
import sys
from contextlib import AsyncExitStack, suppress
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from rich.console import Console
from rich.table import Table

from simplu_local.aws_server.account import REGION
from simplu_local.postgres.server import PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import HOST, URL_HOST, StackError, free_port
from simplu_local.processes.watchdog import ProcessGroup
from simplu_local.stack.aws import (
    BUSINESS_INFO_TABLE,
    CREDENTIALS,
    STREAM_NAME,
    QueueUrls,
    aws_client,
    create_resources,
    start_kinesis,
    start_moto,
    start_sqs,
)
from simplu_local.stack.citrus_server import CitrusServer

COMMAND: Final = "simplu-worker"
OF_A_STACK: Final = b"STACK_POSTGRES_URLS="  # begins a line of each environment file that a stack has written
TENANTS_PER_SHARD: Final = 3
FILLED_RATIO: Final = 0.75  # of a shard's room, when Citrus makes another shard: a worker warns from 0.8 on


class Stack:
    """The services that a worker uses, up while the context is entered. Raises `StackError` when one cannot start.

    *group* is also for other processes that must end with this one. *servers* are the Postgres servers by shard id, and
    *env* is the environment for a worker. Kinesis and SQS are ours, which end stream shards and keep groups in order;
    with *aws* "moto" they are moto's. Citrus makes another shard once each has *tenants_per_shard* tenants.
    """

    def __init__(
        self,
        *,
        shards: int = 3,
        stream_shards: int = 4,
        tenants_per_shard: int = TENANTS_PER_SHARD,
        aws: Literal["local", "moto"] = "local",
    ) -> None:
        self.servers: dict[str, PostgresServer] = {}
        self.citrus_api_key = secrets.token_urlsafe(18)
        self.citrus = CitrusServer(
            api_key=self.citrus_api_key,
            make_shard=self._make_shard,
            max_businesses=ceil(tenants_per_shard / FILLED_RATIO),
            filled_at=tenants_per_shard,
        )
        self.env: dict[str, str] = {}
        self.aws_url = ""
        self.kinesis_url = ""
        self.sqs_url = ""
        self.citrus_url = ""
        self._shard_count = shards
        self._stream_shards = stream_shards
        self._aws = aws
        self._numbers = itertools.count(1)
        self._env_file: Path | None = None

    def __repr__(self) -> str:
        return f"Stack({list(self.servers.values())}, {self.citrus!r}, aws={self.aws_url})"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            self.group = ProcessGroup()
            entered.push_async_callback(asyncio.to_thread, self.group.close)
            try:
                queues = await self._start_servers()
            except ExceptionGroup as errors:
                # One reason is enough for a person: the others are mostly its consequences.
                raise next((error for error in errors.exceptions if isinstance(error, StackError)), errors) from None
            self.citrus_url = await entered.enter_async_context(self.citrus.serve())
            self.env = self._environment(queues)
            self._exit = entered.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.__aexit__(kind, error, trace)

    def aws_client(self, service: str) -> Any:
        """Return a client of the stack's AWS, an async context manager."""
        urls = {"kinesis": self.kinesis_url, "sqs": self.sqs_url}
        return aws_client(service, urls.get(service, self.aws_url))

    def write_env_file(self, path: Path) -> None:
        """Write *env* as shell-quoted lines, mode 0600, by rename, now and whenever Citrus makes a shard."""
        self._env_file = path
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with open(temporary, "x", encoding="utf-8", opener=_open_private) as file:
                file.write(self._env_text())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def remove_env_file(self) -> None:
        """Remove the environment file, which names servers that are about to end, unless it was replaced."""
        if self._env_file is not None:
            with suppress(FileNotFoundError):
                if self._env_file.read_text(encoding="utf-8") == self._env_text():
                    self._env_file.unlink()
            self._env_file = None

    async def start_ended_servers(self) -> list[str]:
        """Restart the Postgres servers that were killed or stopped; returns their shard ids."""
        ended = [shard_id for shard_id, server in self.servers.items() if not server.is_running]
        for shard_id in ended:
            await self.servers[shard_id].start()
        return ended

    async def _start_servers(self) -> QueueUrls:
        self._programs = await asyncio.to_thread(PostgresPrograms.find, self.group.directory)
        servers = [self._new_server() for _ in range(self._shard_count)]
        async with asyncio.TaskGroup() as tasks:
            queues = tasks.create_task(self._start_aws())
            for server in servers:
                tasks.create_task(server.start())
        for server in servers:
            self.citrus.add_shard(*self._add_server(server))
        return queues.result()

    async def _start_aws(self) -> QueueUrls:
        async with asyncio.TaskGroup() as tasks:
            moto = tasks.create_task(start_moto(self.group))
            kinesis = tasks.create_task(start_kinesis(self.group)) if self._aws == "local" else moto
            sqs = tasks.create_task(start_sqs(self.group)) if self._aws == "local" else moto
        self.aws_url, self.kinesis_url, self.sqs_url = moto.result(), kinesis.result(), sqs.result()
        return await create_resources(self.aws_url, self.kinesis_url, self.sqs_url, stream_shards=self._stream_shards)

    def _new_server(self) -> PostgresServer:
        return PostgresServer(self.group, self._programs, database=f"shard_{next(self._numbers)}")

    def _add_server(self, server: PostgresServer) -> tuple[str, str]:
        shard_id = server.database.replace("_", "-")
        self.servers[shard_id] = server
        return shard_id, server.url

    async def _make_shard(self) -> tuple[str, str]:
        server = self._new_server()
        await server.start()
        shard_id, url = self._add_server(server)
        self.env["STACK_POSTGRES_URLS"] = self._postgres_urls()
        if self._env_file is not None:
            self.write_env_file(self._env_file)
        return shard_id, url

    def _postgres_urls(self) -> str:
        return " ".join(server.url for server in self.servers.values())

    def _environment(self, queues: QueueUrls) -> dict[str, str]:
        return {
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,  # boto3 reads no other
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": self.aws_url,
            "AWS_ENDPOINT_URL_KINESIS": self.kinesis_url,
            "AWS_ENDPOINT_URL_SQS": self.sqs_url,
            "DYNAMODB_ENDPOINT": self.aws_url,
            "DYNAMODB_BUSINESS_INFO_TABLE": BUSINESS_INFO_TABLE,
            "KINESIS_STREAM_NAME": STREAM_NAME,
            "KINESIS_APPLICATION_NAME": "simplu-worker",
            "SQS_SHARD_CREATION_QUEUE_URL": queues.shard_creation,
            "SQS_ORDER_EVENTS_QUEUE_URL": queues.order_events,
            "SQS_PRIORITY_QUEUE_URL": queues.priority,
            "SQS_DEAD_LETTER_QUEUE_URL": queues.dead_letters,
            "CITRUS_SERVER_URL": self.citrus_url,
            "CITRUS_API_KEY": self.citrus_api_key,
            "HTTP_HOST": HOST,
            "HTTP_PORT": str(free_port()),
            "API_TOKEN": secrets.token_urlsafe(18),
            "STACK_POSTGRES_URLS": self._postgres_urls(),
        }

    def _env_text(self) -> str:
        # None of these values contains a quote, $ or backslash, so a shell and systemd read the same.
        return "".join(f"{name}={shlex.quote(value)}\n" for name, value in self.env.items())


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


async def run_stack(env_file: Path, shards: int, *, aws: Literal["local", "moto"] = "local") -> int:
    """Run the stack until SIGINT or SIGTERM and return the exit status; *env_file* exists while all services answer.

    SIGUSR1 restarts Postgres servers that were killed.
    """
    console = Console(highlight=False)
    signals = _Signals.listen()
    try:
        _remove_stale_file(env_file)
        console.print(f"starting {shards} Postgres servers, a local AWS and a local Citrus …")
        async with Stack(shards=shards, aws=aws) as stack:
            stack.write_env_file(env_file)
            try:
                _describe(stack, env_file, console)
                while not await signals.wait_for_stop():
                    console.print(f"restarted: {', '.join(await stack.start_ended_servers()) or 'none was down'}")
            finally:
                stack.remove_env_file()
            console.print("stopping …")
    except (StackError, OSError) as error:
        Console(stderr=True, highlight=False).print(str(error), markup=False)
        return 1
    return 0


class _Signals:
    """The signals to `simplu-worker stack`: SIGINT and SIGTERM stop it, SIGUSR1 restarts servers."""

    def __init__(self) -> None:
        self._received = asyncio.Event()
        self._stop = False

    @classmethod
    def listen(cls) -> Self:
        signals, loop = cls(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, signals._on_stop)
        loop.add_signal_handler(signal.SIGUSR1, signals._received.set)
        return signals

    def _on_stop(self) -> None:
        self._stop = True
        self._received.set()
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one ends the process at once; the watchdog cleans up
            asyncio.get_running_loop().remove_signal_handler(number)

    async def wait_for_stop(self) -> bool:
        """Wait for the next signal; return whether it was one to stop."""
        await self._received.wait()
        self._received.clear()
        return self._stop


def _remove_stale_file(env_file: Path) -> None:
    """Remove the file of an earlier run: a program that waits for it must not find servers that are gone.

    Raises StackError for any other file, which may be the settings of a worker.
    """
    if not env_file.parent.is_dir():
        raise StackError(f"expected a folder for the environment file: {env_file.parent} does not exist")
    if env_file.exists() and not (env_file.is_file() and _is_empty_or_of_a_stack(env_file.read_bytes())):
        expected = "expected a new file, or one of an earlier stack"
        raise StackError(f"--env-file: {expected}, got another one: {env_file}; name a new one")
    env_file.unlink(missing_ok=True)


def _is_empty_or_of_a_stack(content: bytes) -> bool:
    return not content or any(line.startswith(OF_A_STACK) for line in content.splitlines())


def own_command(program: str) -> str:
    """Return the command by which a shell finds this program again, which was started as *program*."""
    name = Path(program).name
    if name != COMMAND:  # python -m simplu_worker
        return f"{shlex.quote(sys.executable)} -m simplu_worker"
    found = shutil.which(name)
    return name if found is not None and Path(found).samefile(program) else shlex.quote(program)


def _describe(stack: Stack, env_file: Path, console: Console) -> None:
    table = Table("service", "address", "process")
    for shard_id, server in stack.servers.items():
        table.add_row(shard_id, f"Postgres, {URL_HOST}:{server.port}/{server.database}", str(server.pid))
    table.add_row("Kinesis", stack.kinesis_url, "")
    table.add_row("SQS", stack.sqs_url, "")
    table.add_row("DynamoDB", stack.aws_url, "")
    table.add_row("Citrus", stack.citrus_url, str(os.getpid()))
    table.add_row("data, removed at the end", str(stack.group.directory), "")
    console.print(table)
    file = shlex.quote(str(env_file))
    command = own_command(sys.argv[0])
    console.print(
        f"all services answer; in another terminal:\n  {command} run --env-file {file}",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"to send operations: {command} operations send FILE --wait --env-file {file}\n"
        f"status page: http://{URL_HOST}:{stack.env['HTTP_PORT']}/ with the API_TOKEN of that file",
        markup=False,
        soft_wrap=True,
    )
    console.print("Ctrl-C stops the stack; SIGUSR1 restarts killed Postgres servers", soft_wrap=True)
