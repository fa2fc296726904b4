"""Which files asyncpg opens for a connection. Pure.

As libpq's: those of the options, else of the variables, else in the user's home. asyncpg reads no service file, since
`service` is no option that an address may have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qs

from simplu_worker.shards.postgres.address import ShardAddress, split_string

VERIFYING_MODES: Final = frozenset({"require", "verify-ca", "verify-full"})


class NamedFile(NamedTuple):
    """A file of a connection, and what names it, for errors; *folders* where it has to be below one of these."""

    name: str
    path: str
    is_required: bool
    folders: tuple[str, ...] | None


class _Source(NamedTuple):
    """An option with the variable and the file below the home that stand in for it."""

    option: str
    variable: str
    default: str


_PASSFILE: Final = _Source("passfile", "PGPASSFILE", ".pgpass")
_OWN_PAPERS: Final = (
    _Source("sslcert", "PGSSLCERT", ".postgresql/postgresql.crt"),
    _Source("sslkey", "PGSSLKEY", ".postgresql/postgresql.key"),
)
_AUTHORITIES: Final = (
    _Source("sslrootcert", "PGSSLROOTCERT", ".postgresql/root.crt"),
    _Source("sslcrl", "PGSSLCRL", ".postgresql/root.crl"),
)


def files_of(address: ShardAddress, environ: Mapping[str, str], home: str) -> Iterator[NamedFile]:
    """Yield each file that asyncpg opens for a connection to *address*, a valid one."""
    parts = split_string(address.driver_string)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    for source in _sources(options.get("sslmode") or environ.get("PGSSLMODE") or "prefer"):
        if source is _PASSFILE and (parts.password or address.rds_user or environ.get("PGPASSWORD")):
            continue
        if path := options.get(source.option):
            # Without the file of its passwords libpq goes on, and the server may ask for none.
            yield NamedFile(f"option {source.option}", path, source is not _PASSFILE, address.file_folders)
        elif path := environ.get(source.variable):
            yield NamedFile(source.variable, path, is_required=False, folders=None)
        else:
            yield NamedFile(f"~/{source.default}", f"{home}/{source.default}", is_required=False, folders=None)


def _sources(mode: str) -> tuple[_Source, ...]:
    if mode == "disable":
        return (_PASSFILE,)
    return (_PASSFILE, *_OWN_PAPERS, *(_AUTHORITIES if mode in VERIFYING_MODES else ()))
