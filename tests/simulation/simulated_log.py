"""The order of a simulated shard's log, and the statements that read it: those of the feed, and how safe a commit is.

The worker's own code sends its named queries (`shards/sql/queries/`). Transactions do not commit in the order of their
numbers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from random import Random
from struct import pack
from typing import Any, NoReturn, TypeAlias

import msgspec
from msgspec.structs import replace
from simulation.simulated_network import Network

from simplu_worker.errors import RetryableError
from simplu_worker.feed.types import POSITION_MAX
from simplu_worker.operations.operation import Operation
from simplu_worker.shards.log import key_of_id
from simplu_worker.shards.postgres.queries import QUERIES

NAMES = {text: name for name, text in QUERIES.items()}
RECEIVERS = ("receiver-1", "receiver-2")  # of the feed
RUNNING = 0.3  # how likely a number is taken by a transaction that commits later, or not at all
RUNNING_S = 1.5
LOCKED_S = 2.0  # then the server has ended the transaction of a client that is gone
STANDBY_LAG_S = 0.2  # of a standby that is awaited
ARRIVED_WITHIN = timedelta(minutes=10)  # of tenants that a new destination waits for
LEFT, ARRIVED, OPERATIONS, COPIED = "l", "a", "o", "r"

Answer: TypeAlias = list["Record"]


class Record(dict[str, Any]):
    """A row of an answer: by name, or as a sequence."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())


class LogRow(msgspec.Struct):
    position: int
    kind: str
    tenant_id: str
    resource_type: str
    resource_id: str
    request_id: str
    is_failed: bool
    is_dropped: bool = False  # by a move that brought the tenant back


class Batch(msgspec.Struct, eq=False):
    """A batch of the log, and when it was committed among all of them."""

    number: int
    token: str
    kind: str
    completed_at: datetime
    committed: int
    tenant_ids: list[str]
    rows: list[LogRow] = []
    origin: str | None = None
    epoch: int | None = None


class Publisher(msgspec.Struct, frozen=True):
    token: str
    publisher: str
    expires_at: datetime
    incarnation: str = ""
    server_run: str | None = None


class SentCursor(msgspec.Struct, frozen=True):
    destination: str
    batch_id: int
    position: int
    incarnation: str = ""
    stopped: str | None = None
    error: str | None = None
    refused_event: str | None = None
    passed_event: str | None = None  # nobody passes one
    behind_since: datetime | None = None


class Cursor(SentCursor, frozen=True):
    is_in_file: bool = True
    is_waiting: bool = False


class FeedTables(msgspec.Struct, frozen=True):
    publisher: Publisher | None = None
    cursors: Mapping[str, Cursor] = {}
    refusals: Mapping[tuple[str, str], str] = {}  # by destination and id of the event


class Transaction(msgspec.Struct):
    """A transaction of the feed that has locked the row of the publisher."""

    tables: FeedTables
    used_at: float


