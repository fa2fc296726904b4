from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from structlog.testing import capture_logs
from support.aws.endpoints import client_of
from support.aws.receiver_settings import receiver_settings
from support.network.tls_front import make_certificate
from support.reader_world import eventually

from simplu_local.sqs.server import SqsServer
from simplu_worker.aws.clients import Client
from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.order_handler import OrderHandler
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.consumers.sqs.receive.verdicts import Done, Verdict
from simplu_worker.operations.dead_letter import DeadLetter
from simplu_worker.status.guard import Guard
from simplu_worker.status.lookups import Lookups
from simplu_worker.status.queues import Monitoring
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.request_bodies import HttpAnswer
from simplu_worker.status.roles import LIST_VARIABLE, ListedToken, Tokens, decode_tokens
from simplu_worker.status.server import open_http
from simplu_worker.status.tls import ServerTls, WatchedFiles, own_client_context

QUEUE_NUMBERS = itertools.count(1)

pytestmark = [pytest.mark.usefixtures("aws_credentials"), pytest.mark.slow(0.5)]


class Desk:
    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.is_busy = asyncio.Event()

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        self.is_busy.set()
        await self.is_open.wait()
        return [Done() for _ in messages]


class NoLetters:
    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        raise AssertionError(letters)


class OneOrder:
    def is_pending(self, request_id: str, names: tuple[str, str] | None) -> bool:
        return request_id == "event-1" and names in {None, ("a", "b")}

    def stats(self) -> dict[str, int]:
        return {"shard-1": 1}


@dataclass
class Site:
    client: Client
    queue: Queue
    letters: Queue
    desk: Desk
    monitoring: Monitoring

    async def send(self, queue: Queue, count: int) -> None:
        for number in range(count):
            group = {"MessageGroupId": f"g{number}"} if queue.is_fifo else {}
            await self.client.send_message(QueueUrl=queue.url, MessageBody=f"{number}", **group)

    async def row_of(self, queue: Queue) -> dict[str, Any]:
        _, answer = await self.monitoring.sqs_stats()
        return next(dict(row) for row in answer["queues"] if row["name"] == queue.name)

    async def handled(self) -> dict[str, Any]:
        _, answer = await self.monitoring.handler_stats()
        (row,) = answer["handlers"]
        return dict(row)

    def has(self, expected: int, name: str) -> Callable[[], bool]:
        (receiver,) = self.monitoring.receivers.values()
        return lambda: receiver.stats()[name] == expected


async def new_queue(client: Client, *, is_fifo: bool = False, **attributes: str) -> Queue:
    fifo = {"FifoQueue": "true", "ContentBasedDeduplication": "true"} if is_fifo else {}
    name = f"watched-{next(QUEUE_NUMBERS)}" + (".fifo" if is_fifo else "")
    answer = await client.create_queue(QueueName=name, Attributes=attributes | fifo)
    return Queue(client, answer["QueueUrl"])


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    desk, stopping = Desk(), asyncio.Event()
    async with SqsServer().serve() as url, client_of("sqs", url) as client:
        letters = await new_queue(client)
        queue = await new_queue(client, is_fifo=True, VisibilityTimeout="40")
        receiver = QueueReceiver(queue, desk, NoLetters(), receiver_settings(poll_wait_s=1))
        orders = {queue.name: cast(OrderHandler, OneOrder())}
        monitoring = Monitoring({queue.name: receiver}, {queue.name: queue, letters.name: letters}, orders)
        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            tasks.create_task(receiver.run(stopping))
            yield Site(client, queue, letters, desk, monitoring)
            desk.is_open.set()
            stopping.set()


async def test_sqs_stats_shows_what_is_in_hand_of_a_queue(site: Site) -> None:
    await site.send(site.queue, 2)
    await eventually(site.has(2, "inHand"))
    row = await site.row_of(site.queue)
    assert (row["consumed"], row["isFifo"], row["state"]) == (True, True, "polling")
    assert (row["visible"], row["inFlight"], row["visibilityTimeoutSeconds"]) == (0, 2, 40)
    assert row["oldestInHandSeconds"] > 0


async def test_purge_empties_the_queue_that_is_named(site: Site) -> None:
    site.desk.is_open.set()
    other = await new_queue(site.client)
    cast(dict[str, Any], site.monitoring.queues)[other.name] = other
    await site.send(other, 3)
    await site.send(site.letters, 3)
    await site.letters.receive(wait_s=1, max_messages=1)
    with capture_logs() as logs:
        assert await site.monitoring.purge(site.letters.name) == (
            *(202, {"queue": site.letters.name, "emptyWithinSeconds": 60}),
        )
    status, answer = await site.monitoring.purge(site.letters.name)
    assert (status, answer["retryAfterSeconds"], "once in 60 s" in answer["error"]) == (429, 60, True)
    row = await site.row_of(site.letters)
    assert (row["visible"], row["inFlight"], (await site.row_of(other))["visible"]) == (0, 0, 3)
    purged = [(line["queue"], line["log_level"]) for line in logs if line["event"] == "queue.purged"]
    assert purged == [(site.letters.name, "warning")]


