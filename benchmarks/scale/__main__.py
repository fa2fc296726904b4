"""A large fleet on paper and in simulation: requests, connections, memory, failover, and what breaks first.

    python -m benchmarks.scale [--stream-shards 1000] [--shards 500] [--tenants 10000] [--replicas 50] [--write]

Counts follow from the worker's own constants. Takes of leases are simulated in virtual time with the worker's own rules
(`observe`, `plan_takes`, `next_expiry`): a start of all replicas, the loss of some, more of them. The cost of one scan
of the lease table is measured. With `--write` the report goes into docs/fleets.md.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from botocore.session import get_session
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.scale.leases import EventResult, FleetSize, TableCost, leases_of, simulate
from benchmarks.throughput.page import markdown_table, replace_part
from simplu_worker.config.settings import Settings
from simplu_worker.consumers.kinesis.fetch.pacing import IDLE_INTERVAL_S, TIP_INTERVAL_S
from simplu_worker.consumers.kinesis.fleet.lease_holder import RENEWALS_PER_DURATION
from simplu_worker.consumers.kinesis.fleet.position_sync import INTERVAL_S, SHARDS_PER_S
from simplu_worker.consumers.kinesis.leases.lease import Observation, lease_of, observe, row_of
from simplu_worker.consumers.kinesis.leases.lease_rules import plan_takes
from simplu_worker.consumers.kinesis.recovery.shard_positions import WRITE_AFTER_S
from simplu_worker.shards.health.assessment import probe_interval_s

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fleets.md"
SCANS = 20
READ_UNIT_BYTES = 4096  # of DynamoDB: half a unit where it may be a second old
WRITE_UNIT_BYTES = 1024
PUT_RECORDS_PER_S = 1000  # Kinesis quotas: a stream shard takes no more
RECORD_US, TRANSACTION_US = 8.0, 260.0  # processor time of the worker: `make bench`, and `bench small_batches`
TYPES_A_TENANT = 3  # partition keys are a tenant and a type


def measure_table(fleet: FleetSize) -> TableCost:
    """Return the units that DynamoDB counts for one scan, and its processor time here, with the worker's parser."""
    owned = [
        msgspec.structs.replace(lease, owner=f"worker-7c9d8b6f5d-abcde:1:{number % fleet.replicas:08x}")
        for number, lease in enumerate(leases_of(fleet.stream_shards))
    ]
    rows = [row_of(lease) for lease in owned]
    row_bytes = sum(sum(len(name) + _size(value) for name, value in row.items()) for row in rows) / len(rows)
    body = json.dumps({"Items": rows, "Count": len(rows)}).encode()
    session = get_session()
    shape = session.get_service_model("dynamodb").operation_model("Scan").output_shape
    parser = session.get_component("response_parser_factory").create_parser("json")
    known: dict[str, Observation] = {}
    began = time.process_time()
    for scan in range(SCANS):
        reply = parser.parse({"body": body, "headers": {}, "status_code": 200}, shape)
        found = [lease for row in reply["Items"] if (lease := lease_of(row))]
        known = observe(known, found, now=scan)
        plan_takes(known, held=set(), now=scan, lease_duration_s=fleet.lease_duration_s, me="me", draw=0.5)
    scan_s = (time.process_time() - began) / SCANS
    units = math.ceil(row_bytes * len(rows) / READ_UNIT_BYTES) / 2
    return TableCost(row_bytes, units, scan_s)


def _size(value: dict[str, Any]) -> int:
    ((kind, held),) = value.items()
    if kind == "N":
        return (len(held) + 1) // 2 + 1
    return sum(map(len, held)) if kind == "SS" else len(held)


class Load(NamedTuple):
    """The requests of a fleet, a second; *lanes* are the Postgres shards that a stream shard writes to."""

    scans: float
    read_units: float
    renewals: float
    write_units: float
    lanes: float


def keys_of(fleet: FleetSize) -> float:
    """Return how many partition keys a stream shard has."""
    return fleet.tenants * TYPES_A_TENANT / fleet.stream_shards


def load_of(fleet: FleetSize, table: TableCost) -> Load:
    """Return the requests of *fleet* to DynamoDB, and the number of Postgres shards with tenants of a stream shard."""
    scans = fleet.replicas / table.pause_s(fleet.lease_duration_s)
    renewals = fleet.stream_shards * RENEWALS_PER_DURATION / fleet.lease_duration_s
    return Load(
        scans=scans,
        read_units=scans * table.read_units,
        renewals=renewals,
        write_units=renewals * math.ceil(table.row_bytes / WRITE_UNIT_BYTES),
        lanes=fleet.shards * (1 - (1 - 1 / fleet.shards) ** keys_of(fleet)),
    )


