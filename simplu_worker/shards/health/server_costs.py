"""Which settings of a shard's server make its work dearer than it has to be, by what the server has counted. Pure.

A finding needs both: a setting, and counts which show that it costs. Bounds are for servers that have worked for a
while; a server with few counts has no findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

MB: Final = 1024 * 1024
GB: Final = 1024 * MB
PAGE_BYTES: Final = 8192  # of Postgres, unless it was compiled with another size

CHECKPOINTS_MIN: Final = 10  # by size; one now and then is that of a large import, or of a backup
CHECKPOINTS_SHARE: Final = 0.25
WAL_COUNTED_MIN: Final = GB
PAGE_IMAGES_SHARE: Final = 0.5
LZ4, ZSTD = "lz4", "zstd"
SMALL_BUFFERS: Final = GB
BUFFERS_OF_DATABASE: Final = 0.25
READS_MIN: Final = 100_000  # pages
MISSED_SHARE: Final = 0.02
DEAD_ROWS_MIN: Final = 50_000
DEAD_SHARE: Final = 0.3  # autovacuum begins at a fifth by default


class TableRows(msgspec.Struct, frozen=True):
    """The rows of one table, as the server estimates them; dead ones wait for a vacuum."""

    table: str
    live: int
    dead: int
    vacuumed_at: datetime | None = None


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The settings and counts of a shard's server.

    Sizes are bytes. Checkpoints, WAL and pages are counted since the last reset of the statistics.
    *wal_compressions* are the methods that the server offers. *tables* are those of the worker.
    """

    max_wal_size: int
    shared_buffers: int
    wal_compression: str
    wal_compressions: Sequence[str]
    synchronous_commit: str
    synchronous_standby_names: str
    has_autovacuum: bool
    checkpoints_timed: int
    checkpoints_requested: int
    wal_bytes: int
    wal_page_images: int
    database_bytes: int
    pages_read: int
    pages_found: int
    tables: Sequence[TableRows] = ()


class ServerCost(msgspec.Struct, frozen=True):
    """A setting that costs, and the remedy."""

    problem: str
    advice: str


def find_costs(facts: ServerFacts) -> Iterator[ServerCost]:
    """Yield the settings that cost, one finding for each."""
    yield from _checkpoint_costs(facts)
    yield from _compression_costs(facts)
    yield from _buffer_costs(facts)
    yield from _commit_costs(facts)
    yield from _vacuum_costs(facts)


def _checkpoint_costs(facts: ServerFacts) -> Iterator[ServerCost]:
    requested, timed = facts.checkpoints_requested, facts.checkpoints_timed
    if requested >= CHECKPOINTS_MIN and requested > CHECKPOINTS_SHARE * (requested + timed):
        yield ServerCost(
            f"max_wal_size {_size(facts.max_wal_size)}: {requested} of {requested + timed} checkpoints came before "
            "their time, and after each of them every page that changes is written to the WAL as a whole",
            f"raise max_wal_size, to {_size(4 * facts.max_wal_size)} or more, as far as the disk has room",
        )


def _compression_costs(facts: ServerFacts) -> Iterator[ServerCost]:
    better = next((method for method in (LZ4, ZSTD) if method in facts.wal_compressions), None)
    if better is None or facts.wal_compression != "off" or facts.wal_bytes < WAL_COUNTED_MIN:
        return
    share = min(1.0, facts.wal_page_images * PAGE_BYTES / facts.wal_bytes)
    if share > PAGE_IMAGES_SHARE:
        yield ServerCost(
            f"wal_compression off: up to {share:.0%} of {_size(facts.wal_bytes)} of WAL are whole pages",
            f"set wal_compression to {better}; it takes effect with a reload",
        )


def _buffer_costs(facts: ServerFacts) -> Iterator[ServerCost]:
    pages = facts.pages_read + facts.pages_found
    if facts.shared_buffers >= SMALL_BUFFERS or facts.shared_buffers >= BUFFERS_OF_DATABASE * facts.database_bytes:
        return
    if facts.pages_read >= READS_MIN and facts.pages_read > MISSED_SHARE * pages:
        yield ServerCost(
            f"shared_buffers {_size(facts.shared_buffers)}, the database has {_size(facts.database_bytes)}: "
            f"{facts.pages_read / pages:.0%} of the pages that were used had to be read",
            "raise shared_buffers, to a quarter of the server's memory; it takes effect with a restart",
        )


def _commit_costs(facts: ServerFacts) -> Iterator[ServerCost]:
    has_standbys = bool(facts.synchronous_standby_names.strip())
    if not has_standbys:
        return
    if facts.synchronous_commit == "remote_apply":
        yield ServerCost(
            "synchronous_commit remote_apply: each commit waits until its standbys have applied it",
            "set it to on for the worker's role, unless programs read the latest commits from the standbys",
        )
    elif facts.synchronous_commit in {"off", "local"}:
        yield ServerCost(
            f"synchronous_commit {facts.synchronous_commit}, although synchronous_standby_names is set: commits of the "
            "stream wait for no standby, and each message of a queue costs another commit that does",
            "set synchronous_commit to on for the worker's role, or clear synchronous_standby_names",
        )


def _vacuum_costs(facts: ServerFacts) -> Iterator[ServerCost]:
    if not facts.has_autovacuum:
        yield ServerCost("autovacuum off: dead rows stay, and tables grow", "set autovacuum to on")
    for rows in facts.tables:
        count = rows.live + rows.dead
        if rows.dead < DEAD_ROWS_MIN or rows.dead <= DEAD_SHARE * count:
            continue
        since = (
            "never yet" if rows.vacuumed_at is None else f"last {rows.vacuumed_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        )
        yield ServerCost(
            f"autovacuum is behind: {rows.dead / count:.0%} of {count:,} rows of {rows.table} are dead, "
            f"vacuumed {since}",
            "look for a transaction that stays open, or an unused replication slot; then raise "
            "autovacuum_vacuum_cost_limit, or autovacuum_max_workers",
        )


def _size(count: int) -> str:
    """Return *count* bytes as Postgres writes settings."""
    for unit, size in (("GB", GB), ("MB", MB)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count // 1024} kB"
