from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs
from support.network.tls_front import make_certificate

from simplu_worker.status.guard import Guard
from simplu_worker.status.replica import ReplicaStatus
from simplu_worker.status.request_bodies import HttpAnswer
from simplu_worker.status.roles import LIST_VARIABLE, ListedToken, Tokens, decode_tokens
from simplu_worker.status.server import open_http
from simplu_worker.status.tls import ServerTls, WatchedFiles, own_client_context

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
