"""The named queries of `shards/sql/queries/`, read once."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.resources.abc import Traversable

_SQL = files("simplu_worker.shards") / "sql"
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def named_queries(text: str) -> dict[str, str]:
    """Split the text of a query file at its `-- name:` lines."""
    _, *parts = _NAME.split(text)
    return {name: query.strip() for name, query in zip(parts[::2], parts[1::2], strict=True)}


def sql_files(folder: str) -> list[Traversable]:
    """Return the files of a folder of `shards/sql/`, by name."""
    return sorted((_SQL / folder).iterdir(), key=lambda file: file.name)


QUERIES = {name: query for file in sql_files("queries") for name, query in named_queries(file.read_text()).items()}
