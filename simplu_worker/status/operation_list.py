"""The view of `GET /operations`: the operations of one tenant, newest first (docs/outcomes.md)."""

from __future__ import annotations

from typing import Any

import msgspec

from simplu_worker.errors import PermanentError, RetryableError
from simplu_worker.shards.gateway import ShardGateway
from simplu_worker.status.listing_request import OperationListQuery
from simplu_worker.vocabulary import Absence


async def list_operations(gateway: ShardGateway | None, query: OperationListQuery) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the JSON for *query*; *gateway* is None until the worker has started."""
    if gateway is None:
        return 503, {"error": "starting"}
    business_id, location_id, request = query
    try:
        page = await gateway.list_operations(business_id, location_id, request)
    except (RetryableError, PermanentError) as exc:
        return 503, {"error": str(exc)}
    if isinstance(page, Absence):
        return 404, {"businessId": business_id, "locationId": location_id, "state": page}
    return 200, msgspec.to_builtins(page)
