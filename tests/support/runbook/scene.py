"""The place where one page of docs/runbook/ is carried out: its shards, its worker, its folder and its tenants.

A page has names for servers, as `db-1:5432`, and for resources of AWS. The scene puts the true ones in their place
before a command runs, and the names of the page into the output.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import secrets
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import asyncpg
from dotenv import dotenv_values
from support.postgres.databases import execute
from support.postgres.standby import CopiedServer, StandbyServer
from support.rows import fetch
from support.runbook.page import Step, first_missing_line
from support.runbook.world import World
from support.settings import settings_in
from support.streams import wait_until_active

from simplu_local.aws_server.account import ACCOUNT_ID
from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST, free_port, poll_until
from simplu_local.processes.worker_process import WorkerProcess, log_tail
from simplu_local.stack.aws import aws_client
from simplu_worker.assembly.shards import open_shards
from simplu_worker.shards.types import ProvisionRequest

FOLDER: Final = "/etc/simplu-worker"  # of the pages
STREAM: Final = "resources-operations"
QUEUES: Final = "https://sqs.eu-central-1.amazonaws.com/000000000000"
DEAD_LETTERS: Final = "simplu-worker-dead-letters"
LEASES: Final = "KINESIS_APPLICATION_NAME=simplu-worker"  # the name alone is that of the command too
DATABASE: Final = "shard"
RETENTION_H: Final = 168  # of the stream, in the page on the first deployment
COMMAND_S: Final = 120.0
REPEAT_S: Final = 120.0
PAUSE_S: Final = 0.3
STOP_S: Final = 60.0
TENANTS: Final = {("smile", "berlin", "dental"): "db-1", ("fit", "oslo", "gym"): "db-2"}
ROLE_SQL: Final = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'worker') THEN
        CREATE ROLE worker LOGIN;
    END IF;
END $$;
GRANT pg_monitor TO worker;
ALTER DATABASE shard OWNER TO worker;
"""
# The rules of the server, which otherwise trusts everybody on this machine, for this role only.
PASSWORDS_SQL: Final = """
ALTER ROLE worker PASSWORD 'old';
DO $$ BEGIN
    EXECUTE format(
        'COPY (SELECT %L UNION ALL SELECT %L) TO %L', 'host all worker 127.0.0.1/32 scram-sha-256',
        'host all all 127.0.0.1/32 trust', current_setting('hba_file')
    );
END $$;
SELECT pg_reload_conf();
"""


@dataclass(frozen=True, slots=True)
class Sent:
    """An operation that a shard has to have in the end, once."""

    tenant_id: str
    request_id: str


