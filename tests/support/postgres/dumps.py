"""The database of a shard as a dump brings it to another server."""

from __future__ import annotations

import asyncio
import subprocess

from simplu_local.postgres.server import find_postgres_bin

# So many transactions, by which a server is ahead of a new one.
TAKE_NUMBERS = """
DO $$ BEGIN FOR i IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$
"""


async def dumped(old: str, new: str, *options: str) -> None:
    await asyncio.to_thread(_pipe, old, new, options)


def _pipe(old: str, new: str, options: tuple[str, ...]) -> None:
    folder = find_postgres_bin()
    restoring = [str(folder / "psql"), "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--dbname", new]
    with subprocess.Popen([folder / "pg_dump", *options, "--dbname", old], stdout=subprocess.PIPE) as dumping:
        subprocess.run(restoring, stdin=dumping.stdout, stdout=subprocess.DEVNULL, check=True)
    assert dumping.returncode == 0
