"""The documents of resources that events are sent with: which are wanted, and for which events. Pure.

Only as many bytes are read at a time as a window may hold: the rows of the log behind them are read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from simplu_worker.feed.events import ReadRow
from simplu_worker.feed.filters import lets_through
from simplu_worker.feed.types import DestinationTerms
from simplu_worker.vocabulary import FeedData, FeedKind

DOCUMENT_MAX_BYTES: Final = 1_000_000  # no destination takes more
READ_MAX_BYTES: Final = 2 * 1024 * 1024

Resource: TypeAlias = tuple[str, str, str]  # the ids of its tenant, its type and its own


class WantedDocuments:
    """The resources of *rows* whose documents a destination with one of *terms* gets, each once, in order.

    A deleted resource has none.
    """

    def __init__(self, rows: Sequence[ReadRow], terms: Sequence[DestinationTerms]) -> None:
        filters = [one.filter for one in terms if one.data is FeedData.CURRENT]
        self._event_ids: dict[Resource, list[str]] = {}
        self._first_rows: list[int] = []
        for index, row in enumerate(rows if filters else ()):
            for event in row.events:
                if event.tenant is None or event.resource_type is None or event.resource_id is None:
                    continue
                if event.kind is FeedKind.RESOURCE_DELETED or not any(lets_through(one, event) for one in filters):
                    continue
                resource = (event.tenant.tenant_id, event.resource_type, event.resource_id)
                if resource not in self._event_ids:
                    self._event_ids[resource] = []
                    self._first_rows.append(index)
                self._event_ids[resource].append(event.id)

    def __repr__(self) -> str:
        return f"WantedDocuments({len(self._event_ids)})"

    @property
    def resources(self) -> Sequence[Resource]:
        """The resources; a document is known by its number among them."""
        return list(self._event_ids)

    def row_count(self, left_at: int) -> int:
        """Return how many rows want none of the documents from number *left_at* on."""
        return self._first_rows[left_at]

    def by_event(self, documents: Mapping[int, bytes]) -> dict[str, bytes]:
        """Return the documents, which are by number, by the ids of the events that are sent with them."""
        return {
            event_id: documents[number]
            for number, event_ids in enumerate(self._event_ids.values())
            if number in documents
            for event_id in event_ids
        }
