"""What a person's word does to a destination's cursor on a shard: where a replay begins, what a skip passes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from simplu_worker.errors import PermanentError
from simplu_worker.feed.places import POSITION_MAX, HeldTenant, LeftOut, Place
from simplu_worker.vocabulary import FeedStop


class Replay(msgspec.Struct, frozen=True):
    """A cursor goes back behind the batch *behind*; what is behind the batch *through* was not sent, or is left out."""

    behind: int
    through: int
    left_out: LeftOut | None = None


def choose_replay(
    cursor: Place, left_out: LeftOut | None, held: Sequence[HeldTenant], behind: int | None, until: int | None
) -> Replay | None:
    """Return how to replay what lies behind a batch, up to the batch *until* if given; None where there is nothing.

    Nothing is left out behind the place of a held tenant: its events were not sent. *left_out* is that of an earlier
    replay: as long as that one is under way, what either asks for is sent, and what is between.
    """
    if left_out is not None and left_out.through <= cursor.batch_id:
        left_out = None
    if left_out is None:
        sent, through = cursor, min([cursor.batch_id, *(one.batch_id for one in held)]) - 1
    else:
        sent, through = Place(left_out.through, POSITION_MAX), left_out.through
    if behind is None or Place(behind, POSITION_MAX) >= sent or (until is not None and until <= behind):
        return None
    if left_out is not None:
        behind = min(behind, cursor.batch_id - 1)
        until = None if until is None else max(until, left_out.behind)
    if until is None or until >= through:
        return Replay(behind, sent.batch_id)
    return Replay(behind, until, LeftOut(until, through))


class Resume(msgspec.Struct, frozen=True):
    """Let a stopped destination go on. The event that it refused is tried once more, then kept as refused."""

    stopped: FeedStop
    error: str | None
    refused_event: str | None


class PassSource(msgspec.Struct, frozen=True):
    """Send the events of a tenant that has moved without waiting for those of its source."""

    tenant_id: str
    source: str


class PassEvent(msgspec.Struct, frozen=True):
    """Try an event once more that the destination cannot take, then keep it as refused, whatever the reason."""

    event_id: str


def choose_skip(
    stopped: FeedStop | None,
    error: str | None,
    refused_event: str | None,
    held: Sequence[HeldTenant],
    tenant_id: str | None,
    event_id: str | None = None,
) -> Resume | PassSource | PassEvent:
    """Return what a skip passes, of *tenant_id* if given, or *event_id*.

    Raises `PermanentError` where there is nothing to pass.
    """
    if event_id is not None:
        return _choose_event(stopped, tenant_id, event_id)
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


def _choose_event(stopped: FeedStop | None, tenant_id: str | None, event_id: str) -> PassEvent:
    if tenant_id is not None:
        raise PermanentError("expected --tenant or --event, got both")
    if stopped is not None:
        raise PermanentError("expected no --event, as the destination has stopped; got one")
    return PassEvent(event_id)
