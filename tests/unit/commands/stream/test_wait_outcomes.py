"""What `operations send --wait` says that it waits for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from simplu_worker.commands.stream.input_lines import Undecided
from simplu_worker.commands.stream.outcomes import LastPoll, describe_poll

NOT_APPLIED = "the shards answer, and no worker has applied them yet: see /status of the workers"
SINCE = datetime(2026, 11, 1, 12, 3, tzinfo=UTC)
PAUSED = Undecided("paused", since=SINCE, target="tenant b-l")
LOST = Undecided("shard_unavailable", since=SINCE, target="shard shard-2")
ERRORS = {"shard-2": "127.0.0.1:5432/d: ConnectionRefusedError"}


@pytest.mark.parametrize(
    ("poll", "errors", "expected"),
    [
        (LastPoll(2), {}, "waiting for 2 operations; the shards have not answered yet"),
        (LastPoll(2), ERRORS, f"waiting for 2 operations; no answer from: shard-2 ({ERRORS['shard-2']})"),
        (
            LastPoll(1, has_ended=True, silent_shard_ids=["shard-3"]),
            ERRORS,
            f"waiting for 1 operations; no answer from: shard-2 ({ERRORS['shard-2']}), shard-3",
        ),
        (
            LastPoll(1, has_ended=True, error="Citrus at citrus:80: Connection refused"),
            {},
            "waiting for 1 operations; the shards were not listed: Citrus at citrus:80: Connection refused",
        ),
        (
            LastPoll(1, has_ended=True),
            {},
            f"waiting for 1 operations; {NOT_APPLIED}",
        ),
        (
            LastPoll(1, has_ended=True, held={"b-l": PAUSED}),
            {},
            "waiting for 1 operations; b-l is held: paused (tenant b-l) since 2026-11-01T12:03:00+00:00",
        ),
        (
            LastPoll(5, has_ended=True, held=dict.fromkeys(("b-1", "b-2", "b-3", "b-4"), Undecided("not_here"))),
            {},
            f"waiting for 5 operations; {', '.join(f'b-{n} is held: not_here' for n in (1, 2, 3))}, and 1 tenants more",
        ),
        (
            LastPoll(1, has_ended=True, held={"b-l": LOST}),
            ERRORS,
            f"waiting for 1 operations; b-l is held: {LOST.hold}; no answer from: shard-2 ({ERRORS['shard-2']})",
        ),
    ],
)
def test_reason_names_address_and_cause(poll: LastPoll, errors: dict[str, str], expected: str) -> None:
    assert describe_poll(poll, errors) == expected
