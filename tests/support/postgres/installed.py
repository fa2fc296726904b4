"""All Postgres servers of this machine: the package's, and those of the system, which may have another version."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from simplu_local.postgres.server import (
    SYSTEM_FOLDER,
    PostgresPrograms,
    PostgresServer,
    find_postgres_bin,
    usable_bins,
)
from simplu_local.processes.watchdog import ProcessGroup

FOLDERS: Final = list(dict.fromkeys([find_postgres_bin(), *usable_bins(SYSTEM_FOLDER)]))
on_installed_servers = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)


@asynccontextmanager
async def running_server(folder: Path, *, database: str) -> AsyncIterator[PostgresServer]:
    with ProcessGroup() as group:
        server = PostgresServer(group, PostgresPrograms.find(group.directory, folder=folder), database=database)
        await server.start()
        yield server