class ShardLog:
    """The log of one shard, and the tables of the feed; *on_commit* gets what those were before a commit."""

    def __init__(
        self,
        shard_id: str,
        network: Network,
        draws: Random,
        commits: Iterator[int],
        on_commit: Callable[[FeedTables], None],
    ) -> None:
        self.shard_id = shard_id
        self.network = network
        self._commits = commits
        self._draws = draws
        self.on_commit = on_commit
        self.batches: list[Batch] = []
        self.lost: list[Batch] = []
        self.tables = FeedTables()
        self.timeline = 1
        self.started_at = network.loop.utc()
        self._next_number = 1
        self._running: dict[int, float] = {}  # until when, by number
        self._last_numbers: dict[str, int] = {}  # by tenant
        self.transactions: dict[str, Transaction] = {}
        self._count = 0

    def __repr__(self) -> str:
        return f"ShardLog({len(self.batches)} batches, {self.tables.publisher})"

    @property
    def horizon(self) -> int:
        now = self.network.loop.time()
        self._running = {number: until for number, until in self._running.items() if until > now}
        return min(self._running, default=self._next_number)

    def add(self, operations: Sequence[tuple[Operation, bool]]) -> Batch:
        tenant_ids = list(dict.fromkeys(operation.tenant_id for operation, _ in operations))
        rows = [
            LogRow(
                position,
                operation.kind.value[0],
                operation.tenant_id,
                operation.resource_type,
                operation.resource_id or "",
                operation.request_id,
                is_failed,
            )
            for position, (operation, is_failed) in enumerate(operations)
        ]
        return self._insert(self._number(tenant_ids), OPERATIONS, tenant_ids, rows)

    def mark(self, kind: str, tenant_id: str, *, origin: str | None = None, epoch: int | None = None) -> Batch:
        self._next_number += 1
        self._last_numbers[tenant_id] = self._next_number - 1
        return self._insert(self._next_number - 1, kind, [tenant_id], [], origin, epoch)

    def _insert(
        self,
        number: int,
        kind: str,
        tenant_ids: list[str],
        rows: list[LogRow],
        origin: str | None = None,
        epoch: int | None = None,
    ) -> Batch:
        self._count += 1
        token = f"{self.shard_id}.{self._count}"
        completed_at = self.network.loop.utc()
        batch = Batch(number, token, kind, completed_at, next(self._commits), tenant_ids, rows, origin, epoch)
        self.batches.append(batch)
        return batch

    def _number(self, tenant_ids: Sequence[str]) -> int:
        now = self.network.loop.time()
        self._running = {number: until for number, until in self._running.items() if until > now}
        if self._draws.random() < RUNNING:
            self._running[self._next_number] = now + self._draws.uniform(0, RUNNING_S)
            self._next_number += 1
        above = max(self._last_numbers.get(tenant_id, 0) for tenant_id in tenant_ids)
        number = self._next_number
        begun_before = [number for number in self._running if number > above]
        if begun_before and self._draws.random() < 0.5:
            number = begun_before[0]
            del self._running[number]
        else:
            self._next_number += 1
        for tenant_id in tenant_ids:
            self._last_numbers[tenant_id] = number
        return number

    def drop(self, tenant_id: str) -> None:
        for batch in self.batches:
            for row in batch.rows:
                row.is_dropped = row.is_dropped or row.tenant_id == tenant_id

    def has_rows(self, tenant_id: str) -> bool:
        return any(row.tenant_id == tenant_id and not row.is_dropped for batch in self.batches for row in batch.rows)

    def is_read(self, tenant_id: str, *, is_in_file: bool) -> bool:
        """Return whether the feed has read what a tenant has left, for destinations that are in the file, or not.

        A destination that has yet to begin, with all that the log has then, waits for what is here now.
        """
        places: list[tuple[int, int]] = [] if len(self.tables.cursors) == len(RECEIVERS) else [(0, 0)]
        cursors = [one for one in self.tables.cursors.values() if one.is_in_file == is_in_file]
        places += [(one.batch_id, one.position) for one in cursors]
        return not places or not any(
            (batch.number, row.position) > min(places)
            for batch in self.batches
            for row in batch.rows
            if row.tenant_id == tenant_id and not row.is_dropped
        )

    def fail_over(self, lost: Sequence[Batch], tables: FeedTables) -> None:
        gone = {id(batch) for batch in lost}
        self.lost += lost
        self.batches = [batch for batch in self.batches if id(batch) not in gone]
        self.tables = tables
        self.timeline += 1
        self.started_at = self.network.loop.utc()
        self._next_number = max((batch.number for batch in self.batches), default=0) + 1
        self._last_numbers = {}
        for batch in self.batches:
            for tenant_id in batch.tenant_ids:
                self._last_numbers[tenant_id] = max(batch.number, self._last_numbers.get(tenant_id, 0))
        self._running.clear()
        self.transactions.clear()

    def commit(self, tables: FeedTables) -> None:
        before, self.tables = self.tables, tables
        self.on_commit(before)


