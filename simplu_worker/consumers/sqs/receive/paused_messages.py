"""Messages of paused tenants: hidden in their queue for long, and remembered, so that they come back at a resume. Pure.

SQS hides a message for at most 12 hours, counts each receive, and has a quota for what is hidden. So a message of a
paused tenant is hidden for HIDDEN_S, and of each queue a replica hides no more than HIDDEN_MAX for so long. What it has
not remembered, of a replica that was killed for example, comes back by itself after that time.
"""

from __future__ import annotations

from typing import Final

import msgspec

from simplu_worker.aws.sqs_queue import Message

HIDDEN_S: Final = 1800.0
HIDDEN_MAX: Final = 5000  # of the 120,000 of a queue that SQS hides, which all replicas share
BEYOND_S: Final = 30.0  # of the others
RETURNED_AFTER_S: Final = 5.0  # so long after its verdict a message is hidden at the latest, and may be shown again


class _Hidden(msgspec.Struct, frozen=True):
    message: Message
    decided_at: float
    until: float


class PausedMessages:
    """The messages of one queue that this replica has hidden, by tenant. Times are monotonic."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, dict[str, _Hidden]] = {}  # by the message's id

    def __repr__(self) -> str:
        return f"PausedMessages({len(self)} of {len(self._by_tenant)} tenants)"

    def __len__(self) -> int:
        return sum(map(len, self._by_tenant.values()))

    @property
    def tenants(self) -> list[str]:
        """The tenants with hidden messages."""
        return list(self._by_tenant)

    def add(self, tenant_id: str, message: Message, *, paused_s: float, now: float) -> float:
        """Remember a message that is returned to its queue now; return the seconds for which it is to be hidden."""
        self._forget(tenant_id, message.message_id)
        if len(self) >= HIDDEN_MAX:
            return min(BEYOND_S, paused_s)
        hidden_s = min(HIDDEN_S, paused_s)
        self._by_tenant.setdefault(tenant_id, {})[message.message_id] = _Hidden(message, now, now + hidden_s)
        return hidden_s

    def take(self, tenant_id: str, *, now: float) -> list[Message]:
        """Remove and return the messages of a tenant that are hidden by now, and have not come back by themselves."""
        own = self._by_tenant.get(tenant_id, {})
        due = [one for one in own.values() if one.decided_at + RETURNED_AFTER_S <= now]
        for one in due:
            self._forget(tenant_id, one.message.message_id)
        return [one.message for one in due if one.until > now]

    def forget_returned(self, *, now: float) -> None:
        """Forget the messages that have come back by themselves."""
        for tenant_id, own in list(self._by_tenant.items()):
            for one in [one for one in own.values() if one.until <= now]:
                self._forget(tenant_id, one.message.message_id)

    def _forget(self, tenant_id: str, message_id: str) -> None:
        own = self._by_tenant.get(tenant_id, {})
        own.pop(message_id, None)
        if not own:
            self._by_tenant.pop(tenant_id, None)
