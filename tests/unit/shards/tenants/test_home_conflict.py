"""Which home stays: never none of them, whoever decides it, however often and from how old a look."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.tenants.control_rules import HomeCandidate, rank_homes
from simplu_worker.vocabulary import TenantState

FIRST = datetime(2026, 3, 1, 12, tzinfo=UTC)


def home(name: str, after_s: float = 0.0, **facts: object) -> HomeCandidate:
    return msgspec.structs.replace(
        HomeCandidate(f"shard-{name}", TenantState.ACTIVE, FIRST + timedelta(seconds=after_s)), **facts
    )


@pytest.mark.parametrize(
    ("homes", "ranked"),
    [
        ([], ""),
        ([home("1", 1), home("2"), home("3")], "231"),
        ([home("1"), home("2", 1, is_confirmed=True)], "21"),
        ([home("1", state=TenantState.FENCED), home("2", -1, state=TenantState.DESTROYING)], "21"),
        ([home("1"), *(home("2", -1, state=state) for state in ("destroyed", "moved", "incoming", "ready"))], "1"),
    ],
)
def test_homes_are_kept_by_confirmation_time_and_shard(homes: list[HomeCandidate], ranked: str) -> None:
    for some in (homes, homes[::-1]):
        assert "".join(one.shard_id.removeprefix("shard-") for one in rank_homes(some)) == ranked


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("look"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("undo"), st.integers(0, 2), st.just(0)),
        st.tuples(st.sampled_from(["touched", "confirmed"]), st.integers(0, 2), st.just(0)),
    ),
    max_size=60,
)


@given(st.permutations([0.0, 1.0, 2.0]), STEPS)
def test_one_home_is_left_when_many_undo_at_once(created_at: list[float], steps: list[tuple[str, int, int]]) -> None:
    homes = {number: home(str(number), created_at[number]) for number in range(3)}
    touched: set[int] = set()
    seen: list[dict[int, HomeCandidate | None]] = [{}, {}, {}]
    left: list[list[HomeCandidate]] = [[], [], []]  # by replica: what it may undo, the last first
    kept = [0, 0, 0]
    for kind, who, which in steps:
        match kind:
            case "look":
                seen[who][which] = homes.get(which)
                if len(seen[who]) == len(seen):
                    left[who] = rank_homes([one for one in seen[who].values() if one is not None])
                    kept[who] = 0
            case "undo" if left[who] and len(left[who]) + kept[who] > 1:
                one = left[who].pop()
                number = int(one.shard_id.removeprefix("shard-"))
                if homes.get(number) not in {None, one}:
                    left[who] = []  # it has changed since it was read
                elif number in touched:
                    kept[who] += 1
                else:
                    homes.pop(number, None)
            case "touched" if who in homes:
                touched.add(who)
            case "confirmed" if who in homes:
                homes[who] = msgspec.structs.replace(homes[who], is_confirmed=True)
    assert homes


@pytest.mark.parametrize(
    ("state", "is_confirmed", "expected"),
    [(TenantState.ACTIVE, False, True), (TenantState.ACTIVE, True, False), (TenantState.FENCED, False, False)],
)
def test_home_is_unconfirmed_until_its_provisioning_ends(
    state: TenantState, *, is_confirmed: bool, expected: bool
) -> None:
    row = {"state": state.value, "created_at": FIRST, "moved_to": "shard-2", "is_confirmed": is_confirmed}
    candidate = HomeCandidate.from_row("shard-1", row)
    assert candidate == HomeCandidate("shard-1", state, FIRST, "shard-2", is_confirmed)
    assert candidate.is_unconfirmed is expected
