"""How long a catch-up takes beside a main reader that polls, and beside one that reads by push (docs/holding.md)."""

from __future__ import annotations

import pytest

from simplu_local.kinesis.quotas import MIB, ReadQuota
from simplu_worker.consumers.kinesis.fetch.pacing import CATCH_UP_REPLY_BYTES, Pacing, ReadBudget

RECORD_BYTES = 1024
HELD_S = 600.0
READ_S = 0.02  # of a read
NEVER_S = 5 * HELD_S


def catch_up_s(written_mib_s: float, *, is_pushed: bool) -> float:
    """Return the time in which a catch-up reads what was written while its target was held, and since."""
    budget, quota, rate = ReadBudget(), ReadQuota(), written_mib_s * MIB
    main = Pacing(budget)
    main.is_pushed = is_pushed
    now, main_read_to, caught_up_to = 0.0, 0.0, -HELD_S
    with budget.open_catch_up(now) as catch_up:
        while now - caught_up_to > 1.0 and now < NEVER_S:
            main_at = now + (1e9 if is_pushed else main.delay_s(now))
            catch_up_at = now + catch_up.delay_s(now)
            now = min(main_at, catch_up_at)
            if main_at <= catch_up_at:
                main.note_start(now)
                size_bytes = min(int((now - main_read_to) * rate), main.limit() * RECORD_BYTES)
                main_read_to += size_bytes / rate
            else:
                if catch_up.delay_s(now) > 1e-9:
                    continue  # it had to ask again
                catch_up.note_start(now)
                size_bytes = min(CATCH_UP_REPLY_BYTES, int((now - caught_up_to) * rate))
                caught_up_to += size_bytes / rate
            assert quota.acquire(round(now * 1000))
            quota.count_read(size_bytes, round(now * 1000), was_full=False)
            reply = {"record_count": size_bytes // RECORD_BYTES, "size_bytes": size_bytes}
            now += READ_S
            if main_at <= catch_up_at:
                main.note_reply(now, **reply, millis_behind=0)
            else:
                catch_up.note_reply(now, **reply)
    return now


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written_mib_s", "polled_of_hold", "pushed_of_hold"),
    [(0.1, 7 / 60, 3 / 60), (0.25, 20 / 60, 9 / 60), (0.5, 1.0, 20 / 60), (0.75, 3.0, 36 / 60), (1.0, None, 1.0)],
)
def test_catch_up_takes_the_time_of_the_table(
    written_mib_s: float, polled_of_hold: float | None, pushed_of_hold: float
) -> None:
    pushed_s, polled_s = (catch_up_s(written_mib_s, is_pushed=is_pushed) for is_pushed in (True, False))
    assert pushed_s == pytest.approx(pushed_of_hold * HELD_S, rel=0.12)
    assert written_mib_s < 1.0 or pushed_s <= HELD_S
    if polled_of_hold is None:
        assert polled_s >= NEVER_S
    else:
        assert polled_s == pytest.approx(polled_of_hold * HELD_S, rel=0.2)
