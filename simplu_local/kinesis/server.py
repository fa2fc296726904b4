"""A local Kinesis that behaves as AWS's where a reader depends on it: reshards, ends, expiry, quotas, and faults.

    python -m simplu_local.kinesis.server --port 4567

serves the Kinesis API at `/`, in AWS JSON 1.1, and in CBOR, as the AWS SDK for Java sends it; signatures are not
checked. `GET /_control` shows the state, and `POST /_control` takes a command of `kinesis.faults` or a list of them:

    curl -d '{"do": "fault", "action": "GetRecords", "kind": "throttle", "count": 3}' localhost:4567/_control
    curl -d '{"do": "set", "options": {"read_throttling": false}}' localhost:4567/_control

Everything is in memory, and bounded: by retention, and by bytes for each stream, of which the oldest records go first.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar, assert_never

import msgspec
import structlog
from aiohttp import web

from simplu_local.aws_server.faults import AdvanceClock, ClearFaults, SetOptions
from simplu_local.aws_server.server import AwsServer, Encoding
from simplu_local.kinesis import cbor
from simplu_local.kinesis.actions import KinesisActions
from simplu_local.kinesis.fan_out.push import Pusher, Wakers
from simplu_local.kinesis.fan_out.requests import SubscribeToShard
from simplu_local.kinesis.faults import ExpireIterators, ForceStatus, KinesisCommand, KinesisFault, Trim
from simplu_local.kinesis.model import KinesisAccount, KinesisOptions, LocalStream
from simplu_local.processes.http_serving import listen_for_stop

log = structlog.get_logger(__name__)

WAKING_ACTIONS = frozenset({"PutRecord", "PutRecords", "SplitShard", "MergeShards", "UpdateShardCount"})


class KinesisServer(AwsServer[KinesisFault]):
    """The HTTP side of one account."""

    CONTENT_TYPE = "application/x-amz-json-1.1"
    ENCODINGS: ClassVar = {cbor.CONTENT_TYPE: Encoding(cbor.CONTENT_TYPE, cbor.json_of, cbor.cbor_of)}
    TARGET_PREFIX = "Kinesis_20131202."
    API_PATH = "/"
    MAX_BODY_BYTES = 32 * 1024 * 1024  # 10 MiB of records are 14 in base64, and their keys may be written as escapes
    COMMANDS = msgspec.json.Decoder(KinesisCommand | list[KinesisCommand])

    def __init__(self, options: KinesisOptions | None = None) -> None:
        self.account = KinesisAccount(options)
        self._actions = KinesisActions(self.account)
        self._trimmed_count = 0
        self._wakers = Wakers()
        super().__init__(self.account.options)

    def __repr__(self) -> str:
        return f"KinesisServer({self.account!r})"

    def decode(self, action: str, body: bytes) -> Any:
        """Return the request in *body*. Raises KinesisError."""
        return self._actions.decode(action, body)

    def fault_target(self, request: Any) -> str | None:
        """Return the stream shard that *request* reads; none when it reads none."""
        return self._actions.stream_shard_of(request)

    async def answer(self, action: str, request: Any) -> bytes:
        """Do *request* and return the body of the answer. Raises KinesisError."""
        body = self._actions.answer(action, request, self.now_ms())
        self._warn_of_trimming()
        if action in WAKING_ACTIONS:
            self._wakers.wake()
        return body

    async def answer_in_parts(
        self, request: Any, http_request: web.Request, encoding: Encoding | None, fault: KinesisFault | None
    ) -> web.StreamResponse | None:
        """Send the events of a subscription; return none for every other request. Raises KinesisError."""
        if not isinstance(request, SubscribeToShard):
            return None
        if fault is not None:
            await self._inject(fault, http_request)
        pusher = Pusher(self._actions.subscribe(request, self.now_ms()), self._wakers, self.now_ms)
        return await pusher.push(
            http_request, encoding, self.CONTENT_TYPE if encoding is None else encoding.content_type, fault
        )

    async def answer_with_fault(
        self, fault: KinesisFault, action: str, request: Any, http_request: web.Request
    ) -> bytes:
        """Do *request* with *fault*. Raises KinesisError."""
        if not fault.applied:
            await self._inject(fault, http_request)
        if fault.kind == "empty" and action == "GetRecords":
            return self._actions.read_nothing(request, self.now_ms())
        body = await self.answer(action, request)
        if fault.applied:
            await self._inject(fault, http_request)
        if fault.kind == "then" and fault.then is not None:
            self._run_follow_up(fault.then)
        return body

    def run_command(self, command: KinesisCommand) -> None:
        """Do one command of the control path. Raises KinesisError for a stream or stream shard that does not exist."""
        self.account.apply_due(self.now_ms())
        match command:
            case ExpireIterators():
                self.account.expire_iterators()
            case Trim():
                _trim(self.account.find(command.stream), command)
            case ForceStatus(stream, status):
                self.account.find(stream).forced_status = status
            case KinesisFault() | ClearFaults() | AdvanceClock() | SetOptions():
                self._run_common_command(command)
                self.account.apply_due(self.now_ms())
            case _:
                assert_never(command)

    def state(self) -> dict[str, Any]:
        """Return the state that the control path shows."""
        self.account.apply_due(self.now_ms())
        return self._common_state() | {
            "streams": {name: _stream_state(stream) for name, stream in self.account.streams.items()},
        }

    def _warn_of_trimming(self) -> None:
        """Log records that were dropped for the memory limit: a caller that counts records must notice."""
        trimmed_count = sum(stream.trimmed_for_memory for stream in self.account.streams.values())
        if trimmed_count > self._trimmed_count:
            log.warning("records.trimmed", record_count=trimmed_count - self._trimmed_count, reason="memory")
        self._trimmed_count = trimmed_count

    def _run_follow_up(self, then: dict[str, Any]) -> None:
        action = str(then.get("action"))
        request = self._actions.decode(action, msgspec.json.encode(then.get("request")))
        options = self.account.options
        delay_ms, options.update_delay_ms = options.update_delay_ms, 0
        try:
            self._actions.answer(action, request, self.now_ms())
        finally:
            options.update_delay_ms = delay_ms


@asynccontextmanager
async def serve_kinesis(port: int = 0, options: KinesisOptions | None = None) -> AsyncIterator[str]:
    """Serve an empty local Kinesis in this process; yields the endpoint URL."""
    async with KinesisServer(options).serve(port) as url:
        yield url


def _trim(stream: LocalStream, command: Trim) -> None:
    wanted = command.stream_shard_id
    for stream_shard in [stream.find(wanted)] if wanted else list(stream.stream_shards.values()):
        stream_shard.trim(max(0, stream_shard.end_position - stream_shard.first_position - command.keep))
        if command.forget_closed and not stream_shard.is_open:
            del stream.stream_shards[stream_shard.stream_shard_id]


def _stream_state(stream: LocalStream) -> dict[str, Any]:
    return {
        "status": stream.status,
        "trimmed_for_memory": stream.trimmed_for_memory,
        "consumers": {one.name: {"subscriptions": len(one.calls)} for one in stream.consumers.all()},
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
    stop = listen_for_stop()
    async with serve_kinesis(port, options) as url:
        log.info("kinesis.started", url=url)
        await stop.wait()


def main() -> None:
    """Run the server as a program."""
    parser = argparse.ArgumentParser(prog="kinesis.server", description="A local Kinesis, in memory.")
    parser.add_argument("--port", type=int, required=True, help="of loopback; 0 takes a free one and logs it")
    parser.add_argument("--memory-max-bytes", type=int, default=KinesisOptions().memory_max_bytes, help="of one stream")
    parser.add_argument("--no-throttling", action="store_true", help="let reads exceed Kinesis's quotas")
    given = parser.parse_args()
    options = KinesisOptions(memory_max_bytes=given.memory_max_bytes, read_throttling=not given.no_throttling)
    asyncio.run(run(given.port, options))


if __name__ == "__main__":
    main()
