"""The migrations of a shard's schema: the contents of their files, and the plan of an upgrade. Pure.

A statement with CONCURRENTLY runs alone and outside a transaction; those between two share one. All may be run again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from simplu_worker.shards.schema.type_files import TypeFile

NAMED_MAX: Final = 8  # of what a shard lacks, in an error
WRITER_POLICY: Final = "simplu_writer"  # of every table with rows of tenants
MISSING_KINDS: Final = ("table", "right", "key", "policy")  # of `find_missing`, the worst first

_WORKS_FROM: Final = re.compile(r"^-- works-from: (\d+)$", re.MULTILINE)
# Comments and quoted text, in which a semicolon or a word has no meaning.
_QUOTED: Final = re.compile(
    r"""
    --[^\n]*                                            # a comment
    | /\*.*?\*/                                         # and another; nested ones are not supported
    | (?<!\w) [eE] '(?: [^'\\] | '' | \\. )*'           # a string with escapes
    | '(?: [^'] | '' )*'
    | "(?: [^"] | "" )*"
    | (?<! [\w$] ) (?P<tag> \$ (?: [A-Za-z_]\w* )? \$) .*? (?P=tag)   # the body of a function
    | \bBEGIN\s+ATOMIC\b .*? \bEND\b                    # another form of body
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT: Final = re.compile(r"\s*(?:--[^\n]*(?:\n|$)|/\*.*?\*/)", re.DOTALL)
_TABLE: Final = re.compile(r"^CREATE TABLE (?:IF NOT EXISTS )?public\.(\w+) \(", re.MULTILINE)
_CONCURRENTLY: Final = re.compile(r"\bCONCURRENTLY\b\s*", re.IGNORECASE)
_BUILDS: Final = re.compile(r"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\b", re.IGNORECASE)
_BUILDS_INDEX: Final = re.compile(
    r"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+IF\s+NOT\s+EXISTS\s+(\w+)\s+ON\b", re.IGNORECASE
)


class Migration(msgspec.Struct, frozen=True):
    """The migration of a shard to *version*, with which workers of the versions from *works_from* on can use it."""

    version: int
    name: str
    text: str
    works_from: int | None = None


class Statement(msgspec.Struct, frozen=True):
    """One statement; *index* is the name of the index that it builds CONCURRENTLY."""

    text: str
    is_concurrent: bool = False
    index: str | None = None

    @property
    def title(self) -> str:
        """Its first line, for people."""
        return self.text.splitlines()[0]


class ShardSchema(msgspec.Struct, frozen=True):
    """A shard's schema: its version, the oldest worker version that works with it, and its types' digests.

    *applied_types* are those that `types apply` wrote. *is_behind*: the log has numbers that the server has yet to
    reach.
    """

    version: int | None
    works_from: int | None = None
    digests: Mapping[str, str | None] = msgspec.field(default_factory=dict)
    applied_types: Collection[str] = ()
    is_behind: bool = False


class MissingPart(msgspec.Struct, frozen=True):
    """What a shard lacks: a table, its primary key, a right, or rows that a policy may hide."""

    kind: str
    table_name: str
    name: str | None = None

    def __str__(self) -> str:
        match self.kind:
            case "table":
                return f"the table {self.table_name}"
            case "right":
                return f"the right to {self.name} on {self.table_name}"
            case "key":
                return f"the primary key of {self.table_name}"
            case _:
                return f"{self.name} of the table {self.table_name}"


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
    statements = statements_of(text)
    match = _WORKS_FROM.search(text.partition(statements[0].text)[0] if statements else text)
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
    kind = min((part.kind for part in missing), key=MISSING_KINDS.index, default=None)
    parts = [part for part in missing if part.kind == kind]
    named = ", ".join(map(str, parts[:NAMED_MAX]))
    if len(parts) > NAMED_MAX:
        named += f" and {len(parts) - NAMED_MAX} more"
    match kind:
        case None:
            return None
        case "table":
            return f"expected all tables of the shard's schema, got a shard without {named}; restore them from a backup"
        case "right":
            return (
                f"expected a role that may use the shard's tables, got one without {named}; "
                "as the owner of the tables GRANT these rights to the role of the connection string"
            )
        case "key":
            return (
                f"A key is missing, not valid or deferrable, so that operations may be applied twice: {named}. As the "
                "owner of the tables delete the rows that are there twice, and add the key as a new shard has it"
            )
        case _:
            return (
                f"A policy may hide rows from the worker's role, which would take them for missing: {named}. As the "
                "owner of the tables name the roles that a restrictive policy is for (ALTER POLICY … TO …), make "
                f"{WRITER_POLICY} as it was where that is named, or let the role own the tables or have BYPASSRLS"
            )


