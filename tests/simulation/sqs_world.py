"""SQS in virtual time: the model of the local SQS behind a client's calls, so that hours pass in milliseconds.

The model is the one that `local/sqs/server.py` serves, whose conformance tests hold it against other servers.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Concatenate, ParamSpec

from botocore.exceptions import ClientError, ConnectionClosedError
from simulation.virtual_time import VirtualLoop
from support.aws.receiver_settings import receiver_settings

from simplu_local.aws_server.faults import FaultQueue
from simplu_local.sqs.actions import SqsActions
from simplu_local.sqs.errors import SqsError
from simplu_local.sqs.faults import SqsFault
from simplu_local.sqs.model import SqsAccount
from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.receive.receiver import Handler, QueueReceiver
from simplu_worker.consumers.sqs.receive.slots import PriorityGate
from simplu_worker.consumers.sqs.receive.verdicts import Done, Verdict
from simplu_worker.errors import RetryableError
from simplu_worker.operations.dead_letter import DeadLetter

EPOCH_MS = 1_767_225_600_000
LATENCY_S = 0.01

P = ParamSpec("P")


class World:
    """An account of SQS, its clients, and receivers of its queues, in one virtual loop."""

    def __init__(self, seed: int = 0) -> None:
        ids = itertools.count()
        self.loop = asyncio.get_running_loop()
        self.account = SqsAccount(new_id=lambda: f"m{next(ids):06}")
        self.actions = SqsActions(self.account)
        self.actions.base_url = "http://sqs"
        self.faults = FaultQueue[SqsFault]()
        self.calls: list[tuple[float, str, dict[str, Any]]] = []
        self.draws = Random(seed)
        self.changed = asyncio.Event()
        self._queue_numbers = itertools.count(1)

    def utc(self) -> datetime:
        return datetime.fromtimestamp(self.now_ms() / 1000, UTC)

    def now_ms(self) -> int:
        return EPOCH_MS + math.floor(self.loop.time() * 1000 + 1e-6)

    def queue(self, *, is_fifo: bool = False, **attributes: str) -> Queue:
        name = f"world-{next(QUEUE_NUMBERS)}" + (".fifo" if is_fifo else "")
        if is_fifo:
            attributes |= {"FifoQueue": "true", "ContentBasedDeduplication": "true"}
        self.account.create(name, attributes, self.now_ms())
        return Queue(ModelClient(self), f"http://sqs/123456789012/{name}")

    def arn_of(self, queue: Queue) -> str:
        return self.account.find(queue.name).arn

    async def send(self, queue: Queue, *bodies: str, group: str | None = None) -> None:
        for body in bodies:
            entry: dict[str, Any] = {"QueueUrl": queue.url, "MessageBody": body}
            if queue.is_fifo:
                entry["MessageGroupId"] = group or body[0]
            self.do("SendMessage", entry)
        self.wake()

    def do(self, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return do(self.actions, action, arguments, self.now_ms())

    def wake(self) -> None:
        self.changed.set()
        self.changed.clear()

    def counts(self, queue: Queue) -> tuple[int, int]:
        there = self.account.find(queue.name)
        there.apply_due(self.now_ms())
        return there.visible_count, there.in_flight_count

    async def emptied(self, queue: Queue) -> None:
        await self.until(lambda: self.counts(queue) == (0, 0))

    async def until(self, condition: Callable[[], bool], *, within_s: float = 100_000.0) -> None:
        started_at = self.loop.time()
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110  # what changes is the model, in which there is nothing to await
                await asyncio.sleep(max(0.05, (self.loop.time() - started_at) / 300))

    def receiver(
        self,
        queue: Queue,
        desk: Handler,
        letters: Letters | None = None,
        gate: PriorityGate | None = None,
        tenant_of: Callable[[Message], tuple[str, str] | None] = lambda _: None,
        **options: Any,
    ) -> QueueReceiver:
        return QueueReceiver(
            queue,
            desk,
            letters or Letters(),
            receiver_settings(**options),
            gate=gate,
            tenant_of=tenant_of,
            clock=self.loop.time,
            utc=self.utc,
            draw=self.draws.random,
        )

    @asynccontextmanager
    async def receiving(
        self, queue: Queue, desk: Handler, letters: Letters | None = None, **options: Any
    ) -> AsyncIterator[Running]:
        running = Running(self.receiver(queue, desk, letters, **options))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.receiver.run(running.stopping))
            yield running
            running.stopping.set()

    def called(self, action: str) -> list[tuple[float, dict[str, Any]]]:
        return [(at_s, arguments) for at_s, name, arguments in self.calls if name == action]


QUEUE_NUMBERS = itertools.count(1)


@dataclass
class Running:
    receiver: QueueReceiver
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


class Desk:
    """A handler that takes its time, answers as it is told, and remembers when it was handed what."""

    def __init__(
        self, verdict: Callable[[Message], Verdict] = lambda _: Done(), *, takes_s: float | None = 0.0
    ) -> None:
        self.verdict = verdict
        self.takes_s = takes_s  # None: for ever
        self.handled: list[tuple[float, Message]] = []
        self.calls: list[list[str]] = []
        self.busy_count = 0
        self.ended_at = 0.0

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        loop = asyncio.get_running_loop()
        self.handled += [(loop.time(), message) for message in messages]
        self.calls.append([message.body for message in messages])
        self.busy_count += 1
        try:
            if self.takes_s is None:
                await asyncio.Event().wait()
            elif self.takes_s:
                await asyncio.sleep(self.takes_s)
        finally:
            self.busy_count -= 1
            self.ended_at = loop.time()
        return [self.verdict(message) for message in messages]

    @property
    def bodies(self) -> list[str]:
        return [message.body for _, message in self.handled]

    @property
    def receive_counts(self) -> list[int]:
        return [message.receive_count for _, message in self.handled]


class Letters:
    """A store of dead letters that may be out of order for a while."""

    def __init__(self) -> None:
        self.stored: list[DeadLetter] = []
        self.works = asyncio.Event()
        self.works.set()

    async def store(self, letters: Sequence[DeadLetter], *, stopping: asyncio.Event) -> None:
        while not self.works.is_set():
            if stopping.is_set():
                raise RetryableError("the dead-letter queue is down")
            await asyncio.sleep(0.5)
        self.stored += letters


class NamedCalls(ABC):
    """The methods of a client of AWS, each of them one call."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[dict[str, Any]]]:
        action = "".join(word.capitalize() for word in name.split("_"))

        async def call(**arguments: Any) -> dict[str, Any]:
            return await self._call(action, arguments)

        return call

    @abstractmethod
    async def _call(self, action: str, arguments: dict[str, Any]) -> dict[str, Any]: ...