async def test_handler_stats_shows_queues_and_what_was_done(site: Site) -> None:
    await site.send(site.queue, 3)
    await site.desk.is_busy.wait()
    at_work = await site.handled()
    site.desk.is_open.set()
    await eventually(site.has(3, "handled"))
    await eventually(site.has(0, "inHand"))
    row = await site.handled()
    assert at_work["handling"] > 0
    assert (row["handled"], row["received"], row["inHand"], row["outcomes"]["retried"]) == (3, 3, 0, 0)
    assert (row["handlingSeconds"] > 0, row["outcomes"]["deleted"], row["onTheirWay"]) == (True, 3, {"shard-1": 1})
    assert {"lastTurnSeconds", "oldestInHandSeconds"} <= row.keys()
    _, answer = await site.monitoring.handler_stats()
    assert [queue["name"] for queue in answer["queues"]] == [site.queue.name, site.letters.name]
    assert {"retries", "operations", "deadLetters"} <= answer.keys()


async def test_operation_is_pending_while_an_order_handler_has_it(site: Site) -> None:
    lookups = Lookups(cast(Any, None), cast(Any, None), cast(Any, None), site.monitoring, fleet=None, runbook_url=None)
    asked = [("event-1", None), ("event-1", ("a", "b")), ("event-1", ("a", "c")), ("event-2", None)]
    assert [lookups._is_pending(*one) for one in asked] == [True, True, False, False]


OWN = "businessId=shop-1&locationId=berlin"
FOREIGN = "businessId=smile&locationId=berlin"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def listed(name: str, role: str) -> dict[str, Any]:
    tenants = [{"businessId": "shop-*", "locationId": "*"}] if role == "producer" else []
    return {"name": name, "role": role, "sha256": hashlib.sha256(name.encode()).hexdigest(), "tenants": tenants}


def write_tokens(path: Path, *tokens: dict[str, Any]) -> None:
    path.write_text(json.dumps({"tokens": tokens}))


class Replica(ReplicaStatus):
    number = 0

    @property
    def started(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        async def answer(*_: object) -> HttpAnswer:
            if name == "find_operation":
                return 200, {"requestId": "r", "status": "succeeded", "result": {"name": "Ana"}}
            return 503, {"error": "shard-1 at 10.0.0.1 does not answer"}

        return answer

    def status(self) -> dict[str, Any]:
        self.number += 1
        return {"number": self.number}


class Answers:
    def __init__(self, session: aiohttp.ClientSession, port: int, files: WatchedFiles[Any], path: Path) -> None:
        self.session = session
        self.files = files
        self.path = path
        self.port = port

    async def ask(self, path: str, token: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, headers=bearer(token)) as response:
            return response.status, await response.json()


def watch(path: Path) -> WatchedFiles[Sequence[ListedToken]]:
    return WatchedFiles((LIST_VARIABLE,), lambda: decode_tokens(path.read_bytes()))


@asynccontextmanager
async def serving(folder: Path, *tokens: dict[str, Any]) -> AsyncIterator[Answers]:
    path = folder / "tokens.json"
    write_tokens(path, *tokens)
    files = watch(path)
    known = Tokens(operator="own", listed=files)
    http = open_http(Guard(known, "127.0.0.1"), 0, Replica("r", asyncio.Event()))
    async with http as port, aiohttp.ClientSession() as session:
        yield Answers(session, port, files, path)


async def test_producer_sees_and_asks_its_tenants_alone(tmp_path: Path) -> None:
    async with serving(tmp_path, listed("shop", "producer")) as answers:
        status, found = await answers.ask(f"/operations/r?{OWN}", "shop")
        assert (status, found["result"]) == (200, {"name": "Ana"})
        status, answer = await answers.ask("/tenants/shop-2/hamburg", "shop")
        assert (status, "10.0.0.1" in str(answer)) == (503, False)
        for path in (f"/operations/r?{FOREIGN}", f"/operations?{FOREIGN}", "/tenants/smile/berlin"):
            status, answer = await answers.ask(path, "shop")
            assert (status, list(answer)) == (404, ["error"])
            assert await answers.ask(path.replace("smile", "nobody"), "shop") == (status, answer)
        for query in (
            *("", "businessId=shop-1", "locationId=berlin", "businessId=shop-1&locationId="),
            *(f"{OWN}&businessId=smile", f"businessId=smile&{OWN}", f"{OWN}&locationId=berlin"),
        ):
            for path in ("/operations/r", "/operations"):
                assert (await answers.ask(f"{path}?{query}", "shop"))[0] == 400


async def test_producer_may_call_nothing_else(tmp_path: Path) -> None:
    paths = ("/status", "/fleet", "/fleet/history", "/events", "/tap", "/shards", "/cache/keys", "/handler/status")
    posts = ("/held/retry", "/dead-letters/list", "/tenants/shop-1/berlin/pause")
    calls = [*(("GET", one) for one in paths), *(("POST", one) for one in posts), ("DELETE", "/sqs/purge")]
    async with serving(tmp_path, listed("shop", "producer")) as answers:
        for method, path in calls:
            status, answer = await answers.ask(path, "shop", method)
            assert (path, status, "producer" in answer["error"]) == (path, 403, True)


async def test_file_is_read_again_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, listed("ann", "operator"), listed("eve", "viewer")) as answers:
        assert (await answers.ask("/status", "ann"))[1]["role"] == "operator"
        with capture_logs() as logs:
            answers.path.write_text("{")
            answers.files.reread()
            assert (await answers.ask("/status", "eve"))[1]["role"] == "viewer"
            write_tokens(answers.path, listed("ann", "viewer"))
            answers.files.reread()
        assert [one["event"] for one in logs if one["event"].startswith("file.")] == ["file.refused", "file.reread"]
        assert (await answers.ask("/status", "ann"))[1]["role"] == "viewer"
        assert (await answers.ask("/status", "eve"))[0] == 401
        assert (await answers.ask("/status", "own"))[1]["role"] == "operator"


