"""When to leave a silent Citrus alone, and when to try again. Pure: time and the draw are handed in."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

FAILURES_MAX: Final = 3  # calls in a row, each tried several times
OPEN_BASE_S: Final = 0.5
OPEN_MAX_S: Final = 5.0  # so soon is it noticed that Citrus is back
DOUBLINGS_MAX: Final = 16  # past REST_MAX_S; keeps the power small


class CitrusState(StrEnum):
    """Closed: calls are made. Open: none is. Half open: one is on its way, and decides."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CitrusBreaker:
    """Opens after some failures in a row, rests, and lets one call try again: later each time that fails.

    A call takes a ticket before it is made and hands it in with what came of it. Only calls made in the present state
    count, so that many that fail at once are one reason to rest, and not many.
    """

    def __init__(self) -> None:
        self._generation = 0
        self._failure_count = 0
        self._opening_count = 0  # since it was closed last
        self._open_until: float | None = None
        self._is_half_open = False

    def __repr__(self) -> str:
        return f"CitrusBreaker({self.state}, failures={self._failure_count}, openings={self._opening_count})"

    @property
    def state(self) -> CitrusState:
        """What it is now."""
        if self._open_until is None:
            return CitrusState.CLOSED
        return CitrusState.HALF_OPEN if self._is_half_open else CitrusState.OPEN

    def begin_call(self, now: float) -> int | None:
        """Return the ticket of a call that may be made now; None when none may. After a rest, the first caller tries.

        Each ticket is to be handed in once, to `succeeded`, `failed` or `gave_up`.
        """
        if self._open_until is not None:
            if self._is_half_open or now < self._open_until:
                return None
            self._is_half_open = True
            self._generation += 1
        return self._generation

    def record_success(self, ticket: int) -> None:
        """Note an answer."""
        if ticket != self._generation:
            return
        self._failure_count = self._opening_count = 0
        if self._open_until is not None:
            self._open_until, self._is_half_open = None, False
            self._generation += 1

    def record_failure(self, ticket: int, now: float, *, draw: float, at_least_s: float = 0.0) -> bool:
        """Note that there was no answer, and how long Citrus wishes not to be asked; return whether it opened by this.

        *draw* (0 ≤ draw < 1) spreads replicas that meet the same trouble.
        """
        if ticket != self._generation:
            return False
        self._failure_count += 1
        if not self._is_half_open and self._failure_count < FAILURES_MAX and not at_least_s:
            return False
        span_s = min(OPEN_MAX_S, OPEN_BASE_S * 2.0 ** min(self._opening_count, DOUBLINGS_MAX))
        self._opening_count += 1
        self._is_half_open = False
        self._open_until = now + max(at_least_s, span_s * (0.5 + draw / 2))
        self._generation += 1
        return True

    def cancel_call(self, ticket: int) -> None:
        """Note that a call ended without saying anything, as one that is cancelled: the next one may be made."""
        if ticket == self._generation:
            self._is_half_open = False

    def open_for_s(self, now: float) -> float:
        """Return for how long no call may be made."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)