class Server:
    """What answers the named queries on one shard: the methods with an underscore are these, by their names.

    Each gets the tables of the feed and the arguments of the query, and returns the tables as they are then.
    """

    def __init__(
        self,
        log: ShardLog,
        tenants: Sequence[str],
        facts: Callable[[], Mapping[str, Any]],
        is_unlogged: Callable[[str, str], bool],
    ) -> None:
        self._log = log
        self._tenants = tenants
        self._facts = facts
        self._is_unlogged = is_unlogged

    def run(self, name: str, arguments: Sequence[Any], transaction: str | None) -> Answer:
        log, now = self._log, self._log.network.loop.time()
        log.transactions = {key: one for key, one in log.transactions.items() if now - one.used_at < LOCKED_S}
        if transaction is None:
            if name in WRITES and log.transactions:
                _refuse("the row is locked")
            answer: Answer
            tables, answer = getattr(self, f"_{name}")(log.tables, *arguments)
            if tables is not log.tables:
                log.commit(tables)
            return answer
        if transaction not in log.transactions:
            if name not in BEGINS or log.transactions:
                _refuse("the row is locked, or the transaction has ended")
            log.transactions[transaction] = Transaction(log.tables, now)
        own = log.transactions[transaction]
        own.used_at = now
        own.tables, answer = getattr(self, f"_{name}")(own.tables, *arguments)
        return answer

    def end(self, transaction: str, *, is_commit: bool) -> None:
        own = self._log.transactions.pop(transaction, None)
        if own is None and is_commit:
            _refuse("the transaction has ended")
        if own is not None and is_commit and own.tables is not self._log.tables:
            self._log.commit(own.tables)

    @property
    def _now(self) -> datetime:
        return self._log.network.loop.utc()

    @property
    def _run(self) -> dict[str, Any]:
        return {"timeline": f"{self._log.timeline:08x}", "started_at": self._log.started_at}

    def _state(self, publisher: Publisher) -> Record:
        newest = max((batch.number for batch in self._log.batches), default=None)
        known = {"incarnation": publisher.incarnation, "server_run": publisher.server_run, **self._run}
        rest = {"batch_offset": 0, "newest": newest, "forgotten": None, "forgotten_at": None, "read_at": self._now}
        return Record(known | rest)

    def _read_replication(
        self, tables: FeedTables, tenant_ids: Sequence[str], keys: Sequence[str]
    ) -> tuple[FeedTables, Answer]:
        sent = enumerate(zip(tenant_ids, keys, strict=True))
        unlogged = [str(index) for index, one in sent if self._is_unlogged(*one)]
        return tables, [Record({**self._run, **self._facts(), "unlogged": unlogged})]

    def _find_feed_publisher(self, tables: FeedTables) -> tuple[FeedTables, Answer]:
        if tables.publisher is None:
            return tables, []
        left = (tables.publisher.expires_at - self._now).total_seconds()
        return tables, [Record(expires_in_s=left)]

    def _claim_feed(self, tables: FeedTables, token: str, publisher: str, lease_s: float) -> tuple[FeedTables, Answer]:
        known, until = tables.publisher, self._now + timedelta(seconds=lease_s)
        if known is None:
            known = Publisher(token, publisher, until)
        elif known.expires_at < self._now:
            known = replace(known, token=token, publisher=publisher, expires_at=until)
        else:
            return tables, []
        return replace(tables, publisher=known), [Record(publisher=known.publisher)]

    def _renew_feed(self, tables: FeedTables, token: str, lease_s: float) -> tuple[FeedTables, Answer]:
        if tables.publisher is None or tables.publisher.token != token:
            return tables, []
        kept = replace(tables.publisher, expires_at=self._now + timedelta(seconds=lease_s))
        return replace(tables, publisher=kept), [self._state(kept)]

    def _release_feed(self, tables: FeedTables, token: str) -> tuple[FeedTables, Answer]:
        if tables.publisher is None or tables.publisher.token != token:
            return tables, []
        return replace(tables, publisher=replace(tables.publisher, expires_at=self._now)), []

    def _lock_feed(self, tables: FeedTables, token: str) -> tuple[FeedTables, Answer]:
        is_mine = tables.publisher is not None and tables.publisher.token == token
        return tables, [self._state(tables.publisher)] if is_mine and tables.publisher is not None else []

    def _begin_incarnation(
        self, tables: FeedTables, token: str, incarnation: str, run: str
    ) -> tuple[FeedTables, Answer]:
        if tables.publisher is None or tables.publisher.token != token:
            return tables, []
        return replace(tables, publisher=replace(tables.publisher, incarnation=incarnation, server_run=run)), []

    def _read_feed_cursors(self, tables: FeedTables) -> tuple[FeedTables, Answer]:
        return tables, [Record(msgspec.structs.asdict(one)) for one in tables.cursors.values()]

    def _begin_feed_cursors(
        self, tables: FeedTables, names: Sequence[str], begins: Sequence[str], new_s: float
    ) -> tuple[FeedTables, Answer]:
        new = [
            self._new_cursor(tables, name, begin, new_s)
            for name, begin in zip(names, begins, strict=True)
            if name not in tables.cursors
        ]
        return _with_cursors(tables, new) if new else tables, []

    def _new_cursor(self, tables: FeedTables, name: str, begin: str, new_s: float) -> Cursor:
        assert tables.publisher is not None
        assert begin in {"now", "oldest"}
        new_from = self._now - timedelta(seconds=new_s)
        is_new = tables.publisher.server_run is None and all(
            batch.completed_at >= new_from for batch in self._log.batches
        )
        batch_id = 0 if begin == "oldest" or is_new else self._log.horizon - 1
        arrivals = [
            batch.number - 1
            for batch in self._log.batches
            if batch.kind == ARRIVED and batch.completed_at > self._now - ARRIVED_WITHIN
        ]
        return Cursor(name, min([batch_id, *arrivals]), POSITION_MAX)

    def _note_feed_file(self, tables: FeedTables, names: Sequence[str]) -> tuple[FeedTables, Answer]:
        changed = [
            replace(one, is_in_file=not one.is_in_file)
            for one in tables.cursors.values()
            if one.is_in_file != (one.destination in names)
        ]
        return _with_cursors(tables, changed) if changed else tables, []

    def _write_feed_cursors(self, tables: FeedTables, token: str, *arguments: Any) -> tuple[FeedTables, Answer]:
        rows, timeline, started_at = arguments
        is_mine = tables.publisher is not None and tables.publisher.token == token
        if not is_mine or self._run != {"timeline": timeline, "started_at": started_at}:
            return tables, []
        sent = msgspec.json.decode(rows, type=list[SentCursor])
        known = [(one, tables.cursors[one.destination]) for one in sent if one.destination in tables.cursors]
        written = [replace(cursor, **msgspec.structs.asdict(one)) for one, cursor in known]
        return _with_cursors(tables, written), [Record(destination=one.destination) for one in written]

    def _read_feed(
        self, tables: FeedTables, token: str, batch_id: int, position: int, limit: int, last_batch_id: int
    ) -> tuple[FeedTables, Answer]:
        if tables.publisher is None or tables.publisher.token != token:
            return tables, []
        horizon, cost, answer = self._log.horizon, 0, list[Record]()
        for batch in sorted(self._log.batches, key=lambda one: one.number):
            if not batch_id <= batch.number <= last_batch_id or batch.number >= horizon:
                continue
            if cost >= limit:
                break
            behind = position if batch.number == batch_id else -1
            rows = [row for row in batch.rows if not row.is_dropped and row.position > behind]
            answer.append(self._batch(batch, rows[: limit - cost]))
            cost += 0 if batch.number == batch_id else 1 + len(batch.rows)
        return tables, answer

    def _batch(self, batch: Batch, rows: Sequence[LogRow]) -> Record:
        numbers = {tenant_id: str(self._tenants.index(tenant_id) + 1) for tenant_id in batch.tenant_ids}
        tenants = [[number, tenant_id, *tenant_id.split("-", 1), "gym", "{}"] for tenant_id, number in numbers.items()]
        types = sorted({row.resource_type for row in rows})
        return Record(
            **self._run,
            **self._facts(),
            forgotten=None,
            forgotten_at=None,
            batch_id=batch.number,
            completed_at=batch.completed_at,
            token=batch.token,
            kind=batch.kind,
            epoch=batch.epoch,
            tenant_no=int(numbers[batch.tenant_ids[0]]),
            types=types,
            origins=[] if batch.origin is None and not rows else [batch.origin],
            tenants=tenants,
            failed=[str(row.position) for row in rows if row.is_failed],
            positions=pack(f">{len(rows)}h", *(row.position for row in rows)) or None,
            row_tenant_nos=pack(f">{len(rows)}i", *(int(numbers[row.tenant_id]) for row in rows)) or None,
            kinds="".join(row.kind for row in rows) or None,
            types_at=pack(f">{len(rows)}h", *(types.index(row.resource_type) + 1 for row in rows)) or None,
            origins_at=pack(f">{len(rows)}h", *(1 for _ in rows)) or None,
            resources=[key_of_id(row.resource_id) for row in rows] or None,
            requests=[key_of_id(row.request_id) for row in rows] or None,
        )

    def _find_passed_departure(
        self, tables: FeedTables, name: str, tenant_id: str, epoch: int
    ) -> tuple[FeedTables, Answer]:
        if (cursor := tables.cursors.get(name)) is None:
            return tables, []
        is_behind = any(
            batch.kind == LEFT
            and batch.tenant_ids == [tenant_id]
            and batch.epoch == epoch
            and (batch.number, 0) > (cursor.batch_id, cursor.position)
            for batch in self._log.batches
        )
        return tables, [] if is_behind else [Record(self._run)]

    def _note_feed_refusal(
        self, tables: FeedTables, token: str, name: str, event_id: str, event: str, _error: str
    ) -> tuple[FeedTables, Answer]:
        if tables.publisher is None or tables.publisher.token != token:
            return tables, []
        return replace(tables, refusals={**tables.refusals, (name, event_id): event}), []


