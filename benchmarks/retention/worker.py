"""A worker as `simplu-worker run` starts it, which keeps its log for seconds.

    python -m benchmarks.retention.worker --kept-s 100 --turn-s 2

Settings cannot make the log that short: a row stays for a day more than its source has the record
(`OPERATION_RETENTION_HOURS`), and no stream keeps records for less than a day. So the worker's own `LogRetention` gets
another time to keep rows, and turns that are shorter in proportion. All else is unchanged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta

from simplu_worker import daemon
from simplu_worker.__main__ import main as worker
from simplu_worker.shards.log import LogRetention
from simplu_worker.shards.postgres.pool import Pools


def main() -> None:
    """Run the worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept-s", type=float, required=True)
    parser.add_argument("--turn-s", type=float, required=True)
    arguments = parser.parse_args()
    kept = timedelta(seconds=arguments.kept_s)

    async def window() -> timedelta | None:
        return kept

    def make_retention(pools: Pools, _: Callable[[], Awaitable[timedelta | None]]) -> LogRetention:
        return LogRetention(pools, window, turn_s=arguments.turn_s)

    daemon.LogRetention = make_retention  # type: ignore[assignment,attr-defined]
    sys.argv[1:] = ["run"]
    worker()


if __name__ == "__main__":
    main()
