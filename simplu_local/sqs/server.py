"""A local SQS that behaves as AWS's where a receiver depends on it: visibility, groups, receipts, and faults.

    python -m simplu_local.sqs.server --port 4566

serves the SQS API (AWS JSON 1.0) at every path; signatures are not checked. `GET /_control` shows the state, and
`POST /_control` takes a command of `sqs.faults` or a list of them:

    curl -d '{"do": "fault", "action": "DeleteMessageBatch", "kind": "entries", "entries": 3}' localhost:4566/_control
    curl -d '{"do": "expire_receipts", "queue": "orders.fifo"}' localhost:4566/_control

Everything is in memory; no message is dropped because of its age.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, assert_never

import msgspec
import structlog
from aiohttp import web

from simplu_local.aws_server.faults import AdvanceClock, ClearFaults, SetOptions
from simplu_local.aws_server.server import AwsServer
from simplu_local.processes.http_serving import listen_for_stop
from simplu_local.sqs.actions import SqsActions, SqsReply, queue_attributes
from simplu_local.sqs.errors import SqsError
from simplu_local.sqs.faults import ExpireReceipts, SqsCommand, SqsFault
from simplu_local.sqs.model import SqsAccount, SqsOptions
from simplu_local.sqs.queue import LocalQueue
from simplu_local.sqs.requests import BatchRequest, ReceiveMessage, queue_name_of

EXPIRED_RECEIPTS = "expire_receipts"  # in the state, beside the calls that faults have struck

log = structlog.get_logger(__name__)


class SqsServer(AwsServer[SqsFault]):
    """The HTTP side of one account."""

    CONTENT_TYPE = "application/x-amz-json-1.0"
    TARGET_PREFIX = "AmazonSQS."
    API_PATH = "/{path:.*}"
    MAX_BODY_BYTES = 16 * 1024 * 1024  # 1 MiB of messages, each character of which may be written as an escape
    COMMANDS = msgspec.json.Decoder(SqsCommand | list[SqsCommand])

    def __init__(self, options: SqsOptions | None = None) -> None:
        self.account = SqsAccount(new_id=lambda: str(uuid.uuid4()), options=options)
        self._actions = SqsActions(self.account)
        # By queue: set and removed when a poll may find more messages than before.
        self._changed: dict[str, asyncio.Event] = {}
        self._orphans = set[asyncio.Task[SqsReply | SqsError]]()  # polls that outlive their clients
        self._poll_count = 0
        super().__init__(self.account.options)

    def __repr__(self) -> str:
        return f"SqsServer({self.account!r}, {self._poll_count} polls parked)"

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[str]:
        """Serve on *port* of loopback (0: a free one); yields the endpoint URL."""
        async with super().serve(port) as self._actions.base_url:
            try:
                yield self._actions.base_url
            finally:
                for poll in self._orphans:
                    poll.cancel()

    def decode(self, action: str, body: bytes) -> Any:
        """Return the request in *body*. Raises SqsError."""
        return self._actions.decode(action, body)

    def fault_target(self, request: Any) -> str | None:
        """Return the name of the queue of *request*; none when it names none."""
        return queue_name_of(request)

    async def answer(self, action: str, request: Any) -> bytes:
        """Do *request* and return the body of the answer. Raises SqsError."""
        return _encode(await self._execute(action, request))

    async def answer_with_fault(self, fault: SqsFault, action: str, request: Any, http_request: web.Request) -> bytes:
        """Do *request* with *fault*. Raises SqsError."""
        if fault.kind == "entries":
            return _encode(await self._fail_entries(fault, action, request))
        if not fault.applied:
            await self._inject(fault, http_request)
        reply = await self._execute(action, request)
        if fault.applied:
            await self._inject(fault, http_request)
        if fault.kind == "duplicate" and isinstance(request, ReceiveMessage):
            self._redeliver(request, reply)
        return _encode(reply)

    def run_command(self, command: SqsCommand) -> None:
        """Do one command of the control path. Raises SqsError for a queue that does not exist."""
        match command:
            case ExpireReceipts(queue):
                self._faults.struck[EXPIRED_RECEIPTS] += self.account.find(queue).expire_receipts(self.now_ms())
            case SqsFault() | ClearFaults() | AdvanceClock() | SetOptions():
                self._run_common_command(command)
            case _:
                assert_never(command)
        self._wake(*self.account.queues)

    def state(self) -> dict[str, Any]:
        """Return the state that the control path shows."""
        now_ms = self.now_ms()
        return self._common_state() | {
            "polls": self._poll_count,
            "queues": {name: _queue_state(queue, now_ms) for name, queue in self.account.queues.items()},
        }

    async def _execute(self, action: str, request: Any) -> SqsReply:
        if isinstance(request, ReceiveMessage):
            return await self._receive(request)
        reply = self._actions.answer(action, request, self.now_ms())
        if name := queue_name_of(request):
            self._wake(name)
        return reply

    async def _receive(self, request: ReceiveMessage) -> SqsReply:
        wait_s = self._actions.wait_s(request)
        reply = self._receive_now(request)
        if reply or not wait_s:
            return reply
        if not self.account.options.polls_outlive_clients:
            return await self._poll(request, wait_s)
        poll = asyncio.create_task(self._poll_returning_error(request, wait_s), name="sqs-poll")
        self._orphans.add(poll)
        poll.add_done_callback(self._orphans.discard)
        await asyncio.wait([poll])  # when the client disconnects, only this wait is cancelled
        if isinstance(found := poll.result(), SqsError):
            raise found
        return found

    async def _poll_returning_error(self, request: ReceiveMessage, wait_s: int) -> SqsReply | SqsError:
        """Poll, and return an error instead of raising it: the client may have disconnected."""
        try:
            return await self._poll(request, wait_s)
        except SqsError as exc:
            return exc

    async def _poll(self, request: ReceiveMessage, wait_s: int) -> SqsReply:
        """Wait for messages, or for the end of the wait: "Amazon SQS short and long polling"."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        name = queue_name_of(request) or ""
        self._poll_count += 1
        try:
            while (left_s := deadline - loop.time()) > 0:
                now_ms = self.now_ms()
                due_ms = self.account.find(name).next_due_ms
                pause_s = left_s if due_ms is None else min(left_s, max(due_ms - now_ms, 1) / 1000)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._changed.setdefault(name, asyncio.Event()).wait()
                if reply := self._receive_now(request):
                    return reply
        finally:
            self._poll_count -= 1
        return {}

    def _receive_now(self, request: ReceiveMessage) -> SqsReply:
        """Receive the messages that are visible now; those received too often move to the dead-letter queue."""
        reply = self._actions.answer("ReceiveMessage", request, self.now_ms())
        redrive = self.account.find(queue_name_of(request) or "").settings.redrive
        if redrive is not None:
            self._wake(redrive.dead_letter_target_arn.rpartition(":")[2])
        return reply

    async def _fail_entries(self, fault: SqsFault, action: str, request: Any) -> SqsReply:
        if not isinstance(request, BatchRequest):
            return await self._execute(action, request)
        failed = fault.failed_entries(request)
        if not fault.applied:
            del request.entries[: fault.entries]
        reply = (await self._execute(action, request) if request.entries else None) or {}
        names = {entry["Id"] for entry in failed}
        successful = [entry for entry in reply.get("Successful", []) if entry["Id"] not in names]
        return {"Successful": successful, "Failed": failed + reply.get("Failed", [])}

    def _redeliver(self, request: ReceiveMessage, reply: SqsReply) -> None:
        """Make messages visible that were just received: "at-least-once delivery" of standard queues."""
        queue = self.account.find(queue_name_of(request) or "")
        if not queue.is_fifo:
            for message in (reply or {}).get("Messages", []):
                queue.make_visible(message["ReceiptHandle"])
            self._wake(queue.name)

    def _wake(self, *names: str) -> None:
        for name in names:
            if changed := self._changed.pop(name, None):
                changed.set()


@asynccontextmanager
async def serve_sqs(port: int = 0, options: SqsOptions | None = None) -> AsyncIterator[str]:
    """Serve an empty local SQS in this process; yields the endpoint URL."""
    async with SqsServer(options).serve(port) as url:
        yield url


def _encode(reply: SqsReply) -> bytes:
    return b"" if reply is None else msgspec.json.encode(reply)


def _queue_state(queue: LocalQueue, now_ms: int) -> dict[str, str]:
    queue.apply_due(now_ms)
    return queue_attributes(queue)


async def run(port: int, options: SqsOptions) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = listen_for_stop()
    async with serve_sqs(port, options) as url:
        log.info("sqs.started", url=url)
        await stop.wait()


def main() -> None:
    """Run the server as a program."""
    parser = argparse.ArgumentParser(prog="sqs.server", description="A local SQS, in memory.")
    parser.add_argument("--port", type=int, required=True, help="of loopback; 0 takes a free one and logs it")
    asyncio.run(run(parser.parse_args().port, SqsOptions()))


if __name__ == "__main__":
    main()
