from __future__ import annotations

from datetime import UTC, datetime

from simplu_worker.commands.dead_letters import FilterOptions
from simplu_worker.dead_letters.plan import DeadLetterFilter
from simplu_worker.vocabulary import DeadLetterReason, Source


def test_options_are_the_filter_of_their_names() -> None:
    options = FilterOptions(
        reason=(DeadLetterReason.TOO_LARGE, DeadLetterReason.INVALID_JSON),
        source=Source.SQS,
        tenant=("b", "l"),
        since="2026-11-01",
        until="2026-11-02T08:00:00+01:00",
        message=("m-1", "m-2"),
    )
    assert options.parse() == DeadLetterFilter(
        reasons=frozenset({DeadLetterReason.TOO_LARGE, DeadLetterReason.INVALID_JSON}),
        source=Source.SQS,
        tenant=("b", "l"),
        since=datetime(2026, 11, 1, tzinfo=UTC),
        until=datetime(2026, 11, 2, 7, tzinfo=UTC),
        message_ids=frozenset({"m-1", "m-2"}),
    )
    assert FilterOptions().parse().is_all
