"""The consumers with which benchmarks/throughput compares the worker: they do the work that they are measured at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from benchmarks.throughput.measures import put_steadily
from benchmarks.throughput.records import PutRecord, make_records
from benchmarks.throughput.runs import PEERS, Contender, run_clients
from benchmarks.throughput.testbed import run_servers
from simplu_local.processes.loopback import poll_until

RECORDS, TENANTS, STREAM_SHARDS = 200, 2, 2
PUT_RATE = 1000
LIST_MAX = 21
APPLIED_WITHIN_S = 240.0
RESOURCES_SQL = 'SELECT id, "resourceName" AS type, "resourceId" AS key, data::text AS data FROM resources'
LOG_SQL = "SELECT request_id, operation, status, jsonb_array_length(result->'items') AS listed FROM operations"

Documents = dict[tuple[str, str, str], dict[str, Any]]
LogRows = dict[str, tuple[str, str, int | None]]


def apply(records: Iterable[PutRecord]) -> tuple[Documents, LogRows]:
    """Return the documents and the log after *records*, each applied once and in order."""
    documents: Documents = {}
    log: LogRows = {}
    for record in records:
        one = json.loads(record.data)
        place = f"{one['businessId']}-{one['locationId']}", one["resourceType"]
        key = (*place, one.get("resourceId", ""))
        listed = None
        match one["operation"]:
            case "create" | "update":
                documents[key] = one["data"]
            case "patch":
                merged = documents[key] | one["data"]
                documents[key] = {name: value for name, value in merged.items() if value is not None}
            case "delete":
                del documents[key]
            case _:
                found = [
                    data for at, data in documents.items() if at[:2] == place and one["filters"].items() <= data.items()
                ]
                listed = min(len(found), LIST_MAX)
        log[one["requestId"]] = (one["operation"], "succeeded", listed)
    return documents, log


def with_repeats(records: Sequence[PutRecord]) -> list[PutRecord]:
    return [*records[:150], *records[50:100], *records[150:]]


@pytest.mark.nightly
@pytest.mark.parametrize("contender", PEERS)
async def test_consumer_applies_each_operation_once_and_in_order(contender: Contender) -> None:
    PEERS[contender].command()  # skips the test where it is not built
    records = list(make_records(RECORDS, TENANTS))
    documents, log = apply(records)
    async with (
        run_servers(TENANTS) as servers,
        servers.run_kinesis(0, STREAM_SHARDS) as kinesis,
        servers.make_databases(1, commit="off", has_plain_log=True) as databases,
    ):
        await put_steadily(kinesis.url, with_repeats(records), PUT_RATE)
        async with run_clients(contender, servers, kinesis.url, databases) as clients:

            async def are_applied() -> bool:
                clients.check_running()
                return await databases.count_operations() >= RECORDS

            is_applied = await poll_until(are_applied, within_s=APPLIED_WITHIN_S)
            rows = await databases.fetch_rows(LOG_SQL)
            assert is_applied, f"{len(rows)} of {RECORDS} operations, {clients.log_tails()}"
        resources = await databases.fetch_rows(RESOURCES_SQL)

    assert {row["request_id"]: (row["operation"], row["status"], row["listed"]) for row in rows} == log
    assert {(row["id"], row["type"], row["key"]): json.loads(row["data"]) for row in resources} == documents
