"""The named queries of `shards/sql/queries/`, read once.

A file has queries, each begun by `-- name: x`, and fragments, each begun by `-- fragment: x`: SQL that several queries
share. A query includes a fragment, of any file, as `:x`. The comments stay in the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable

_SQL = files("simplu_worker.shards") / "sql"
_HEADING = re.compile(r"^-- (name|fragment): (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"^ *--.*(?:\n|$)", re.MULTILINE)
_INCLUDE = re.compile(r"(?<!:):([a-z]\w*)")  # `::x` is a cast


def read_queries(texts: Iterable[str]) -> dict[str, str]:
    """Return the queries of the query files *texts* by name, with their fragments included.

    Raises `KeyError` for a fragment that no file has.
    """
    parts = [part for text in texts for part in _parts_of(text)]
    fragments = {name: sql for kind, name, sql in parts if kind == "fragment"}
    return {name: _INCLUDE.sub(lambda match: fragments[match[1]], sql) for kind, name, sql in parts if kind == "name"}


def _parts_of(text: str) -> Iterable[tuple[str, str, str]]:
    _, *parts = _HEADING.split(text)
    sqls = [_COMMENT.sub("", sql).strip() for sql in parts[2::3]]
    return zip(parts[::3], parts[1::3], sqls, strict=True)


def sql_files(folder: str) -> list[Traversable]:
    """Return the files of a folder of `shards/sql/`, by name."""
    return sorted((_SQL / folder).iterdir(), key=lambda file: file.name)


QUERIES = read_queries(file.read_text() for file in sql_files("queries"))
