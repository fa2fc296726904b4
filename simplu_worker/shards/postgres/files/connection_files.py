"""Which files asyncpg opens for a connection, and which variables of libpq it takes.

As libpq's: those of the options, else of the variables, else in the user's home. asyncpg reads no service file, since
`service` is no option that an address may have.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qs

from simplu_worker.errors import ConfigurationError
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
_PAPERS: Final = (*_OWN_PAPERS, *_AUTHORITIES)


# With these the connections of all shards would be others than those that their addresses describe.
_REFUSED: Final = (
    *("PGGSSLIB", "PGKRBSRVNAME", "PGSERVICE", "PGSERVICEFILE", "PGSSLMAXPROTOCOLVERSION", "PGSSLMINPROTOCOLVERSION"),
    *("PGSSLMODE", "PGSSLNEGOTIATION"),
)


def check_variables(environ: Mapping[str, str], home: str) -> None:
    """Raise ConfigurationError for variables that asyncpg would take for every shard, or that name no usable file."""
    problems = [
        f"{name}: expected none, as the address of each shard has its own options; unset it"
        for name in _REFUSED
        if environ.get(name)
    ]
    files = {source.variable: environ[source.variable] for source in _PAPERS if environ.get(source.variable)}
    key = files.get("PGSSLKEY", f"{home}/{_PAPERS[1].default}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, path in files.items():
        try:
            with Path(path).open("rb"):
                pass
            if name == "PGSSLCERT":
                context.load_cert_chain(path, key if Path(key).exists() else None, password="")
            elif name != "PGSSLKEY":
                context.load_verify_locations(cafile=path)
        except OSError as exc:  # of TLS too
            got = "another one" if isinstance(exc, ssl.SSLError) else exc.strerror
            problems.append(f"{name}: expected a file of certificates or of their key, got {path!r} ({got})")
    if problems:
        raise ConfigurationError(*problems)


def files_of(address: ShardAddress, environ: Mapping[str, str], home: str) -> Iterator[NamedFile]:
    """Yield each file that asyncpg opens for a connection to *address*, a valid one."""
    parts = split_string(address.driver_string)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    for source in _sources(options.get("sslmode") or "prefer"):
        if source is _PASSFILE and (parts.password or address.rds_user):
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
