from __future__ import annotations

import asyncio
import uuid
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simplu_worker.errors import RetryableError
from simplu_worker.shards.positions import UNCERTAIN_ATTEMPTS_MAX, attempt_claim, timed_token
from simplu_worker.shards.postgres.errors import LostRaceError, RolledBackError, StatementFailedError
from simplu_worker.shards.types import (
    PositionChangedError,
    PositionClaim,
    ShardUnavailableError,
    StreamPosition,
    token_time,
)

ROLLED_BACK = [
    PositionChangedError("it is another's"),
    LostRaceError("a deadlock"),
    RolledBackError("patches are to be merged in another way"),
    StatementFailedError("a trigger", error="RaiseError (P0001)", is_timeout=False),
]
UNKNOWN = [
    ShardUnavailableError("the line was cut"),
    RetryableError("no answer"),
    TimeoutError(),
    asyncio.CancelledError(),
]


def claim(*tokens: str) -> PositionClaim:
    return PositionClaim("stream", "shardId-0", fencing_tokens=list(tokens))


def attempt(one: PositionClaim, exc: BaseException | None = None) -> str:
    with nullcontext() if exc is None else pytest.raises(type(exc)), attempt_claim(one) as token:
        assert one.fencing_tokens[-1] == token
        end(exc)
    return token


def end(exc: BaseException | None) -> None:
    if exc is not None:
        raise exc


@pytest.mark.parametrize("tokens", [(), ("read",), ("read", "doubt", "another")])
def test_token_is_the_only_one_after_a_commit(tokens: tuple[str, ...]) -> None:
    one = claim(*tokens)
    token = attempt(one)

    assert one.fencing_tokens == [token]
    assert attempt(one) != token


@pytest.mark.parametrize("exc", ROLLED_BACK, ids=lambda exc: type(exc).__name__)
@pytest.mark.parametrize("tokens", [(), ("read",), ("read", "doubt")])
def test_token_is_none_of_them_after_what_was_rolled_back_for_sure(tokens: tuple[str, ...], exc: Exception) -> None:
    one = claim(*tokens)
    attempt(one, exc)

    assert one.fencing_tokens == list(tokens)


@pytest.mark.parametrize("exc", UNKNOWN, ids=lambda exc: type(exc).__name__)
@pytest.mark.parametrize("tokens", [(), ("read",), ("read", "doubt")])
def test_token_is_one_more_while_nobody_knows_whether_it_was_written(
    tokens: tuple[str, ...], exc: BaseException
) -> None:
    one = claim(*tokens)
    token = attempt(one, exc)

    assert one.fencing_tokens == [*tokens, token]


def test_tokens_are_those_of_the_last_known_row_and_of_the_last_doubts() -> None:
    one = claim("read")
    doubts = [attempt(one, ShardUnavailableError("no answer")) for _ in range(3 * UNCERTAIN_ATTEMPTS_MAX)]

    assert one.fencing_tokens[0] == "read"
    assert one.fencing_tokens[1:] == doubts[-UNCERTAIN_ATTEMPTS_MAX - 1 :]


@given(
    st.lists(
        st.sampled_from(["committed", "rolled back", "lost before", "lost after"]), max_size=UNCERTAIN_ATTEMPTS_MAX
    )
)
def test_row_is_always_known_by_one_of_the_tokens(ends: list[str]) -> None:
    row = "read"
    one = claim(row)
    for end in ends:
        assert row in one.fencing_tokens
        match end:
            case "committed":
                row = attempt(one)
            case "rolled back":
                attempt(one, LostRaceError("a deadlock"))
            case "lost before":
                attempt(one, ShardUnavailableError("no answer"))
            case _:
                row = attempt(one, ShardUnavailableError("no answer"))
    assert row in one.fencing_tokens


def test_attempt_that_was_given_up_and_is_written_leaves_the_doubts_that_came_after_it() -> None:
    one = claim("read")
    with attempt_claim(one) as given_up:
        later = attempt(one, ShardUnavailableError("no answer"))

    assert one.fencing_tokens == [given_up, later]


@pytest.mark.parametrize("exc", [None, *ROLLED_BACK, *UNKNOWN], ids=lambda exc: type(exc).__name__)
def test_attempt_that_was_given_up_is_none_of_them_once_a_later_one_was_written(exc: BaseException | None) -> None:
    one = claim("read")
    with nullcontext() if exc is None else pytest.raises(type(exc)), attempt_claim(one):
        later = attempt(one)
        end(exc)

    assert one.fencing_tokens == [later]


times = st.integers(0, 10**14).map(
    lambda microseconds: datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds * 100)
)


@example(uuid.uuid4(), datetime.fromtimestamp(0, UTC) + timedelta(microseconds=526_894_063_000))  # in floats: 062.999…
@given(st.uuids(version=4), times)
def test_token_contains_the_time_of_its_content_and_is_random_beside_it(token: uuid.UUID, at: datetime) -> None:
    timed = timed_token(token, at)
    assert uuid.UUID(timed).version == 7
    assert uuid.UUID(timed).variant == uuid.RFC_4122
    assert timed[15:] == str(token)[15:]
    found = token_time(timed)
    assert found is not None
    assert timedelta() <= at - found < timedelta(milliseconds=1)


@pytest.mark.parametrize("token", ["", "token", str(uuid.UUID(int=0)), "0190a8f0-1111-4111-8111-111111111111"])
def test_other_tokens_contain_no_time(token: str) -> None:
    assert token_time(token) is None
    assert StreamPosition("5/0", fencing_token=token).written_at is None


def test_attempt_writes_the_time_at_which_the_position_was_computed() -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    one = PositionClaim("stream", "shardId-0", as_of=at)
    assert token_time(attempt(one)) == at