def report(fleet: FleetSize, table: TableCost, outcomes: Sequence[EventResult]) -> str:
    """Return the whole report as Markdown."""
    load = load_of(fleet, table)
    batches = markdown_table(
        [
            "records/s in all",
            "a lane",
            "operations a transaction",
            "worker cores in all",
            "a replica",
        ],
        [_batch_line(rate, fleet, load.lanes) for rate in (10_000, 100_000, PUT_RECORDS_PER_S * fleet.stream_shards)],
    )
    failover = markdown_table(
        ["what happens", "every lease is held after", "evenly after"],
        [[one.name, _seconds(one.all_held_s), _seconds(one.even_s)] for one in outcomes],
    )
    return "\n\n".join(
        [
            (
                f"{fleet.stream_shards:,} stream shards, {fleet.shards:,} Postgres shards, {fleet.tenants:,} tenants, "
                f"{fleet.replicas} replicas, leases of {fleet.lease_duration_s:g} s, every other setting as it comes."
            ),
            _counted(fleet, table, load),
            (
                f"What a reply brings for a Postgres shard is one batch. At {RECORD_US:g} µs a record and "
                f"{TRANSACTION_US:g} µs a transaction of the worker, {TIP_INTERVAL_S * 1000:.0f} ms between two reads:"
            ),
            batches,
            "Leases in simulation, with the worker's own rules:",
            failover,
        ]
    )


def _counted(fleet: FleetSize, table: TableCost, load: Load) -> str:
    """Return the table of counts."""
    defaults = Settings()
    pool, budget = defaults.database_pool_size, defaults.database_max_connections
    pause_s = table.pause_s(fleet.lease_duration_s)
    each = min(pool * fleet.shards, budget)
    a_shard = each * fleet.replicas / fleet.shards
    round_s = fleet.shards / SHARDS_PER_S + INTERVAL_S
    probe_s = probe_interval_s(fleet.shards, fails=False)
    busy, idle = fleet.stream_shards / TIP_INTERVAL_S, fleet.stream_shards / IDLE_INTERVAL_S
    return markdown_table(
        ["what", "how much", "from"],
        [
            [
                "GetRecords, the stream in use",
                f"{busy:,.0f}/s",
                f"every {TIP_INTERVAL_S * 1000:.0f} ms a stream shard",
            ],
            ["GetRecords, the stream idle", f"{idle:,.0f}/s", f"every {IDLE_INTERVAL_S:g} s"],
            [
                "scans of the lease table",
                f"{load.scans:,.0f}/s, {load.read_units:,.0f} read units/s",
                (
                    f"{table.row_bytes:.0f} bytes a row, {table.read_units:.0f} units a scan, "
                    f"each replica every {pause_s:.1f} s"
                ),
            ],
            [
                "renewals, with the checkpoint",
                f"{load.renewals:,.0f}/s, {load.write_units:,.0f} write units/s",
                f"{RENEWALS_PER_DURATION} in {fleet.lease_duration_s:g} s",
            ],
            [
                "a scan costs a replica",
                f"{table.scan_s * 1000:.0f} ms, {table.scan_s / pause_s:.1%} of a core",
                "measured here",
            ],
            [
                "connections",
                (
                    f"{each} a replica, {each * fleet.replicas:,} in all, "
                    f"{a_shard:.0f} a shard, {min(pool, each) * fleet.replicas} at most"
                ),
                "`DATABASE_MAX_CONNECTIONS`, `DATABASE_POOL_SIZE`",
            ],
            [
                "a round over all shards",
                (
                    f"{round_s:.0f} s a replica, {fleet.replicas / round_s:.1f} queries/s at each shard; "
                    f"probes {fleet.replicas / probe_s:.1f}/s"
                ),
                f"rounds at {SHARDS_PER_S:g}/s; rows written after {WRITE_AFTER_S:g} s",
            ],
            [
                "Postgres shards that a stream shard writes to",
                f"{load.lanes:.0f}",
                f"{keys_of(fleet):.0f} partition keys each: {TYPES_A_TENANT} types a tenant",
            ],
        ],
    )


def _batch_line(rate: float, fleet: FleetSize, lanes: float) -> list[str]:
    """Return what batches are at *rate*: those of a reply, if there are any."""
    pairs = lanes * fleet.stream_shards
    batch_size = _batch_size(rate / pairs * TIP_INTERVAL_S)
    cores = rate * (RECORD_US + TRANSACTION_US / batch_size) / 1e6
    return [
        f"{rate:,.0f}",
        f"{rate / pairs:.2f}/s",
        f"{batch_size:.1f}",
        f"{cores:.1f}",
        f"{cores / fleet.replicas:.2f}",
    ]


def _batch_size(due: float) -> float:
    """Return how many operations a batch has, of those that come at random, *due* of them on the average."""
    return due / (1 - math.exp(-due))


def _seconds(value: float | None) -> str:
    return "not within the simulation" if value is None else f"{value:.1f} s"


def main() -> None:
    """Count, simulate, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream-shards", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=500)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--replicas", type=int, default=50)
    parser.add_argument("--lease-duration", type=float, default=10.0, help="seconds")
    parser.add_argument("--write", action="store_true", help="put it into docs/fleets.md")
    parser.add_argument("--page", type=Path, default=PAGE, help="another page to put it into")
    given = parser.parse_args()
    fleet = FleetSize(given.stream_shards, given.shards, given.tenants, given.replicas, given.lease_duration)
    table = measure_table(fleet)
    text = report(fleet, table, simulate(fleet, table))
    Console().print(Markdown(text))
    if given.write:
        page = given.page.read_text(encoding="utf-8")
        given.page.write_text(replace_part(page, "scale", "python3 run.py bench scale --write", text), encoding="utf-8")


if __name__ == "__main__":
    main()
