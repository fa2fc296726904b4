"""A local SQS that does what AWS's does where it matters to a receiver: visibility, groups, receipts, and faults.

    python -m simplu_worker.local.sqs.server --port 4566

speaks the SQS API (AWS JSON 1.0) at every path; signatures are not checked. `GET /_control` shows the state, and
`POST /_control` takes a command of `sqs_faults` or a list of them:

    curl -d '{"do": "fault", "action": "DeleteMessageBatch", "kind": "entries", "entries": 3}' localhost:4566/_control
    curl -d '{"do": "expire_receipts", "queue": "orders.fifo"}' localhost:4566/_control

Everything is in memory; nothing goes because of its age.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, assert_never

import msgspec
import structlog
from aiohttp import ClientSession, web

from simplu_worker.local.processes.http_serving import listen_for_stop, serve_on_loopback
from simplu_worker.local.sqs.actions import SqsActions, SqsReply, queue_attributes
from simplu_worker.local.sqs.errors import SqsError
from simplu_worker.local.sqs.faults import (
    AdvanceClock,
    ClearFaults,
    ExpireReceipts,
    Faults,
    SetOptions,
    SqsCommand,
    SqsFault,
)
from simplu_worker.local.sqs.model import SqsAccount, SqsOptions
from simplu_worker.local.sqs.queue import LocalQueue
from simplu_worker.local.sqs.requests import (
    ChangeMessageVisibilityBatch,
    DeleteMessageBatch,
    ReceiveMessage,
    SendMessageBatch,
    queue_name_of,
)

log = structlog.get_logger(__name__)

CONTENT_TYPE = "application/x-amz-json-1.0"
TARGET_PREFIX = "AmazonSQS."
CONTROL_PATH = "/_control"
MAX_BODY_BYTES = 16 * 1024 * 1024  # 1 MiB of messages, each character of which may be written as an escape
COMMANDS = msgspec.json.Decoder(SqsCommand | list[SqsCommand])


class SqsServer:
    """The HTTP side of one account."""

    def __init__(self, options: SqsOptions | None = None) -> None:
        self.account = SqsAccount(new_id=lambda: str(uuid.uuid4()), options=options)
        self._actions = SqsActions(self.account)
        self._faults = Faults()
        self._cleared = asyncio.Event()
        self._changed: dict[
            str, asyncio.Event
        ] = {}  # by queue; set, and dropped, when a poll may find more than before
        self._orphans = set[asyncio.Task[SqsReply | SqsError]]()  # polls that outlive their clients
        self._calls: Counter[str] = Counter()
        self._poll_count = 0
        self._ahead_ms = 0
        self._last_ms = 0

    def __repr__(self) -> str:
        return f"SqsServer({self.account!r}, {self._poll_count} polls parked)"

    def now_ms(self) -> int:
        """Return the server's time, which never goes backwards."""
        self._last_ms = max(self._last_ms, time.time_ns() // 1_000_000 + self._ahead_ms)
        return self._last_ms

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[str]:
        """Serve on *port* of loopback (0: a free one); yields the endpoint URL."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_get(CONTROL_PATH, self._show)
        application.router.add_post(CONTROL_PATH, self._control)
        application.router.add_post("/{path:.*}", self._answer)
        # What waits must not outlive the client that waits for it, unless the options say so.
        async with serve_on_loopback(application, port, handler_cancellation=True) as self._actions.base_url:
            try:
                yield self._actions.base_url
            finally:
                for poll in self._orphans:
                    poll.cancel()

    def command(self, command: SqsCommand) -> None:
        """Do one command of the control path. Raises SqsError for a queue that is not there."""
        match command:
            case SqsFault():
                self._faults.add(command)
            case ClearFaults():
                self._faults.clear()
                self._cleared.set()
                self._cleared = asyncio.Event()
            case ExpireReceipts(queue):
                self.account.find(queue).expire_receipts(self.now_ms())
            case AdvanceClock(ms):
                self._ahead_ms += ms
            case SetOptions(options):
                _set_options(self.account.options, options)
            case _:
                assert_never(command)
        self._wake(*self.account.queues)

    def state(self) -> dict[str, Any]:
        """Return what the control path shows."""
        now_ms = self.now_ms()
        self.account.settle(now_ms)
        return {
            "now_ms": now_ms,
            "options": msgspec.to_builtins(self.account.options),
            "calls": dict(self._calls),
            "polls": self._poll_count,
            "faults": msgspec.to_builtins(self._faults.waiting),
            "queues": {name: _state_of(queue, now_ms) for name, queue in self.account.queues.items()},
        }

    async def _answer(self, request: web.Request) -> web.Response:
        action = request.headers.get("X-Amz-Target", "").removeprefix(TARGET_PREFIX)
        body = await request.read()
        try:
            asked = self._actions.decode(action, body)
            self._calls[action] += 1
            fault = self._faults.take(action, queue_name_of(asked))
            if fault is None:
                return _reply(await self._do(action, asked))
            return _reply(await self._answer_with(fault, action, asked, request))
        except SqsError as exc:
            return _refusal(exc)

    async def _do(self, action: str, asked: Any) -> SqsReply:
        if isinstance(asked, ReceiveMessage):
            return await self._receive(asked)
        answer = self._actions.answer(action, asked, self.now_ms())
        if name := queue_name_of(asked):
            self._wake(name)
        return answer

    async def _receive(self, asked: ReceiveMessage) -> SqsReply:
        wait_s = self._actions.wait_s(asked)
        answer = self._take(asked)
        if answer or not wait_s:
            return answer
        if not self.account.options.polls_outlive_clients:
            return await self._poll(asked, wait_s)
        poll = asyncio.create_task(self._settled_poll(asked, wait_s), name="sqs-poll")
        self._orphans.add(poll)
        poll.add_done_callback(self._orphans.discard)
        await asyncio.wait([poll])  # when the client goes, only this wait is cancelled
        if isinstance(found := poll.result(), SqsError):
            raise found
        return found

    async def _settled_poll(self, asked: ReceiveMessage, wait_s: int) -> SqsReply | SqsError:
        """Poll; return an error: nobody may be left to raise it to."""
        try:
            return await self._poll(asked, wait_s)
        except SqsError as exc:
            return exc

    async def _poll(self, asked: ReceiveMessage, wait_s: int) -> SqsReply:
        """Wait for messages, or for the end of the wait: "Amazon SQS short and long polling"."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        name = queue_name_of(asked) or ""
        self._poll_count += 1
        try:
            while (left_s := deadline - loop.time()) > 0:
                now_ms = self.now_ms()
                due_ms = self.account.next_due_ms(self.account.find(name), now_ms)
                pause_s = left_s if due_ms is None else min(left_s, max(due_ms - now_ms, 1) / 1000)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._changed.setdefault(name, asyncio.Event()).wait()
                if answer := self._take(asked):
                    return answer
        finally:
            self._poll_count -= 1
        return {}

    def _take(self, asked: ReceiveMessage) -> SqsReply:
        """Receive what there is now; what was received too often is in the dead-letter queue then."""
        answer = self._actions.answer("ReceiveMessage", asked, self.now_ms())
        redrive = self.account.find(queue_name_of(asked) or "").settings.redrive
        if redrive is not None:
            self._wake(redrive.dead_letter_target_arn.rpartition(":")[2])
        return answer

    async def _answer_with(self, fault: SqsFault, action: str, asked: Any, request: web.Request) -> SqsReply:
        if fault.kind == "entries":
            return await self._fail_entries(fault, action, asked)
        if not fault.applied:
            await self._suffer(fault, request)
        answer = await self._do(action, asked)
        if fault.applied:
            await self._suffer(fault, request)
        if fault.kind == "duplicate" and isinstance(asked, ReceiveMessage):
            self._give_again(asked, answer)
        return answer

    async def _fail_entries(self, fault: SqsFault, action: str, asked: Any) -> SqsReply:
        """Let the first entries of a batch fail; the others are as they are."""
        if not isinstance(asked, SendMessageBatch | DeleteMessageBatch | ChangeMessageVisibilityBatch):
            return await self._do(action, asked)
        failed = fault.failed_of(asked)
        if not fault.applied:
            del asked.entries[: fault.entries]
        answer = (await self._do(action, asked) if asked.entries else None) or {}
        names = {entry["Id"] for entry in failed}
        successful = [entry for entry in answer.get("Successful", []) if entry["Id"] not in names]
        return {"Successful": successful, "Failed": failed + answer.get("Failed", [])}

    async def _suffer(self, fault: SqsFault, request: web.Request) -> None:
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
                raise SqsError("InternalFailure", "nobody hears this", status=500)

    def _give_again(self, asked: ReceiveMessage, answer: SqsReply) -> None:
        """Let messages that were just given out be visible: "at-least-once delivery" of standard queues."""
        queue = self.account.find(queue_name_of(asked) or "")
        if not queue.is_fifo:
            for message in (answer or {}).get("Messages", []):
                queue.show_again(message["ReceiptHandle"])
            self._wake(queue.name)

    def _wake(self, *names: str) -> None:
        """Let the parked polls of these queues look again."""
        for name in names:
            if changed := self._changed.pop(name, None):
                changed.set()

    async def _show(self, _request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self.state()), content_type="application/json")

    async def _control(self, request: web.Request) -> web.Response:
        try:
            commands = COMMANDS.decode(await request.read())
            for command in commands if isinstance(commands, list) else [commands]:
                self.command(command)
        except (msgspec.DecodeError, SqsError) as exc:
            log.warning("command.refused", error=str(exc))
            return web.json_response({"error": str(exc)}, status=400)
        return await self._show(request)


