from __future__ import annotations

from datetime import UTC, datetime

import pytest

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive import redrive_rules
from simplu_worker.consumers.sqs.receive.redrive_rules import BEYOND_S, HIDDEN_S, RETURNED_AFTER_S, PausedMessages


def message(number: int) -> Message:
    sent_at = datetime(2026, 3, 1, tzinfo=UTC)
    return Message(f"m-{number}", f"receipt-{number}", "{}", {}, sent_at, 1, None, None, None)


@pytest.mark.parametrize(("paused_s", "hidden_s"), [(7 * HIDDEN_S, HIDDEN_S), (90.0, 90.0)])
def test_message_is_hidden_for_the_pause_or_half_an_hour(paused_s: float, hidden_s: float) -> None:
    assert PausedMessages().add("a-x", message(1), paused_s=paused_s, now=0.0) == hidden_s


def test_hidden_messages_are_shown_that_have_not_come_back() -> None:
    paused = PausedMessages()
    for number, at in enumerate((0.0, HIDDEN_S, HIDDEN_S + 1.0)):
        paused.add("a-x", message(number), paused_s=1e6, now=at)
    paused.add("b-x", message(3), paused_s=1e6, now=HIDDEN_S)

    assert paused.take("a-x", now=HIDDEN_S + RETURNED_AFTER_S) == [message(1)]
    assert (len(paused), paused.tenants) == (2, ["a-x", "b-x"])
    assert paused.take("a-x", now=HIDDEN_S + 1.0 + RETURNED_AFTER_S) == [message(2)]
    assert (len(paused), paused.tenants) == (1, ["b-x"])


def test_message_that_comes_back_is_remembered_once() -> None:
    paused = PausedMessages()
    paused.add("a-x", message(1), paused_s=1e6, now=0.0)
    paused.add("a-x", message(1), paused_s=1e6, now=HIDDEN_S)
    assert len(paused) == 1
    paused.forget_returned(now=2 * HIDDEN_S)
    assert (len(paused), paused.tenants) == (0, [])


def test_only_so_many_messages_are_hidden_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrive_rules, "HIDDEN_MAX", 2)
    paused = PausedMessages()
    assert [paused.add("a-x", message(n), paused_s=1e6, now=0.0) for n in range(3)] == [HIDDEN_S, HIDDEN_S, BEYOND_S]
    assert len(paused) == 2
