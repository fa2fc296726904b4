"""Where a shard is: its id and its connection string, which is checked before anything is touched."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Self
from urllib.parse import parse_qsl, urlsplit

import msgspec

from simplu_worker.errors import RefusedError

SHARD_ID_MAX = 128
CONNECTION_STRING_MAX = 4096

# Everything else in the query part would become a setting of the session (asyncpg passes it to the server), or lead
# to another host than the one that was checked.
ALLOWED_OPTIONS = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs", "application_name"})


class ShardAddress(msgspec.Struct, frozen=True):
    """A shard as Citrus or the static map names it; never shows its connection string."""

    shard_id: str
    connection_string: str
    is_active: bool = True
    tenant_count: int | None = None
    tenant_max: int | None = None

    def __repr__(self) -> str:
        return f"ShardAddress({self.shard_id!r}, is_active={self.is_active})"

    @property
    def place(self) -> str:
        """Hosts, ports and database, without user and password: fit to be shown."""
        parts = urlsplit(self.connection_string)
        return f"{parts.netloc.rpartition('@')[2]}{parts.path}"

    def checked(self, allowed_hosts: tuple[str, ...]) -> Self:
        """Return itself when its id and connection string may be used.

        *allowed_hosts* are patterns such as `*.db.internal`; none allows all. Raises `RefusedError` otherwise.
        """
        if not 1 <= len(self.shard_id) <= SHARD_ID_MAX:
            raise RefusedError(f"shard id: expected 1 to {SHARD_ID_MAX} characters, got {len(self.shard_id)}")
        where = f"connection string of shard {self.shard_id}"
        if len(self.connection_string) > CONNECTION_STRING_MAX:
            raise RefusedError(f"{where}: expected at most {CONNECTION_STRING_MAX} characters")
        try:
            parts = urlsplit(self.connection_string)
            options = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
            hosts = hosts_of(self.connection_string)
        except ValueError:
            raise RefusedError(f"{where}: expected postgresql://user:password@host:port/database") from None
        if parts.scheme not in {"postgres", "postgresql"} or not all(hosts) or not parts.path.strip("/"):
            raise RefusedError(f"{where}: expected postgresql://user:password@host:port/database")
        for host in hosts:
            if allowed_hosts and not any(fnmatchcase(host, pattern.lower()) for pattern in allowed_hosts):
                raise RefusedError(f"{where}: host {host} is not in DATABASE_ALLOWED_HOSTS")
        if unknown := sorted(options - ALLOWED_OPTIONS):
            known = ", ".join(sorted(ALLOWED_OPTIONS))
            raise RefusedError(f"{where}: option {unknown[0]} is not allowed; known are {known}")
        return self


def hosts_of(connection_string: str) -> list[str]:
    """Return the hosts that a connection string names, in order, lower-case; `[""]` where it names none."""
    netloc = urlsplit(connection_string).netloc.rpartition("@")[2]
    hosts = []
    for part in netloc.split(","):
        host = part[1:].partition("]")[0] if part.startswith("[") else part.partition(":")[0]
        hosts.append(host.lower())
    return hosts
