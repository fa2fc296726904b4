"""The migrations of a shard's schema: the contents of their files, and the plan of an upgrade. Pure.

A line `-- step` begins the next step: statements that share a transaction, or one CONCURRENTLY, outside of any. All
may be run again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

NAMED_MAX: Final = 8  # of what a shard lacks, in an error
WRITER_POLICY: Final = "simplu_writer"  # of every table with rows of tenants
MISSING: Final = {  # by the kinds of `find_missing`, the worst first: what is named, and why the shard may not be used
    "table": (
        "the table {0.table_name}",
        "expected all tables of the shard's schema, got a shard without {}; restore them from a backup",
    ),
    "right": (
        "the right to {0.name} on {0.table_name}",
        (
            "expected a role that may use the shard's tables, got one without {}; "
            "as the owner of the tables GRANT these rights to the role of the connection string"
        ),
    ),
    "key": (
        "the primary key of {0.table_name}",
        (
            "A key is missing, not valid or deferrable, so that operations may be applied twice: {}. As the "
            "owner of the tables delete the rows that are there twice, and add the key as a new shard has it"
        ),
    ),
    "policy": (
        "{0.name} of the table {0.table_name}",
        (
            "A policy may hide rows from the worker's role, which would take them for missing: {}. As the "
            "owner of the tables name the roles that a restrictive policy is for (ALTER POLICY … TO …), make "
            f"{WRITER_POLICY} as it was where that is named, or let the role own the tables or have BYPASSRLS"
        ),
    ),
}

STEP: Final = "\n-- step\n"
_WORKS_FROM: Final = re.compile(r"(?:(?:--[^\n]*)?\n)*?-- works-from: (\d+)\n")  # in the first comments
_COMMENT: Final = re.compile(r"^(?:--[^\n]*)?\n", re.MULTILINE)
_TABLE: Final = re.compile(r"^CREATE TABLE (?:IF NOT EXISTS )?public\.(\w+) \(", re.MULTILINE)
_CONCURRENT: Final = re.compile(
    r"(?:CREATE (?:UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS (\w+) ON [^;]*"
    r"|DROP INDEX CONCURRENTLY IF EXISTS [\w.]+);?\s*"
)


class Migration(msgspec.Struct, frozen=True):
    """The migration of a shard to *version*, with which workers of the versions from *works_from* on can use it."""

    version: int
    name: str
    text: str
    works_from: int | None = None


class Step(msgspec.Struct, frozen=True):
    """One step; *index* is the name of the index that it builds CONCURRENTLY."""

    text: str
    title: str = ""  # its first line, for people
    is_concurrent: bool = False
    index: str | None = None


class ShardSchema(msgspec.Struct, frozen=True):
    """A shard's schema: its version, and the oldest worker version that works with it.

    *is_behind*: the log has numbers that the server has yet to reach.
    """

    version: int | None
    works_from: int | None = None
    is_behind: bool = False


class MissingPart(msgspec.Struct, frozen=True):
    """What a shard lacks: a table, its primary key, a right, or rows that a policy may hide."""

    kind: str
    table_name: str
    name: str | None = None

    def __str__(self) -> str:
        return MISSING[self.kind][0].format(self)


class Upgrade(msgspec.Struct, frozen=True):
    """The missing migrations and types of a shard; *refusal* is why it must not be upgraded."""

    schema: ShardSchema
    migrations: Sequence[Migration] = ()
    business_types: Sequence[str] = ()
    refusal: str | None = None

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.migrations or self.business_types)

    @property
    def version(self) -> int | None:
        """The schema version after the upgrade."""
        return self.migrations[-1].version if self.migrations else self.schema.version

    @property
    def works_from(self) -> int | None:
        """The oldest worker's schema version that works with the shard after the upgrade."""
        return self.migrations[-1].works_from if self.migrations else self.schema.works_from


def migration_of(version: int, name: str, text: str) -> Migration:
    """Return the migration of a file with this text."""
    match = _WORKS_FROM.match(text)
    return Migration(version, name, text, works_from=None if match is None else int(match[1]))


def refusal_of(schema: ShardSchema, *, worker_version: int) -> str | None:
    """Return why a worker of *worker_version* may not use a shard with *schema*; None if it may."""
    version = schema.version
    if version is None:
        return f"expected schema version {worker_version}, got none; restore its schema_migrations"
    if version < worker_version - 1:
        return (
            f"expected schema version {worker_version - 1} or {worker_version}, got {version}; "
            "run a worker of that version or upgrade the shard with `simplu-worker shards upgrade`"
        )
    if version > worker_version and (schema.works_from is None or schema.works_from > worker_version):
        needed = version if schema.works_from is None else schema.works_from
        return (
            f"expected schema version {worker_version} or one that works with it, got {version}; "
            f"run a worker of schema version {needed} or newer"
        )
    return None


def refusal_of_missing(missing: Sequence[MissingPart]) -> str | None:
    """Return why a worker may not use a shard that lacks *missing*, the worst first; None if it lacks nothing."""
    for kind, (_, sentence) in MISSING.items():
        if parts := [str(part) for part in missing if part.kind == kind]:
            more = f" and {len(parts) - NAMED_MAX} more" if len(parts) > NAMED_MAX else ""
            return sentence.format(", ".join(parts[:NAMED_MAX]) + more)
    return None


def tables_of(schema: ShardSchema, migrations: Sequence[Migration]) -> list[str]:
    """Return the tables that a shard with *schema* has by *migrations*."""
    made = [migration.text for migration in migrations if migration.version <= (schema.version or 0)]
    return [table for text in made for table in _TABLE.findall(text)]


def plan_upgrade(schema: ShardSchema, migrations: Sequence[Migration], business_types: Sequence[str]) -> Upgrade:
    """Return the upgrade of a shard with *schema*, which lacks *business_types*, to the last of *migrations*."""
    newest = migrations[-1].version
    if schema.version is None:
        return Upgrade(schema, refusal="expected a schema version, got none; restore its schema_migrations")
    if schema.version > newest:
        return Upgrade(
            schema,
            refusal=f"expected schema version {newest} or older, got {schema.version}; a schema never goes backwards: "
            f"use a simplu-worker of schema version {schema.version}",
        )
    return Upgrade(schema, [one for one in migrations if one.version > schema.version], business_types)


def steps_of(text: str) -> list[Step]:
    """Return the steps of an upgrade through a file, in order.

    Raises `ValueError` for an index CONCURRENTLY that is not alone, or in a form that cannot be run again.
    """
    return [_step_of(part) for part in text.split(STEP)]


def _step_of(text: str) -> Step:
    code = _COMMENT.sub("", text + "\n")
    title = code.partition("\n")[0]
    match = _CONCURRENT.fullmatch(code)
    if match is None and "CONCURRENTLY" in code:
        raise ValueError(f"expected CREATE INDEX CONCURRENTLY IF NOT EXISTS name ON … alone in a step, got {title}")
    return Step(text, title, match is not None, None if match is None else match[1])


def without_concurrently(text: str) -> str:
    """Return *text* without CONCURRENTLY, for one transaction on an empty shard."""
    return text.replace("INDEX CONCURRENTLY ", "INDEX ")
