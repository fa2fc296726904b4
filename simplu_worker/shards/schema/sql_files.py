"""The SQL that makes a shard's schema: migrations and business types."""

from __future__ import annotations

import re

from simplu_worker.shards.postgres.queries import sql_files
from simplu_worker.shards.schema.migrations import Migration, migration_of

_MIGRATION = re.compile(r"^(\d{4})_(\w+)\.sql$")


def _migrations() -> list[Migration]:
    matches = [(_MIGRATION.match(file.name), file) for file in sql_files("migrations")]
    return [migration_of(int(match[1]), match[2], file.read_text()) for match, file in matches if match]


MIGRATIONS = _migrations()  # oldest first
BUSINESS_TYPES = {file.name.removesuffix(".sql"): file.read_text() for file in sql_files("business_types")}
SCHEMA_VERSION = MIGRATIONS[-1].version
