"""What the tenants of a Postgres shard take of it, in the last minute and the last hour. Pure.

Memory is bounded, whatever the number of tenants. Each slot of a window counts the largest tenants alone; one that is
counted from now on may have had as many seconds before as the largest that was dropped (space saving: Metwally and
others, 2005). These are at most a 26th of the seconds of all tenants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

SLOT_COUNT: Final = 6  # of a window: it has its last five sixths at least
MINUTE_SLOT_S: Final = 10.0
HOUR_SLOT_S: Final = 600.0
COUNTED_MAX: Final = 25  # tenants that a slot counts; twice as many between two cuts
RANK_COUNT: Final = 10  # tenants that are shown


class TenantUse(msgspec.Struct, gc=False):
    """What a tenant took: seconds of transactions, operations, and bytes of their records.

    *waited_s* are the seconds for which it had operations in a lane, and batches that waited for a transaction.
    """

    took_s: float = 0.0
    operation_count: int = 0
    size_bytes: int = 0
    waited_s: float = 0.0

    def add(self, other: TenantUse) -> None:
        """Add what *other* has."""
        self.took_s += other.took_s
        self.operation_count += other.operation_count
        self.size_bytes += other.size_bytes
        self.waited_s += other.waited_s


class WindowUse(msgspec.Struct, frozen=True):
    """The counted tenants of a window, and the seconds of all tenants together."""

    by_tenant: Mapping[str, TenantUse]
    total_s: float

    def largest(self) -> Sequence[str]:
        """Return the tenants that took most of the time, at most RANK_COUNT, the first one most."""
        took_s = {tenant_id: use.took_s for tenant_id, use in self.by_tenant.items() if use.took_s}
        return sorted(took_s, key=lambda one: (-took_s[one], one))[:RANK_COUNT]


class TenantUsage:
    """What tenants took of one shard lately, as far as this replica applied it."""

    def __init__(self) -> None:
        self._minute = _Window(MINUTE_SLOT_S)
        self._hour = _Window(HOUR_SLOT_S)

    def __repr__(self) -> str:
        return f"TenantUsage({self._minute}, {self._hour})"

    def note(self, uses: Mapping[str, TenantUse], now: float) -> None:
        """Add what tenants took, as of *now* (monotonic)."""
        for window in (self._minute, self._hour):
            window.slot(now).add(uses)

    def note_waits(self, waits_s: Mapping[str, float], now: float) -> None:
        """Add the seconds for which operations of tenants waited."""
        self.note({tenant_id: TenantUse(waited_s=wait_s) for tenant_id, wait_s in waits_s.items() if wait_s}, now)

    def last_minute(self, now: float) -> WindowUse:
        """Return what tenants took in the last 50 to 60 s."""
        return self._minute.use(now)

    def last_hour(self, now: float) -> WindowUse:
        """Return what tenants took in the last 50 to 60 minutes."""
        return self._hour.use(now)


class _Slot:
    """The tenants of a part of a window."""

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.total_s = 0.0
        self.by_tenant: dict[str, TenantUse] = {}
        self._unseen_s: dict[str, float] = {}  # of each tenant, at most, before it was counted
        self._dropped_s = 0.0  # of a dropped tenant, at most

    def add(self, uses: Mapping[str, TenantUse]) -> None:
        for tenant_id, use in uses.items():
            own = self.by_tenant.get(tenant_id)
            if own is None:
                own = self.by_tenant[tenant_id] = TenantUse()
                self._unseen_s[tenant_id] = self._dropped_s
            own.add(use)
            self.total_s += use.took_s
        if len(self.by_tenant) > 2 * COUNTED_MAX:
            self.cut()

    def cut(self) -> None:
        """Drop all tenants but the largest."""
        most_s = {one: use.took_s + self._unseen_s[one] for one, use in self.by_tenant.items()}
        largest = sorted(most_s, key=most_s.__getitem__, reverse=True)
        kept, dropped = largest[:COUNTED_MAX], largest[COUNTED_MAX:]
        if dropped:
            self._dropped_s = most_s[dropped[0]]
            self.by_tenant = {one: self.by_tenant[one] for one in kept}  # a dict that only loses keys keeps its size
            self._unseen_s = {one: self._unseen_s[one] for one in kept}


class _Window:
    """The last slots, each as long."""

    def __init__(self, slot_s: float) -> None:
        self._slot_s = slot_s
        self._slots: deque[_Slot] = deque(maxlen=SLOT_COUNT)

    def __repr__(self) -> str:
        return f"{[len(slot.by_tenant) for slot in self._slots]} tenants"

    def slot(self, now: float) -> _Slot:
        """Return the slot of *now*; the ones before are cut."""
        if not self._slots or now >= self._slots[-1].began_at + self._slot_s:
            if self._slots:
                self._slots[-1].cut()
            self._slots.append(_Slot(now - now % self._slot_s))
        return self._slots[-1]

    def use(self, now: float) -> WindowUse:
        by_tenant: dict[str, TenantUse] = {}
        total_s = 0.0
        for slot in self._slots:
            if now - now % self._slot_s - slot.began_at >= SLOT_COUNT * self._slot_s:
                continue
            total_s += slot.total_s
            for tenant_id, use in slot.by_tenant.items():
                by_tenant.setdefault(tenant_id, TenantUse()).add(use)
        return WindowUse(by_tenant, total_s)
