"""The address of a shard: its id and its connection string, which is validated before any connection. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from ipaddress import IPv6Address
from typing import NamedTuple, Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

import msgspec

from simplu_worker.errors import PermanentError

SHARD_ID_MAX = 128
CONNECTION_STRING_MAX = 4096
PORT_MAX = 65535
_NOT_IN_HOSTS = {chr(code) for code in range(33)} | {*"\x7f[]"}

_CONTROLS = _NOT_IN_HOSTS - {*" []"}
_END_OF_NETLOC = re.compile("[/?#]")

EXPECTED = "expected postgresql://user:password@host:port/database"

# asyncpg passes any other option to the server as a setting of the session, or connects to another host than the one
# that was validated.
ALLOWED_OPTIONS = frozenset(
    {"sslmode", "sslrootcert", "sslcert", "sslkey", "passfile", "target_session_attrs", "application_name", "auth"}
)
RDS_IAM = "rds-iam"  # the value of `auth`, our own option
# The values that libpq and asyncpg know; the server or asyncpg would refuse others at the first connection.
OPTION_VALUES = {
    "auth": (RDS_IAM,),
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "primary", "standby"),
}
ENCRYPTING = ("require", "verify-ca", "verify-full")  # the modes of `sslmode` that never send a password in clear text
VARIABLES_OF_FILES = {  # by the option that names a file, the variable that names it for all shards
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "passfile": "PGPASSFILE",
}


class AddressRefusedError(PermanentError):
    """The named shard has an address that may not be used."""


class HostPort(NamedTuple):
    """A host and its port, as in a connection string."""

    host: str
    port: int | None  # None: the default port of Postgres


class ShardAddress(msgspec.Struct, frozen=True):
    """The address of a shard from Citrus or the static map; its repr omits the connection string."""

    shard_id: str
    connection_string: str
    is_active: bool = True
    business_count: int | None = None
    business_max: int | None = None
    last_health_check: str | None = None  # the time of Citrus' own, for people
    standby_string: str | None = None  # the connection string of its standby in the static map
    refusal: str | None = None  # why the shard may not be used; its connection string is then empty

    def __repr__(self) -> str:
        return f"ShardAddress({self.shard_id!r}, is_active={self.is_active})"

    @property
    def place(self) -> str:
        """Hosts, ports and database, without user and password: safe to show."""
        try:
            parts = split_string(self.connection_string)
        except ValueError:  # may be needed for the error message about this address
            return "an unreadable address"
        return f"{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def usage_ratio(self) -> float | None:
        """Its businesses divided by the room for them; None if unknown."""
        if self.business_count is None or self.business_max is None:
            return None
        return self.business_count / self.business_max if self.business_max > 0 else 1.0

    @property
    def database(self) -> str:
        """The name of the database; the address is valid."""
        return unquote(split_string(self.connection_string).path[1:])

    @property
    def rds_user(self) -> str | None:
        """The user with passwords of IAM, None for others; the address is valid."""
        parts = split_string(self.connection_string)
        if "auth" not in dict(parse_qsl(parts.query)):
            return None
        return unquote(parts.netloc.rpartition("@")[0].partition(":")[0])

    @property
    def driver_string(self) -> str:
        """The connection string for asyncpg: with IAM encrypted by default, without our own option."""
        parts = split_string(self.connection_string)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if options.pop("auth", None) is None:
            return self.connection_string
        return parts._replace(query=urlencode({"sslmode": ENCRYPTING[0]} | options)).geturl()

    def successor(self, listed: Self, *, is_healthy: bool) -> Self | None:
        """Return the address to try for a shard in use at this one, which may be its standby's; None for no other.

        *listed* is the one of the map or of Citrus; at a standby that it lists the shard is only looked for while it is
        not healthy here.
        """
        if listed.refusal is not None:
            return None
        if self.connection_string not in {listed.connection_string, listed.standby_string}:
            return listed
        if is_healthy or listed.standby_string is None:
            return None
        if self.connection_string == listed.standby_string:
            return listed
        return msgspec.structs.replace(listed, connection_string=listed.standby_string)

    def for_reader(self, username: str, password: str | None, *, target: str | None = None) -> Self:
        """Return the address for another user, with *target* as its `target_session_attrs`.

        Without *password* its passwords come from where the address's own would.
        """
        parts = split_string(self.connection_string if password is None else self.driver_string)
        userinfo = ":".join(quote(part, safe="") for part in (username, password) if part is not None)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        options |= {} if target is None else {"target_session_attrs": target}
        netloc = f"{userinfo}@{parts.netloc.rpartition('@')[2]}"
        string = parts._replace(netloc=netloc, query=urlencode(options)).geturl()
        return msgspec.structs.replace(self, connection_string=string)

    def error_with_place(self, error: str | None) -> str:
        """Return the message of an error of this shard, with its id and place."""
        return f"shard {self.shard_id} at {self.place}: {error}"

    def without_name(self, message: str) -> str:
        """Return the message of an error of this shard without its id and place."""
        return message.removeprefix(self.error_with_place("")).removeprefix(f"shard {self.shard_id}: ")

    def validate_or_refuse(self, allowed_hosts: tuple[str, ...], *, may_name_files: bool = True) -> Self:
        """Return itself as `validate` does, else a copy with the `refusal` and without the string, for lists."""
        try:
            return self.validate(allowed_hosts, may_name_files=may_name_files)
        except PermanentError as exc:
            shard_id = self.shard_id[:SHARD_ID_MAX]
            return msgspec.structs.replace(self, shard_id=shard_id, connection_string="", refusal=str(exc))

    def validate(self, allowed_hosts: tuple[str, ...], *, may_name_files: bool = True) -> Self:
        """Return itself if its id and connection string may be used; raise `AddressRefusedError` if not.

        *allowed_hosts* are patterns such as `*.db.internal`; none allow all. Citrus may not name files.
        """
        if not 1 <= len(self.shard_id) <= SHARD_ID_MAX:
            raise AddressRefusedError(f"shard id: expected 1 to {SHARD_ID_MAX} characters, got {len(self.shard_id)}")
        where = f"connection string of shard {self.shard_id}"
        if problem := _text_problem(self.connection_string):
            raise AddressRefusedError(f"{where}: {problem}")
        try:
            parts = split_string(self.connection_string)
            # As strict as asyncpg, which would raise ValueError at the first connection.
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            hosts = hosts_of(self.connection_string)
        except ValueError:
            raise AddressRefusedError(f"{where}: {EXPECTED}") from None
        if parts.scheme not in {"postgres", "postgresql"} or not all(hosts) or not parts.path.strip("/"):
            raise AddressRefusedError(f"{where}: {EXPECTED}")
        if parts.netloc.count("@") > 1 or "@" in f"{parts.path}{parts.query}{parts.fragment}":
            raise AddressRefusedError(f"{where}: expected one @, before the host; write %40, %2F, %3F, %23 for @ / ? #")
        for host in hosts:
            if allowed_hosts and not any(fnmatchcase(host, pattern.lower()) for pattern in allowed_hosts):
                raise AddressRefusedError(f"{where}: host {host} is not in DATABASE_ALLOWED_HOSTS")
        problem = _name_problem(parts) or _option_problem(pairs, may_name_files) or _iam_problem(parts, pairs)
        if problem is not None:
            raise AddressRefusedError(f"{where}: {problem}")
        return self


def split_string(connection_string: str) -> SplitResult:
    """Split a connection string as `urlsplit` does, several hosts with brackets included. Raises `ValueError`."""
    before, hosts, after = _around_hosts(connection_string)
    plain = hosts.replace("[", "").replace("]", "")
    parts = urlsplit(f"{before}{plain}{after}")
    return parts._replace(netloc=parts.netloc.removesuffix(plain) + hosts)


def without_hosts(connection_string: str) -> str:
    """Return a valid connection string for asyncpg, which gets host and port beside it."""
    before, _, after = _around_hosts(connection_string)
    return before + after


def _around_hosts(connection_string: str) -> tuple[str, str, str]:
    scheme, slashes, rest = connection_string.partition("//")
    netloc = _END_OF_NETLOC.split(rest, maxsplit=1)[0]
    user, at, hosts = netloc.rpartition("@")
    return f"{scheme}{slashes}{user}{at}", hosts, rest[len(netloc) :]


def hosts_of(connection_string: str) -> list[str]:
    """Return the hosts of a connection string, in order, lower-case; `[""]` if it has none. Raises as `places_of`."""
    return [place.host.lower() for place in places_of(connection_string)]


def places_of(connection_string: str) -> list[HostPort]:
    """Return hosts and ports of a connection string, in order; a missing host is "". Raises `ValueError`."""
    netloc = split_string(connection_string).netloc.rpartition("@")[2]
    places = []
    for part in netloc.split(","):
        if part.startswith("["):
            host, is_closed, port = part[1:].partition("]")
            IPv6Address(unquote(host))
            if not is_closed or port[:1] not in {"", ":"}:
                raise ValueError("expected an address in brackets, and a port after it")
            port = port.removeprefix(":")
        else:
            host, _, port = part.partition(":")
        host = unquote(host)  # the validated host is the one that asyncpg gets
        if _NOT_IN_HOSTS & set(host) or not (port.isascii() and 1 <= int(port or 1) <= PORT_MAX):
            raise ValueError(f"expected hosts with ports from 1 to {PORT_MAX}")
        places.append(HostPort(host, int(port) if port else None))
    return places


def _text_problem(text: str) -> str | None:
    if len(text) > CONNECTION_STRING_MAX:
        return f"expected at most {CONNECTION_STRING_MAX} characters"
    return "expected no control characters" if _CONTROLS & set(text) else None  # `urlsplit` silently drops some


def _name_problem(parts: SplitResult) -> str | None:
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    for name, value in {"user": user, "password": password, "database": parts.path[1:]}.items():
        if _CONTROLS & set(unquote(value)):
            return f"{name}: expected no control characters"
    return None


def _option_problem(options: Sequence[tuple[str, str]], may_name_files: bool) -> str | None:  # noqa: FBT001  # private
    names = [name for name, _ in options]
    if unknown := sorted(set(names) - ALLOWED_OPTIONS):
        return f"option {unknown[0]} is not allowed; known are {', '.join(sorted(ALLOWED_OPTIONS))}"
    for name, value in options:
        if names.count(name) > 1:
            return f"option {name}: expected it once"
        if name in OPTION_VALUES and value not in OPTION_VALUES[name]:
            return f"option {name}: expected one of {', '.join(OPTION_VALUES[name])}"
        if name in VARIABLES_OF_FILES and not may_name_files:
            return f"option {name}: Citrus may not name files; remove it there, and set {VARIABLES_OF_FILES[name]} here"
        is_plain_path = value.startswith("/") and value.isprintable() and ".." not in value.split("/")
        if name in VARIABLES_OF_FILES and not is_plain_path:
            return f"option {name}: expected the whole path of a file, from / on"
        if name == "application_name" and not value.isprintable():
            return f"option {name}: expected a text that can be printed"
    return None


def _iam_problem(parts: SplitResult, pairs: Sequence[tuple[str, str]]) -> str | None:
    options = dict(pairs)
    if "auth" not in options:
        return None
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    if not user or password or "passfile" in options:
        return f"option auth={RDS_IAM}: expected a user without a password and a passfile, as each password is made"
    if options.get("sslmode", ENCRYPTING[0]) not in ENCRYPTING:
        return f"option auth={RDS_IAM}: expected the sslmode {', '.join(ENCRYPTING)}, or none, which is {ENCRYPTING[0]}"
    return None