def tables_of(schema: ShardSchema, migrations: Sequence[Migration]) -> list[str]:
    """Return the tables that a shard with *schema* has by *migrations*."""
    made = [migration.text for migration in migrations if migration.version <= (schema.version or 0)]
    return [table for text in made for table in _TABLE.findall(text)]


def plan_upgrade(schema: ShardSchema, migrations: Sequence[Migration], types: Mapping[str, TypeFile]) -> Upgrade:
    """Return the upgrade of a shard with *schema* to the last of *migrations* and to the packaged *types*."""
    newest = migrations[-1].version
    if schema.version is None:
        return Upgrade(schema, refusal="expected a schema version, got none; restore its schema_migrations")
    if schema.version > newest:
        return Upgrade(
            schema,
            refusal=f"expected schema version {newest} or older, got {schema.version}; a schema never goes backwards: "
            f"use a simplu-worker of schema version {schema.version}",
        )
    return Upgrade(
        schema,
        [migration for migration in migrations if migration.version > schema.version],
        [
            name
            for name, file in sorted(types.items())
            if name not in schema.applied_types and schema.digests.get(name) != file.digest
        ],
    )


def steps_of(text: str) -> list[list[Statement]]:
    """Return the steps of an upgrade through a file, in order: one transaction, or one statement outside any."""
    steps: list[list[Statement]] = []
    for statement in statements_of(text):
        if statement.is_concurrent or not steps or steps[-1][0].is_concurrent:
            steps.append([])
        steps[-1].append(statement)
    return steps


def statements_of(text: str) -> list[Statement]:
    """Return the statements of *text*, each without the comments before it.

    Raises `ValueError` for an index CONCURRENTLY in a form that cannot be run again.
    """
    return [_statement(part) for part in _split(text)]


def without_concurrently(text: str) -> str:
    """Return *text* without CONCURRENTLY, for one transaction on an empty shard."""
    bare = _blank_quoted(text)
    ends = [0, *(end for match in _CONCURRENTLY.finditer(bare) for end in match.span()), len(text)]
    return "".join(text[start:end] for start, end in zip(ends[::2], ends[1::2], strict=True))


def _statement(text: str) -> Statement:
    bare = _blank_quoted(text)
    if not _CONCURRENTLY.search(bare):
        return Statement(text)
    index = _BUILDS_INDEX.match(bare)
    if index is None and _BUILDS.match(bare):
        raise ValueError(f"expected CREATE INDEX CONCURRENTLY IF NOT EXISTS name ON …, got {text.splitlines()[0]}")
    return Statement(text, is_concurrent=True, index=None if index is None else index[1])


def _split(text: str) -> Iterator[str]:
    start = 0
    for end in [*(match.start() for match in re.finditer(";", _blank_quoted(text))), len(text)]:
        while comment := _COMMENT.match(text, start, end):
            start = comment.end()
        if statement := text[start:end].strip():
            yield statement
        start = end + 1


def _blank_quoted(text: str) -> str:
    return _QUOTED.sub(lambda match: " " * len(match[0]), text)
