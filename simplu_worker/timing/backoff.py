"""How long to wait before the next try; the random draw is an argument. Pure."""

from __future__ import annotations

DOUBLINGS_MAX = 32  # past any cap in use; keeps the power small


def backoff_s(failure_count: int, *, draw: float, base_s: float, max_s: float) -> float:
    """Return the pause after the *failure_count*-th failure in a row, counted from 1.

    The span doubles from *base_s* up to *max_s*; *draw* (0 ≤ draw < 1) picks within its upper half, so that many
    callers spread out and none retries at once.
    """
    span_s = min(max_s, base_s * 2.0 ** min(max(failure_count - 1, 0), DOUBLINGS_MAX))
    return span_s * (0.5 + draw / 2)


def jittered(interval_s: float, *, ratio: float, draw: float) -> float:
    """Return *interval_s*, up to *ratio* of it more or less, so that replicas do not act in step.

    *draw* is from 0 to 1.
    """
    return interval_s * (1 - ratio + 2 * ratio * draw)
