from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from support.postgres.tenant_cases import operation

from simplu_worker.shards.apply.duplicates import LoggedRow, LogMatch, match_row
from simplu_worker.vocabulary import Failure, Source

DIGEST = operation("delete").digest
FIRST = datetime(2026, 3, 1, 12, tzinfo=UTC)
GIVEN_UP = Failure.RETRIES_EXHAUSTED


def row(
    *,
    digest: bytes = DIGEST,
    error: str | None = GIVEN_UP,
    source: Source = Source.KINESIS,
    sequence_number: str | None = "99",
    requested_at: datetime = FIRST,
) -> LoggedRow:
    origin = operation("delete", source=source, sequence_number=sequence_number).origin
    return LoggedRow(digest, error, msgspec.structs.replace(origin, sequence_number=sequence_number), requested_at)


OF_FIFO, SENT_AT = "18849496460467696128", "1767225600000"
FROM_SQS = row(source=Source.SQS, sequence_number=None)


@pytest.mark.parametrize(
    ("logged", "source", "sequence_number", "expected"),
    [
        (row(), Source.KINESIS, "99", LogMatch.REDELIVERY),  # the record itself, read again
        (row(), Source.KINESIS, "100", LogMatch.REPLAY),
        (row(sequence_number="9"), Source.KINESIS, "10", LogMatch.REPLAY),  # numbers, not texts
        (row(), Source.KINESIS, "0098", LogMatch.REDELIVERY),
        (row(), Source.KINESIS, "0100", LogMatch.REPLAY),
        (row(source=Source.SQS, sequence_number="1"), Source.SQS, None, LogMatch.REDELIVERY),
        (row(source=Source.SQS, sequence_number=OF_FIFO), Source.SQS, OF_FIFO, LogMatch.REDELIVERY),
        (row(source=Source.SQS, sequence_number=OF_FIFO), Source.SQS, SENT_AT, LogMatch.REPLAY),  # a standard queue
        (row(source=Source.SQS, sequence_number=SENT_AT), Source.SQS, OF_FIFO, LogMatch.REPLAY),
        (row(source=Source.SQS, sequence_number=SENT_AT), Source.SQS, SENT_AT, LogMatch.REDELIVERY),
        (row(), Source.KINESIS, "98", LogMatch.REDELIVERY),  # given up before its replay was
        (row(), Source.SQS, None, LogMatch.REPLAY),
        (FROM_SQS, Source.KINESIS, "1", LogMatch.REPLAY),
        (FROM_SQS, Source.SQS, None, LogMatch.REDELIVERY),
        (row(error=None), Source.KINESIS, "100", LogMatch.REDELIVERY),
        (row(error=Failure.INVALID_DATA), Source.KINESIS, "100", LogMatch.REDELIVERY),
        (row(error=Failure.TENANT_DESTROYED), Source.SQS, None, LogMatch.REDELIVERY),
        (row(digest=b"another"), Source.KINESIS, "99", LogMatch.REUSE),
        (row(digest=b"another"), Source.KINESIS, "100", LogMatch.REUSE),
        (row(digest=b"another", error=None), Source.SQS, None, LogMatch.REUSE),
    ],
)
def test_encounter_is_a_replay_only_when_what_was_given_up_comes_from_a_later_place(
    logged: LoggedRow, source: Source, sequence_number: str | None, expected: LogMatch
) -> None:
    sent = operation("delete", source=source, sequence_number=sequence_number)

    assert match_row(sent, logged) is expected


@pytest.mark.parametrize("source", Source)
def test_same_record_is_a_redelivery(source: Source) -> None:
    sent = operation("delete", source=source)

    sent_at = datetime.fromisoformat(sent.requested_at)
    for failure in (None, *Failure):
        logged = LoggedRow(sent.digest, failure, sent.origin, sent_at)
        assert match_row(sent, logged) is LogMatch.REDELIVERY


@pytest.mark.parametrize("digest", [DIGEST, b"another"])
@pytest.mark.parametrize(
    ("since_first_s", "window_s", "same", "other"),
    [
        (0, 600, LogMatch.REDELIVERY, LogMatch.REUSE),
        (300, 600, LogMatch.REDELIVERY, LogMatch.REUSE),
        (301, 600, LogMatch.LATE_REPETITION, LogMatch.REUSE),
        (600, 600, LogMatch.LATE_REPETITION, LogMatch.REUSE),
        (601, 600, LogMatch.ANOTHER_EVENT, LogMatch.ANOTHER_EVENT),
        (-601, 600, LogMatch.REDELIVERY, LogMatch.REUSE),  # sent before the one that was applied
        (301, 300, LogMatch.ANOTHER_EVENT, LogMatch.ANOTHER_EVENT),
        (10_000_000, None, LogMatch.LATE_REPETITION, LogMatch.REUSE),
    ],
)
def test_id_of_an_order_event_names_one_event_for_the_window(
    digest: bytes, since_first_s: int, window_s: int | None, same: LogMatch, other: LogMatch
) -> None:
    sent_at = FIRST + timedelta(seconds=since_first_s)
    start = None if window_s is None else (sent_at - timedelta(seconds=window_s)).isoformat()
    sent = msgspec.structs.replace(
        operation("delete", source=Source.SQS, timestamp=sent_at.isoformat()), window_start=start
    )

    expected = same if digest == DIGEST else other
    assert match_row(sent, msgspec.structs.replace(FROM_SQS, digest=digest, error=None)) is expected
    from_stream = row(digest=digest, error=None, sequence_number="99")
    assert match_row(sent, from_stream) is (LogMatch.REDELIVERY if digest == DIGEST else LogMatch.REUSE)
