from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simplu_worker.shards.apply.durability import GRACE_S, KEEPS_UP_S, ReplicationFacts, Server, Standby, StandbyWatch
from simplu_worker.vocabulary import CommitSafety

STARTED_AT = datetime(2026, 3, 1, tzinfo=UTC)
SERVER = Server("00000001", STARTED_AT)
PROMOTED = Server("00000002", STARTED_AT)
RESTARTED = Server("00000001", STARTED_AT + timedelta(hours=1))
END = 1_000_000


def standby(flushed: int | None = END, state: str | None = "streaming", *, name: str = "a") -> Standby:
    return Standby(name, state, flushed)


HIDDEN = standby(None, None)


def facts(
    *standbys: Standby,
    position: int = END,
    server: Server = SERVER,
    commit: str = "on",
    names: str = "",
    fsync: bool = True,
) -> ReplicationFacts:
    return ReplicationFacts(server, position, commit, names, fsync, standbys)


def watched(*said: tuple[float, ReplicationFacts]) -> StandbyWatch:
    watch = StandbyWatch()
    for now, one in said:
        watch.note(one, now=now)
    return watch


@pytest.mark.parametrize(
    ("said", "safety", "counted"),
    [
        pytest.param(facts(), CommitSafety.LOCAL, [], id="no standby"),
        pytest.param(facts(fsync=False), CommitSafety.VOLATILE, [], id="no standby, no fsync"),
        pytest.param(facts(commit="off"), CommitSafety.LOCAL, [], id="no standby, synchronous_commit off"),
        pytest.param(facts(standby()), CommitSafety.REPLICATED, ["a"], id="a standby"),
        pytest.param(facts(standby(), fsync=False), CommitSafety.REPLICATED, ["a"], id="a standby, no fsync"),
        pytest.param(facts(standby(5)), CommitSafety.REPLICATED, ["a"], id="a standby that is behind at first sight"),
        pytest.param(facts(standby(state=None)), CommitSafety.REPLICATED, ["a"], id="a standby seen by its slot alone"),
        pytest.param(facts(standby(5, "catchup")), CommitSafety.LAGGING, [], id="a standby that copies missed log"),
        pytest.param(facts(standby(None, "startup")), CommitSafety.LAGGING, [], id="a standby that has just come"),
        pytest.param(facts(HIDDEN), CommitSafety.UNKNOWN, [], id="a standby that may not be seen"),
        pytest.param(facts(HIDDEN, fsync=False), CommitSafety.UNKNOWN, [], id="the same, no fsync"),
        pytest.param(facts(HIDDEN, standby(name="b")), CommitSafety.REPLICATED, ["b"], id="one of two may be seen"),
        pytest.param(facts(names="a"), CommitSafety.SYNCHRONOUS, [], id="named, and gone"),
        pytest.param(facts(standby(), names="*"), CommitSafety.SYNCHRONOUS, ["a"], id="named, and there"),
        pytest.param(facts(HIDDEN, names="ANY 1 (a, b)"), CommitSafety.SYNCHRONOUS, [], id="named, not to be seen"),
        pytest.param(facts(names=" "), CommitSafety.LOCAL, [], id="no name"),
    ],
)
def test_safety_is_what_the_server_can_do_at_first_sight(
    said: ReplicationFacts, safety: CommitSafety, counted: Sequence[str]
) -> None:
    watch = watched((0, said))

    assert (watch.safety, watch.awaited) == (safety, counted)


@pytest.mark.parametrize(
    ("said", "needs_write"),
    [
        (facts(commit="on"), False),
        (facts(commit="local"), False),
        (facts(commit="remote_apply"), False),
        (facts(commit="off"), True),
        (facts(standby(), commit="off"), True),
        (facts(names="a", commit="on"), True),
        (facts(names="a", commit="local"), True),
        (facts(names="a", commit="remote_write"), True),
    ],
)
def test_facts_ask_for_a_write_where_a_look_does_not_tell(said: ReplicationFacts, *, needs_write: bool) -> None:
    assert said.needs_write is needs_write


@pytest.mark.parametrize(
    ("standbys", "lacking"),
    [
        ([standby(END)], []),
        ([standby(END + 1)], []),
        ([standby(END - 1)], ["a"]),
        ([standby(END), standby(END - 1, name="b")], ["b"]),
        ([standby(END), standby(END - 1)], ["a"]),
        ([standby(END), standby(END - 1, "catchup", name="b")], []),
        ([standby(END), standby(None, None, name="b")], []),
        ([], []),
    ],
    ids=[
        "has it",
        "has more",
        "has less",
        "one of two",
        "one of two of a name",
        "one catches up",
        "one hidden",
        "none",
    ],
)
def test_watch_waits_for_every_standby_that_keeps_up(standbys: list[Standby], lacking: list[str]) -> None:
    assert watched((0, facts(*standbys))).standbys_behind(END) == lacking


def test_watch_gives_up_a_standby_a_minute_behind() -> None:
    frozen = standby(END)
    watch = watched((0, facts(frozen)))
    for now in range(1, 200):
        watch.note(facts(frozen, position=END + now), now=now)
        gives_up_after = KEEPS_UP_S + GRACE_S
        assert watch.standbys_behind(END + now) == (["a"] if now <= gives_up_after else []), now
        assert watch.safety is (CommitSafety.REPLICATED if now <= gives_up_after else CommitSafety.LAGGING), now

    watch.note(facts(standby(END + 199), position=END + 200), now=200)
    assert (watch.safety, watch.standbys_behind(END + 200)) == (CommitSafety.REPLICATED, ["a"])


