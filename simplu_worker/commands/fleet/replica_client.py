"""Ask a running replica over HTTP, with the token of the settings."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import msgspec

from simplu_worker.config.settings import Settings
from simplu_worker.errors import ConfigurationError, PermanentError, RetryableError, WorkerError
from simplu_worker.network_errors import network_cause
from simplu_worker.status.tls import own_client_context, own_url
from simplu_worker.telemetry.log import scrub_text

CONNECT_WITHIN_S: Final = 5.0
ANSWER_WITHIN_S: Final = 65.0  # more than a replica takes for an answer
LISTENING: Final = aiohttp.ClientTimeout(sock_connect=CONNECT_WITHIN_S, sock_read=40)  # a comment comes every 15 s
CA_SETTING: Final = "SSL_CERT_FILE, or HTTP_TLS_CERT_FILE for a replica of this machine"


class ReplicaClient:
    """Requests to the replica at *url*. A redirect is refused: the token is for this address alone."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url.rstrip("/")

    async def ask(self, method: str, path: str, *, body: Any = None) -> dict[str, Any]:
        """Return the JSON of a successful answer. Raises WorkerError otherwise."""
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, self.url + path, data=data, allow_redirects=False) as response:
                text = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise RetryableError(f"{self.url}: {network_cause(exc, ca_setting=CA_SETTING)}") from None
        return self._parse(status, text)

    async def listen(self, path: str) -> AsyncGenerator[tuple[str, str, dict[str, Any]], None]:
        """Yield the events of a stream: the name, and the data as text and as JSON.

        Raises WorkerError for a refused request, and for a broken or silent connection.
        """
        rest = b""
        try:
            async with self._session.get(self.url + path, timeout=LISTENING, allow_redirects=False) as response:
                if response.status != HTTPStatus.OK:
                    self._parse(response.status, await response.read())
                async for part in response.content.iter_any():
                    *complete, rest = (rest + part).split(b"\n\n")
                    for event in complete:
                        head, _, data = event.partition(b"\ndata: ")
                        if data:  # no comment
                            name = head.removeprefix(b"event: ").decode()
                            yield name, data.decode(), msgspec.json.decode(data, type=dict[str, Any])
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise RetryableError(f"{self.url}: {network_cause(exc, ca_setting=CA_SETTING)}") from None
        except ValueError:
            raise RetryableError(f"{self.url}: expected events of a replica, got something else") from None

    def _parse(self, status: int, text: bytes) -> dict[str, Any]:
        try:
            answer = msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError):
            raise PermanentError(f"{self.url}: expected JSON of a replica, got HTTP status {status}") from None
        if status >= HTTPStatus.BAD_REQUEST:
            raise WorkerError(f"{self.url}: {scrub_text(str(answer.get('error', f'HTTP status {status}')))}")
        return answer


@asynccontextmanager
async def open_replica(settings: Settings, url: str | None, *, acts: bool = False) -> AsyncIterator[ReplicaClient]:
    """Open a client of the replica at *url*, else of that of this machine.

    Raises ConfigurationError without `API_TOKEN`, or to look (not *acts*) `API_VIEWER_TOKEN`.
    """
    token = settings.api_token or (None if acts else settings.api_viewer_token)
    if token is None:
        names = "API_TOKEN" if acts else "API_TOKEN or API_VIEWER_TOKEN"
        raise ConfigurationError(f"{names}: expected the token of the replicas, got nothing; set it")
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S, sock_connect=CONNECT_WITHIN_S)
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"}
    certificate, connector = settings.http_tls_cert_file, None
    if url is None and certificate is not None:
        try:
            connector = aiohttp.TCPConnector(ssl=own_client_context(certificate))
        except OSError as exc:
            raise ConfigurationError(f"HTTP_TLS_CERT_FILE: expected a certificate, got: {exc.strerror or exc}") from exc
    own = own_url(settings.http_host, settings.http_port, is_https=certificate is not None)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        yield ReplicaClient(session, url or own)
