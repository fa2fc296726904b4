"""When an operation is given up because its tenant is not registered (architecture, idea 7). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

UNKNOWN_TENANT_MARGIN: Final = timedelta(seconds=60)  # clock skew and a slow registration
ABSENCE_MAX_AGE_S: Final = 5.0  # of a "not registered" that only puts off


def is_overdue(arrived_at: datetime, *, now: datetime, tenant_wait: timedelta) -> bool:
    """Whether an operation is a dead letter, had its tenant been found unregistered at *now*."""
    return arrived_at + tenant_wait + UNKNOWN_TENANT_MARGIN <= now


def absence_max_age_s(arrivals: Iterable[datetime], *, now: datetime, tenant_wait: timedelta) -> float:
    """Return how old a "not registered" may be for operations that arrived then: what gives one up is asked for now."""
    gives_up = any(is_overdue(arrived_at, now=now, tenant_wait=tenant_wait) for arrived_at in arrivals)
    return 0.0 if gives_up else ABSENCE_MAX_AGE_S


def unknown_tenant_error(tenant_wait: timedelta) -> str:
    """Return the error of its dead letter."""
    waited_s = (tenant_wait + UNKNOWN_TENANT_MARGIN).total_seconds()
    return f"its tenant was not registered within {waited_s:g} s; register it and replay this letter"