def test_watch_waits_for_a_standby_seconds_behind() -> None:
    watch = StandbyWatch()
    for now in range(600):
        watch.note(facts(standby(END + max(0, now - 4)), position=END + now), now=now)
    assert watch.standbys_behind(END + 599) == ["a"]
    assert watch.standbys_behind(END + 595) == []


@pytest.mark.parametrize("left", [[], [standby(0, "catchup")], [standby(None, "startup")]], ids=["gone", "anew", "new"])
def test_watch_waits_a_minute_for_a_standby_that_went_away(left: list[Standby]) -> None:
    watch = watched((0, facts(standby())), (GRACE_S, facts(*left)))
    assert (watch.safety, watch.standbys_behind(END)) == (CommitSafety.REPLICATED, ["a"])

    watch.note(facts(*left), now=GRACE_S + 1)
    assert (watch.safety, watch.standbys_behind(END)) == (CommitSafety.LAGGING if left else CommitSafety.LOCAL, [])


def test_watch_begins_anew_with_another_server() -> None:
    watch = watched((0, facts(standby())), (1, facts(server=PROMOTED)))
    assert (watch.safety, watch.standbys_behind(END), watch.server) == (CommitSafety.LOCAL, [], PROMOTED)
    assert watched().server is None


def test_watch_awaits_standbys_after_a_restart() -> None:
    watch = watched((0, facts(standby())), (1, facts(server=RESTARTED)))
    assert (watch.safety, watch.standbys_behind(END)) == (CommitSafety.REPLICATED, ["a"])
    watch.note(facts(standby(), server=RESTARTED), now=3)
    assert watch.standbys_behind(END) == []


def test_watch_awaits_a_standby_after_a_promotion() -> None:
    watch = watched((0, facts(standby())), (KEEPS_UP_S + 1, facts(standby(500), position=500, server=PROMOTED)))
    assert (watch.safety, watch.awaited) == (CommitSafety.REPLICATED, ["a"])


def test_watch_knows_nothing_before_the_first_answer() -> None:
    assert StandbyWatch().safety is CommitSafety.UNKNOWN


looks = st.lists(
    st.tuples(
        st.floats(0.01, 30),  # seconds since the last look
        st.integers(0, 1000),  # bytes written since
        st.lists(
            st.tuples(st.sampled_from("abc"), st.integers(0, 3000), st.sampled_from(["streaming", "catchup", None])),
            max_size=4,
        ),
    ),
    min_size=1,
    max_size=60,
)


@given(looks)
def test_watch_says_safe_only_when_all_that_it_counts_have_it(
    history: list[tuple[float, int, list[tuple[str, int, str | None]]]],
) -> None:
    watch, now, position = StandbyWatch(), 0.0, 0
    seen_at: dict[str, float] = {}
    for pause_s, written, rows in history:
        now, position = now + pause_s, position + written
        standbys = [standby(min(flushed, position), state, name=name) for name, flushed, state in rows]
        watch.note(facts(*standbys, position=position), now=now)
        current = {one.name for one in standbys if one.state != "catchup"}
        seen_at |= dict.fromkeys(current, now)

        assert set(watch.awaited) <= {name for name, at in seen_at.items() if now - at <= GRACE_S}
        assert {one.name for one in standbys if one.flushed == position} & current <= set(watch.awaited) | {
            one.name for one in standbys if one.flushed != position
        }
        if not watch.standbys_behind(position):
            assert set(watch.awaited) <= {one.name for one in standbys if one.flushed == position}
        assert len(watch._positions) <= KEEPS_UP_S + 2


@settings(max_examples=30)  # of minutes each
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from([None, 0, 1, 40, 100_000]), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_watch_lets_nobody_wait_for_much_longer_than_a_minute(phases: list[tuple[int, int | None, bool]]) -> None:
    watch, position, flushed = StandbyWatch(), 0, 0
    waiting: deque[tuple[float, int]] = deque()
    look_s = 0.5
    for look, (written, speed, is_catching_up) in enumerate(phase for phase in phases for _ in range(40)):
        now, position = look * look_s, position + written
        flushed = min(position, flushed + (speed or 0))
        state = "catchup" if is_catching_up else "streaming"
        watch.note(facts(*([] if speed is None else [standby(flushed, state)]), position=position), now=now)
        waiting.append((now, position))
        while waiting and not watch.standbys_behind(waiting[0][1]):
            waiting.popleft()
        longest_s = now - waiting[0][0] if waiting else 0.0
        assert longest_s <= KEEPS_UP_S + GRACE_S + 2.0


def test_standby_is_awaited_from_the_first_answer_wherever_it_is() -> None:
    watch = watched((0.0, facts(standby(0))))
    assert (watch.awaited, watch.standbys_behind(0)) == (["a"], [])
    watch.note(facts(), now=1.0)
    assert watch.standbys_behind(1) == ["a"]


@pytest.mark.parametrize(("state", "flushed"), [(None, END), ("startup", None)])
def test_standby_is_hidden_only_without_state_and_position(state: str | None, flushed: int | None) -> None:
    assert (standby(flushed, state).is_hidden, HIDDEN.is_hidden) == (False, True)


def test_watch_remembers_a_bounded_number_of_positions() -> None:
    watch = StandbyWatch()
    for step in range(5000):
        watch.note(facts(standby()), now=step / 10)
    assert len(watch._positions) < 200
