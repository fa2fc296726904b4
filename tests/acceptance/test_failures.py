"""A worker whose shards fail, and secrets and data that were planted before: others go on, and nothing is shown."""

from __future__ import annotations

import base64
import json
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

import pytest
import pytest_asyncio
from support.full_stack import Chain, FullStack, make_item, make_record, partition_key
from support.postgres.faults import frozen, killed

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import HOST, poll_until
from simplu_local.processes.worker_process import WorkerEndedError, WorkerProcess
from simplu_local.workload.workload import Tenant

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow(6)]

BYSTANDER_S = 5.0  # for what has nothing to do with a shard in trouble: as long as a connection to one is tried
BYSTANDER_TIMES = 10  # as long as without trouble, on a machine where that is more
PATIENCE_S = 30.0  # for what could not be while the trouble lasts if that were in its way
RECOVERY_S = 60.0  # backing off takes up to 5 s, and two tries may be needed; the rest is for a busy machine
SETTLED_S = 40.0
AWKWARD = 'p@ss/w:rd?#%&=+é\\"'  # what has another spelling in a URL, in JSON or in a query

Trouble = Callable[[PostgresServer], AbstractAsyncContextManager[object]]


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
    async with FullStack(env=PLANTED_ENV | {"LOG_LEVEL": "debug"}) as full_stack:
        yield Observer(full_stack)


async def test_worker_shows_no_secret_in_good_work(observer: Observer) -> None:
    full_stack = observer.full_stack
    password = planted("awkward", awkward=True)
    observer.hidden.add(password)
    shard = full_stack.stack.citrus.registry.shards["shard-2"]
    server = full_stack.servers[1]
    shard.connection_string = f"postgresql://postgres:{quote(password, safe='')}@{HOST}:{server.port}/{server.database}"
    chains = [Chain(tenant) for tenant in (*full_stack.steady, *await full_stack.take_fresh_tenants())]
    await full_stack.put(make_item(partition_key(0), b"not JSON"), *chains)
    await full_stack.wait_until_applied(*chains, within_s=SETTLED_S)
    await full_stack.wait_for_log_event("shard.repointed", within_s=SETTLED_S, shard_id="shard-2")
    await full_stack.wait_for_log_event("dead_letter.stored", within_s=SETTLED_S)
    await observer.sees_nothing()


@pytest.mark.parametrize("trouble", [killed, frozen])
async def test_worker_holds_one_shard_and_serves_the_others_when_it_is(observer: Observer, trouble: Trouble) -> None:
    full_stack = observer.full_stack
    victim, *others = full_stack.steady
    victims = [Chain(victim), Chain(victim)]
    bystanders = [Chain(tenant) for tenant in others]
    new = [Chain(tenant) for tenant in await full_stack.take_fresh_tenants()]  # whose shards have to be asked first
    limit_s = await bystander_limit_s(full_stack)
    async with trouble(full_stack.homes[victim.tenant_id]):
        await full_stack.put(*victims, *new[:1], *bystanders)
        await full_stack.wait_until_applied(*bystanders, within_s=limit_s)
        await full_stack.put(*bystanders, *new, *victims)
        await full_stack.wait_until_applied(*bystanders, *new[1:], within_s=limit_s)
        if trouble is not frozen:  # a server that does not even refuse is only given up after half a minute
            assert await poll_until(lambda: _is_lost(full_stack, "shard-1"), within_s=PATIENCE_S)
        assert await full_stack.is_ready()
    await full_stack.wait_until_applied(*victims, *new, within_s=RECOVERY_S)
    assert await poll_until(lambda: _is_well(full_stack, "shard-1"), within_s=PATIENCE_S)  # the answer is kept for 1 s
    await observer.sees_nothing()


async def bystander_limit_s(full_stack: FullStack) -> float:
    """Return how long operations may take that do not wait for trouble: on a busy machine all take longer."""
    begun = time.monotonic()
    chains = [Chain(tenant) for tenant in full_stack.steady]
    await full_stack.put(*chains)
    await full_stack.wait_until_applied(*chains, within_s=RECOVERY_S)
    return max(BYSTANDER_S, BYSTANDER_TIMES * (time.monotonic() - begun))


async def _is_lost(full_stack: FullStack, shard_id: str) -> bool:
    return not await _is_well(full_stack, shard_id)


