"""What receives from a queue, in virtual time: the complaints of other consumers' users, each by its number.

The numbers are those of the list of complaints that the consumer was built against; the rule of each is in its test.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client import REGISTRY
from simulation.sqs_world import Desk, Letters, World, virtually
from structlog.testing import capture_logs

from simplu_local.sqs.faults import SqsFault
from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.message_table import SchedulerLimits
from simplu_worker.consumers.sqs.receive.queue_calls import DELETE_TRIES
from simplu_worker.consumers.sqs.receive.receiver import LONGEST_TURN_S, QueueReceiver
from simplu_worker.consumers.sqs.receive.verdicts import (
    Done,
    MessageIds,
    RetryHeld,
    ReturnToQueue,
    ToDeadLetter,
    Verdict,
    verdict_on,
)
from simplu_worker.errors import RetryableError
from simplu_worker.instruments import SQS_IN_FLIGHT, message_outcomes
from simplu_worker.operations.tries import Failed, RetryRules
from simplu_worker.vocabulary import DeadLetterReason

pytestmark = pytest.mark.slow

BURY = ToDeadLetter(DeadLetterReason.INVALID_JSON, "no JSON")
ONE_BY_ONE = SchedulerLimits(batch_count=1, call_count=1)
RETRIES = RetryRules((1, 5, 15), timedelta())


def bodies(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{number:04}" for number in range(count)]


def outcomes(receiver: QueueReceiver) -> dict[str, int]:
    counted = message_outcomes(receiver._queue.name)
    return {name: count for name, count in counted.items() if count}


def logged(logs: list[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"] == event]


# Shutdown


@virtually
async def test_t1_message_that_comes_to_a_parked_poll_after_the_stop_goes_back_at_once(world: World) -> None:
    queue, desk = world.queue(), Desk()
    async with world.receiving(queue, desk) as running:
        await asyncio.sleep(0.5)
        running.stopping.set()
        await asyncio.sleep(1)
        await world.send(queue, "late")
        stopped_at = world.loop.time()
    assert (desk.handled, world.counts(queue)) == ([], (1, 0))
    assert world.loop.time() - stopped_at < 1.0
    (again,) = await queue.receive(wait_s=1, max_messages=1)
    assert again.receive_count == 2


@virtually
async def test_t4_deletes_that_are_not_sent_yet_are_sent_before_the_end(world: World) -> None:
    queue, desk = world.queue(), Desk()
    world.faults.add(SqsFault(action="DeleteMessageBatch", kind="fail", count=3))
    await world.send(queue, *bodies(9))
    async with world.receiving(queue, desk) as running:
        await world.until(lambda: len(desk.handled) == 9)
        running.stopping.set()
    assert (world.counts(queue), outcomes(running.receiver)) == ((0, 0), {"deleted": 9})


@virtually
async def test_t5_what_was_not_begun_goes_back_at_once_and_what_was_is_finished(world: World) -> None:
    queue, desk = world.queue(), Desk(takes_s=12)
    await world.send(queue, *bodies(10))
    async with world.receiving(queue, desk, limits=SchedulerLimits(batch_count=1, call_count=2)) as running:
        await world.until(lambda: desk.busy_count == 2)
        running.stopping.set()
        await asyncio.sleep(6)
        assert world.counts(queue) == (8, 2)
    assert (world.counts(queue), len(desk.handled)) == ((8, 0), 2)
    given_back = [call for _, call in world.called("ChangeMessageVisibilityBatch") if len(call["Entries"]) == 8]
    assert [entry["VisibilityTimeout"] for entry in given_back[0]["Entries"]] == [0] * 8
    assert outcomes(running.receiver) == {"deleted": 2, "given_back": 8}


@virtually
async def test_t6_nothing_goes_back_before_the_last_poll_has_ended(world: World) -> None:
    queue, desk = world.queue(), Desk(lambda _: ReturnToQueue(0), takes_s=1)
    await world.send(queue, *bodies(25))
    async with world.receiving(
        queue, desk, limits=SchedulerLimits(message_count=8, batch_count=4, call_count=1)
    ) as running:
        await world.until(lambda: desk.busy_count == 1)
        running.stopping.set()
        stopped_at = world.loop.time()
    gone_back = [at_s for at_s, call in world.called("ChangeMessageVisibilityBatch") if at_s > stopped_at]
    last_poll = max(at_s for at_s, _ in world.called("ReceiveMessage"))
    assert gone_back
    assert min(gone_back) > last_poll
    assert world.counts(queue) == (25, 0)


@virtually
async def test_t7_rolling_restart_under_load_makes_no_dead_letter(world: World) -> None:
    letters = world.queue(is_fifo=True)
    policy = json.dumps({"deadLetterTargetArn": world.arn_of(letters), "maxReceiveCount": "2"})
    queue, desk = world.queue(is_fifo=True, RedrivePolicy=policy), Desk(takes_s=0.4)
    limits = SchedulerLimits(message_count=30, batch_count=3, call_count=2)

    async def load() -> None:
        for number in range(1200):
            await world.send(queue, f"{number:05}", group=str(number % 40))
            await asyncio.sleep(0.02)

    async def replica() -> None:
        for _ in range(4):
            stopping = asyncio.Event()
            receiver = world.receiver(queue, desk, limits=limits, poll_wait_s=1)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(receiver.run(stopping))
                await asyncio.sleep(world.draws.uniform(3, 9))
                stopping.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load())
        for _ in range(3):
            tasks.create_task(replica())
    async with world.receiving(queue, desk, limits=limits):
        await world.emptied(queue)
    assert world.counts(letters) == (0, 0)
    in_order: dict[str | None, list[str]] = {}
    for body in desk.bodies:
        group = in_order.setdefault(str(int(body) % 40), [])
        if body not in group:
            group.append(body)
    assert (sum(map(len, in_order.values())), all(group == sorted(group) for group in in_order.values())) == (
        1200,
        True,
    )


@pytest.mark.parametrize("hangs", ["handler", "mark"])
def test_t8_work_that_never_ends_does_not_stop_the_stop(hangs: str) -> None:
    async def test(world: World) -> None:
        async def mark() -> None:
            await asyncio.Event().wait()

        verdict = ToDeadLetter(DeadLetterReason.RETRIES_EXHAUSTED, "x", before_delete=mark)
        queue, desk = world.queue(), Desk(lambda _: verdict, takes_s=None if hangs == "handler" else 0.0)
        await world.send(queue, *bodies(3))
        with capture_logs() as logs:
            async with world.receiving(queue, desk, drain_s=20) as running:
                await world.until(lambda: len(desk.handled) > 0)
                running.stopping.set()
                stopped_at = world.loop.time()
        assert 20 <= world.loop.time() - stopped_at < 25
        (line,) = logged(logs, "queue.drain_overdue")
        assert line["message_ids"] == running.receiver.overdue_message_ids
        assert (len(line["message_ids"]), world.counts(queue)) == (3, (3, 0))

    virtually(test)()


# Visibility


@virtually
async def test_t9_messages_do_not_expire_while_they_wait_in_memory(world: World) -> None:
    queue, desk = world.queue(VisibilityTimeout="30"), Desk(takes_s=12)
    await world.send(queue, *bodies(10))
    async with world.receiving(queue, desk, limits=ONE_BY_ONE):
        await world.emptied(queue)
    assert (desk.receive_counts, len(set(desk.bodies))) == ([1] * 10, 10)


@pytest.mark.parametrize("timeout_s", [5, 600])
def test_t10_visibility_is_the_queues_own(timeout_s: int) -> None:
    async def test(world: World) -> None:
        queue, desk = world.queue(VisibilityTimeout=str(timeout_s)), Desk(takes_s=2.0 * timeout_s)
        await world.send(queue, "a")
        async with world.receiving(queue, desk):
            await world.emptied(queue)
        claims = world.called("ChangeMessageVisibilityBatch")
        assert {call["Entries"][0]["VisibilityTimeout"] for _, call in claims} == {timeout_s}
        assert 5 <= len(claims) <= 9
        assert desk.receive_counts == [1]

    virtually(test)()


@virtually
async def test_t10_visibility_follows_the_queue_when_it_is_changed(world: World) -> None:
    queue, desk = world.queue(VisibilityTimeout="600"), Desk()
    async with world.receiving(queue, desk) as running:
        await asyncio.sleep(1)
        world.do("SetQueueAttributes", {"QueueUrl": queue.url, "Attributes": {"VisibilityTimeout": "20"}})
        await world.until(lambda: running.receiver.stats()["visibilityTimeoutSeconds"] == 20, within_s=40)


@virtually
async def test_t12_message_whose_lease_was_lost_is_not_deleted(world: World) -> None:
    queue, desk = world.queue(VisibilityTimeout="6"), Desk(takes_s=10)
    world.faults.add(SqsFault(action="ChangeMessageVisibilityBatch", kind="fail", count=7))
    await world.send(queue, "a")
    with capture_logs() as logs:
        async with world.receiving(queue, desk, limits=SchedulerLimits(message_count=1)) as running:
            await world.emptied(queue)
    assert desk.receive_counts == [1, 2]
    assert outcomes(running.receiver) == {"lease_lost": 1, "deleted": 1}
    assert [line["reason"] for line in logged(logs, "message.lease_lost")] == ["expired"]


@virtually
async def test_t12_message_whose_lease_was_lost_is_not_started(world: World) -> None:
    queue, desk = world.queue(is_fifo=True, VisibilityTimeout="6"), Desk(takes_s=15)
    world.faults.add(SqsFault(action="ChangeMessageVisibilityBatch", kind="fail", count=10))
    await world.send(queue, "a1", "a2", "a3")
    async with world.receiving(queue, desk, limits=SchedulerLimits(message_count=3, batch_count=1)) as running:
        await world.until(lambda: desk.busy_count == 1)
        desk.takes_s = 0
        await world.emptied(queue)
    # The first, still being handled, came again meanwhile: the same work, under a new lease.
    assert (desk.bodies, desk.receive_counts) == (["a1", "a2", "a3"], [1, 2, 2])
    assert outcomes(running.receiver) == {"deleted": 3, "lease_lost": 2}


@virtually
async def test_t13_no_claim_follows_when_a_message_has_gone_back(world: World) -> None:
    queue, desk = world.queue(VisibilityTimeout="3"), Desk(lambda _: ReturnToQueue(600), takes_s=1.2)
    world.faults.add(SqsFault(action="ChangeMessageVisibilityBatch", kind="delay", delay_ms=400))
    await world.send(queue, "a")
    async with world.receiving(queue, desk):
        await asyncio.sleep(30)
    changes = [call["Entries"][0]["VisibilityTimeout"] for _, call in world.called("ChangeMessageVisibilityBatch")]
    assert (changes, world.counts(queue)) == ([3, 600], (0, 1))


@virtually
async def test_t14_delete_with_an_expired_handle_is_counted_and_does_no_harm(world: World) -> None:
    queue, desk = world.queue(is_fifo=True), Desk(takes_s=1)
    await world.send(queue, "a")
    async with world.receiving(queue, desk, limits=SchedulerLimits(message_count=1)) as running:
        await world.until(lambda: desk.busy_count == 1)
        world.account.find(queue.name).expire_receipts(world.now_ms())
        await world.emptied(queue)
    assert (desk.receive_counts, outcomes(running.receiver)) == ([1, 2], {"stale_receipt": 1, "deleted": 1})


@virtually
async def test_t15_message_is_given_up_at_twelve_hours(world: World) -> None:
    queue, desk = world.queue(VisibilityTimeout="5000"), Desk(takes_s=44_000)
    await world.send(queue, "a")
    with capture_logs() as logs:
        async with world.receiving(queue, desk, limits=SchedulerLimits(message_count=1)) as running:
            await world.until(lambda: desk.busy_count == 1)
            desk.takes_s = 0
            await world.emptied(queue)
    assert outcomes(running.receiver) == {"lease_lost": 1, "deleted": 1}
    assert [line["reason"] for line in logged(logs, "message.lease_lost")] == ["refused"]


class FailureDesk(Desk):
    """A desk at which messages of one group fail by themselves: retried, and given up for their own failures."""

    def __init__(self, failing: Callable[[Message], bool]) -> None:
        super().__init__()
        self._failing = failing
        self._failures: Counter[str] = Counter()

    async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for message in messages:
            if verdicts and isinstance(verdicts[-1], RetryHeld | ReturnToQueue):
                verdicts.append(ReturnToQueue(0))
                continue
            self.handled.append((asyncio.get_running_loop().time(), message))
            self._failures[message.message_id] += (is_failing := self._failing(message))
            failed, count = Failed("KeyError"), self._failures[message.message_id]
            verdicts.append(verdict_on(failed, count, MessageIds(), rules=RETRIES) if is_failing else Done())
        return verdicts


@virtually
async def test_t16_followers_of_a_failing_head_use_up_neither_receives_nor_tries(world: World) -> None:
    queue, letters = world.queue(is_fifo=True, VisibilityTimeout="4"), Letters()
    failed_once: set[str] = set()

    def is_failing(message: Message) -> bool:
        is_first = message.body not in failed_once
        failed_once.add(message.body)
        return message.body == "head" or is_first

    desk = FailureDesk(is_failing)
    await world.send(queue, "head", *bodies(20), group="g")
    async with world.receiving(queue, desk, letters):
        await world.emptied(queue)
    assert [(letter.record, letter.attempts) for letter in letters.stored] == [(b"head", 4)]
    assert desk.bodies == ["head"] * 4 + [body for body in bodies(20) for _ in range(2)]
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(desk.handled[:4])]
    assert gaps == pytest.approx([1, 5, 15], abs=0.3)
    assert set(desk.receive_counts) == {1}


@virtually
async def test_t16_stop_between_two_tries_returns_the_message_and_its_followers(world: World) -> None:
    queue, letters = world.queue(is_fifo=True), Letters()
    desk = FailureDesk(lambda message: message.body == "head")
    await world.send(queue, "head", *bodies(3), group="g")
    async with world.receiving(queue, desk, letters) as running:
        await world.until(lambda: len(desk.handled) == 3)
        await asyncio.sleep(1)
        running.stopping.set()
        stopped_at = world.loop.time()
    assert (world.loop.time() - stopped_at < 10, letters.stored) == (True, [])
    assert world.counts(queue) == (4, 0)
    again = await queue.receive(wait_s=1, max_messages=10)
    assert [message.body for message in again] == ["head", *bodies(3)]


# Deletes


@virtually
async def test_t17_message_received_twice_is_handled_once_and_deleted_by_its_newest_handle(world: World) -> None:
    queue, desk = world.queue(), Desk(takes_s=2)
    await world.send(queue, *bodies(3))
    async with world.receiving(queue, desk) as running:
        await world.until(lambda: len(desk.handled) == 3)
        world.account.find(queue.name).expire_receipts(world.now_ms())
        world.wake()
        await world.emptied(queue)
    assert (sorted(desk.bodies), outcomes(running.receiver)) == (bodies(3), {"deleted": 3})
    ((_, call),) = world.called("DeleteMessageBatch")
    assert [entry["Id"] for entry in call["Entries"]] == ["0", "1", "2"]


@virtually
async def test_t18_entries_at_fault_are_not_tried_again(world: World) -> None:
    queue, desk = world.queue(VisibilityTimeout="20"), Desk()
    fault = SqsFault(
        action="DeleteMessageBatch", kind="entries", entries=3, code="ReceiptHandleIsInvalid", sender_fault=True
    )
    world.faults.add(fault)
    await world.send(queue, *bodies(10))
    async with world.receiving(queue, desk) as running:
        await world.emptied(queue)
    sizes = [len(call["Entries"]) for _, call in world.called("DeleteMessageBatch")]
    assert (sizes, len(desk.handled)) == ([10, 3], 13)
    assert outcomes(running.receiver) == {"deleted": 10, "stale_receipt": 3}


@virtually
async def test_t18_message_comes_again_after_a_few_failed_deletes(world: World) -> None:
    queue, desk = world.queue(VisibilityTimeout="10"), Desk()
    world.faults.add(SqsFault(action="DeleteMessageBatch", kind="fail", count=DELETE_TRIES))
    await world.send(queue, "a")
    async with world.receiving(queue, desk) as running:
        await world.emptied(queue)
    assert outcomes(running.receiver) == {"not_deleted": 1, "deleted": 1}
    assert desk.receive_counts == [1, 2]


@virtually
async def test_t19_message_is_not_deleted_before_its_letter_is_stored(world: World) -> None:
    queue, letters = world.queue(is_fifo=True, VisibilityTimeout="30"), Letters()
    letters.works.clear()
    desk = Desk(lambda message: BURY if message.body == "a1" else Done())
    await world.send(queue, "a1", "b1")
    async with world.receiving(queue, desk, letters) as running:
        await asyncio.sleep(1)
        await world.send(queue, "a2", "b2")
        await asyncio.sleep(3600)
        assert (world.counts(queue), running.receiver.in_flight_count) == ((1, 1), 1)
        letters.works.set()
        await world.emptied(queue)
    assert [letter.record for letter in letters.stored] == [b"a1"]
    assert (desk.bodies, outcomes(running.receiver)) == (["a1", "b1", "b2", "a2"], {"dead_letter": 1, "deleted": 3})


@virtually
async def test_operation_is_given_up_after_its_dead_letter_and_before_the_delete(world: World) -> None:
    queue, letters, order = world.queue(), Letters(), list[str]()
    troubles = [RetryableError("shard down"), KeyError("bug"), None]

    async def mark() -> None:
        await asyncio.sleep(0)
        order.append(f"marked with {len(letters.stored)} letters, {len(world.called('DeleteMessageBatch'))} deletes")
        if (trouble := troubles.pop(0)) is not None:
            raise trouble

    ids = MessageIds(request_id="r", resource_id="s")
    verdict = ToDeadLetter(DeadLetterReason.RETRIES_EXHAUSTED, "x", ids, before_delete=mark)
    desk = Desk(lambda _: verdict)
    await world.send(queue, "a")
    with capture_logs() as logs:
        async with world.receiving(queue, desk, letters) as running:
            await world.emptied(queue)
    assert order == [f"marked with {number} letters, 0 deletes" for number in (1, 2, 3)]
    assert (letters.stored[0].request_id, letters.stored[0].resource_id) == ("r", "s")
    assert outcomes(running.receiver) == {"retried": 2, "dead_letter": 1}
    assert [line["log_level"] for line in logged(logs, "message.not_marked")] == ["warning", "error"]


@virtually
async def test_t25_poll_that_never_returns_is_noticed_and_repeated(world: World) -> None:
    queue, desk = world.queue(), Desk()
    world.faults.add(SqsFault(action="ReceiveMessage", kind="hang", count=2))
    await world.send(queue, "a")
    with capture_logs() as logs:
        async with world.receiving(queue, desk, poll_wait_s=5):
            await world.until(lambda: len(desk.handled) == 1)
            assert 20 < world.loop.time() < 24
    assert [line["failure_count"] for line in logged(logs, "queue.unreachable")] == [1, 2]


@pytest.mark.parametrize(
    ("kind", "status", "code", "level"),
    [
        *((kind, None, None, "warning") for kind in ("cut", "throttle", "fail")),
        ("fail", 503, "ServiceUnavailable", "warning"),
        ("fail", 403, "OverLimit", "warning"),
        ("fail", 403, "AccessDenied", "error"),
        *(
            ("fail", 400, code, "error")
            for code in (
                "QueueDoesNotExist",
                "InvalidAddress",
                "InvalidSecurity",
                "UnsupportedOperation",
                "KmsDisabled",
            )
        ),
    ],
)
def test_t26_loop_goes_on_after_each_class_of_error(kind: Any, status: Any, code: str | None, level: str) -> None:
    async def test(world: World) -> None:
        queue, desk = world.queue(), Desk()
        world.faults.add(SqsFault(action="ReceiveMessage", kind=kind, status=status, code=code, count=3))
        await world.send(queue, "a")
        with capture_logs() as logs:
            async with world.receiving(queue, desk) as running:
                await world.until(lambda: running.receiver.last_error is not None)
                await world.emptied(queue)
                assert running.receiver.last_error is None
        lines = logged(logs, "queue.unreachable")
        assert ([line["failure_count"] for line in lines], {line["log_level"] for line in lines}) == ([1, 2], {level})
        polls = [at_s for at_s, _ in world.called("ReceiveMessage")][:4]
        gaps = [later - earlier for earlier, later in pairwise(polls)]
        assert gaps == sorted(gaps)
        assert len(logged(logs, "queue.recovered")) == 1

    virtually(test)()


@virtually
async def test_t26_bug_in_a_handler_is_logged_and_its_messages_are_handled_again(world: World) -> None:
    tries: Counter[str] = Counter()

    def verdict(message: Message) -> Verdict:
        tries[message.body] += 1
        if message.body == "a" and tries["a"] == 1:
            raise ZeroDivisionError
        return Done()

    queue = world.queue()
    await world.send(queue, "a", "b")
    with capture_logs() as logs:
        async with world.receiving(queue, Desk(verdict)):
            await world.emptied(queue)
    assert tries["a"] == 2
    assert [line["loop"] for line in logged(logs, "loop.failed")] == ["handler"]


@virtually
async def test_receiver_forgets_all_messages_at_a_bug_of_its_own_and_receives_them_again(world: World) -> None:
    class Mute(Desk):
        async def handle(self, messages: Sequence[Message]) -> list[Verdict]:
            verdicts = await super().handle(messages)
            return verdicts if len(self.calls) > 1 else []  # fewer than messages

    queue, desk = world.queue(), Mute()
    await world.send(queue, "a", "b")
    async with world.receiving(queue, desk) as running:
        await world.until(lambda: running.receiver.internal_error is not None)
        assert running.receiver.in_flight_count == SQS_IN_FLIGHT.labels(queue.name)._value.get() == 0
        await world.emptied(queue)
    assert (desk.calls, outcomes(running.receiver)) == ([["a", "b"]] * 2, {"deleted": 2})


@virtually
async def test_t29_idle_queue_is_alive_and_well(world: World) -> None:
    queue = world.queue()
    async with world.receiving(queue, Desk()) as running:
        for _ in range(4):
            await asyncio.sleep(3600)
            assert world.loop.time() - running.receiver.last_turn < LONGEST_TURN_S
            assert running.receiver.last_error is None


@virtually
async def test_t34_hand_is_bounded_when_the_handler_is_slow(world: World) -> None:
    queue, desk = world.queue(), Desk(takes_s=None)
    await world.send(queue, *(body * 250 for body in bodies(500)))
    async with world.receiving(
        queue, desk, drain_s=1, limits=SchedulerLimits(message_count=50, poll_count=4)
    ) as running:
        await asyncio.sleep(30)
        assert (running.receiver.in_flight_count, world.counts(queue)) == (50, (450, 50))
    async with world.receiving(
        queue, desk, drain_s=1, limits=SchedulerLimits(byte_count=50_000, poll_count=4)
    ) as running:
        await asyncio.sleep(30)
        assert 40_000 < running.receiver.stats()["inHandBytes"] <= 60_000


# Polls


@virtually
async def test_polls_become_more_under_load_and_one_again_when_idle(world: World) -> None:
    queue, desk = world.queue(), Desk()
    async with world.receiving(queue, desk, limits=SchedulerLimits(poll_count=3)) as running:
        await asyncio.sleep(12)
        assert running.receiver.stats()["polls"] == 1
        await world.send(queue, *bodies(1000))
        await world.until(lambda: running.receiver.stats()["polls"] == 3)
        await world.emptied(queue)
        await asyncio.sleep(12)
        assert running.receiver.stats()["polls"] == 1
    assert len(desk.handled) == 1000


# Waiting


@virtually
async def test_wait_that_is_over_goes_on_waiting_for_a_free_call(world: World) -> None:
    queue, waits = world.queue(), [RetryHeld(1.0)]

    class Slow(Desk):
        async def handle(self, messages: Any) -> list[Verdict]:
            self.takes_s = 10.0 if messages[0].body == "slow" else 0.0
            return await super().handle(messages)

    desk = Slow(lambda message: waits.pop() if message.body == "a" and waits else Done())
    await world.send(queue, "a")
    async with world.receiving(queue, desk, limits=ONE_BY_ONE):
        await world.until(lambda: not waits)
        await world.send(queue, "slow")
        await world.emptied(queue)
    assert (desk.bodies, [one.held_count for _, one in desk.handled]) == (["a", "slow", "a"], [0, 0, 1])


# Start and stats


@virtually
async def test_queue_that_does_not_answer_at_the_start_is_waited_for(world: World) -> None:
    queue, desk = world.queue(), Desk()
    world.faults.add(SqsFault(action="GetQueueAttributes", kind="fail", count=5))
    await world.send(queue, "a")
    async with world.receiving(queue, desk) as running:
        await world.until(lambda: running.receiver.last_error is not None)
        assert running.receiver.stats()["state"] != "polling"
        await world.emptied(queue)
        assert running.receiver.stats()["state"] == "polling"


@virtually
async def test_age_of_the_oldest_message_grows_while_it_is_in_flight_and_between_its_receives(world: World) -> None:
    queue, is_down = world.queue(), True
    desk = Desk(lambda _: ReturnToQueue(40) if is_down else Done())
    await world.send(queue, "old")
    await asyncio.sleep(100)
    ages = []
    async with world.receiving(queue, desk) as running:
        for _ in range(10):
            await asyncio.sleep(20)
            running.receiver.refresh_gauges()
            ages.append(REGISTRY.get_sample_value("simplu_sqs_oldest_message_age_seconds", {"queue": queue.name}))
        is_down = False
        await world.emptied(queue)
        await asyncio.sleep(200)
        running.receiver.refresh_gauges()
        idle = REGISTRY.get_sample_value("simplu_sqs_oldest_message_age_seconds", {"queue": queue.name})
    assert ages == [pytest.approx(120 + 20 * number, abs=0.1) for number in range(10)]
    assert (len(desk.handled) > 4, idle) == (True, 0)
