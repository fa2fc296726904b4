"""Planted secrets and planted data: through good work and every error path, none of them is ever shown."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

import pytest
import pytest_asyncio
from aiohttp import web
from support.full_stack import Chain, FullStack, make_item, make_record, partition_key

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST, free_port, poll_until
from simplu_local.processes.worker_process import INHERITED, WorkerProcess
from simplu_local.workload.workload import Tenant
from simplu_worker.network_errors import NO_SERVER

pytestmark = pytest.mark.slow(4)

in_module_loop = pytest.mark.asyncio(loop_scope="module")
HELD_S = 40.0
SETTLED_S = 40.0
PROCESS_S = 60.0  # far more than the start and end of a process take
AWKWARD = 'p@ss/w:rd?#%&=+é\\"'  # what has another spelling in a URL, in JSON or in a query
CONFIGURATION_ERROR = 78


def planted(name: str, *, awkward: bool = False) -> str:
    return f"{AWKWARD if awkward else ''}planted-{name}-{secrets.token_hex(8)}"


def spellings(secret: str) -> set[str]:
    """Return what *secret* looks like where it is shown: raw, percent-encoded and decoded, in JSON, in base64."""
    raw = {secret, unquote(secret)}
    shown = {encode(text) for text in raw for encode in (str, quote, quote_plus, lambda text: quote(text, safe=""))}
    shown |= {spell(text)[1:-1] for text in raw for spell in (repr, json.dumps)}
    return shown | {json.dumps(text, ensure_ascii=False)[1:-1] for text in raw} | set().union(*map(in_base64, raw))


def in_base64(text: str) -> set[str]:
    """Return what base64 makes of *text* within others, wherever it begins there: less the ends that depend on them."""
    parts = (base64.b64encode(b"\0" * before + text.encode()).decode() for before in range(3))
    middles = [part[(0, 2, 3)[before] :].rstrip("=")[:-1] for before, part in enumerate(parts)]
    return {*middles, *(middle.translate(str.maketrans("+/", "-_")) for middle in middles)}


def shown_in(evidence: dict[str, str], hidden: Iterable[str]) -> list[tuple[str, str]]:
    found = []
    for secret in hidden:
        for spelling in spellings(secret):
            for place, text in evidence.items():
                if (at := text.find(spelling)) >= 0:
                    found.append((place, text[max(0, at - 100) : at + len(spelling) + 20]))
    return found


PLANTED_ENV = {
    "AWS_SECRET_ACCESS_KEY": planted("aws-key"),
    "AWS_SESSION_TOKEN": planted("aws-token"),
    "API_TOKEN": planted("api-token"),
}


def processes() -> str:
    return subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout


class Observer:
    """Knows every secret that was planted, and collects all that can be seen from outside."""

    def __init__(self, full_stack: FullStack) -> None:
        self.full_stack = full_stack
        self.hidden = {*PLANTED_ENV.values(), full_stack.stack.citrus_api_key}
        self.hidden |= {server.password for server in full_stack.servers}
        self._letters: dict[str, str] = {}

    async def sees_nothing(self, worker: WorkerProcess | None = None) -> None:
        """Look everywhere; fail where a secret is shown."""
        worker = worker or self.full_stack.worker
        evidence = {"letters": await self._dead_letters(), "processes": processes()} | await self.shown_by(worker)
        assert "worker.started" in evidence["log"]
        assert "simplu_operations_total" in evidence["/metrics"]
        assert shown_in(evidence, self.hidden) == []

    async def shown_by(self, worker: WorkerProcess) -> dict[str, str]:
        """Return what *worker* shows, by place: its output, and its pages with the token and with a wrong one."""
        tenant = self.full_stack.steady[0]
        headers = {"Authorization": f"Bearer {PLANTED_ENV['API_TOKEN']}"}
        paths = ("/", "/livez", "/readyz", "/metrics", "/status", "/shards", "/operations/chain-1-0", "/nowhere")
        pages: dict[str, str] = {}
        for path in (*paths, f"/tenants/{tenant.business_id}/{tenant.location_id}"):
            for given in (headers, {"Authorization": "Bearer another"}):
                async with self.full_stack.http.get(f"{worker.url}{path}", headers=given) as answer:
                    page = f"{answer.status} {dict(answer.headers)} {await answer.text()}"
                    pages[path] = pages.get(path, "") + page
        return pages | {"log": worker.log_path.read_text()}

    async def _dead_letters(self) -> str:
        url = self.full_stack.stack.env["SQS_DEAD_LETTER_QUEUE_URL"]
        while messages := (
            await self.full_stack.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=600)
        ).get("Messages"):
            self._letters |= {message["MessageId"]: json.dumps(message) for message in messages}
        return "\n".join(self._letters.values())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def observer() -> AsyncIterator[Observer]:
    async with FullStack(env=PLANTED_ENV | {"LOG_LEVEL": "debug", "DATABASE_ALLOWED_HOSTS": ""}) as full_stack:
        yield Observer(full_stack)


def connection_string(server: PostgresServer, password: str, *, port: int | None = None) -> str:
    return f"postgresql://postgres:{quote(password, safe='')}@{HOST}:{port or server.port}/{server.database}"


async def held(observer: Observer, tenant: Tenant, *, since: int) -> None:
    """Send operations of *tenant* and wait until the worker says that they are held."""
    await observer.full_stack.put(Chain(tenant))
    business_id = tenant.business_id
    await observer.full_stack.wait_for_log_event("tenant.held", since=since, within_s=HELD_S, business_id=business_id)


@in_module_loop
async def test_worker_shows_no_secret_in_good_work(observer: Observer) -> None:
    full_stack = observer.full_stack
    password = planted("awkward", awkward=True)
    observer.hidden.add(password)
    shard = full_stack.stack.citrus.registry.shards["shard-2"]
    shard.connection_string = connection_string(full_stack.servers[1], password)
    chains = [Chain(tenant) for tenant in (*full_stack.steady, *await full_stack.take_fresh_tenants())]
    await full_stack.put(make_item(partition_key(0), b"not JSON"), *chains)
    await full_stack.wait_until_applied(*chains, within_s=SETTLED_S)
    await full_stack.wait_for_log_event("shard.repointed", since=0, within_s=HELD_S, shard_id="shard-2")
    await full_stack.wait_for_log_event("dead_letter.stored", since=0, within_s=SETTLED_S)
    await observer.sees_nothing()


def quoting(kind: str, status: int) -> Callable[[web.Request, str], web.Response]:
    """Return what answers with all that it was told, as pages that help with debugging do."""

    def answer(request: web.Request, url: str) -> web.Response:
        quoted = f"{dict(request.headers)} {request.raw_path} {url}"
        return web.Response(text=f"<pre>{quoted}</pre>", content_type=kind, status=status, reason=quoted[:200])

    return answer


def naming(make: Callable[[str], Any]) -> Callable[[web.Request, str], web.Response]:
    return lambda _, url: web.json_response(make(url))


def reply(url: str) -> dict[str, Any]:
    return {"shardId": "shard-9", "connectionString": url, "isActive": True}


LIES = {
    "html": quoting("text/html", 200),
    "html 500": quoting("text/html", 500),
    "numbers": naming(lambda url: reply(url) | {"shardId": 9}),
    "a host twice": naming(lambda url: reply(url.replace("@", "@@"))),
    "not encoded": naming(lambda url: reply(unquote(url))),
    "options": naming(lambda url: reply(f"{url}?password={url.split(':')[2].split('@')[0]}")),
    "libpq": naming(lambda url: reply(f"host=127.0.0.1 user=postgres password='{unquote(url)}' dbname=x")),
}


@in_module_loop
async def test_worker_shows_no_secret_when_citrus_quotes_it_back(observer: Observer) -> None:
    full_stack = observer.full_stack
    password = planted("quoted", awkward=True)
    observer.hidden.add(password)
    url = connection_string(full_stack.servers[0], password)
    since = full_stack.log_end
    tenants = {name: full_stack.new_tenant() for name in LIES}
    await full_stack.register(list(tenants.values()))
    await full_stack.wait_until_provisioned(tenants.values(), within_s=SETTLED_S)
    lies = {tenant.tenant_id: LIES[name] for name, tenant in tenants.items()}

    def lie(request: web.Request) -> web.Response | None:
        told = lies.get(request.path.rpartition("/")[2])
        return told(request, url) if told else None

    with full_stack.citrus.lying(lie):
        for tenant in tenants.values():
            await held(observer, tenant, since=since)
        await observer.sees_nothing()
    await observer.sees_nothing()


@in_module_loop
async def test_worker_shows_no_secret_when_a_shard_is_unreachable(observer: Observer) -> None:
    full_stack, server = observer.full_stack, observer.full_stack.servers[2]
    since = full_stack.log_end
    tenants = [(await full_stack.take_fresh_tenants())[2] for _ in range(2)]
    passwords = [planted("wrong", awkward=True), planted("unreachable", awkward=True)]
    observer.hidden |= set(passwords)
    with asking_for_passwords(full_stack, server):
        for tenant, password, port in zip(tenants, passwords, (server.port, free_port()), strict=True):
            url = f"postgresql://postgres:{quote(password, safe='')}@{HOST}:{port}/{server.database}"
            # Of a shard that nobody knows yet: one that works is not left for an address at which it is not found.
            registry = full_stack.stack.citrus.registry
            registry.place(tenant.tenant_id, registry.add_shard(f"shard-at-{port}", url))
            await held(observer, tenant, since=since)
            await observer.sees_nothing()
            del registry.shards[f"shard-at-{port}"]
    log = full_stack.worker.log_path.read_text()
    assert "28P01" in log
    assert NO_SERVER in log


@contextlib.contextmanager
def asking_for_passwords(full_stack: FullStack, server: PostgresServer) -> Iterator[None]:
    """Have *server* ask new connections for passwords; otherwise it trusts everybody."""
    access = full_stack.stack.group.directory / server.database / "data" / "pg_hba.conf"
    trusting = access.read_text()
    try:
        _set_access(server, access, re.sub(r"\btrust$", "scram-sha-256", trusting, flags=re.MULTILINE))
        yield
    finally:
        _set_access(server, access, trusting)


def _set_access(server: PostgresServer, access: Path, text: str) -> None:
    access.write_text(text)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGHUP)


async def in_log(worker: WorkerProcess, text: str) -> bool:
    return text in worker.log_path.read_text()


@in_module_loop
async def test_worker_shows_no_content_of_records_above_debug(observer: Observer, tmp_path: Path) -> None:
    full_stack = observer.full_stack
    full_stack.worker.kill()
    worker = WorkerProcess(
        full_stack.stack.group,
        full_stack.worker_env | {"LOG_LEVEL": "info"},
        number=2,
        log_path=tmp_path / "worker.log",
    )
    worker.start()
    await worker.wait_ready()
    content, tenant, run = planted("content"), full_stack.steady[0], Chain(full_stack.steady[0]).resource_id
    data = {"note": content, content: [content]}

    def record(operation: str, request_id: str | None = None, *, of: Tenant = tenant, **members: Any) -> bytes:
        return json.dumps(
            make_record(of, operation, request_id, **{"resourceId": run, "data": data} | members)
        ).encode()

    def bad(**members: Any) -> bytes:
        return record(members.pop("operation", "create"), of=full_stack.new_tenant(), **members)

    fine = [
        record("create"),
        record("create"),  # already_exists
        record("patch"),
        record("read"),
        record("list", filters={content: content, "note": content}),
        record("list", filters={"date": content}),  # invalid_query
        record("create", resourceId=f"{run}-nul", data=data | {"nul": f"{content}\0"}),
        record("create", resourceId=f"{run}-big", data=data | {"big": 1}).replace(b'"big": 1', b'"big": 1e999999'),
        record("create", f"{run}-reused", resourceId=f"{run}-reused"),
        record("create", of=full_stack.new_tenant()),  # held
    ]
    buried = [
        record("create", f"{run}-reused", resourceId=f"{run}-reused", data=data | {"another": 1}),
        bad(operation="list", filters=[content]),
        bad(operation="list", pagination={"page": content}),
        bad(data=[content]),
        bad(data=content),
        bad(resourceId=[content]),
        bad(timestamp=content),
        bad(requestId={content: content}),
        content.encode(),
        f'{{"data": "{content}'.encode(),
        f'{{"data": "{content}\ud800"}}'.encode(errors="surrogatepass"),
    ]
    key = partition_key(1)
    positions = await full_stack.put(*(make_item(key, one) for one in (*fine, *buried)))
    end = Chain(tenant, key=key)
    await full_stack.put(end)
    await full_stack.wait_until_applied(end, within_s=SETTLED_S)
    await full_stack.wait_for_dead_letters(positions[len(fine) :], within_s=SETTLED_S)
    assert await poll_until(lambda: in_log(worker, "tenant.held"), within_s=SETTLED_S)
    evidence = await observer.shown_by(worker)
    assert "operation.refused" in evidence["log"]
    assert shown_in(evidence, [content]) == []
    await worker.stop(within_s=SETTLED_S)
    assert shown_in({"log": worker.log_path.read_text()}, [content, *observer.hidden]) == []
    full_stack.worker.start()
    await full_stack.worker.wait_ready()


# Configuration that cannot work


def refused_run(*arguments: str, **env: str) -> str:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    queue = "http://127.0.0.1:9/123456789012/dead-letters"
    base = {"AWS_REGION": "us-east-1", "KINESIS_STREAM_NAME": "stream", "SQS_DEAD_LETTER_QUEUE_URL": queue}
    argv = [sys.executable, "-m", "simplu_worker", "run", *arguments]
    ended = subprocess.run(
        argv, env=inherited | base | env, capture_output=True, text=True, timeout=PROCESS_S, check=False
    )
    assert ended.returncode == CONFIGURATION_ERROR, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_settings_show_no_secret_when_every_variable_is_wrong(tmp_path: Path) -> None:
    names = ("key", "token", "url", "queue", "host", "password", "aws")
    secret = {name: planted(name) for name in names}
    file = tmp_path / "secret"
    file.write_text(secret["password"])
    shown = refused_run(
        CITRUS_API_KEY=f"{secret['key']} and more",
        API_TOKEN=f"{secret['token']}\nand more",
        CITRUS_SERVER_URL=f"http://user:{secret['url']}@citrus.example",
        SQS_SHARD_CREATION_QUEUE_URL=f"https://user:{secret['queue']}@sqs.example/1/queue",
        DATABASE_HOST=f"user:{secret['host']}@database.example",
        DATABASE_PASSWORD=secret["password"],
        DATABASE_PASSWORD_FILE=str(file),
        AWS_SECRET_ACCESS_KEY=secret["aws"],
        AWS_SECRET_ACCESS_KEY_FILE=str(tmp_path / "missing"),
    )
    for name in ("CITRUS_API_KEY", "API_TOKEN", "CITRUS_SERVER_URL", "DATABASE_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        assert f"{name}:" in shown
    assert shown_in({"output": shown}, secret.values()) == []
