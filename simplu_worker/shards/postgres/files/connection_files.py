"""Refuse variables of libpq that asyncpg would take for every shard, or that name no usable file."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from simplu_worker.errors import ConfigurationError

_FILES: Final = {
    "PGSSLCERT": ".postgresql/postgresql.crt",
    "PGSSLKEY": ".postgresql/postgresql.key",
    "PGSSLROOTCERT": ".postgresql/root.crt",
    "PGSSLCRL": ".postgresql/root.crl",
}
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
    files = {name: environ[name] for name in _FILES if environ.get(name)}
    key = files.get("PGSSLKEY", f"{home}/{_FILES['PGSSLKEY']}")
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
