"""The records of the throughput benchmark: the same in every run, for everybody who is measured."""

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


class NewRecord(NamedTuple):
    """A record to put, with the partition key that keeps order for its tenant and type."""

    partition_key: str
    data: bytes


def records(count: int, tenants: int, *, run: str = "") -> Iterator[NewRecord]:
    """Yield *count* records for *tenants*, of about 330 bytes each; every one can take effect.

    *run* keeps the ids apart from those of other runs.
    """
    random = Random(SEED)
    ids: dict[tuple[int, str], list[str]] = defaultdict(list)  # of resources that are there
    kinds = random.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()), k=count)
    for number, drawn in enumerate(kinds):
        tenant, resource_type = random.randrange(tenants), random.choice(TYPES)
        known = ids[tenant, resource_type]
        kind = drawn if known or drawn == "list" else "create"
        place = f'"locationId":"{tenant}","resourceType":"{resource_type}"'
        data = _record(random, kind, place, known, number, run).encode()
        yield NewRecord(f"{BUSINESS_ID}-{tenant}-{resource_type}", data)


def _record(random: Random, kind: str, place: str, known: list[str], number: int, run: str) -> str:
    """Return a record of *kind*; *known* are the ids of its tenant and type, and are brought up to date."""
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