WRITES = {"claim_feed", "renew_feed", "release_feed", "write_feed_cursors", "note_feed_refusal"}
BEGINS = {"claim_feed", "lock_feed"}


class SimulatedPools:
    def __init__(self, network: Network, servers: Mapping[str, Server]) -> None:
        self._pools = {shard_id: SimulatedPool(shard_id, network, server) for shard_id, server in servers.items()}

    def by_shard_id(self) -> Mapping[str, SimulatedPool]:
        return self._pools

    def pool_of(self, shard_id: str) -> SimulatedPool:
        return self._pools[shard_id]

    def ensure_pool(self, address: Any) -> SimulatedPool:
        return self._pools[address.shard_id]


class Address(msgspec.Struct):
    shard_id: str
    refusal: None = None


class SimulatedPool:
    """A pool of connections to a shard, whose schema is well."""

    def __init__(self, shard_id: str, network: Network, server: Server) -> None:
        self.address = self.checked_address = Address(shard_id)
        self._network = network
        self._server = server
        self._count = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[SimulatedConnection]:
        yield SimulatedConnection(self.address.shard_id, self._network, self._server, None)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SimulatedConnection]:
        self._count += 1
        name = f"{id(self)}-{self._count}"
        yield SimulatedConnection(self.address.shard_id, self._network, self._server, name)
        await self._network.ask(self.address.shard_id, lambda: self._server.end(name, is_commit=True), lost=_no_answer)


class SimulatedConnection:
    """A connection, with the methods of asyncpg's that the worker uses here."""

    def __init__(self, shard_id: str, network: Network, server: Server, transaction: str | None) -> None:
        self._shard_id = shard_id
        self._network = network
        self._server = server
        self._transaction = transaction

    async def fetch(self, query: str, *arguments: Any) -> Answer:
        name = NAMES[query]
        return await self._network.ask(
            self._shard_id, lambda: self._server.run(name, arguments, self._transaction), lost=_no_answer
        )

    async def fetchrow(self, query: str, *arguments: Any) -> Record | None:
        return next(iter(await self.fetch(query, *arguments)), None)

    execute = fetch


def _with_cursors(tables: FeedTables, cursors: Sequence[Cursor]) -> FeedTables:
    return replace(tables, cursors={**tables.cursors, **{one.destination: one for one in cursors}})


def _refuse(why: str) -> NoReturn:
    raise RetryableError(why)


def _no_answer() -> Exception:
    return RetryableError("no answer")