@asynccontextmanager
async def serve_sqs(port: int = 0, options: SqsOptions | None = None) -> AsyncIterator[str]:
    """Serve an empty local SQS in this process; yields the endpoint URL."""
    async with SqsServer(options).serve(port) as url:
        yield url


async def control(url: str, *commands: SqsCommand) -> dict[str, Any]:
    """Have the server at *url* do *commands*; return its state afterwards. Raises ValueError when it refuses one."""
    async with (
        ClientSession() as session,
        session.post(url + CONTROL_PATH, data=msgspec.json.encode(commands)) as reply,
    ):
        state: dict[str, Any] = await reply.json()
    if reply.status != 200:
        raise ValueError(f"the local SQS refused a command: {state['error']}")
    return state


def _reply(answer: SqsReply) -> web.Response:
    headers = {"x-amzn-RequestId": str(uuid.uuid4())}
    body = b"" if answer is None else msgspec.json.encode(answer)
    return web.Response(body=body, headers=headers, content_type=CONTENT_TYPE)


def _refusal(error: SqsError) -> web.Response:
    """Answer with an error as AWS JSON does for services that once spoke the query protocol: awsQueryCompatible."""
    fault = "Sender" if error.sender_fault else "Receiver"
    headers = {"x-amzn-RequestId": str(uuid.uuid4()), "x-amzn-query-error": f"{error.code};{fault}"}
    body = msgspec.json.encode({"__type": error.type_name, "message": error.message})
    return web.Response(body=body, status=error.status, headers=headers, content_type=CONTENT_TYPE)


def _set_options(options: SqsOptions, changes: dict[str, Any]) -> None:
    """Change *options* in place. Raises msgspec.ValidationError before any change."""
    checked = msgspec.convert(msgspec.to_builtins(options) | changes, SqsOptions)
    for name in changes:
        setattr(options, name, getattr(checked, name))


def _state_of(queue: LocalQueue, now_ms: int) -> dict[str, str]:
    queue.settle(now_ms)
    return queue_attributes(queue)


async def run(port: int, options: SqsOptions) -> None:
    """Serve until SIGINT or SIGTERM."""
    stopped = listen_for_stop()
    async with serve_sqs(port, options) as url:
        log.info("sqs.started", url=url)
        await stopped.wait()


def main() -> None:
    """Run the server as a program."""
    parser = argparse.ArgumentParser(prog="sqs_server", description="A local SQS, in memory.")
    parser.add_argument("--port", type=int, required=True, help="of loopback; 0 takes a free one and logs it")
    asyncio.run(run(parser.parse_args().port, SqsOptions()))


if __name__ == "__main__":
    main()
