"""PgBouncer before the Postgres server of a test: a pooler, and the end of a TLS line."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from support.requires import required_program

from simplu_local.postgres.server import SUPERUSER, PostgresPrograms, PostgresServer
from simplu_local.processes.loopback import HOST, free_port, poll_until, port_is_free
from simplu_local.processes.watchdog import ProcessGroup

START_S = 60.0


@contextlib.asynccontextmanager
async def running_pooler(
    server: PostgresServer,
    settings: Mapping[str, object],
    files: Mapping[str, bytes] | None = None,
    *,
    user: str = SUPERUSER,
) -> AsyncIterator[int]:
    """Run PgBouncer with *settings*, which may name *files*, and give its port. Every client is *user*."""
    program = required_program("pgbouncer", how="apt-get install pgbouncer")
    with ProcessGroup() as group:
        programs = PostgresPrograms.find(group.directory)
        folder, port = group.directory / "pooler", free_port()
        folder.mkdir(mode=0o755)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o644)
        lines = [f"{name} = {value}" for name, value in settings.items()]
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = user={user} host={HOST} port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {port}\nunix_socket_dir =\n" + "\n".join(lines)
        )
        (folder / "pgbouncer.ini").chmod(0o644)
        group.spawn(
            [*programs.prefix, program, "pgbouncer.ini"],
            log_path=group.directory / "pooler.log",
            env={"LC_ALL": "C"},
            cwd=folder,
            user=programs.user,
        )

        async def listens() -> bool:
            return not port_is_free(port)

        assert await poll_until(listens, within_s=START_S), (group.directory / "pooler.log").read_text()
        yield port
