"""The clock of this machine is compared with that of AWS, and a jump shows at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from structlog.testing import capture_logs

from simplu_worker.timing.clock import COMPARE_AFTER_S, OwnClock

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Machine:
    def __init__(self) -> None:
        self.uptime_s = 1000.0
        self.set_by = timedelta()
        self.clock = OwnClock(utc=lambda: self.aws_now + self.set_by, monotonic=lambda: self.uptime_s)

    @property
    def aws_now(self) -> datetime:
        return NOW + timedelta(seconds=self.uptime_s)

    def answer(self, after_s: float = COMPARE_AFTER_S) -> None:
        self.uptime_s += after_s
        self.clock.compare(format_datetime(self.aws_now, usegmt=True))


def test_clock_is_taken_as_it_is_before_the_first_answer() -> None:
    machine = Machine()
    machine.clock.compare("soon")
    assert (machine.clock.ahead_s, machine.clock.problem) == (None, None)
    assert machine.clock.earliest() == machine.aws_now


def test_jump_shows_at_once_between_two_answers() -> None:
    machine = Machine()
    machine.answer()
    machine.uptime_s += 3600
    assert (machine.clock.ahead_s, machine.clock.problem) == (0.0, None)
    for difference in (timedelta(days=20), -timedelta(days=20)):
        machine.set_by = difference
        assert machine.clock.ahead_s == difference.total_seconds()
        assert machine.clock.problem is not None
    machine.set_by = timedelta()
    assert machine.clock.problem is None


def test_earliest_is_the_time_of_the_clock_that_is_behind_when_they_are_apart() -> None:
    machine = Machine()
    machine.answer()
    machine.set_by = timedelta(days=20)
    assert machine.clock.earliest() == machine.aws_now
    machine.set_by = -timedelta(days=20)
    assert machine.clock.earliest() == machine.aws_now - timedelta(days=20)
    machine.set_by = timedelta(seconds=60)
    assert machine.clock.earliest() == machine.aws_now + timedelta(seconds=60)


def test_answers_are_compared_at_intervals_and_a_change_is_logged_once() -> None:
    machine = Machine()
    machine.answer()
    machine.set_by = timedelta(hours=1)
    with capture_logs() as logs:
        machine.answer(after_s=COMPARE_AFTER_S - 1)
        assert logs == []
        machine.answer(after_s=1)
        machine.answer()
        machine.set_by = timedelta(seconds=2)
        machine.answer()
        machine.answer()
    assert [(entry["event"], entry["log_level"], entry["ahead_s"]) for entry in logs] == [
        ("clock.apart", "warning", 3600),
        ("clock.agreed", "info", 2),
    ]