async def _is_well(full_stack: FullStack, shard_id: str) -> bool:
    shards = (await full_stack.read_status())["shards"]
    return bool(next(shard["healthy"] for shard in shards if shard["shardId"] == shard_id))


async def in_log(worker: WorkerProcess, text: str) -> bool:
    return text in worker.log_path.read_text()


@asynccontextmanager
async def another_worker(full_stack: FullStack, folder: Path, **env: str) -> AsyncIterator[WorkerProcess]:
    """Run a worker with other settings in the place of the usual one, which is killed, and started at the end."""
    full_stack.worker.kill()
    log_path = folder / "worker.log"
    worker = WorkerProcess(full_stack.stack.group, full_stack.worker_env | env, number=2, log_path=log_path)
    worker.start()
    try:
        await worker.wait_ready()
        yield worker
    finally:
        worker.kill()
    full_stack.worker.start()
    await full_stack.worker.wait_ready()


@asynccontextmanager
async def batches_in_frost(full_stack: FullStack, worker: WorkerProcess) -> AsyncIterator[list[Chain]]:
    """Freeze a shard while *worker* holds both leases and has batches for the shard, for which its drain waits."""

    async def has_batches() -> bool:
        async with full_stack.http.get(f"{worker.url}/status", headers=worker.operator) as answer:
            return bool((await answer.json())["prefetch"]["usedBytes"])

    async def has_none() -> bool:
        return not await has_batches()

    chains = [Chain(full_stack.steady[0], key=partition_key(stream_shard)) for stream_shard in (0, 1)]
    await full_stack.put(*chains)
    await full_stack.wait_until_applied(*chains, within_s=RECOVERY_S)
    assert await poll_until(has_none, within_s=RECOVERY_S)
    async with frozen(full_stack.homes[chains[0].tenant.tenant_id]):
        await full_stack.put(*chains)
        assert await poll_until(has_batches, within_s=RECOVERY_S)
        yield chains


async def test_worker_drains_at_sigterm_though_a_shard_is_frozen(observer: Observer, tmp_path: Path) -> None:
    full_stack = observer.full_stack
    # A fifth of it is for giving the leases back, after the batches were waited for: enough on a busy machine.
    async with another_worker(full_stack, tmp_path, SHUTDOWN_GRACE_SECONDS="6") as worker:
        async with batches_in_frost(full_stack, worker) as chains:
            await worker.stop(within_s=RECOVERY_S)  # the exit status tells whether the drain was in time
        async with full_stack.stack.aws_client("dynamodb") as dynamodb:
            reply = await dynamodb.scan(TableName=full_stack.worker_env["KINESIS_APPLICATION_NAME"])
    leases = [row for row in reply["Items"] if row["leaseKey"]["S"].startswith("shardId-")]
    assert [row for row in leases if "leaseOwner" in row] == []
    assert any(row["checkpoint"]["S"].isdigit() for row in leases)
    events = [json.loads(line)["event"] for line in worker.log_path.read_text().splitlines()]
    assert [events.count(event) for event in ("worker.ready", "worker.draining", "worker.stopped")] == [1, 1, 1]
    assert events[-1] == "worker.stopped"
    await full_stack.wait_until_applied(*chains, within_s=RECOVERY_S)


async def test_worker_ends_at_once_when_it_gets_a_second_signal(observer: Observer, tmp_path: Path) -> None:
    full_stack = observer.full_stack
    async with (
        another_worker(full_stack, tmp_path, SHUTDOWN_GRACE_SECONDS="60") as worker,
        batches_in_frost(full_stack, worker),
    ):
        worker.send_signal(signal.SIGINT)
        assert await poll_until(lambda: in_log(worker, '"worker.draining"'), within_s=RECOVERY_S)
        worker.check_running()
        with pytest.raises(WorkerEndedError, match="got 1;"):  # the drain alone would take 48 s, and end with 0
            await worker.stop(within_s=20)


async def test_worker_shows_no_content_of_records_above_debug(observer: Observer, tmp_path: Path) -> None:
    async with another_worker(observer.full_stack, tmp_path, LOG_LEVEL="info") as worker:
        await shows_no_content(observer, worker)


async def shows_no_content(observer: Observer, worker: WorkerProcess) -> None:
    full_stack = observer.full_stack
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
    assert shown_in(evidence, [content]) == []
    await worker.stop(within_s=SETTLED_S)
    assert shown_in({"log": worker.log_path.read_text()}, [content, *observer.hidden]) == []
