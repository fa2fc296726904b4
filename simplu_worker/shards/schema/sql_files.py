"""The files that make a shard's schema: migrations, and the business types of the package."""

from __future__ import annotations

import re
from importlib.resources import files

from simplu_worker.shards.postgres.queries import sql_files
from simplu_worker.shards.schema.migrations import Migration, migration_of
from simplu_worker.shards.schema.type_files import TypeFile, read_type

_MIGRATION = re.compile(r"^(\d{4})_(\w+)\.sql$")


def _migrations() -> list[Migration]:
    matches = [(_MIGRATION.match(file.name), file) for file in sql_files("migrations")]
    return [migration_of(int(match[1]), match[2], file.read_text()) for match, file in matches if match]


def _types() -> dict[str, TypeFile]:
    found = sorted((files("simplu_worker.shards") / "business_types").iterdir(), key=lambda file: file.name)
    return {one.type.name: one for one in (read_type(file.read_text()) for file in found)}


MIGRATIONS = _migrations()  # oldest first
BUSINESS_TYPES = _types()
SCHEMA_VERSION = MIGRATIONS[-1].version
