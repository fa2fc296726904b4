"""The records of the throughput benchmark: the same in every run and for every contender."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import NamedTuple

SEED = 9
WEIGHTS = {"create": 60, "update": 20, "patch": 15, "delete": 4, "list": 1}
TYPES = ("member", "class", "membership")
BUSINESS_ID = "bench"
BUSINESS_TYPE = "gym"
STATUSES = ("planned", "confirmed", "done", "cancelled")
FIRST_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
PAGE = '"filters":{"status":"planned"},"pagination":{"page":1,"limit":20}'


class PutRecord(NamedTuple):
    """A record to put, with a partition key of its tenant and type."""

    partition_key: str
    data: bytes


def make_records(count: int, tenants: int, *, run: str = "") -> Iterator[PutRecord]:
    """Yield *count* records for *tenants*, of about 330 bytes each; every operation succeeds.

    *run* distinguishes the ids from those of other runs.
    """
    random = Random(SEED)
    ids: dict[tuple[int, str], list[str]] = defaultdict(list)  # of existing resources
    kinds = random.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()), k=count)
    for number, drawn in enumerate(kinds):
        tenant, resource_type = random.randrange(tenants), random.choice(TYPES)
        known = ids[tenant, resource_type]
        kind = drawn if known or drawn == "list" else "create"
        place = f'"locationId":"{tenant}","resourceType":"{resource_type}"'
        data = _make_record(random, kind, place, known, number, run).encode()
        yield PutRecord(f"{BUSINESS_ID}-{tenant}-{resource_type}", data)


def _make_record(random: Random, kind: str, place: str, known: list[str], number: int, run: str) -> str:
    """Return a record of *kind*; *known* are the ids of its tenant and type, which this updates."""
    moment = (FIRST_MOMENT + timedelta(milliseconds=number)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    match kind:
        case "create":
            resource_id = f"r{run}-{number}"
            known.append(resource_id)
        case "delete":
            at = random.randrange(len(known))
            known[at], known[-1] = known[-1], known[at]
            resource_id = known.pop()
        case "list":
            resource_id = ""
        case _:
            resource_id = random.choice(known)
    members = f'"resourceId":"{resource_id}",' if resource_id else ""
    match kind:
        case "create" | "update":
            members += (
                f'"data":{{"name":"Person {number}","status":"{random.choice(STATUSES)}","rank":{random.randrange(5)},'
                f'"email":"person-{number}@example.com","note":"as agreed on the phone","tags":["new","web"]}},'
            )
        case "patch":
            members += f'"data":{{"status":"{random.choice(STATUSES)}","rank":{random.randrange(5)},"note":null}},'
        case "list":
            members += PAGE + ","
    return (
        f'{{"operation":"{kind}","businessId":"{BUSINESS_ID}",{place},{members}'
        f'"timestamp":"{moment}","requestId":"q{run}-{number}"}}'
    )
