from __future__ import annotations

from datetime import UTC, datetime, timedelta

from simplu_worker.consumers.sqs.receive.slot_share import WINDOW_S, RecentlyReceived

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def sent(seconds: float) -> datetime:
    return NOON - timedelta(seconds=seconds)


def test_message_is_remembered_for_a_minute_after_its_receive() -> None:
    received = RecentlyReceived()
    received.note([sent(1)], now=0.0)
    received.note([sent(900), sent(2)], now=WINDOW_S - 1)
    received.note([sent(3)], now=WINDOW_S + 5)
    assert received.oldest_sent_at(2 * WINDOW_S - 1) == sent(900)
    assert received.oldest_sent_at(2 * WINDOW_S) == sent(3)
    assert received.oldest_sent_at(4 * WINDOW_S) is None


def test_receive_without_messages_changes_nothing() -> None:
    received = RecentlyReceived()
    received.note([], now=0.0)
    assert received.oldest_sent_at(0.0) is None
