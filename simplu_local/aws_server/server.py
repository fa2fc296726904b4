"""The HTTP side of a local AWS service: API requests in AWS JSON, faults on demand, and the control path.

`GET /_control` shows the state, and `POST /_control` takes a command or a list of them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Generic, NamedTuple

import msgspec
import structlog
from aiohttp import ClientSession, web

from simplu_local.aws_server.errors import AwsError
from simplu_local.aws_server.faults import AdvanceClock, ClearFaults, FaultQueue, FaultT, SetOptions, change_options
from simplu_local.processes.http_serving import serve_on_loopback

log = structlog.get_logger(__name__)

CONTROL_PATH = "/_control"


class Encoding(NamedTuple):
    """Another encoding than JSON. *to_json* raises AwsError for a request that is not in it."""

    content_type: str
    to_json: Callable[[bytes], bytes]
    from_json: Callable[[bytes], bytes]


class AwsServer(ABC, Generic[FaultT]):
    """One account of a service over HTTP; a subclass answers the requests of the service's API."""

    CONTENT_TYPE: ClassVar[str]
    ENCODINGS: ClassVar[Mapping[str, Encoding]] = {}  # by content type: those that the service speaks beside JSON
    TARGET_PREFIX: ClassVar[str]
    API_PATH: ClassVar[str]
    MAX_BODY_BYTES: ClassVar[int]
    COMMANDS: ClassVar[msgspec.json.Decoder[Any]]

    def __init__(self, options: msgspec.Struct) -> None:
        self._options = options
        self._faults = FaultQueue[FaultT]()
        self._faults_cleared = asyncio.Event()
        self._calls: Counter[str] = Counter()
        self._ahead_ms = 0
        self._last_ms = 0

    @abstractmethod
    def decode(self, action: str, body: bytes) -> Any:
        """Return the request in *body*. Raises AwsError."""

    @abstractmethod
    def fault_target(self, request: Any) -> str | None:
        """Return the stream shard or queue of *request* that a fault may name."""

    @abstractmethod
    async def answer(self, action: str, request: Any) -> bytes:
        """Do *request* and return the body of the answer. Raises AwsError."""

    @abstractmethod
    async def answer_with_fault(self, fault: FaultT, action: str, request: Any, http_request: web.Request) -> bytes:
        """Do *request* with *fault*. Raises AwsError."""

    async def answer_in_parts(
        self,
        request: Any,  # noqa: ARG002 - of subclasses
        http_request: web.Request,  # noqa: ARG002
        encoding: Encoding | None,  # noqa: ARG002
        fault: FaultT | None,  # noqa: ARG002
    ) -> web.StreamResponse | None:
        """Do a *request* of which the answer is sent in parts; return none for every other. Raises AwsError."""
        return None

    @abstractmethod
    def run_command(self, command: Any) -> None:
        """Do one command of the control path. Raises AwsError when the resource that it names does not exist."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state that the control path shows."""

    def now_ms(self) -> int:
        """Return the server's time, which never goes backwards."""
        self._last_ms = max(self._last_ms, time.time_ns() // 1_000_000 + self._ahead_ms)
        return self._last_ms

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[str]:
        """Serve on *port* of loopback (0: a free one); yields the endpoint URL."""
        application = web.Application(client_max_size=self.MAX_BODY_BYTES)
        application.router.add_get(CONTROL_PATH, self._show_state)
        application.router.add_post(CONTROL_PATH, self._run_commands)
        application.router.add_post(self.API_PATH, self._answer_http)
        # A call that hangs or waits must not outlive its client.
        async with serve_on_loopback(application, port, handler_cancellation=True) as url:
            yield url

    def _run_common_command(self, command: FaultT | ClearFaults | AdvanceClock | SetOptions) -> None:
        match command:
            case ClearFaults():
                self._faults.clear()
                self._faults_cleared.set()
                self._faults_cleared = asyncio.Event()
            case AdvanceClock(ms):
                self._ahead_ms += ms
            case SetOptions(options):
                change_options(self._options, options)
            case _:
                self._faults.add(command)

    def _common_state(self) -> dict[str, Any]:
        return {
            "now_ms": self.now_ms(),
            "options": msgspec.to_builtins(self._options),
            "calls": dict(self._calls),
            "faults": msgspec.to_builtins(self._faults.pending),
            "struck": dict(self._faults.struck),
        }

    async def _inject(self, fault: FaultT, http_request: web.Request) -> None:
        """Make the call hang, be late, fail or lose its connection, as *fault* demands."""
        if error := fault.error():
            raise error
        match fault.kind:
            case "hang":
                await self._faults_cleared.wait()
            case "delay":
                await asyncio.sleep(fault.delay_ms / 1000)
            case "cut":
                if http_request.transport is not None:
                    http_request.transport.abort()
                raise AwsError("InternalFailure", "the connection is cut: no client receives this", status=500)

    async def _answer_http(self, http_request: web.Request) -> web.StreamResponse:
        action = http_request.headers.get("X-Amz-Target", "").removeprefix(self.TARGET_PREFIX)
        encoding = self.ENCODINGS.get(http_request.content_type)
        body = await http_request.read()
        try:
            request = self.decode(action, body if encoding is None else encoding.to_json(body))
            self._calls[action] += 1
            fault = self._faults.take(action, self.fault_target(request))
            parts = await self.answer_in_parts(request, http_request, encoding, fault)
            if parts is not None:
                return parts
            if fault is None:
                return self._response(await self.answer(action, request), encoding)
            return self._response(await self.answer_with_fault(fault, action, request, http_request), encoding)
        except AwsError as exc:
            body = msgspec.json.encode({"__type": exc.type_name, "message": exc.message})
            return self._response(body, encoding, status=exc.status, headers=exc.headers)

    def _response(
        self, body: bytes, encoding: Encoding | None, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> web.Response:
        """Return an answer in the encoding of its request; none: JSON."""
        all_headers = {"x-amzn-RequestId": str(uuid.uuid4())} | dict(headers or {})
        if encoding is None:
            return web.Response(body=body, status=status, headers=all_headers, content_type=self.CONTENT_TYPE)
        encoded = encoding.from_json(body)
        return web.Response(body=encoded, status=status, headers=all_headers, content_type=encoding.content_type)

    async def _show_state(self, _http_request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self.state()), content_type="application/json")

    async def _run_commands(self, http_request: web.Request) -> web.Response:
        try:
            commands = self.COMMANDS.decode(await http_request.read())
            for command in commands if isinstance(commands, list) else [commands]:
                self.run_command(command)
        except (msgspec.DecodeError, AwsError) as exc:
            log.warning("command.refused", error=str(exc))
            return web.json_response({"error": str(exc)}, status=400)
        return await self._show_state(http_request)


async def send_commands(url: str, *commands: msgspec.Struct) -> dict[str, Any]:
    """Have the server at *url* do *commands*; return its state afterwards. Raises ValueError when it refuses one."""
    async with (
        ClientSession() as session,
        session.post(url + CONTROL_PATH, data=msgspec.json.encode(commands)) as reply,
    ):
        state: dict[str, Any] = await reply.json()
    if reply.status != 200:
        raise ValueError(f"the local AWS service at {url} refused a command: {state['error']}")
    return state
