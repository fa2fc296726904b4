"""When an operation is given up because its tenant is not registered (architecture, idea 7). Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

UNKNOWN_TENANT_MARGIN: Final = timedelta(seconds=60)  # clock skew and a slow registration


def is_overdue(arrived_at: datetime, *, now: datetime, tenant_wait: timedelta) -> bool:
    """Whether an operation is a dead letter, had its tenant been found unregistered at *now*."""
    return arrived_at + tenant_wait + UNKNOWN_TENANT_MARGIN <= now


def unknown_tenant_error(tenant_wait: timedelta) -> str:
    """Return the error of its dead letter."""
    waited_s = (tenant_wait + UNKNOWN_TENANT_MARGIN).total_seconds()
    return f"its tenant was not registered within {waited_s:g} s; register it and replay this letter"
