"""Places in a shard's log, and tenants that wait for their source. Pure.

tests/model/log_order_model.py searches what a reader of the log has to keep to.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

POSITION_MAX: Final = 32_767  # of a row in its batch: behind it is the next batch


class Place(NamedTuple):
    """A row of the log: everything up to it is read, or delivered."""

    batch_id: int
    position: int

    @property
    def before(self) -> Place:
        """The place from which this row is the next one."""
        return Place(self.batch_id, self.position - 1)

    @property
    def label(self) -> str:
        """The place as events show it, never before the first row of a batch."""
        return f"{self.batch_id}-{max(self.position, 0)}"


END: Final = Place(2**63 - 1, POSITION_MAX)


class LeftOut(NamedTuple):
    """Delivered batches that a replay does not send again: those behind the batch *behind*, up to *through*."""

    behind: int
    through: int

    @property
    def begin(self) -> Place:
        """The place behind which it begins."""
        return Place(self.behind, POSITION_MAX)


class BatchRef(msgspec.Struct, frozen=True, order=True):
    """A batch of a shard's log: the number of its transaction, and the token that no other batch has.

    A standby that is promoted without the last commits uses their numbers again, for other batches.
    """

    batch_id: int
    token: str


class HeldTenant(msgspec.Struct, frozen=True):
    """A tenant that came to the shard in *epoch*, and whose events behind a place wait for the feed of *source*."""

    tenant_no: int
    tenant_id: str
    epoch: int
    source: str
    batch_id: int
    position: int
    is_passed: bool = False  # by a person's word: it does not wait for its source any more

    @property
    def place(self) -> Place:
        """The place behind which its events wait."""
        return Place(self.batch_id, self.position)


decode_held: Final = msgspec.json.Decoder(tuple[HeldTenant, ...]).decode  # of a cursor's column
