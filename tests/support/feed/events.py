"""Events of the feed for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from simplu_worker.feed.types import FeedEvent, FeedTenant
from simplu_worker.vocabulary import FeedKind

TENANT: Final = FeedTenant("smile-berlin", "smile", "berlin", "dental")
AT: Final = datetime(2026, 3, 1, 9, 0, 0, 250_000, tzinfo=UTC)


def feed_event(number: int = 0, resource_id: str | None = "p-1", **members: Any) -> FeedEvent:
    """Return the event at place *number* of a batch, a patch of a patient, but for *members*."""
    usual: dict[str, Any] = {
        "id": f"token-7-{number}",
        "kind": FeedKind.RESOURCE_PATCHED,
        "shard_id": "shard-1",
        "time": AT,
        "position": f"7-{number}",
        "incarnation": "one",
        "tenant": TENANT,
        "resource_type": "patient",
        "resource_id": resource_id,
        "request_id": f"request-{number}",
    }
    return FeedEvent(**(usual | members))
