"""A local Kinesis that does what AWS's does where it matters to a reader: reshards, ends, expiry, quotas, and faults.

    python -m simplu_worker.local.kinesis.server --port 4567

speaks the Kinesis API (AWS JSON 1.1) at `/`; signatures are not checked. `GET /_control` shows the state, and
`POST /_control` takes a command of `kinesis_faults` or a list of them:

    curl -d '{"do": "fault", "action": "GetRecords", "kind": "throttle", "count": 3}' localhost:4567/_control
    curl -d '{"do": "set", "options": {"read_throttling": false}}' localhost:4567/_control

Everything is in memory, and bounded: by retention, and by bytes for each stream, of which the oldest records go first.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, assert_never

import msgspec
import structlog
from aiohttp import ClientSession, web

from simplu_worker.local.kinesis.actions import KinesisActions
from simplu_worker.local.kinesis.errors import KinesisError
from simplu_worker.local.kinesis.faults import (
    AdvanceClock,
    ClearFaults,
    ExpireIterators,
    Faults,
    ForceStatus,
    KinesisCommand,
    KinesisFault,
    SetOptions,
    Trim,
)
from simplu_worker.local.kinesis.model import KinesisAccount, KinesisOptions, LocalStream
from simplu_worker.local.processes.http_serving import listen_for_stop, serve_on_loopback

log = structlog.get_logger(__name__)

CONTENT_TYPE = "application/x-amz-json-1.1"
TARGET_PREFIX = "Kinesis_20131202."
CONTROL_PATH = "/_control"
MAX_BODY_BYTES = 32 * 1024 * 1024  # 10 MiB of records are 14 in base64, and their keys may be written as escapes
COMMANDS = msgspec.json.Decoder(KinesisCommand | list[KinesisCommand])


class KinesisServer:
    """The HTTP side of one account."""

    def __init__(self, options: KinesisOptions | None = None) -> None:
        self.account = KinesisAccount(options)
        self._actions = KinesisActions(self.account)
        self._faults = Faults()
        self._cleared = asyncio.Event()
        self._calls: Counter[str] = Counter()
        self._ahead_ms = 0
        self._last_ms = 0
        self._trimmed_count = 0

    def __repr__(self) -> str:
        return f"KinesisServer({self.account!r})"

    def now_ms(self) -> int:
        """Return the server's time, which never goes backwards."""
        self._last_ms = max(self._last_ms, time.time_ns() // 1_000_000 + self._ahead_ms)
        return self._last_ms

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[str]:
        """Serve on *port* of loopback (0: a free one); yields the endpoint URL."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_post("/", self._answer)
        application.router.add_get(CONTROL_PATH, self._show)
        application.router.add_post(CONTROL_PATH, self._control)
        # What hangs must not outlive the client that waits for it.
        async with serve_on_loopback(application, port, handler_cancellation=True) as url:
            yield url

    def command(self, command: KinesisCommand) -> None:
        """Do one command of the control path. Raises KinesisError for a stream or stream shard that is not there."""
        self.account.settle(self.now_ms())
        match command:
            case KinesisFault():
                self._faults.add(command)
            case ClearFaults():
                self._faults.clear()
                self._cleared.set()
                self._cleared = asyncio.Event()
            case ExpireIterators():
                self.account.expire_iterators()
            case AdvanceClock(ms):
                self._ahead_ms += ms
                self.account.settle(self.now_ms())
            case Trim():
                _trim(self.account.find(command.stream), command)
            case ForceStatus(stream, status):
                self.account.find(stream).forced_status = status
            case SetOptions(options):
                _set_options(self.account.options, options)
            case _:
                assert_never(command)

    def state(self) -> dict[str, Any]:
        """Return what the control path shows."""
        now_ms = self.now_ms()
        self.account.settle(now_ms)
        return {
            "now_ms": now_ms,
            "options": msgspec.to_builtins(self.account.options),
            "calls": dict(self._calls),
            "faults": msgspec.to_builtins(self._faults.waiting),
            "streams": {name: _state_of(stream) for name, stream in self.account.streams.items()},
        }

    async def _answer(self, request: web.Request) -> web.Response:
        action = request.headers.get("X-Amz-Target", "").removeprefix(TARGET_PREFIX)
        body = await request.read()
        try:
            asked = self._actions.decode(action, body)
            self._calls[action] += 1
            fault = self._faults.take(action, self._actions.stream_shard_of(asked))
            if fault is None:
                answer = self._actions.answer(action, asked, self.now_ms())
            else:
                answer = await self._answer_with(fault, action, asked, request)
            self._warn_of_trimming()
            return _reply(answer)
        except KinesisError as exc:
            return _reply(msgspec.json.encode({"__type": exc.code, "message": exc.message}), status=exc.status)

    def _warn_of_trimming(self) -> None:
        """Log records that were lost to the bound of memory: whoever counts records has to know."""
        trimmed_count = sum(stream.trimmed_for_memory for stream in self.account.streams.values())
        if trimmed_count > self._trimmed_count:
            log.warning("records.trimmed", record_count=trimmed_count - self._trimmed_count, reason="memory")
        self._trimmed_count = trimmed_count

    async def _answer_with(self, fault: KinesisFault, action: str, asked: Any, request: web.Request) -> bytes:
        if not fault.applied:
            await self._suffer(fault, request)
        if fault.kind == "empty" and action == "GetRecords":
            return self._actions.read_nothing(asked, self.now_ms())
        body = self._actions.answer(action, asked, self.now_ms())
        if fault.applied:
            await self._suffer(fault, request)
        if fault.kind == "then" and fault.then is not None:
            self._do_then(fault.then)
        return body

    async def _suffer(self, fault: KinesisFault, request: web.Request) -> None:
        """Let the call hang, be late, fail or lose its connection, as *fault* says."""
        if error := fault.error():
            raise error
        match fault.kind:
            case "hang":
                await self._cleared.wait()
            case "delay":
                await asyncio.sleep(fault.delay_ms / 1000)
            case "cut":
                if request.transport is not None:
                    request.transport.abort()
                raise KinesisError("InternalFailure", "nobody hears this", status=500)

    def _do_then(self, then: dict[str, Any]) -> None:
        """Do an action at once, whatever time it takes otherwise."""
        action = str(then.get("action"))
        asked = self._actions.decode(action, msgspec.json.encode(then.get("request")))
        options = self.account.options
        delay_ms, options.update_delay_ms = options.update_delay_ms, 0
        try:
            self._actions.answer(action, asked, self.now_ms())
        finally:
            options.update_delay_ms = delay_ms

    async def _show(self, _request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self.state()), content_type="application/json")

    async def _control(self, request: web.Request) -> web.Response:
        try:
            commands = COMMANDS.decode(await request.read())
            for command in commands if isinstance(commands, list) else [commands]:
                self.command(command)
        except (msgspec.DecodeError, KinesisError) as exc:
            log.warning("command.refused", error=str(exc))
            return web.json_response({"error": str(exc)}, status=400)
        return await self._show(request)


@asynccontextmanager
async def serve_kinesis(port: int = 0, options: KinesisOptions | None = None) -> AsyncIterator[str]:
    """Serve an empty local Kinesis in this process; yields the endpoint URL."""
    async with KinesisServer(options).serve(port) as url:
        yield url


async def control(url: str, *commands: KinesisCommand) -> dict[str, Any]:
    """Have the server at *url* do *commands*; return its state afterwards. Raises ValueError when it refuses one."""
    async with (
        ClientSession() as session,
        session.post(url + CONTROL_PATH, data=msgspec.json.encode(commands)) as reply,
    ):
        state: dict[str, Any] = await reply.json()
    if reply.status != 200:
        raise ValueError(f"the local Kinesis refused a command: {state['error']}")
    return state


def _reply(body: bytes, *, status: int = 200) -> web.Response:
    headers = {"x-amzn-RequestId": str(uuid.uuid4())}
    return web.Response(body=body, status=status, headers=headers, content_type=CONTENT_TYPE)


def _trim(stream: LocalStream, command: Trim) -> None:
    wanted = command.stream_shard_id
    for stream_shard in [stream.find(wanted)] if wanted else list(stream.stream_shards.values()):
        stream_shard.trim(max(0, stream_shard.end_position - stream_shard.first_position - command.keep))
        if command.forget_closed and not stream_shard.is_open:
            del stream.stream_shards[stream_shard.stream_shard_id]


def _set_options(options: KinesisOptions, changes: dict[str, Any]) -> None:
    """Change *options* in place: the streams hold on to them. Raises msgspec.ValidationError before any change."""
    checked = msgspec.convert(msgspec.to_builtins(options) | changes, KinesisOptions)
    for name in changes:
        setattr(options, name, getattr(checked, name))


def _state_of(stream: LocalStream) -> dict[str, Any]:
    return {
        "status": stream.status,
        "trimmed_for_memory": stream.trimmed_for_memory,
        "stream_shards": {
            one.stream_shard_id: {
                "open": one.is_open,
                "first_position": one.first_position,
                "end_position": one.end_position,
                "stored_bytes": one.stored_bytes,
            }
            for one in stream.stream_shards.values()
        },
    }


async def run(port: int, options: KinesisOptions) -> None:
    """Serve until SIGINT or SIGTERM."""
    stopped = listen_for_stop()
    async with serve_kinesis(port, options) as url:
        log.info("kinesis.started", url=url)
        await stopped.wait()


def main() -> None:
    """Run the server as a program."""
    parser = argparse.ArgumentParser(prog="kinesis_server", description="A local Kinesis, in memory.")
    parser.add_argument("--port", type=int, required=True, help="of loopback; 0 takes a free one and logs it")
    parser.add_argument("--memory-max-bytes", type=int, default=KinesisOptions().memory_max_bytes, help="of one stream")
    parser.add_argument("--no-throttling", action="store_true", help="read as often and as much as you like")
    given = parser.parse_args()
    options = KinesisOptions(memory_max_bytes=given.memory_max_bytes, read_throttling=not given.no_throttling)
    asyncio.run(run(given.port, options))


if __name__ == "__main__":
    main()
