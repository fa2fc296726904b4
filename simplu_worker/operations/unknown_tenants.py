"""The time after which an operation of an unregistered tenant is given up (architecture, idea 7). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

UNKNOWN_TENANT_MARGIN: Final = timedelta(seconds=60)  # clock skew and a slow registration
ABSENCE_MAX_AGE_S: Final = 5.0  # of a "not registered" that only defers operations


def is_overdue(arrived_at: datetime, *, now: datetime, tenant_wait: timedelta) -> bool:
    """Return whether an operation becomes a dead letter if its tenant is unregistered at *now*."""
    return arrived_at + tenant_wait + UNKNOWN_TENANT_MARGIN <= now


def absence_max_age_s(arrivals: Iterable[datetime], *, now: datetime, tenant_wait: timedelta) -> float:
    """Return the allowed age of a "not registered" for operations of these *arrivals*: 0 if one would be given up."""
    gives_up = any(is_overdue(arrived_at, now=now, tenant_wait=tenant_wait) for arrived_at in arrivals)
    return 0.0 if gives_up else ABSENCE_MAX_AGE_S


def unknown_tenant_error(tenant_wait: timedelta) -> str:
    """Return the error of a dead letter for an unknown tenant."""
    waited_s = (tenant_wait + UNKNOWN_TENANT_MARGIN).total_seconds()
    return f"its tenant was not registered within {waited_s:g} s; register it and replay this dead letter"
