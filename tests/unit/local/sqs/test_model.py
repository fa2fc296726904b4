"""The local SQS without its server: tests set the time, so that hours pass at once."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from simplu_local.sqs.message import StoredMessage, parse_content
from simplu_local.sqs.model import SqsAccount
from simplu_local.sqs.queue import LocalQueue
from simplu_local.sqs.requests import MessageEntry


def new_account() -> SqsAccount:
    numbers = itertools.count(1)
    return SqsAccount(new_id=lambda: str(next(numbers)))


def new_queue(account: SqsAccount, name: str = "queue.fifo", **attributes: str) -> LocalQueue:
    if name.endswith(".fifo"):
        attributes["FifoQueue"] = "true"
    return account.create(name, attributes, 0)


def send(queue: LocalQueue, *bodies: str, now_ms: int = 0) -> None:
    for body in bodies:
        entry = MessageEntry(message_body=body)
        if queue.is_fifo:
            entry.message_group_id, entry.message_deduplication_id = body[0], body
        queue.send(parse_content(entry, is_fifo=queue.is_fifo, by_content=False), now_ms)


def bodies(messages: list[StoredMessage]) -> list[str]:
    return [message.content.body for message in messages]


def test_repetition_is_taken_after_five_minutes() -> None:
    queue = new_queue(new_account())
    send(queue, "A0", now_ms=0)
    send(queue, "A0", now_ms=299_999)
    assert queue.visible_count == 1
    send(queue, "A0", now_ms=300_000)
    assert queue.visible_count == 2


def test_dead_letter_of_a_group_does_not_lock_it() -> None:
    account = new_account()
    letters = new_queue(account, "letters.fifo")
    policy = json.dumps({"deadLetterTargetArn": letters.arn, "maxReceiveCount": 1})
    queue = new_queue(account, RedrivePolicy=policy)
    send(queue, "A0")
    account.receive(queue, 0, visibility_s=0)
    send(queue, "A1", "A2")
    assert bodies(account.receive(queue, 0, limit=10)) == ["A1", "A2"]
    (letter,) = account.receive(letters, 0)
    assert (letter.content.body, letter.content.group_id, letter.receive_count) == ("A0", "A", 2)


@dataclass
class Book:
    left: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    in_flight: dict[str, str] = field(default_factory=dict)  # receipt handle by body

    def locked(self, group: str) -> bool:
        return any(body[0] == group for body in self.in_flight)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from("ABC")),
        st.tuples(st.just("receive"), st.integers(1, 10)),
        st.tuples(st.sampled_from(["delete", "give back"]), st.integers(0, 100)),
        st.tuples(st.just("expire"), st.just(0)),
    ),
    max_size=60,
)


@given(steps=steps)
def test_groups_keep_their_order_whatever_happens(steps: list[tuple[str, str | int]]) -> None:
    account, book, now_ms = new_account(), Book(), 0
    queue = new_queue(account, VisibilityTimeout="30")
    for number, (step, argument) in enumerate(steps):
        match step, argument:
            case "send", str(group):
                send(queue, f"{group}{number}", now_ms=now_ms)
                book.left[group].append(f"{group}{number}")
            case "receive", int(most):
                due = {group: left for group, left in book.left.items() if not book.locked(group)}
                messages = account.receive(queue, now_ms, limit=most)
                assert len(messages) == min(most, sum(map(len, due.values())))
                received = bodies(messages)
                for group in "ABC":
                    of_group = [body for body in received if body[0] == group]
                    assert of_group == due.get(group, [])[: len(of_group)]
                book.in_flight |= {message.content.body: queue.receipt_handle_of(message) for message in messages}
            case "expire", _:
                now_ms += 30_000
                book.in_flight.clear()
            case _, int(which) if book.in_flight:
                body = sorted(book.in_flight)[which % len(book.in_flight)]
                handle = book.in_flight.pop(body)
                if step == "delete":
                    queue.delete(handle, now_ms)
                    book.left[body[0]].remove(body)
                else:
                    queue.change_visibility(handle, 0, now_ms)
        queue.apply_due(now_ms)
        left_count = sum(map(len, book.left.values()))
        assert (queue.in_flight_count, queue.visible_count) == (len(book.in_flight), left_count - len(book.in_flight))
