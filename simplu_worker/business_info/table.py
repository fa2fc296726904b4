"""The door to the table of business-info. Read only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import product
from typing import Any, Final

import msgspec

from simplu_worker.aws.clients import AWS_ERRORS, Client, error_code, translate
from simplu_worker.business_info import ABSENT_FRESH_S, FRESH_S, Business, Item, UnreadableBusinessError, business_of
from simplu_worker.errors import PermanentError
from simplu_worker.instruments import DYNAMODB_REQUEST
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.sharing import Coalescer

CACHED_MAX: Final = 10_000
LOOKUPS_AT_ONCE: Final = 8
PAGE_SIZE: Final = 500
READ: Final = {
    "ProjectionExpression": "#id, #type, #business_type, #locations",
    "ExpressionAttributeNames": {
        "#id": "id",
        "#type": "type",
        "#business_type": "businessType",
        "#locations": "locations",
    },
}

for _labels in product(("get_item", "scan"), ("ok", "error")):
    DYNAMODB_REQUEST.labels(*_labels)


class _CachedBusiness(msgspec.Struct, frozen=True):
    found: Business | UnreadableBusinessError | None
    asked_at: float

    def is_fresh(self, now: float, max_age_s: float) -> bool:
        """Return whether the answer may still be used."""
        max_s = max_age_s if isinstance(self.found, Business) else min(max_age_s, ABSENT_FRESH_S)
        return now - self.asked_at <= max_s


class BusinessInfo:
    """The table *table*, read through *client*. Raises DynamoDB's errors as `RetryableError` or `PermanentError`."""

    def __init__(self, client: Client, table: str, *, clock: Callable[[], float] = loop_time) -> None:
        self._client = client
        self._table = table
        self._clock = clock
        self._cached: dict[str, _CachedBusiness] = {}  # the oldest lookup first
        self._lookups: Coalescer[str, float, _CachedBusiness] = Coalescer(self._find)
        self._slots = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def find(self, business_id: str, *, max_age_s: float = FRESH_S) -> Business | None:
        """Return a business as of at most *max_age_s* ago, or None as of at most `ABSENT_FRESH_S` ago.

        Concurrent callers share a request. Raises `UnreadableBusinessError`.
        """
        answer = self._cached.get(business_id)
        if answer is None or not answer.is_fresh(self._clock(), max_age_s):
            (answer,) = await self._lookups.submit(business_id, [max_age_s])
        if isinstance(answer.found, UnreadableBusinessError):
            raise answer.found
        return answer.found

    async def scan_pages(
        self, *, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[list[Business | UnreadableBusinessError]]:
        """Yield every item of the table, at most *page_size* at a time; changes during the scan may be missed."""
        page: dict[str, Any] = {}
        while True:
            reply = await self._call("scan", TableName=self._table, Limit=page_size, **READ, **page)
            yield [_parse_item(item) for item in reply["Items"]]
            if not reply.get("LastEvaluatedKey"):
                return
            page = {"ExclusiveStartKey": reply["LastEvaluatedKey"]}

    async def _find(self, business_id: str, max_ages_s: Sequence[float]) -> list[_CachedBusiness]:
        known = self._cached.get(business_id)
        if known is None or not known.is_fresh(self._clock(), min(max_ages_s)):
            async with self._slots:
                asked_at = self._clock()
                reply = await self._call("get_item", TableName=self._table, Key={"id": {"S": business_id}}, **READ)
            known = _CachedBusiness(_parse_item(reply["Item"]) if "Item" in reply else None, asked_at)
        self._cached.pop(business_id, None)
        if len(self._cached) >= CACHED_MAX:
            del self._cached[next(iter(self._cached))]
        self._cached[business_id] = known
        return [known] * len(max_ages_s)

    async def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        started_at = time.perf_counter()
        outcome = "error"
        try:
            reply: dict[str, Any] = await getattr(self._client, operation)(**arguments)
            outcome = "ok"
        except AWS_ERRORS as exc:
            if error_code(exc) == "ResourceNotFoundException":
                raise PermanentError(
                    f"table {self._table}: expected business-info, got no such table; "
                    "create it, or set DYNAMODB_BUSINESS_INFO_TABLE to yours"
                ) from exc
            raise translate(exc) from exc
        finally:
            DYNAMODB_REQUEST.labels(operation, outcome).observe(time.perf_counter() - started_at)
        return reply


def _parse_item(item: Item) -> Business | UnreadableBusinessError:
    try:
        return business_of(item)
    except UnreadableBusinessError as exc:
        return exc
