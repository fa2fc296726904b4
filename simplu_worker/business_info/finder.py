"""What shards know of business-info: a way to find a business. The table behind it is `table`, the door to DynamoDB."""

from __future__ import annotations

from typing import Final, Protocol

from simplu_worker.business_info.items import Business
from simplu_worker.errors import PermanentError

FRESH_S: Final = 300.0  # for an existing business: its type does not change
ABSENT_FRESH_S: Final = 5.0  # for a missing one: it may be created at any time


class UnreadableBusinessError(PermanentError):
    """The item of a business cannot be read; a person has to correct it."""


class BusinessFinder(Protocol):
    """Finds businesses by id; `BusinessInfo` is one."""

    async def find(self, business_id: str, *, max_age_s: float = FRESH_S) -> Business | None:
        """Return a business as it was at most *max_age_s* ago, or None; raise `PermanentError` if it is unreadable."""
