"""The named queries of `transfers/sql/queries/` with those of the shards, and the scripts of an adoption."""

from __future__ import annotations

from typing import Final

from simplu_worker.shards.postgres.queries import read_queries, sql_files

_PACKAGE: Final = "simplu_worker.transfers"

QUERIES: Final = read_queries(
    file.read_text() for file in (*sql_files("queries"), *sql_files("queries", package=_PACKAGE))
)
ADOPTION: Final = {
    file.name.removesuffix(".sql"): file.read_text() for file in sql_files("adoption", package=_PACKAGE)
}  # scripts, by name
