"""A real KCL 3.5 leads on a lease table of ours: it is seen in the lease table, and gets leases by graceful hand-over.

    python tests/acceptance/kcl3_leader.py [--build DIR]

Needs Java 17 and Maven, which downloads the KCL from Maven Central into DIR. Starts moto and takes all leases of a
stream with four stream shards; then a worker of the KCL that becomes the leader, and metrics in our name, without which
it would not count us. Exit status 0 only if the watch names the leader, two leases are handed over, and the KCL begins
to read them. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from support.aws.endpoints import CREDENTIALS, client_of, running_moto
from support.aws.kcl3_peer import worker_row

from simplu_worker.aws.clients import Client
from simplu_worker.consumers.kinesis.fleet.lease_renewer import LeaseRenewer
from simplu_worker.consumers.kinesis.leases.kcl_leader_watch import KclLeaderWatch, KclTables
from simplu_worker.consumers.kinesis.leases.lease import Lease
from simplu_worker.consumers.kinesis.leases.lease_table import LeaseTable
from simplu_worker.consumers.kinesis.stream.positions import TRIM_HORIZON, HashRange

SOURCES = Path(__file__).parent / "kcl3"
APPLICATION, STREAM, OURS, THEIRS = "application", "stream", "host:1:ours", "kcl-next:uuid"
DURATION_S = 10.0
METRICS_INTERVAL_S = 5.0
WITHIN_S = 180.0


def main() -> None:
    """Build the peer and run the play; end with 0 if all went as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, help="folder for the KCL and the compiled peer; by default a new one")
    build = parser.parse_args().build or Path(tempfile.mkdtemp(prefix="kcl3-"))
    os.environ.update(CREDENTIALS)
    class_path = build_peer(build)
    with running_moto() as url:
        problems = asyncio.run(play(url, class_path))
    sys.stdout.writelines(f"{line}\n" for line in problems or ["the leader was seen, two leases were handed over"])
    sys.exit(1 if problems else 0)


def build_peer(build: Path) -> str:
    """Download the KCL, compile the peer, and return the class path."""
    library, classes = build / "library", build / "classes"
    if not library.exists():
        copy = ("dependency:copy-dependencies", f"-DoutputDirectory={library.resolve()}")
        subprocess.run(["mvn", "-q", "-B", "-f", str(SOURCES / "pom.xml"), *copy], check=True)
    class_path = f"{library.resolve()}/*"
    subprocess.run(["javac", "-cp", class_path, "-d", str(classes), str(SOURCES / "Peer.java")], check=True)
    return f"{class_path}:{classes.resolve()}"


async def play(url: str, class_path: str) -> list[str]:
    """Return what was not as it should be."""
    async with client_of("dynamodb", url) as dynamodb, client_of("kinesis", url) as kinesis:
        table = await create_leases(dynamodb, kinesis)
        watch = KclLeaderWatch(dynamodb, table, KclTables.of(APPLICATION))
        await watch.check()
        handed_over: list[str] = []
        begun: list[str] = []
        async with asyncio.TaskGroup() as tasks:
            for lease in await table.scan():
                taken = await table.take(lease, OURS)
                assert taken is not None
                renewer = LeaseRenewer(table, taken, me=OURS, duration_s=DURATION_S)
                tasks.create_task(hold(renewer, handed_over))
            tasks.create_task(report_metrics(dynamodb))
            command = ("java", "-Daws.cborEnabled=false", "-cp", class_path, "Peer", url, APPLICATION, STREAM, THEIRS)
            peer = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-3)
            tasks.create_task(note_begun(peer, begun))
            try:
                is_seen = await is_reached(lambda: watch.is_leading, table)
                await is_reached(lambda: len(begun) >= 2, table)
            finally:
                peer.kill()
                await peer.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
        leases = {lease.lease_key: lease for lease in await table.scan()}
    problems = [] if is_seen and THEIRS in str(watch.trouble) else [f"expected the leader, came {watch!r}"]
    if not len(begun) == len(handed_over) == 2 or sorted(begun) != sorted(handed_over):
        problems.append(f"expected two leases to be handed over and begun, came {handed_over} and {begun}")
    problems += [f"{key} is owned by {leases[key].owner}" for key in handed_over if leases[key].owner != THEIRS]
    return problems


async def create_leases(dynamodb: Client, kinesis: Client) -> LeaseTable:
    """Create the stream, and a lease for each of its stream shards."""
    await kinesis.create_stream(StreamName=STREAM, ShardCount=4)
    table = LeaseTable(dynamodb, APPLICATION)
    await table.ensure()
    for shard in (await kinesis.list_shards(StreamName=STREAM))["Shards"]:
        keys = shard["HashKeyRange"]
        hash_range = HashRange(int(keys["StartingHashKey"]), int(keys["EndingHashKey"]))
        await table.create(Lease(shard["ShardId"], TRIM_HORIZON, hash_range=hash_range))
    return table


async def hold(renewer: LeaseRenewer, handed_over: list[str]) -> None:
    """Renew a lease until it is to be handed over."""
    async with asyncio.TaskGroup() as tasks:
        renewing = tasks.create_task(renewer.run())
        await renewer.is_reassigned.wait()
        await renewer.release(is_ended=False)
        handed_over.append(renewer.lease.lease_key)
        renewing.cancel()


async def report_metrics(dynamodb: Client) -> None:
    """Report metrics in our name, as the worker does not: else the leader would count us for dead."""
    while True:
        await dynamodb.put_item(TableName=APPLICATION, Item=worker_row(OURS, int(time.time())))
        await asyncio.sleep(METRICS_INTERVAL_S)


async def note_begun(peer: asyncio.subprocess.Process, begun: list[str]) -> None:
    """Note the stream shards that the KCL begins to read."""
    assert peer.stdout is not None
    async for line in peer.stdout:
        words = line.decode().split()
        if words[:1] == ["begins"]:
            begun.append(words[1])


async def is_reached(condition: Callable[[], bool], table: LeaseTable) -> bool:
    """Scan, as the fleet does, until *condition*; return whether it was reached in time."""
    ends_at = time.monotonic() + WITHIN_S
    while not condition() and time.monotonic() < ends_at:
        await table.scan()
        await asyncio.sleep(1)
    return condition()


if __name__ == "__main__":
    main()
