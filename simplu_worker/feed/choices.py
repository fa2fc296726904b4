"""What a person's word does to a destination's cursor on a shard: where a replay begins, what a skip passes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.feed.places import POSITION_MAX, HeldTenant, Place
from simplu_worker.vocabulary import FeedStop


def replay_place(cursor: Place, from_batch_id: int | None) -> Place | None:
    """Return where the cursor is put to replay what lies behind a batch; None where nothing of that was sent yet."""
    place = None if from_batch_id is None else Place(from_batch_id, POSITION_MAX)
    return place if place is not None and place < cursor else None


class Resume(msgspec.Struct, frozen=True):
    """Let a stopped destination go on. The event that it refused is tried once more, then kept as refused."""

    stopped: FeedStop
    error: str | None
    refused_event: str | None


class PassSource(msgspec.Struct, frozen=True):
    """Send the events of a tenant that has moved without waiting for those of its source."""

    tenant_id: str
    source: str


def choose_skip(
    stopped: FeedStop | None,
    error: str | None,
    refused_event: str | None,
    held: Sequence[HeldTenant],
    tenant_id: str | None,
) -> Resume | PassSource:
    """Return what a skip passes, of *tenant_id* if given. Raises `PermanentError` where there is nothing to pass."""
    waiting = {one.tenant_id: one for one in held if not one.is_passed}
    if tenant_id is not None:
        if tenant_id not in waiting:
            names = ", ".join(sorted(waiting)) or "none"
            raise PermanentError(f"expected a tenant that waits for its source, out of {names}; got {tenant_id}")
        return PassSource(tenant_id, waiting[tenant_id].source)
    if stopped is not None:
        return Resume(stopped, error, refused_event)
    if waiting:
        names = ", ".join(sorted(waiting))
        raise PermanentError(f"expected --tenant, out of those that wait for their source: {names}; got none")
    raise PermanentError("expected a destination that has stopped, or a tenant that waits for its source; found none")
