from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.consumers.sqs.control_messages import MessageSubject, first_conflict, stages_of


def about(tenant_id: str, group_id: str | None = None) -> MessageSubject:
    return MessageSubject(tenant_id, tenant_id.partition("-")[0], group_id)


def about_all(business_id: str, group_id: str | None = None) -> MessageSubject:
    return MessageSubject(None, business_id, group_id)


@pytest.mark.parametrize(
    ("subjects", "expected"),
    [
        ([], []),
        ([about("a-1"), about("a-2"), about("b-1")], [[0, 1, 2]]),
        ([about("a-1"), about("a-1"), about("b-1"), about("a-1")], [[0, 2], [1], [3]]),
        ([about("a-1"), about_all("a"), about("a-2"), about("b-1")], [[0, 3], [1], [2]]),
        ([about_all("a"), about_all("b"), about_all("a")], [[0, 1], [2]]),
        ([about("a-1", "g"), about("b-1", "g"), about("b-1", "h")], [[0], [1], [2]]),
        ([MessageSubject(), MessageSubject(), about("a-1")], [[0, 1, 2]]),
        ([about_all("a"), MessageSubject(), about_all("b"), about("a-1")], [[0, 1, 2], [3]]),
        ([about("a-1", "g"), about("b-1"), about("b-2", "h"), MessageSubject()], [[0, 1, 2, 3]]),
        ([MessageSubject(group_id="g"), about("a-1", "g"), MessageSubject(group_id="g")], [[0], [1], [2]]),
    ],
)
def test_stages_keep_the_order_of_conflicts(subjects: list[MessageSubject], expected: list[list[int]]) -> None:
    assert stages_of(subjects) == expected


SUBJECTS = st.builds(
    MessageSubject,
    st.sampled_from(["a-1", "a-2", "b-1", None]),
    st.sampled_from(["a", "b", None]),
    st.sampled_from(["g", "h", None]),
)


@given(st.lists(SUBJECTS, max_size=12))
def test_stages_hold_every_message_once_and_in_order(subjects: list[MessageSubject]) -> None:
    stage_of = {place: stage for stage, places in enumerate(stages_of(subjects)) for place in places}
    assert sorted(stage_of) == list(range(len(subjects)))
    for place, subject in enumerate(subjects):
        assert all(
            stage_of[other] < stage_of[place] for other in range(place) if subject.conflicts_with(subjects[other])
        )


@pytest.mark.parametrize(
    ("subjects", "undecided", "expected"),
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
    subjects: list[MessageSubject], undecided: list[int], expected: int | None
) -> None:
    assert first_conflict(subjects, len(subjects) - 1, undecided) == expected
