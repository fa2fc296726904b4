"""Parts of what a process has in all."""

from __future__ import annotations

import pytest

from simplu_worker.feed.window import Budget


class User:
    pass


@pytest.mark.parametrize(("count", "part"), [(0, 50), (1, 50), (2, 50), (3, 33), (10, 10), (20, 5), (1000, 5)])
def test_users_have_equal_parts_within_bounds(count: int, part: int) -> None:
    budget, users = Budget[User](100, least=5, most=50), [User() for _ in range(count)]
    for user in users + users:
        budget.enter(user)
    assert (budget.part, set(budget.users)) == (part, set(users))
    for user in users:
        budget.leave(user)
    assert (budget.part, set(budget.users)) == (50, set())


def test_user_that_is_gone_has_no_part() -> None:
    budget, gone, left = Budget[User](100, least=5, most=90), User(), User()
    budget.enter(gone)
    del gone
    budget.enter(left)
    assert (budget.part, list(budget.users)) == (90, [left])