@pytest.mark.slow
async def test_stream_of_a_token_that_is_taken_away_ends(tmp_path: Path) -> None:
    async with serving(tmp_path, listed("eve", "viewer"), listed("bob", "viewer")) as answers:
        url = f"http://127.0.0.1:{answers.port}/events"
        async with (
            answers.session.get(url, headers=bearer("eve")) as of_eve,
            answers.session.get(url, headers=bearer("bob")) as of_bob,
        ):
            await of_eve.content.readline()
            await of_bob.content.readline()
            write_tokens(answers.path, listed("bob", "viewer"))
            answers.files.reread()
            async with asyncio.timeout(60):
                await of_eve.content.read()
            assert not of_bob.content.at_eof()
            while b"event" not in await of_bob.content.readline():
                pass


class TlsSite:
    def __init__(self, port: int, files: WatchedFiles[datetime], certificate: Path, key: Path) -> None:
        self.port = port
        self.files = files
        self.certificate = certificate
        self.key = key

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        return reader, writer, writer.get_extra_info("ssl_object").getpeercert(binary_form=True)

    async def probe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        line = await reader.readline()
        await reader.readuntil(b"\r\n\r\n{")
        await reader.readuntil(b"}")
        return line


@pytest.fixture
async def tls_site(tmp_path: Path) -> AsyncIterator[TlsSite]:
    certificate, key = make_certificate(tmp_path)
    tls = ServerTls(certificate, key)
    files = WatchedFiles(("HTTP_TLS_CERT_FILE", "HTTP_TLS_KEY_FILE"), tls.read)
    replica = ReplicaStatus("r", asyncio.Event())
    async with open_http(Guard(Tokens(), "127.0.0.1"), 0, replica, tls=tls.context) as port:
        yield TlsSite(port, files, certificate, key)


async def test_https_is_served_to_who_trusts_the_certificate(tls_site: TlsSite) -> None:
    by_name = ssl.create_default_context(cafile=tls_site.certificate)
    own = own_client_context(tls_site.certificate)
    async with aiohttp.ClientSession() as session:
        for host, context in (("localhost", by_name), ("127.0.0.1", own)):
            async with session.get(f"https://{host}:{tls_site.port}/livez", ssl=context) as response:
                assert response.status == HTTPStatus.OK
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"https://localhost:{tls_site.port}/livez")
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://127.0.0.1:{tls_site.port}/livez")


async def test_renewed_certificate_is_shown_to_new_connections(tls_site: TlsSite, tmp_path: Path) -> None:
    reader, writer, first = await tls_site.connect()
    other, other_key = make_certificate(tmp_path, "renewed")
    with capture_logs() as logs:
        shutil.copy(other, tls_site.certificate)
        tls_site.files.reread()
        _, half, shown = await tls_site.connect()
        assert shown == first
        shutil.copy(other_key, tls_site.key)
        tls_site.files.reread()
    assert [one["event"] for one in logs if one["event"].startswith("file.")] == ["file.refused", "file.reread"]
    _, renewed, shown = await tls_site.connect()
    assert shown == ssl.PEM_cert_to_DER_cert(other.read_text()) != first
    assert (await tls_site.probe(reader, writer)).startswith(b"HTTP/1.1 ")
    for one in (writer, half, renewed):
        one.close()
