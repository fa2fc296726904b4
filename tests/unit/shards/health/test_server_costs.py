"""Settings of a shard's server that cost are named by what the server has counted, and not before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from simplu_worker.shards.health.server_costs import GB, MB, ServerFacts, TableRows, find_costs

WELL = ServerFacts(
    max_wal_size=8 * GB,
    shared_buffers=4 * GB,
    wal_compression="lz4",
    wal_compressions=("pglz", "lz4", "zstd", "on", "off"),
    synchronous_commit="on",
    synchronous_standby_names="",
    has_autovacuum=True,
    checkpoints_timed=100,
    checkpoints_requested=2,
    wal_bytes=500 * GB,
    wal_page_images=60_000_000,
    database_bytes=100 * GB,
    pages_read=50_000_000,
    pages_found=500_000_000,
    tables=(TableRows("operations", 5_000_000, 100_000), TableRows("resources", 1_000_000, 20_000)),
)
NIGHT = datetime(2026, 11, 23, 1, 30, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"checkpoints_requested": 34}, ["max_wal_size 8 GB: 34 of 134 checkpoints came before their time"]),
        ({"checkpoints_requested": 33}, []),
        ({"checkpoints_requested": 10, "checkpoints_timed": 0, "max_wal_size": 64 * MB}, ["max_wal_size 64 MB: 10 of"]),
        ({"checkpoints_requested": 9, "checkpoints_timed": 0}, []),
        ({"wal_compression": "off"}, ["wal_compression off: up to 92% of 500 GB of WAL are whole pages"]),
        ({"wal_compression": "off", "wal_page_images": 32_000_000}, []),
        ({"wal_compression": "off", "wal_bytes": GB - 1}, []),
        ({"wal_compression": "off", "wal_compressions": ("pglz", "on", "off")}, []),
        ({"wal_compression": "pglz"}, []),
        (
            {"shared_buffers": 128 * MB},
            ["shared_buffers 128 MB, the database has 100 GB: 9% of the pages that were used had to be read"],
        ),
        ({"shared_buffers": 128 * MB, "database_bytes": 512 * MB}, []),
        ({"shared_buffers": 128 * MB, "pages_found": 2_500_000_000}, []),
        ({"shared_buffers": 128 * MB, "pages_read": 99_999, "pages_found": 0}, []),
        ({"shared_buffers": GB}, []),
        ({"synchronous_commit": "off"}, []),
        ({"synchronous_commit": "remote_apply"}, []),
        (
            {"synchronous_commit": "remote_apply", "synchronous_standby_names": "one"},
            ["synchronous_commit remote_apply: each commit waits until its standbys have applied it"],
        ),
        (
            {"synchronous_commit": "local", "synchronous_standby_names": "one"},
            ["synchronous_commit local, although synchronous_standby_names is set"],
        ),
        ({"synchronous_commit": "off", "synchronous_standby_names": "*"}, ["synchronous_commit off, although"]),
        ({"synchronous_commit": "on", "synchronous_standby_names": "*"}, []),
        ({"has_autovacuum": False}, ["autovacuum off: dead rows stay"]),
        (
            {"tables": (TableRows("resources", 600_000, 400_000),)},
            ["autovacuum is behind: 40% of 1,000,000 rows of resources are dead, vacuumed never yet"],
        ),
        (
            {"tables": (TableRows("resources", 0, 50_000, NIGHT),)},
            ["autovacuum is behind: 100% of 50,000 rows of resources are dead, vacuumed last 2026-11-22 23:30 UTC"],
        ),
        ({"tables": (TableRows("resources", 0, 49_999),)}, []),
        ({"tables": (TableRows("resources", 700_000, 300_000),)}, []),
    ],
)
def test_costs_are_named_just_beyond_their_bounds(changes: dict[str, object], expected: list[str]) -> None:
    found = [cost.problem for cost in find_costs(msgspec.structs.replace(WELL, **changes))]
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected


def test_advice_names_the_next_value_to_try() -> None:
    facts = msgspec.structs.replace(
        WELL, checkpoints_requested=100, max_wal_size=GB, wal_compression="off", wal_compressions=("off", "zstd")
    )
    assert [cost.advice for cost in find_costs(facts)] == [
        "raise max_wal_size, to 4 GB or more, as far as the disk has room",
        "set wal_compression to zstd; it takes effect with a reload",
    ]


def test_times_are_shown_in_utc() -> None:
    facts = msgspec.structs.replace(WELL, tables=(TableRows("resources", 0, 90_000, NIGHT.astimezone(UTC)),))
    assert "2026-11-22 23:30 UTC" in next(find_costs(facts)).problem
