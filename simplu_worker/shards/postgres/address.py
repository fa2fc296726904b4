"""Where a shard is: its id and its connection string, which is checked before anything is touched."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from simplu_worker.errors import PermanentError

SHARD_ID_MAX = 128
CONNECTION_STRING_MAX = 4096
PORT_MAX = 65535
HOSTS_MAX = 16  # each has its share of the time that a connection may take
NAME_MAX_BYTES = 63  # PostgreSQL manual, NAMEDATALEN: what is longer is cut off, and may then name another database
_NOT_IN_HOSTS = {chr(code) for code in range(33)} | {"\x7f"}

_CONTROLS = _NOT_IN_HOSTS - {" "}

EXPECTED = "expected postgresql://user:password@host:port/database"

# Everything else in the query part would become a setting of the session (asyncpg passes it to the server), or lead
# to another host than the one that was checked.
ALLOWED_OPTIONS = frozenset(
    {"sslmode", "sslrootcert", "sslcert", "sslkey", "passfile", "target_session_attrs", "application_name"}
)
# Values as libpq and asyncpg know them; the server or asyncpg would refuse others with the first connection.
OPTION_VALUES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}
OPTIONS_WITH_FILES = frozenset({"sslrootcert", "sslcert", "sslkey", "passfile"})


class AddressRefusedError(PermanentError):
    """Somebody names a shard whose address may not be used; the request itself is not at fault."""


class HostPort(NamedTuple):
    """A host and its port, as a connection string names them."""

    host: str
    port: int | None  # Postgres's own where none is given


class ShardAddress(msgspec.Struct, frozen=True):
    """A shard as Citrus or the static map names it; never shows its connection string."""

    shard_id: str
    connection_string: str
    is_active: bool = True
    tenant_count: int | None = None
    tenant_max: int | None = None
    refusal: str | None = None  # why it may not be used; then it has no connection string

    def __repr__(self) -> str:
        return f"ShardAddress({self.shard_id!r}, is_active={self.is_active})"

    @property
    def place(self) -> str:
        """Hosts, ports and database, without user and password: fit to be shown."""
        try:
            parts = urlsplit(self.connection_string)
        except ValueError:  # asked for in the midst of telling about an address that is no good
            return "an unreadable address"
        return f"{parts.netloc.rpartition('@')[2]}{parts.path}"

    def validate_or_refuse(self, allowed_hosts: tuple[str, ...]) -> Self:
        """Return itself as `validate` does, or, when that refuses, itself without its connection string and with why.

        For lists of shards: one that may not be used is a shard that gives no answer, not an end of the list.
        """
        try:
            return self.validate(allowed_hosts)
        except PermanentError as exc:
            shard_id = self.shard_id[:SHARD_ID_MAX]
            return msgspec.structs.replace(self, shard_id=shard_id, connection_string="", refusal=str(exc))

    def validate(self, allowed_hosts: tuple[str, ...]) -> Self:
        """Return itself when its id and connection string may be used.

        *allowed_hosts* are patterns such as `*.db.internal`; none allows all. Raises `AddressRefusedError` otherwise.
        """
        if not 1 <= len(self.shard_id) <= SHARD_ID_MAX:
            raise AddressRefusedError(f"shard id: expected 1 to {SHARD_ID_MAX} characters, got {len(self.shard_id)}")
        where = f"connection string of shard {self.shard_id}"
        if len(self.connection_string) > CONNECTION_STRING_MAX:
            raise AddressRefusedError(f"{where}: expected at most {CONNECTION_STRING_MAX} characters")
        try:
            parts = urlsplit(self.connection_string)
            # As strict as asyncpg, whose ValueError would come at the first connection.
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            hosts = hosts_of(self.connection_string)
        except ValueError:
            raise AddressRefusedError(f"{where}: {EXPECTED}") from None
        if parts.scheme not in {"postgres", "postgresql"} or not all(hosts) or not parts.path.strip("/"):
            raise AddressRefusedError(f"{where}: {EXPECTED}")
        if len(hosts) > HOSTS_MAX:
            raise AddressRefusedError(f"{where}: expected at most {HOSTS_MAX} hosts, got {len(hosts)}")
        if _is_ambiguous(parts):
            raise AddressRefusedError(f"{where}: expected one @, before the host; write %40, %2F, %3F, %23 for @ / ? #")
        for host in hosts:
            if allowed_hosts and not any(fnmatchcase(host, pattern.lower()) for pattern in allowed_hosts):
                raise AddressRefusedError(f"{where}: host {host} is not in DATABASE_ALLOWED_HOSTS")
        if complaint := _name_problem(self.connection_string, parts) or _option_problem(pairs):
            raise AddressRefusedError(f"{where}: {complaint}")
        return self


def hosts_of(connection_string: str) -> list[str]:
    """Return the hosts that a connection string names, in order, lower-case; `[""]` where it names none.

    Raises as `places_of` does.
    """
    return [place.host.lower() for place in places_of(connection_string)]


def places_of(connection_string: str) -> list[HostPort]:
    """Return the hosts and ports that a connection string names, in order; a host is "" where it names none.

    Raises `ValueError` when it is no URL, or when one of the hosts or ports cannot be one.
    """
    netloc = urlsplit(connection_string).netloc.rpartition("@")[2]
    places = []
    for part in netloc.split(","):
        if part.startswith("["):
            host, _, port = part[1:].partition("]")
            port = port.removeprefix(":")
        else:
            host, _, port = part.partition(":")
        host = unquote(host)  # as asyncpg does: what is checked has to be what is connected to
        if _NOT_IN_HOSTS & set(host) or not (port.isascii() and 1 <= int(port or 1) <= PORT_MAX):
            raise ValueError(f"expected hosts with ports from 1 to {PORT_MAX}")
        places.append(HostPort(host, int(port) if port else None))
    return places


def _is_ambiguous(parts: SplitResult) -> bool:
    """Tell whether a character of the password, not percent-encoded, ended what is taken for the hosts too early."""
    return parts.netloc.count("@") > 1 or any("@" in part for part in (parts.path, parts.query, parts.fragment))


def _name_problem(connection_string: str, parts: SplitResult) -> str | None:
    """Return what is wrong with user, password or database, none of which is repeated; None when nothing is.

    In the first message to the server a U+0000 ends one setting of the session and begins the next.
    """
    if _CONTROLS & set(connection_string):  # tabs and new lines, which `urlsplit` silently leaves out
        return "expected no control characters"
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    for name, value in {"user": user, "password": password, "database": parts.path[1:]}.items():
        text = unquote(value)
        if _CONTROLS & set(text):
            return f"{name}: expected no control characters"
        if name != "password" and len(text.encode("utf-8", "surrogatepass")) > NAME_MAX_BYTES:
            return f"{name}: expected at most {NAME_MAX_BYTES} bytes"
    return None


def _option_problem(options: Sequence[tuple[str, str]]) -> str | None:
    names = [name for name, _ in options]
    if unknown := sorted(set(names) - ALLOWED_OPTIONS):
        return f"option {unknown[0]} is not allowed; known are {', '.join(sorted(ALLOWED_OPTIONS))}"
    for name, value in options:
        if names.count(name) > 1:
            return f"option {name}: expected it once"
        if name in OPTION_VALUES and value not in OPTION_VALUES[name]:
            return f"option {name}: expected one of {', '.join(OPTION_VALUES[name])}"
        if name in OPTIONS_WITH_FILES and not _is_plain_path(value):
            return f"option {name}: expected the whole path of a file, from / on"
        if name == "application_name" and not (value.isprintable() and len(value.encode()) <= NAME_MAX_BYTES):
            return f"option {name}: expected at most {NAME_MAX_BYTES} bytes that can be printed"
    return None


def _is_plain_path(value: str) -> bool:
    return value.startswith("/") and value.isprintable() and ".." not in value.split("/")
