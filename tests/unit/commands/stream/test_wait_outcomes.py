"""What `operations send --wait` says that it waits for."""

from __future__ import annotations

import pytest

from simplu_worker.commands.stream.outcomes import LastPoll, describe_poll

NOT_APPLIED = "the shards answer, and no worker has applied them yet: see /status of the workers"
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
    ],
)
def test_reason_names_address_and_cause(poll: LastPoll, errors: dict[str, str], expected: str) -> None:
    assert describe_poll(poll, errors) == expected
