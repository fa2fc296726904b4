"""List the operations of a tenant from its shard's log, page by page, with bounded work for the shard."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from simplu_worker.errors import RetryableError
from simplu_worker.operations.operation import is_id, is_storable, tenant_id_of
from simplu_worker.shards.postgres.errors import StatementFailedError
from simplu_worker.shards.postgres.pool import Connection, Pools, ShardPool
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.postgres.statement_timeouts import StatementBudget
from simplu_worker.shards.routing.directory import HOME_STATES, Directory
from simplu_worker.timing.clock import loop_time
from simplu_worker.vocabulary import Absence, Failure, OperationStatus

DEFAULT_LIMIT: Final = 50
LIMIT_MAX: Final = 500  # operations on a page
TEXT_MAX: Final = 256  # characters of a filter: those of the longest id (docs/outcomes.md)
CURSOR_MAX: Final = 4000  # characters; a key of an index of Postgres has at most 2,704 bytes
CURSOR_VERSION: Final = 1
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
OLDEST: Final = datetime(1, 1, 1, tzinfo=UTC)
NEWEST: Final = datetime(9999, 12, 31, tzinfo=UTC)
INSTANT: Final = timedelta(microseconds=1)  # the resolution of times in Postgres, and here


class SearchPosition(msgspec.Struct, frozen=True):
    """The place in the log, newest first, after which a page begins.

    After it come the operations completed before *at*, and those of that time with a lower request id; all of that time
    if it is None.
    """

    at: datetime = NEWEST
    request_id: str | None = None

    def encode(self) -> str:
        """Return the position as a cursor, of characters that need no escape."""
        micros = (self.at - EPOCH) // INSTANT
        text = msgspec.json.encode((CURSOR_VERSION, micros, self.request_id))
        return base64.urlsafe_b64encode(text).decode().rstrip("=")


_cursor_decoder = msgspec.json.Decoder(tuple[Literal[1], int, str | None])


def decode_cursor(text: str) -> SearchPosition:
    """Return the position of a cursor, which may be any text. Raises `ValueError`."""
    error = ValueError("expected the `next` of a page, unchanged, got another text; begin without it")
    if len(text) > CURSOR_MAX or not text.isascii():
        raise error
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        _, micros, request_id = _cursor_decoder.decode(decoded)
        at = EPOCH + micros * INSTANT
    except (binascii.Error, msgspec.MsgspecError, UnicodeDecodeError, OverflowError):
        raise error from None
    if not (OLDEST < at <= NEWEST and is_storable(request_id or "")):
        raise error
    position = SearchPosition(at, request_id)
    if position.encode() != text:
        raise error
    return position


class ListRequest(msgspec.Struct, frozen=True):
    """The operations to list, newest first: at most *limit* after *after*, completed from *since* to before *until*."""

    resource_type: str | None = None
    resource_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    status: OperationStatus | None = None
    error: Failure | None = None
    limit: int = DEFAULT_LIMIT
    after: SearchPosition = SearchPosition()

    @property
    def start(self) -> SearchPosition:
        """The position after which the page begins."""
        if self.until is None or self.until > self.after.at:
            return self.after
        return SearchPosition(max(self.until, OLDEST + INSTANT) - INSTANT)


class InvalidRequestError(ValueError):
    """A request that cannot be meant; *member* is the one at fault."""

    def __init__(self, member: str, problem: str) -> None:
        super().__init__(f"{member}: {problem}")
        self.member = member
        self.problem = problem


def check_request(request: ListRequest) -> ListRequest:
    """Return *request*. Raises `InvalidRequestError`."""
    if not 1 <= request.limit <= LIMIT_MAX:
        raise InvalidRequestError("limit", f"expected 1 to {LIMIT_MAX}, got {request.limit}")
    for member in ("resource_type", "resource_id"):
        text: str | None = getattr(request, member)
        if text is not None and not (1 <= len(text) <= TEXT_MAX and is_storable(text)):
            raise InvalidRequestError(member, f"expected 1 to {TEXT_MAX} characters of UTF-8, without U+0000")
    if request.since is not None and request.until is not None and request.since >= request.until:
        raise InvalidRequestError("since", "expected a time before `until`, got the same or a later one")
    if request.error is not None and request.status is OperationStatus.SUCCEEDED:
        raise InvalidRequestError("error", "expected the status `failed` with it, got `succeeded`")
    return request


class SearchLimits(msgspec.Struct, frozen=True):
    """The bounds of the work for a page: rows of a chunk and of all, seconds before a chunk.

    A tenant with at most *few* operations has all of them read instead, in one step.
    """

    chunk_rows: int = 10_000
    rows: int = 200_000
    few: int = 5_000
    seconds: float = 2.0


SEARCH_LIMITS: Final = SearchLimits()


class ListedOperation(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One operation as its row in the shard's log, without its result."""

    request_id: str
    status: str
    operation: str
    resource_type: str
    received_at: datetime
    completed_at: datetime
    resource_id: str | None = None
    error: str | None = None


_LISTED: Final = tuple(field.name for field in msgspec.structs.fields(ListedOperation))


