"""The circuit breaker of one Citrus endpoint. Pure. The time and the random draw are arguments."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from simplu_worker.timing.backoff import backoff_s

FAILURES_MAX: Final = 3  # calls in a row, each with several tries
OPEN_BASE_S: Final = 0.5
OPEN_MAX_S: Final = 5.0  # the longest that a recovered Citrus stays unnoticed
SUBJECTS_MAX: Final = 1000  # of failures, the last ones


class CitrusState(StrEnum):
    """The breaker's state. Closed: calls are made. Open: no call is made. Half open: one call is made, and decides."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CitrusBreaker:
    """Opens after some failures in a row, then lets a single call try again, later after each further failure.

    A call takes a ticket before it begins, and returns the ticket with its result. Only calls begun in the present
    state count, so that many concurrent failures open the breaker once.

    A failure that may be due to the *subject* of the call, as that of a tenant whose record Citrus cannot read, counts
    once for each subject until that one has an answer: a few such tenants, asked for again and again, hold up no other.
    """

    def __init__(self) -> None:
        self._generation = 0
        self._failure_count = 0
        self._opening_count = 0  # since the breaker was closed last
        self._open_until: float | None = None
        self._is_half_open = False
        self._failed_subjects: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"CitrusBreaker({self.state}, failures={self._failure_count}, openings={self._opening_count})"

    @property
    def state(self) -> CitrusState:
        """The present state."""
        if self._open_until is None:
            return CitrusState.CLOSED
        return CitrusState.HALF_OPEN if self._is_half_open else CitrusState.OPEN

    def begin_call(self, now: float) -> int | None:
        """Return the ticket of a call that may be made now, or None. The first call after an open time is the trial.

        Hand each ticket in once, to `record_success`, `record_failure` or `cancel_call`.
        """
        if self._open_until is not None:
            if self._is_half_open or now < self._open_until:
                return None
            self._is_half_open = True
            self._generation += 1
        return self._generation

    def record_success(self, ticket: int, subject: str | None = None) -> None:
        """Record that Citrus answered a call for *subject*."""
        if subject is not None:
            self._failed_subjects.pop(subject, None)
        if ticket != self._generation:
            return
        self._failure_count = self._opening_count = 0
        if self._open_until is not None:
            self._open_until, self._is_half_open = None, False
            self._generation += 1

    def record_failure(
        self, ticket: int, now: float, *, draw: float, at_least_s: float = 0.0, subject: str | None = None
    ) -> bool:
        """Record that Citrus did not answer a call; return whether this opened the breaker.

        *at_least_s* is Citrus's `Retry-After`, which opens the breaker at once. *draw* (0 ≤ draw < 1) spreads the
        replicas that meet the same outage. *subject* may be the cause; without it the failure is that of all.
        """
        if ticket != self._generation:
            return False
        if subject in self._failed_subjects:
            self._is_half_open = False  # it tells nothing of others: the next call is the trial
            return False
        if subject is not None:
            self._failed_subjects[subject] = None
            if len(self._failed_subjects) > SUBJECTS_MAX:
                del self._failed_subjects[next(iter(self._failed_subjects))]
        self._failure_count += 1
        if not self._is_half_open and self._failure_count < FAILURES_MAX and not at_least_s:
            return False
        self._opening_count += 1
        self._is_half_open = False
        open_s = backoff_s(self._opening_count, draw=draw, base_s=OPEN_BASE_S, max_s=OPEN_MAX_S)
        self._open_until = now + max(at_least_s, open_s)
        self._generation += 1
        return True

    def cancel_call(self, ticket: int) -> None:
        """Record that a call ended without a result, e.g. cancelled: the next call may be made."""
        if ticket == self._generation:
            self._is_half_open = False

    def open_for_s(self, now: float) -> float:
        """Return for how long no call may be made."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)
