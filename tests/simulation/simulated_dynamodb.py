"""A model of DynamoDB as far as a lease table needs it: conditional writes, and scans that are eventually consistent.

It speaks as botocore's client does, so that the worker's own lease table runs on it. Only the forms of expressions that
lease tables use are understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NoReturn, TypeAlias

from botocore.exceptions import ClientError, ReadTimeoutError
from simulation.simulated_faults import Fault
from simulation.simulated_network import Network
from simulation.virtual_time import current_process

Row: TypeAlias = Mapping[str, Any]
Watch: TypeAlias = Callable[[str, Row | None, Row | None], None]  # key, row before, row after

SERVICE = "dynamodb"
STALE_FOR_S = 1.0
THROUGHPUT = "ProvisionedThroughputExceededException"

_SECTIONS = re.compile(r"\b(SET|REMOVE|ADD) ")
_ASSIGNMENT = re.compile(r"(\w+) = (?:(:\w+)|if_not_exists\((\w+), (:\w+)\))")
_CONDITION = re.compile(r"(\w+) = (:\w+)|attribute_(not_)?exists\((\w+)\)")


class Table:
    """One table: its rows, and how they were in the last second."""

    def __init__(self, key_name: str) -> None:
        self.key_name = key_name
        self.rows: dict[str, Row] = {}
        self.watch: Watch = lambda _key, _before, _after: None
        self._past: dict[str, list[tuple[float, Row | None]]] = {}  # by key: until when a row was what

    def put(self, key: str, row: Row | None, now: float) -> None:
        before = self.rows.get(key)
        self._past.setdefault(key, []).append((now, before))
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row
        self.watch(key, before, row)

    def keys(self, now: float) -> list[str]:
        self._forget(now)
        return sorted(self.rows.keys() | self._past.keys())

    def row_at(self, key: str, at: float) -> Row | None:
        for until, row in self._past.get(key, ()):
            if at < until:
                return row
        return self.rows.get(key)

    def _forget(self, now: float) -> None:
        for key, versions in list(self._past.items()):
            self._past[key] = [version for version in versions if version[0] > now - STALE_FOR_S]
            if not self._past[key]:
                del self._past[key]


class DynamoDb:
    """All tables, by name. Every call has its effect at the instant at which it lands."""

    def __init__(self, network: Network, *, page_size: int = 100) -> None:
        self._network = network
        self._page_size = page_size
        self.tables: dict[str, Table] = {}
        self.unconditional_updates: frozenset[str] = frozenset()  # clauses; for worlds that are meant to break
        self.sender: str | None = None  # of the request that lands at this moment: the name of its process

    def table(self, name: str, key_name: str = "leaseKey") -> Table:
        return self.tables.setdefault(name, Table(key_name))

    async def describe_table(self, **request: Any) -> dict[str, Any]:
        return await self._ask("DescribeTable", self._described, request)

    async def create_table(self, **request: Any) -> dict[str, Any]:
        return await self._ask("CreateTable", self._create_table, request)

    async def scan(self, **request: Any) -> dict[str, Any]:
        """Answer one page; each row as it is, or, unless consistent, as it was up to a second ago."""
        return await self._ask("Scan", self._scan, request)

    async def get_item(self, **request: Any) -> dict[str, Any]:
        return await self._ask("GetItem", self._get_item, request)

    async def put_item(self, **request: Any) -> dict[str, Any]:
        return await self._ask("PutItem", self._put_item, request)

    async def update_item(self, **request: Any) -> dict[str, Any]:
        return await self._ask("UpdateItem", self._update_item, request)

    async def delete_item(self, **request: Any) -> dict[str, Any]:
        return await self._ask("DeleteItem", self._delete_item, request)

    async def _ask(
        self, operation: str, serve: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]
    ) -> dict[str, Any]:
        if self._network.draws.random() < self._network.trouble.throttled:
            self._network.faults.note(Fault.THROTTLED, is_felt=True)
            return await self._network.ask(SERVICE, partial(_refuse, operation, THROUGHPUT), lost=_lost)
        process = current_process()
        sender = None if process is None else process.name
        return await self._network.ask(SERVICE, partial(self._land, serve, request, sender), lost=_lost)

    def _land(
        self, serve: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any], sender: str | None
    ) -> dict[str, Any]:
        self.sender = sender
        try:
            return serve(request)
        finally:
            self.sender = None

    def _find(self, request: dict[str, Any]) -> Table:
        name = request["TableName"]
        if name not in self.tables:
            _refuse("", "ResourceNotFoundException")
        return self.tables[name]

    def _described(self, request: dict[str, Any]) -> dict[str, Any]:
        key = [{"AttributeName": self._find(request).key_name, "KeyType": "HASH"}]
        return {"Table": {"TableStatus": "ACTIVE", "KeySchema": key}}

    def _create_table(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["TableName"] in self.tables:
            _refuse("CreateTable", "ResourceInUseException")
        self.table(request["TableName"])
        return {}

    def _scan(self, request: dict[str, Any]) -> dict[str, Any]:
        table, now = self._find(request), self._network.loop.time()
        keys = table.keys(now)
        if start := request.get("ExclusiveStartKey"):
            keys = [key for key in keys if key > start[table.key_name]["S"]]
        page = keys[: self._page_size]
        is_stale = not request.get("ConsistentRead")
        rows = [self._seen(table, key, now, is_stale=is_stale) for key in page]
        reply: dict[str, Any] = {"Items": [row for row in rows if row is not None]}
        if len(page) < len(keys):
            reply["LastEvaluatedKey"] = {table.key_name: {"S": page[-1]}}
        return reply | {"ConsumedCapacity": {"CapacityUnits": 0.5}}

    def _seen(self, table: Table, key: str, now: float, *, is_stale: bool) -> Row | None:
        draw = self._network.draws.random
        if is_stale and draw() < self._network.trouble.stale:
            row = table.row_at(key, now - draw() * STALE_FOR_S)
            self._network.faults.note(Fault.STALE_SCAN, is_felt=row != table.rows.get(key))
            return row
        return table.rows.get(key)

    def _get_item(self, request: dict[str, Any]) -> dict[str, Any]:
        table = self._find(request)
        key = request["Key"][table.key_name]["S"]
        row = self._seen(table, key, self._network.loop.time(), is_stale=not request.get("ConsistentRead"))
        return {} if row is None else {"Item": row}

    def _put_item(self, request: dict[str, Any]) -> dict[str, Any]:
        table, item = self._find(request), request["Item"]
        key = item[table.key_name]["S"]
        _check_sets("PutItem", item)
        _check("PutItem", table.rows.get(key), request)
        table.put(key, dict(item), self._network.loop.time())
        return {}

    def _update_item(self, request: dict[str, Any]) -> dict[str, Any]:
        table, update = self._find(request), request["UpdateExpression"]
        key = request["Key"][table.key_name]["S"]
        before = table.rows.get(key)
        if not any(clause in update for clause in self.unconditional_updates):
            _check("UpdateItem", before, request)
        _check_sets("UpdateItem", request["ExpressionAttributeValues"])
        row = updated(before or request["Key"], update, request["ExpressionAttributeValues"])
        table.put(key, row, self._network.loop.time())
        return {"Attributes": row} if request.get("ReturnValues") == "ALL_NEW" else {}

    def _delete_item(self, request: dict[str, Any]) -> dict[str, Any]:
        table = self._find(request)
        key = request["Key"][table.key_name]["S"]
        _check("DeleteItem", table.rows.get(key), request)
        table.put(key, None, self._network.loop.time())
        return {}


def holds(row: Row | None, condition: str, values: Row) -> bool:
    for name, value, is_negated, existing in _conditions(condition):
        if name and (row is None or row.get(name) != values[value]):
            return False
        if existing and (row is not None and existing in row) == bool(is_negated):
            return False
    return True


def updated(row: Row, expression: str, values: Row) -> dict[str, Any]:
    after = dict(row)
    for verb, clauses in _clauses(expression):
        for name, value, existing in clauses:
            if verb == "REMOVE":
                after.pop(name, None)
            elif verb == "ADD":
                after[name] = {"N": str(int(row.get(name, {"N": "0"})["N"]) + int(values[value]["N"]))}
            else:
                after[name] = row[existing] if existing in row else values[value]
    return after


@cache
def _conditions(condition: str) -> list[tuple[str, str, str, str]]:
    found = _CONDITION.findall(condition)
    if len(found) != (condition.count(" AND ") + 1 if condition else 0):
        raise NotImplementedError(condition)
    return found


@cache
def _clauses(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    parts = _SECTIONS.split(expression)[1:]
    found: list[tuple[str, list[tuple[str, str, str]]]] = []
    for verb, text in zip(parts[::2], parts[1::2], strict=True):
        if verb == "SET":
            clauses = [(name, value or default, kept) for name, value, kept, default in _ASSIGNMENT.findall(text)]
        else:
            words = [[*clause.split(), ""] for clause in text.split(",")]
            clauses = [(word[0], word[1], "") for word in words]
        found.append((verb, clauses))
    return found


def _check(operation: str, row: Row | None, request: Row) -> None:
    if not holds(row, request.get("ConditionExpression", ""), request.get("ExpressionAttributeValues", {})):
        is_shown = row is not None and request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD"
        _refuse(operation, "ConditionalCheckFailedException", **({"Item": row} if is_shown else {}))


def _check_sets(operation: str, values: Row) -> None:
    for value in values.values():
        if "SS" in value and len(set(value["SS"])) != (len(value["SS"]) or -1):
            _refuse(operation, "ValidationException")


def _refuse(operation: str, code: str, **facts: Any) -> NoReturn:
    raise ClientError({"Error": {"Code": code, "Message": "as simulated"}, **facts}, operation)


def _lost() -> Exception:
    exc: Exception = ReadTimeoutError(endpoint_url="https://dynamodb.simulated")
    return exc
