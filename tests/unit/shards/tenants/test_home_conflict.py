"""Which home stays: never none of them, whoever decides it, however often and from how old a look."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.tenants.control_rules import HomeCandidate, HomeResolution, resolve_homes
from simplu_worker.vocabulary import TenantState

FIRST = datetime(2026, 3, 1, 12, tzinfo=UTC)


def home(name: str, after_s: float = 0.0, **facts: object) -> HomeCandidate:
    return msgspec.structs.replace(
        HomeCandidate(f"shard-{name}", TenantState.ACTIVE, FIRST + timedelta(seconds=after_s)), **facts
    )


@pytest.mark.parametrize(
    ("homes", "kept", "undone"),
    [
        ([], None, []),
        ([home("1")], "1", []),
        ([home("1", 1), home("2")], "2", ["1"]),
        ([home("2"), home("1")], "1", ["2"]),
        ([home("1", 1), home("2", 2), home("3")], "3", ["1", "2"]),
        # What has something to lose stays, whenever it came.
        ([home("1"), home("2", 1, is_touched=True)], "2", ["1"]),
        ([home("1", is_confirmed=True), home("2", 1, is_touched=True)], "2", ["1"]),
        ([home("1", is_touched=True), home("2", 1, is_touched=True)], None, []),
        ([home("1", is_touched=True), home("2", 1, is_touched=True), home("3")], None, []),
        ([home("1"), home("2", 1, is_confirmed=True)], "2", ["1"]),
        ([home("1", is_confirmed=True), home("2", 1, is_confirmed=True)], "1", ["2"]),
        # A move or a destruction that has begun is more than provisioning.
        ([home("1"), home("2", 1, state=TenantState.FENCED)], "2", ["1"]),
        ([home("1"), home("2", 1, state=TenantState.DESTROYING)], "2", ["1"]),
        # Those in which nobody lives are no homes.
        ([home("1"), home("2", -1, state=TenantState.DESTROYED)], "1", []),
        ([home("1"), home("2", -1, state=TenantState.MOVED, is_touched=True)], "1", []),
        ([home("1"), home("2", -1, state=TenantState.INCOMING), home("3", -1, state=TenantState.READY)], "1", []),
    ],
)
def test_settled_keeps_the_home_with_data_to_lose(
    homes: list[HomeCandidate], kept: str | None, undone: list[str]
) -> None:
    settlement = resolve_homes(homes)

    stays = None if settlement.kept is None else settlement.kept.shard_id.removeprefix("shard-")
    assert stays == kept
    assert sorted(one.shard_id.removeprefix("shard-") for one in settlement.undone) == undone
    assert resolve_homes(homes[::-1]) == settlement


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("look"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("undo"), st.integers(0, 2), st.just(0)),
        st.tuples(st.sampled_from(["is_touched", "is_confirmed"]), st.integers(0, 2), st.just(0)),
    ),
    max_size=60,
)


@given(st.permutations([0.0, 1.0, 2.0]), STEPS)
def test_settled_leaves_one_home_when_many_undo_at_once(
    created_at: list[float], steps: list[tuple[str, int, int]]
) -> None:
    homes: dict[int, HomeCandidate] = {number: home(str(number), created_at[number]) for number in range(3)}
    seen: list[dict[int, HomeCandidate | None]] = [{}, {}, {}]
    decided: list[list[int]] = [[], [], []]
    for kind, who, which in steps:
        match kind:
            case "look":
                seen[who][which] = homes.get(which)
                if len(seen[who]) == len(seen):
                    settlement = resolve_homes([one for one in seen[who].values() if one is not None])
                    decided[who] = [number for number, one in seen[who].items() if one in settlement.undone]
            case "undo" if decided[who]:
                number = decided[who].pop()
                if homes.get(number) == seen[who][number]:
                    assert not homes.pop(number).is_touched
            case "is_touched" | "is_confirmed" if who in homes:
                homes[who] = msgspec.structs.replace(homes[who], **{kind: True})
    assert homes


def test_settled_says_nothing_when_there_is_no_home() -> None:
    assert resolve_homes([home("1", state=TenantState.DESTROYED)]) == HomeResolution(None)


@pytest.mark.parametrize(
    ("state", "is_confirmed", "expected"),
    [
        (TenantState.ACTIVE, False, True),
        (TenantState.ACTIVE, True, False),
        (TenantState.FENCED, False, False),
        (TenantState.FENCED, True, False),
    ],
)
def test_home_is_unconfirmed_until_its_provisioning_ends(
    state: TenantState, *, is_confirmed: bool, expected: bool
) -> None:
    assert home("1", state=state, is_confirmed=is_confirmed).is_unconfirmed is expected


ROW = {
    "state": "fenced",
    "created_at": FIRST,
    "epoch": 7,
    "moved_to": "shard-2",
    "is_confirmed": True,
    "is_touched": False,
}


@pytest.mark.parametrize("is_touched", [False, True])
def test_candidate_has_the_facts_of_its_row(*, is_touched: bool) -> None:
    assert HomeCandidate.from_row("shard-1", ROW | {"is_touched": is_touched}) == HomeCandidate(
        "shard-1",
        TenantState.FENCED,
        FIRST,
        epoch=7,
        moved_to="shard-2",
        is_confirmed=True,
        is_touched=is_touched,
    )
