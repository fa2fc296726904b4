"""The SQL of this package, read once from `sql/`: named queries, migrations, business types."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.resources.abc import Traversable

from simplu_worker.shards.migrations import Migration, migration_of

_SQL = files(__package__) / "sql"
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_MIGRATION = re.compile(r"^(\d{4})_(\w+)\.sql$")


def named_queries(text: str) -> dict[str, str]:
    """Split the text of a query file at its `-- name:` lines."""
    _, *parts = _NAME.split(text)
    return {name: query.strip() for name, query in zip(parts[::2], parts[1::2], strict=True)}


def _sql_files(folder: str) -> list[Traversable]:
    return sorted((_SQL / folder).iterdir(), key=lambda file: file.name)


def _queries() -> dict[str, str]:
    return {name: query for file in _sql_files("queries") for name, query in named_queries(file.read_text()).items()}


def _migrations() -> list[Migration]:
    matches = [(_MIGRATION.match(file.name), file) for file in _sql_files("migrations")]
    return [migration_of(int(match[1]), match[2], file.read_text()) for match, file in matches if match]


QUERIES = _queries()
MIGRATIONS = _migrations()  # oldest first
BUSINESS_TYPES = {file.name.removesuffix(".sql"): file.read_text() for file in _sql_files("business_types")}
ADOPTION = {file.name.removesuffix(".sql"): file.read_text() for file in _sql_files("adoption")}  # scripts, by name
SCHEMA_VERSION = MIGRATIONS[-1].version
