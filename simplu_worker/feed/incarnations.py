"""Which replica publishes a shard, and what its events are part of. Pure.

The row of the publisher is on the shard, so it goes back together with the log where a promotion or a restore loses
commits, and so does each cursor, which is written behind the delivery of its events. Whatever was published behind the
cursor as this server has it may be undone, so a new incarnation begins there. It does not begin behind the newest batch
of the log: standbys have the commits in their order, which is not that of their numbers, so batches below it may be
undone too.

A run of the server is its timeline and its start. A promotion has another timeline; a base backup that is started as it
is has not, but another start.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from simplu_worker.feed.places import Place
from simplu_worker.timing.backoff import jittered
from simplu_worker.timing.uuid7 import EPOCH

LEASE_S: Final = 8.0  # without a renewal another replica may publish
RENEW_S: Final = 4.0  # an idle shard costs this statement alone, which tells whether there is more to read
RENEW_GRID_S: Final = 0.5  # those of many shards are sent together: by 0.1 s, eighty shards took a third more
MARGIN_S: Final = 0.5  # before the end of the lease nothing is published any more
CLAIM_DELAY_MAX_S: Final = 1.2  # so that a killed publisher is replaced within LEASE_S + this
EVEN_SHARDS: Final = 8  # with so many shards a replica waits for half of that
BOUNDS_MAX: Final = 16  # incarnations that an event names
TIME_DIGITS: Final = 12  # of an incarnation's id: milliseconds, as `claim_feed` writes them


def claim_delay_s(published_count: int, draw: float) -> float:
    """Return how long a replica that publishes *published_count* shards leaves a free row to others.

    *draw* is from 0 to 1.
    """
    share = published_count / (published_count + EVEN_SHARDS)
    return jittered(0.85 * CLAIM_DELAY_MAX_S * share + 0.05, ratio=0.1, draw=draw)


def incarnation_id(at: datetime, noise: str, known: Iterable[str] = ()) -> str:
    """Return the id of an incarnation that begins at the time *at*: greater, as text, than those of earlier times.

    Greater than all that are *known*, too. Receivers compare ids so (docs/feed.md): an incarnation may not name the one
    before, where that was lost as well. *at* is by the clock of the shard, as those of two replicas may differ.
    """
    latest = max((int(one[:TIME_DIGITS], 16) for one in known), default=-1)
    return f"{max((at - EPOCH) // timedelta(milliseconds=1), latest + 1):0{TIME_DIGITS}x}{noise}"


def incarnations_in(bounds: str) -> list[str]:
    """Return the incarnations that *bounds* name."""
    return [one.rpartition(":")[0] for one in bounds.split(",") if one]


def run_of_server(timeline: str, started_at: datetime, batch_offset: int) -> str:
    """Return what is another text wherever a server may have lost commits, or uses numbers of batches again."""
    return f"{timeline}/{started_at.timestamp():.6f}/{batch_offset}"


def bounds_with(bounds: str, incarnation: str, cursor: Place) -> str:
    """Return *bounds* with those of an incarnation that begins behind *cursor*; the newest first.

    An earlier one that begins at or behind that place goes: what it says is contained in the new one.
    """
    kept = [one for one in bounds.split(",") if one and int(one.rpartition(":")[2]) < cursor.batch_id]
    return ",".join([f"{incarnation}:{cursor.batch_id}", *kept][:BOUNDS_MAX])
