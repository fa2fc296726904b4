"""Which messages of a batch are handled together, and which wait for which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.sqs.control.conflicts import MessageSubject, first_conflict, stages_of


def about(tenant_id: str, group_id: str | None = None) -> MessageSubject:
    """Return the claim of a message about one tenant; its business is what is before the dash."""
    return MessageSubject(tenant_id, tenant_id.partition("-")[0], group_id)


def about_all(business_id: str, group_id: str | None = None) -> MessageSubject:
    """Return the claim of a `destroy_all`."""
    return MessageSubject(None, business_id, group_id)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([], []),
        ([about("a-1"), about("a-2"), about("b-1")], [[0, 1, 2]]),
        ([about("a-1"), about("a-1"), about("b-1"), about("a-1")], [[0, 2], [1], [3]]),
        ([about("a-1"), about_all("a"), about("a-2"), about("b-1")], [[0, 3], [1], [2]]),
        ([about_all("a"), about_all("b"), about_all("a")], [[0, 1], [2]]),
        ([about("a-1", "g"), about("b-1", "g"), about("b-1", "h")], [[0], [1], [2]]),
        ([MessageSubject(), MessageSubject(), about("a-1")], [[0, 1, 2]]),
        ([MessageSubject(group_id="g"), about("a-1", "g"), MessageSubject(group_id="g")], [[0], [1], [2]]),
    ],
)
def test_turns_keep_the_order_of_what_meets(claims: list[MessageSubject], expected: list[list[int]]) -> None:
    """One tenant's messages, a business's destruction, a group: one after the other; all else together."""
    assert stages_of(claims) == expected


CLAIMS = st.builds(
    MessageSubject,
    st.sampled_from(["a-1", "a-2", "b-1", None]),
    st.sampled_from(["a", "b", None]),
    st.sampled_from(["g", "h", None]),
)


@given(st.lists(CLAIMS, max_size=12))
def test_turns_hold_everything_once_and_in_order(claims: list[MessageSubject]) -> None:
    """No two of a turn meet, and what meets something earlier is in a later turn."""
    turn_of = {place: turn for turn, places in enumerate(stages_of(claims)) for place in places}
    assert sorted(turn_of) == list(range(len(claims)))
    for place, claim in enumerate(claims):
        assert all(turn_of[other] < turn_of[place] for other in range(place) if claim.conflicts_with(claims[other]))


@pytest.mark.parametrize(
    ("claims", "undecided", "expected"),
    [
        ([about("a-1"), about("a-1")], [], None),
        ([about("a-1"), about("a-1")], [0], 0),
        ([about("a-1"), about("b-1")], [0], None),
        ([about("a-1"), about("a-2"), about_all("a")], [1], 1),
        ([about_all("a"), about("a-1")], [0], 0),
        ([about("a-1", "h"), about("b-1", "g"), about("a-1", "g")], [0, 1], 1),
        ([about("a-1"), about("a-1"), about("a-1")], [2], None),
    ],
)
def test_message_waits_for_the_first_undecided_before_it(
    claims: list[MessageSubject], undecided: list[int], expected: int | None
) -> None:
    """One of its own group counts before one about the same tenant; what comes behind it does not count."""
    assert first_conflict(claims, len(claims) - 1, undecided) == expected