class Scene:
    """One page's world. *names* are the page's names with the true ones; longer names come first."""

    def __init__(self, world: World, page: str) -> None:
        self.world = world
        self.folder = world.group.directory / page
        self.servers: dict[str, PostgresServer] = {}  # by the page's name of the host
        self.backups: dict[str, CopiedServer] = {}  # by the server's
        self.names: dict[str, str] = {}
        self.sent: list[Sent] = []
        self._ends: dict[str, str] = {}  # the sequence numbers of the last records, by stream shard
        self.output: list[str] = []
        self.worker: WorkerProcess | None = None
        self._page = page
        self._numbers = itertools.count(1)
        self.stream = f"operations-{page}"
        self.lease_table = f"leases-{page}"
        self._port = free_port()
        self.shell = world.shell | {"HTTP_HOST": HOST, "HTTP_PORT": str(self._port)}

    async def __aenter__(self) -> Self:
        self.folder.mkdir()
        queue = f"dead-letters-{self._page}"
        self.names = {
            FOLDER: str(self.folder),
            f"{QUEUES}/{DEAD_LETTERS}": f"{self.world.sqs_url}/{ACCOUNT_ID}/{queue}",
            QUEUES: f"{self.world.sqs_url}/{ACCOUNT_ID}",
            DEAD_LETTERS: queue,
            STREAM: self.stream,
            LEASES: f"KINESIS_APPLICATION_NAME={self.lease_table}",
            "localhost:8080": f"{HOST}:{self._port}",
        }
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.worker is not None:
            if error is not None:
                print(log_tail(self.worker.log_path))  # noqa: T201  (only a failure shows it)
            self.worker.kill()
        for server in (*self.servers.values(), *self.backups.values()):
            await server.discard()

    # The world before the page's first step

    async def add_server(self, host: str, *, database: str = DATABASE) -> PostgresServer:
        server = PostgresServer(self.world.group, self.world.programs, database=database, name=f"{self._page}-{host}")
        await server.start()
        self._add(host, server)
        return server

    async def add_standby(self, host: str, primary: str) -> StandbyServer:
        group, programs = self.world.group, self.world.programs
        standby = StandbyServer(group, programs, self.servers[primary], name=f"{self._page}-{host}")
        await standby.start()
        await standby.wait_streaming()
        self._add(host, standby)
        return standby

    def _add(self, host: str, server: PostgresServer) -> None:
        self.servers[host] = server
        self.names[f"{host}:5432"] = f"{HOST}:{server.port}"

    async def back_up(self, host: str) -> None:
        backup = CopiedServer(
            self.world.group, self.world.programs, self.servers[host], name=f"{self._page}-{host}-backup"
        )
        await backup.start()
        await backup.stop()
        self.backups[host] = backup

    async def restore(self, host: str, new_host: str) -> None:
        backup = self.backups.pop(host)
        await backup.start()
        self._add(new_host, backup)

    async def require_passwords(self, host: str) -> None:
        await execute(self.servers[host].url, PASSWORDS_SQL)

    async def make_role(self, host: str) -> None:
        await execute(self.servers[host].url, ROLE_SQL)

    async def deploy(self, *hosts: str, options: str = "") -> None:
        """Make the fleet of `TENANTS` as the page on the first deployment does: shards on *hosts*, files, a worker.

        *options* end the connection strings of the map.
        """
        for host in hosts:
            if host not in self.servers:
                await self.add_server(host)
            await self.make_role(host)
        self._write_map(hosts, options)
        token = secrets.token_urlsafe(18)
        variables = {
            "KINESIS_STREAM_NAME": STREAM,
            "KINESIS_APPLICATION_NAME": "simplu-worker",
            "KINESIS_LEASE_DURATION_SECONDS": "3",
            "SQS_DEAD_LETTER_QUEUE_URL": f"{QUEUES}/{DEAD_LETTERS}",
            "SHARD_MAP_FILE": f"{FOLDER}/shards.json",
            "API_TOKEN": token,
        }
        self.write("worker.env", "".join(f"{name}={value}\n" for name, value in variables.items()))
        self.write("api-header", f"Authorization: Bearer {token}\n")
        await self._create_aws()
        await self.start_worker()
        for business, location, business_type in TENANTS:
            await self._provision(business, location, business_type)
            await self.send(f"{business}-{location}", 3)

    def _write_map(self, hosts: Sequence[str], options: str) -> None:
        shards = [
            {"shardId": host, "connectionString": f"postgresql://worker@{host}:5432/{DATABASE}{options}"}
            for host in hosts
        ]
        pins = {f"{business}-{location}": host for (business, location, _), host in TENANTS.items()}
        self.write("shards.json", json.dumps({"shards": shards, "tenants": pins}, indent=2) + "\n")

    def replace(self, name: str, pattern: str, text: str) -> None:
        path = self.folder / name
        path.write_text(re.sub(f"(?m)^{pattern}$", self.true_text(text), path.read_text(encoding="utf-8")))

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(self.true_text(text), encoding="utf-8")

    async def _create_aws(self) -> None:
        urls = {"kinesis": "AWS_ENDPOINT_URL_KINESIS", "sqs": "AWS_ENDPOINT_URL_SQS"}
        async with aws_client("kinesis", self.shell[urls["kinesis"]]) as kinesis:
            await kinesis.create_stream(StreamName=self.stream, ShardCount=2)
            await wait_until_active(kinesis, self.stream)
            await kinesis.increase_stream_retention_period(StreamName=self.stream, RetentionPeriodHours=RETENTION_H)
        async with aws_client("sqs", self.shell[urls["sqs"]]) as sqs:
            await sqs.create_queue(QueueName=self.names[DEAD_LETTERS])

    @property
    def environment(self) -> dict[str, str]:
        variables = {name: value or "" for name, value in dotenv_values(self.folder / "worker.env").items()}
        own = {name: value for name, value in self.shell.items() if name.startswith(("AWS_", "DYNAMODB_", "HTTP_"))}
        return variables | own

    async def start_worker(self) -> None:
        log_path = self.folder / "worker.log"
        self.worker = WorkerProcess(self.world.group, self.environment, log_path=log_path)
        self.worker.start()
        await self.worker.wait_ready()

    async def stop_worker(self) -> None:
        assert self.worker is not None
        await self.worker.stop(within_s=STOP_S)

    async def reload_worker(self) -> None:
        assert self.worker is not None
        self.worker.send_signal(signal.SIGHUP)

    async def _provision(self, business: str, location: str, business_type: str) -> None:
        settings = settings_in(self.environment)
        async with open_shards(settings) as shards:
            request = ProvisionRequest(business, location, business_type, requested_at=datetime.now(UTC))
            await shards.provisioner.provision(request)

    async def send(self, tenant_id: str, count: int) -> list[dict[str, Any]]:
        """Put *count* operations of a tenant on the stream, and return them; in the end its shard has to have each."""
        business, location = tenant_id.split("-")
        records: list[dict[str, Any]] = []
        for number in itertools.islice(self._numbers, count):
            members = {"businessId": business, "locationId": location, "resourceType": "notes"}
            members |= {"operation": "create", "resourceId": f"n{number}", "requestId": f"r{number}"}
            records.append(members | {"timestamp": "2026-01-31T09:00:00Z", "data": {"number": number}})
            self.sent.append(Sent(tenant_id, f"r{number}"))
        await self.put(*records)
        return records

    async def put(self, *records: Mapping[str, Any]) -> None:
        key = "-".join(str(records[0][name]) for name in ("businessId", "locationId"))
        entries = [{"Data": json.dumps(record).encode(), "PartitionKey": key} for record in records]
        async with aws_client("kinesis", self.shell["AWS_ENDPOINT_URL_KINESIS"]) as kinesis:
            answer = await kinesis.put_records(StreamName=self.stream, Records=entries)
        assert not answer["FailedRecordCount"]
        self._ends |= {one["ShardId"]: one["SequenceNumber"] for one in answer["Records"]}

    async def wait_for_log(self, event: str) -> None:
        async def is_logged() -> bool:
            return f'"event": "{event}"' in self.read_log()

        assert await poll_until(is_logged, within_s=COMMAND_S), f"expected {event} in the log"

    def read_log(self) -> str:
        assert self.worker is not None
        return self.worker.log_path.read_text(encoding="utf-8")

    async def wait_until_applied(self) -> None:
        """Wait until the shards of the map have every operation that was sent, each on one of them and once."""
        missing: list[Sent] = []

        async def are_applied() -> bool:
            applied = [one for url in self._shard_urls() for one in await read_log(url)]
            missing[:] = [one for one in self.sent if applied.count(one) != 1]
            return not missing

        assert await poll_until(are_applied, within_s=COMMAND_S), f"not applied once: {missing}"

    async def wait_for_checkpoints(self) -> None:
        """Wait until the leases have the last records that were put: renewals write checkpoints every few seconds."""
        async with aws_client("dynamodb", self.shell["DYNAMODB_ENDPOINT"]) as dynamodb:

            async def are_written() -> bool:
                rows = await dynamodb.scan(TableName=self.lease_table, ConsistentRead=True)
                checkpoints = {row["leaseKey"]["S"]: row["checkpoint"]["S"] for row in rows["Items"]}
                return self._ends.items() <= checkpoints.items()

            assert await poll_until(are_written, within_s=COMMAND_S), f"expected checkpoints {self._ends}"

    def _shard_urls(self) -> list[str]:
        shards = json.loads((self.folder / "shards.json").read_text(encoding="utf-8"))["shards"]
        places = [shard["connectionString"].partition("@")[2] for shard in shards]
        return [f"postgresql://postgres@{place.partition('?')[0]}" for place in places]

    # The page's steps

    async def run(self, step: Step) -> None:
        """Run the commands of a step; compare their exit status and their output with those of the page."""
        deadline = asyncio.get_running_loop().time() + (REPEAT_S if step.kind == "repeat" else 0.0)
        while True:
            status, output = await self.run_lines(step.text)
            missing = first_missing_line(step.expected, output)
            if status == step.status and missing is None:
                self.output.append(output)
                return
            if asyncio.get_running_loop().time() >= deadline:
                problem = f"ended with {status}, expected {step.status}" if missing is None else f"no line {missing!r}"
                raise AssertionError(f"{problem}:\n$ {step.text}\n{output}")
            await asyncio.sleep(PAUSE_S)

    async def run_lines(self, text: str) -> tuple[int, str]:
        """Run lines as a step does; return exit status and output."""
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-euc",
            self.true_text(text),
            cwd=self.folder,
            env=self.shell,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(COMMAND_S):
            out, _ = await process.communicate()
        return process.returncode or 0, self.page_text(out.decode())

    def true_text(self, text: str) -> str:
        for name in sorted(self.names, key=len, reverse=True):
            text = text.replace(name, self.names[name])
        return text

    def page_text(self, text: str) -> str:
        for name in sorted(self.names, key=lambda name: len(self.names[name]), reverse=True):
            text = text.replace(self.names[name], name)
        return text


async def read_log(url: str) -> list[Sent]:
    """Return the operations that a shard has applied; none where no tenant was created yet."""
    try:
        query = "SELECT tenant_id, request_id FROM operations WHERE status = 'succeeded'"
        return [Sent(*row) for row in await fetch(url, query)]
    except asyncpg.UndefinedTableError:
        return []
