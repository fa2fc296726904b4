"""`fleet show`, `fleet release` and `fleet retry`: see and steer running replicas over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from simplu_worker.commands.fleet.held_summary import held_lines, named_held
from simplu_worker.commands.fleet.replica_client import open_replica
from simplu_worker.commands.fleet.top_views import duration_text
from simplu_worker.commands.output.display import print_json, print_line, print_note, print_table
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError

REPLICA_COLUMNS = (
    *("replica", "version", "leases", "lagSeconds", "recordsPerSecond", "readKBps", "latencyP99Seconds"),
    *("deadLetters", "heldTargets", "unable"),
)
SHARD_COLUMNS = ("streamShard", "owner", "state", "lagSeconds", "recordsPerSecond", "heldTargets", "seenSecondsAgo")
HELD_COLUMNS = ("replica", "streamShard", "target", "reason", "ageSeconds")
HEADS = {  # shorter than the members, as ids need the room
    "streamShard": "stream shard",
    "lagSeconds": "lag s",
    "recordsPerSecond": "records/s",
    "readKBps": "KB/s",
    "latencyP99Seconds": "p99 < s",
    "deadLetters": "letters/h",
    "heldTargets": "held",
    "seenSecondsAgo": "seen s ago",
    "ageSeconds": "age s",
}


async def show_fleet(settings: Settings, url: str | None, *, as_json: bool) -> int:
    """Print the replicas, the stream shards and the held targets as the replica at *url* sees them."""
    async with open_replica(settings, url) as replica:
        fleet = await replica.ask("GET", "/fleet")
    if as_json:
        print_json(fleet)
    else:
        _print_rows(REPLICA_COLUMNS, fleet["replicas"])
        _print_rows(SHARD_COLUMNS, fleet["streamShards"])
        if held := named_held(fleet):
            _print_rows(HELD_COLUMNS, held)
        for one in fleet["goneReplicas"]:
            age = duration_text(one["seenSecondsAgo"])
            print_line(f"replica {one['replica']} is gone: it renewed its leases {age} ago, and others have them now")
        for line in held_lines(fleet, lease_duration_s=settings.kinesis_lease_duration_seconds):
            print_line(line)
    return 0


async def release_lease(
    settings: Settings, url: str | None, stream_shard_id: str, *, apply: bool, as_json: bool
) -> int:
    """Have another replica take a lease, by the replica at *url*; without *apply* print the owner alone."""
    async with open_replica(settings, url, acts=True) as replica:
        fleet = await replica.ask("GET", "/fleet")
        found = [row for row in fleet["streamShards"] if row["streamShard"] == stream_shard_id]
        if not found:
            known = ", ".join(row["streamShard"] for row in fleet["streamShards"]) or "none"
            raise PermanentError(f"expected a stream shard with a lease, out of: {known}; got {stream_shard_id!r}")
        answer: dict[str, Any] = {"applied": apply, "streamShard": stream_shard_id, "owner": found[0]["owner"]}
        if apply:
            answer |= await replica.ask("POST", f"/leases/{quote(stream_shard_id, safe='')}/release")
    if as_json:
        print_json(answer)
    elif apply:
        print_note(f"{stream_shard_id}, which {answer['owner']} owned: {answer['how']}")
    else:
        print_note(f"{stream_shard_id} is owned by {answer['owner']}; --apply has another replica take it")
    return 0


async def retry_held(settings: Settings, url: str | None, target: str | None, *, as_json: bool) -> int:
    """Have the replica at *url* and, through it, the others try their held targets now: all of them, or *target*.

    Returns 1 if none is tried, or a replica could not be asked.
    """
    async with open_replica(settings, url, acts=True) as replica:
        answer = await replica.ask("POST", "/held/retry", body={"target": target})
    if as_json:
        print_json(answer)
    else:
        print_note(f"held targets that this replica tries now: {answer['retried']}")
        for replica in answer["asked"]:
            print_note(f"{replica} tries its own with the next renewal of its leases")
        for replica in answer["notAsked"]:
            print_note(f"{replica} could not be asked: repeat the command, or ask it with --url")
    return 0 if (answer["retried"] or answer["asked"]) and not answer["notAsked"] else 1


def _print_rows(columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> None:
    listed = list(rows)
    told = [name for name in columns if any(row.get(name) is not None for row in listed)] or columns
    print_table([HEADS.get(name, name) for name in told], ([row.get(name) for name in told] for row in listed))