class ModelClient(NamedCalls):
    """The calls of an SQS client, answered by the model after a little while."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def _call(self, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
        world = self._world
        world.calls.append((world.loop.time(), action, arguments))
        await asyncio.sleep(LATENCY_S)
        asked_count = len(arguments.get("Entries", ()))
        fault = world.faults.take(action, arguments.get("QueueUrl", "").rpartition("/")[2])
        if fault is not None and not fault.applied:
            arguments = await self._suffer(fault, arguments)
        answer = await self._do(action, arguments)
        if fault is not None and fault.applied:
            await self._suffer(fault, arguments)
        if fault is not None and fault.kind == "entries":
            answer["Failed"] = [
                {"Id": str(number), "Code": fault.code or "InternalError", "SenderFault": fault.sender_fault}
                for number in range(min(fault.entries, asked_count))
            ] + answer.get("Failed", [])
        await asyncio.sleep(LATENCY_S)
        return answer

    async def _do(self, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
        world = self._world
        if action.endswith("Batch") and not arguments["Entries"]:
            return {}
        try:
            answer = world.do(action, arguments)
            if action == "ReceiveMessage":
                ends_at = world.loop.time() + arguments.get("WaitTimeSeconds", 0)
                while not answer.get("Messages") and world.loop.time() < ends_at:
                    await self._park(arguments, ends_at)
                    answer = world.do(action, arguments)
        except SqsError as exc:
            raise client_error(exc.code, exc.status, action) from None
        if action != "ReceiveMessage":
            world.wake()
        return answer

    async def _park(self, arguments: dict[str, Any], ends_at: float) -> None:
        world = self._world
        queue = world.account.find(arguments["QueueUrl"].rpartition("/")[2])
        due_ms = queue.next_due_ms
        left_s = ends_at - world.loop.time()
        due_s = left_s if due_ms is None else max((due_ms - world.now_ms()) / 1000, 0.001)
        try:
            async with asyncio.timeout(min(left_s, due_s)):
                await world.changed.wait()
        except TimeoutError:
            pass

    async def _suffer(self, fault: SqsFault, arguments: dict[str, Any]) -> dict[str, Any]:
        if error := fault.error():
            raise client_error(error.code, error.status, fault.action)
        match fault.kind:
            case "hang":
                await asyncio.Event().wait()
            case "cut":
                raise ConnectionClosedError(endpoint_url="http://sqs")
            case "delay":
                await asyncio.sleep(fault.delay_ms / 1000)
            case "entries":
                return arguments | {"Entries": arguments["Entries"][fault.entries :]}
            case _:
                raise NotImplementedError(fault.kind)
        return arguments


def do(actions: SqsActions, action: str, arguments: dict[str, Any], now_ms: int) -> dict[str, Any]:
    answer = actions.answer(action, actions.decode(action, json.dumps(arguments).encode()), now_ms) or {}
    builtin: dict[str, Any] = json.loads(json.dumps(answer, default=_plain))
    return builtin


def client_error(code: str, status: int, action: str) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, action)  # type: ignore[typeddict-item,unused-ignore]


def _plain(value: Any) -> Any:
    return {name: member for name, member in value.__struct_fields__ and _pascal(value).items() if member is not None}


def _pascal(value: Any) -> dict[str, Any]:
    return {
        "".join(word.capitalize() for word in name.split("_")): getattr(value, name) for name in value.__struct_fields__
    }


def virtually(test: Callable[Concatenate[World, P], Coroutine[Any, Any, None]]) -> Callable[P, None]:
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        loop = VirtualLoop()

        async def in_world() -> None:
            await test(World(), *args, **kwargs)

        try:
            loop.run_until_complete(in_world())
            assert loop.failures == []
        finally:
            loop.close()

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    return run
