"""Receivers of one FIFO queue, restarted and hindered at random, in virtual time, and designs that must be noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
from simulation.sqs_world import Letters, World, virtually

from simplu_local.sqs.faults import SqsFault
from simplu_worker.aws.sqs_queue import Message, Queue
from simplu_worker.consumers.sqs.receive.message_table import CallDecision, MessageTable, SchedulerLimits
from simplu_worker.consumers.sqs.receive.receiver import QueueReceiver
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, ToDeadLetter, Verdict
from simplu_worker.instruments import message_outcomes
from simplu_worker.vocabulary import DeadLetterReason, MessageOutcome

GROUP_COUNT, MESSAGE_COUNT, REPLICA_COUNT = 12, 240, 3
CALM_AFTER_S = 60.0
BURY = ToDeadLetter(DeadLetterReason.INVALID_JSON, "poison")
ACTIONS = ("ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch", "GetQueueAttributes")


class WrongAboutQueues(msgspec.Struct, frozen=True):
    """What a receiver is made of, wrongly. The history of *seed* shows it, when this was written."""

    receiver_class: type[QueueReceiver] = QueueReceiver
    table_class: type[MessageTable] = MessageTable
    has_log: bool = True
    seed: int = 1


RIGHT = WrongAboutQueues()


class Ledger:
    """What all handlers together have applied, in order; what was applied before is a duplicate, as in the log."""

    def __init__(self, draws: Random, *, has_log: bool) -> None:
        self.applied: list[str] = []
        self.violations: list[str] = []
        self.draws = draws
        self._has_log = has_log

    def apply(self, body: str) -> None:
        if not self._has_log or body not in self.applied:
            self.applied.append(body)

    def poisoned(self, body: str) -> bool:
        return int(body.partition("-")[2]) % 40 == 7


class Shop:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._busy: set[str | None] = set()

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        """Apply one after the other; from the first of a group that is not applied, put those behind it off."""
        groups = {message.group_id for message in messages}
        if groups & self._busy:  # raised here it would be a bug of the handler, which the receiver lives through
            self._ledger.violations.append("a group is in two calls")
        self._busy |= groups
        verdicts: list[Verdict] = []
        behind: set[str | None] = set()
        try:
            for message in messages:
                await asyncio.sleep(self._ledger.draws.expovariate(20))
                verdict = ReturnToQueue(0) if message.group_id in behind else self._verdict(message)
                if isinstance(verdict, ReturnToQueue | RetryHeld):
                    behind.add(message.group_id)
                elif isinstance(verdict, Done):
                    self._ledger.apply(message.body)
                verdicts.append(verdict)
        finally:
            self._busy -= groups
        return verdicts

    def _verdict(self, message: Message) -> Verdict:
        draw = self._ledger.draws.random()
        if self._ledger.poisoned(message.body):
            return BURY
        return (
            ReturnToQueue(self._ledger.draws.randrange(3))
            if draw < 0.03
            else RetryHeld(draw)
            if draw < 0.08
            else Done()
        )


async def disturb(world: World, queue: Queue, letters: Letters) -> None:
    """Make calls go wrong, leases end and the dead-letter queue fail, until it is time for calm."""
    draws = world.draws
    while world.loop.time() < CALM_AFTER_S:
        await asyncio.sleep(draws.uniform(0.2, 3))
        match draws.randrange(8):
            case 0:
                world.account.find(queue.name).expire_receipts(world.now_ms())
                world.wake()
            case 1:
                letters.works.clear()
                await asyncio.sleep(draws.uniform(0, 5))
                letters.works.set()
            case 2:
                world.faults.add(SqsFault(action=draws.choice(ACTIONS[:3]), kind="hang", applied=draws.random() < 0.5))
            case 3:
                entries = SqsFault(
                    action=draws.choice(ACTIONS[1:3]),
                    kind="entries",
                    entries=draws.randrange(1, 5),
                    sender_fault=draws.random() < 0.3,
                )
                world.faults.add(entries)
            case 4:
                late = SqsFault(
                    action=draws.choice(ACTIONS), kind="delay", delay_ms=draws.randrange(4000), applied=True
                )
                world.faults.add(late)
            case _:
                cut = SqsFault(
                    action=draws.choice(ACTIONS),
                    kind=draws.choice(["cut", "throttle", "fail"]),
                    applied=draws.random() < 0.5,
                    count=draws.randrange(1, 6),
                )
                world.faults.add(cut)
    letters.works.set()
    world.faults.clear()


async def replica(world: World, queue: Queue, ledger: Ledger, letters: Letters, wrong: WrongAboutQueues) -> None:
    limits = SchedulerLimits(message_count=40, batch_count=6, call_count=3, poll_count=2)
    while world.counts(queue) != (0, 0) or world.loop.time() < CALM_AFTER_S:
        stopping = asyncio.Event()
        receiver = world.receiver(queue, Shop(ledger), letters, limits=limits, poll_wait_s=2, drain_s=4)
        receiver.__class__, receiver._table.__class__ = wrong.receiver_class, wrong.table_class
        running = asyncio.ensure_future(receiver.run(stopping))
        await asyncio.sleep(world.draws.uniform(2, 30))
        if world.draws.random() < 0.4:
            running.cancel()
            await asyncio.wait([running])
        else:
            stopping.set()
            await running
            stats = receiver.stats()
            names = "inHand", "inHandBytes", "queued", "handling", "calls", "polls", "deleting"
            assert {name: stats[name] for name in names} == dict.fromkeys(names, 0)


async def check_queues(world: World, seed: int, wrong: WrongAboutQueues = RIGHT) -> None:
    world.draws.seed(seed)
    queue = world.queue(is_fifo=True, VisibilityTimeout=str(world.draws.choice([5, 8, 20])))
    ledger, letters = Ledger(world.draws, has_log=wrong.has_log), Letters()
    sent = [f"{number % GROUP_COUNT}-{number:04}" for number in range(MESSAGE_COUNT)]

    async def produce() -> None:
        for body in sent:
            await world.send(queue, body, group=body.partition("-")[0])
            await asyncio.sleep(world.draws.expovariate(5))

    async with asyncio.timeout(3600), asyncio.TaskGroup() as tasks:
        tasks.create_task(produce())
        tasks.create_task(disturb(world, queue, letters))
        for _ in range(REPLICA_COUNT):
            tasks.create_task(replica(world, queue, ledger, letters, wrong))
    poison = [body for body in sent if ledger.poisoned(body)]
    assert ledger.violations == []
    assert sorted(ledger.applied) == sorted(body for body in sent if not ledger.poisoned(body))
    assert {letter.record.decode() for letter in letters.stored} == set(poison)
    for group in range(GROUP_COUNT):
        mine = [body for body in ledger.applied if body.startswith(f"{group}-")]
        assert mine == sorted(mine)
    assert message_outcomes(queue.name)["deleted"] >= 0.9 * (len(sent) - len(poison))


def are_queues_wrong(seed: int, wrong: WrongAboutQueues) -> bool:
    async def check(world: World) -> None:
        await check_queues(world, seed, wrong)

    is_wrong = False
    try:
        virtually(check)()
    except* (AssertionError, TimeoutError):
        is_wrong = True
    return is_wrong


class _LooseTable(MessageTable):
    def apply_verdicts(self, call: Sequence[Message], verdicts: Sequence[Verdict], **more: Any) -> CallDecision:
        decision = super().apply_verdicts(call, verdicts, **more)
        at_fault = {id(one) for one, verdict in zip(call, verdicts, strict=True) if isinstance(verdict, RetryHeld)}
        behind = [one for one, _ in decision.returned if id(one) not in at_fault]
        self.remove(behind)
        self.add(behind, received_at=more["now"])
        decision.returned = [pair for pair in decision.returned if id(pair[0]) in at_fault]
        return decision


class _HastyReceiver(QueueReceiver):
    async def _store_dead_letters(self, pairs: Sequence[tuple[Message, ToDeadLetter]]) -> None:
        messages = [message for message, _ in pairs]
        self._table.finish(messages)
        await self._out.delete(messages, MessageOutcome.DEAD_LETTER)
        await super()._store_dead_letters(pairs)


WRONG_ABOUT_QUEUES = {
    "a message returns to its queue, and those behind it go on": WrongAboutQueues(table_class=_LooseTable),
    "a message is deleted before its dead letter is stored": WrongAboutQueues(receiver_class=_HastyReceiver),
    "the log does not drop messages that were applied": WrongAboutQueues(has_log=False),
}