def listed_members(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of a `ListedOperation` from a row of the log."""
    return {name: row[name] for name in _LISTED}


class OperationPage(msgspec.Struct, frozen=True, rename="camel"):
    """Operations of a tenant, newest first. A page with a *next* may be short, or empty; *searched_to* is its end."""

    operations: list[ListedOperation]
    next: str | None
    searched_to: datetime | None
    shard_id: str


class SearchChunk(msgspec.Struct, frozen=True):
    """The wanted operations of a part of the log, of which *oldest* is the oldest time; *row_count* were read."""

    operations: list[ListedOperation]
    row_count: int
    oldest: datetime | None
    is_last: bool


class PageSearch:
    """The state of the search for the page *request*."""

    def __init__(self, request: ListRequest, limits: SearchLimits = SEARCH_LIMITS) -> None:
        self._request = request
        self._limits = limits
        self._row_count = 0
        self._has_ended = False
        self._found: list[ListedOperation] = []
        self.position = request.start

    @property
    def since(self) -> datetime:
        """The oldest time of a wanted operation."""
        return self._request.since or OLDEST

    @property
    def missing_count(self) -> int:
        """How many operations to read at most: one more than the page has room for."""
        return self._request.limit + 1 - len(self._found)

    def is_complete(self, spent_s: float) -> bool:
        """Return whether the page ends here, after *spent_s*; never before a chunk, so that each page gets further."""
        is_spent = self._row_count > 0 and (self._row_count >= self._limits.rows or spent_s >= self._limits.seconds)
        return self._has_ended or self.missing_count <= 0 or is_spent

    def add_chunk(self, chunk: SearchChunk) -> None:
        """Take the operations of a chunk that began at the position."""
        self._found += chunk.operations
        self._row_count += chunk.row_count
        if chunk.oldest is None or chunk.is_last:
            self._has_ended = True
        else:
            self.position = SearchPosition(chunk.oldest - INSTANT)

    def result(self, shard_id: str) -> OperationPage:
        """Return the page."""
        shown = self._found[: self._request.limit]
        if len(self._found) > len(shown):
            after = SearchPosition(shown[-1].completed_at, shown[-1].request_id)
        elif self._has_ended:
            return OperationPage(shown, None, None, shard_id)
        else:
            after = self.position
        return OperationPage(shown, after.encode(), after.at, shard_id)


class OperationLister:
    """Lists operations, one list at a time on a shard, so that batches find a connection."""

    def __init__(
        self,
        directory: Directory,
        pools: Pools,
        *,
        limits: SearchLimits = SEARCH_LIMITS,
        clock: Callable[[], float] = loop_time,
    ) -> None:
        self._directory = directory
        self._pools = pools
        self._limits = limits
        self._clock = clock
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def list_page(self, business_id: str, location_id: str, request: ListRequest) -> OperationPage | Absence:
        """Return a page of the operations of a tenant, or why no shard has the tenant.

        Raises `RetryableError` without an answer in time, `PermanentError` if the shard's address may not be used.
        """
        if not (is_id(business_id) and is_id(location_id)):
            return Absence.UNREGISTERED
        return await self._directory.ask_home(
            tenant_id_of(business_id, location_id),
            lambda shard: self._search(self._pools.ensure_pool(shard), (business_id, location_id), request),
        )

    async def _search(
        self, pool: ShardPool, tenant: tuple[str, str], request: ListRequest
    ) -> OperationPage | Absence | None:
        search, may_be_few = PageSearch(request, self._limits), True
        tenant_id, shard_id = tenant_id_of(*tenant), pool.address.shard_id
        started_at = self._clock()
        while not search.is_complete(self._clock() - started_at):
            try:
                async with (
                    self._turns[shard_id],
                    # Rolled back at its end: a transaction that only reads is no proof that the shard takes commits.
                    pool.transaction(is_rehearsal=True, budget=StatementBudget.SEARCH) as connection,
                ):
                    if may_be_few:
                        few = self._limits.few
                        may_be_few = await connection.fetchval(QUERIES["has_few_operations"], tenant_id, few)
                    search.add_chunk(await self._read_chunk(connection, tenant_id, request, search, is_few=may_be_few))
                    # After the rows: a tenant that lives here now has lived here when they were read.
                    row = await connection.fetchrow(QUERIES["find_tenants"], [tenant_id])
                    if row is None or row["state"] not in HOME_STATES:
                        return None
                    if (row["business_id"], row["location_id"]) != tenant:  # another pair's id
                        return Absence.UNREGISTERED
            except StatementFailedError as exc:
                if not exc.is_timeout:
                    raise
                if may_be_few:  # its rows are on many cold pages
                    may_be_few = False
                    continue
                raise RetryableError(
                    f"shard {shard_id}: expected a part of its log within "
                    f"{pool.seconds_of(StatementBudget.SEARCH):g} s, got no answer; ask again, or narrow the time"
                ) from exc
        return search.result(shard_id)

    async def _read_chunk(
        self, connection: Connection, tenant_id: str, request: ListRequest, search: PageSearch, *, is_few: bool
    ) -> SearchChunk:
        types = None
        if request.resource_type is not None:  # operations have the names that were sent
            types = await connection.fetchval(QUERIES["find_type_names"], tenant_id, request.resource_type)
        rows = await connection.fetch(
            QUERIES["list_few_operations" if is_few else "search_operations"],
            tenant_id,
            search.position.at,
            search.position.request_id,
            search.since,
            types,
            request.resource_id,
            request.status,
            request.error,
            search.missing_count,
            self._limits.few if is_few else self._limits.chunk_rows,
        )
        if is_few:
            return SearchChunk(_operations_of(rows), len(rows), None, is_last=True)
        found = _operations_of(row for row in rows if row["request_id"] is not None)
        return SearchChunk(found, rows[0]["row_count"], rows[0]["oldest"], rows[0]["is_last"])


def _operations_of(rows: Iterable[Mapping[str, Any]]) -> list[ListedOperation]:
    return [ListedOperation(**listed_members(row)) for row in rows]
