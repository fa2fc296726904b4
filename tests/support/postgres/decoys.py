"""Decoys: functions, operators and tables that another role plants in the search path, to have them used by others.

A decoy is preferred to what `pg_catalog` has of its name when its types are nearer to those of the arguments. So every
name that the statements contain is planted with all types that they contain. A decoy that runs raises an error; and the
server reports which functions and operators a statement means, in the parse tree that it logs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
from asyncpg import introspection
from support.postgres.databases import copy_shard

from simplu_local.postgres.server import PostgresServer
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.queries import QUERIES
from simplu_worker.shards.schema.schema_check import MIGRATIONS
from simplu_worker.transfers import ADOPTION

ATTACKER: Final = "attacker"
FIRST_MADE_OID: Final = 16384  # of all that was made after initdb
SIGNS: Final = ("=", "<>", "<", ">", "<=", ">=", "+", "-", "*", "/", "||", "->", "->>", "#>", "#>>", "@>", "~", "!~")
# Of a decoy with two arguments; with one, it is any type that the statements contain.
PAIRED: Final = (
    "text", "varchar", "jsonb", "bigint", "integer", "boolean", "timestamptz", "text[]", "name", "oid", "regclass",
    "interval", "jsonb[]", "bigint[]",
)  # fmt: skip

_MADE: Final = re.compile(r"CREATE (?:TABLE|VIEW) (?:IF NOT EXISTS )?public\.(\w+)")
TABLES: Final = tuple(table for migration in MIGRATIONS for table in _MADE.findall(migration.text))
INTROSPECTION: Final = (introspection.INTRO_LOOKUP_TYPES, introspection.INTRO_LOOKUP_TYPES_13)

_CALLED: Final = re.compile(r"\b([a-z]\w*)\(")
_MEANT: Final = re.compile(r":(funcid|opno|opfuncid|aggfnoid|winfnoid|relid) (\d+)")
_TYPES: Final = re.compile(r":\w*type (\d+)")

# A role that may create in both schemas of the usual search path; one of them has the name of the worker's role.
SCHEMAS: Final = """
DO $$ BEGIN CREATE ROLE attacker; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
GRANT CREATE ON SCHEMA public TO attacker;
DO $$ BEGIN EXECUTE format('CREATE SCHEMA IF NOT EXISTS %I AUTHORIZATION attacker', current_user); END $$;
"""
MODELS: Final = """
CREATE FUNCTION {schema}.decoy(integer, integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE
AS $decoy$ BEGIN RAISE EXCEPTION 'a decoy was run' USING ERRCODE = '39P99'; END $decoy$;
CREATE FUNCTION {schema}.decoy(point, path) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR {schema}.= (LEFTARG = point, RIGHTARG = path, FUNCTION = {schema}.decoy);
UPDATE pg_operator SET oprcode = '{schema}.decoy(integer, integer)'::regprocedure
WHERE oid = '{schema}.=(point, path)'::regoperator;
"""
# Written into the catalog: so many statements would take seconds. A decoy ignores its arguments.
PLANT: Final = """
INSERT INTO pg_catalog.{catalog} SELECT {columns}
FROM ({decoys}) AS decoy CROSS JOIN pg_catalog.{catalog} AS model WHERE model.oid = '{model}'::{kind}
"""
FUNCTIONS: Final = """
SELECT row_number() OVER () + 1000000 AS oid, name AS proname, types::oidvector AS proargtypes, type_count AS pronargs
FROM unnest($1::text[]) AS name CROSS JOIN (
    SELECT one::text AS types, 1 AS type_count FROM unnest($2::oid[]) AS one
    UNION ALL
    SELECT one::text || ' ' || other::text, 2 FROM unnest($3::oid[]) AS one, unnest($3::oid[]) AS other
) AS signature
"""
OPERATORS: Final = """
SELECT row_number() OVER () + 1000000 AS oid, sign AS oprname, one AS oprleft, other AS oprright
FROM unnest($1::text[]) AS sign, unnest($2::oid[]) AS one, unnest($2::oid[]) AS other
"""


FUNCTION_COLUMNS: Final = ("oid", "proname", "proargtypes", "pronargs")
OPERATOR_COLUMNS: Final = ("oid", "oprname", "oprleft", "oprright")

_types: set[int] = set()  # those that the statements contain


def called_names(texts: Iterable[str]) -> list[str]:
    return sorted({name for text in texts for name in _CALLED.findall(text)})


async def trap(server: PostgresServer, address: ShardAddress, *, tables: Iterable[str] = TABLES) -> None:
    """Plant decoys of all functions and operators that our statements contain, and of *tables*, on a shard."""
    if not _types:
        model = await copy_shard(server)
        async with parse_trees(model.connection_string) as trees:
            for query in QUERIES.values():
                with contextlib.suppress(asyncpg.UndefinedTableError):  # those of an adoption
                    await trees.strangers(query)
        _types.update(trees.types)
    connection = await asyncpg.connect(address.connection_string)
    await _plant(connection, tables)
    await connection.close()


async def _plant(connection: Any, tables: Iterable[str]) -> None:
    await connection.execute(SCHEMAS)
    await connection.execute("SET allow_system_table_mods = on; SET search_path = pg_catalog")
    user = await connection.fetchval("SELECT quote_ident(current_user)")
    for schema in ("public", user):
        await connection.execute(MODELS.format(schema=schema))
    paired = await connection.fetchval("SELECT $1::text[]::regtype[]::oid[]", list(PAIRED))
    known = "SELECT array_agg(oid) FROM pg_type WHERE typtype = 'b' AND (oid = ANY($1::oid[]) OR oid = ANY($2::oid[]))"
    every = await connection.fetchval(known, list(_types), paired)
    texts = [*QUERIES.values(), *ADOPTION.values(), *(migration.text for migration in MIGRATIONS), *INTROSPECTION]
    functions, operators = (called_names(texts), every, paired), (list(SIGNS), every)
    for catalog, kind, own, decoys, model, arguments in [
        ("pg_proc", "regprocedure", FUNCTION_COLUMNS, FUNCTIONS, f"{user}.decoy(integer, integer)", functions),
        ("pg_operator", "regoperator", OPERATOR_COLUMNS, OPERATORS, "public.=(point, path)", operators),
    ]:
        columns = await _columns(connection, catalog, own)
        statement = PLANT.format(catalog=catalog, columns=columns, decoys=decoys, model=model, kind=kind)
        await connection.execute(statement, *arguments)
    for table in tables:
        await connection.execute(
            f"CREATE TABLE {user}.{table} (LIKE public.{table}); ALTER TABLE {user}.{table} OWNER TO {ATTACKER}"
        )


async def _columns(connection: Any, catalog: str, own: Iterable[str]) -> str:
    names = await connection.fetchval(
        "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute WHERE attrelid = $1::text::regclass"
        " AND attnum > 0 AND NOT attisdropped",
        f"pg_catalog.{catalog}",
    )
    return ", ".join(f"{'decoy' if name in own else 'model'}.{name}" for name in names)


@dataclass
class ParseTrees:
    """The parse trees of the statements that one connection has prepared."""

    connection: Any
    types: set[int] = field(default_factory=set)
    _trees: list[str] = field(default_factory=list)

    async def strangers(self, statement: str) -> set[str]:
        """Return the functions, operators and tables that *statement* means and that are not those of `pg_catalog`.

        Each as `column=oid`, the column being that of the parse tree.
        """
        self._trees.clear()
        await self.connection.prepare(statement)
        assert len(self._trees) == 1, "expected one parse tree: asyncpg asks for types that it does not know"
        self.types |= {int(number) for number in _TYPES.findall(self._trees[0])}
        return {f"{kind}={oid}" for kind, oid in _MEANT.findall(self._trees[0]) if int(oid) >= FIRST_MADE_OID}


@asynccontextmanager
async def parse_trees(url: str) -> AsyncIterator[ParseTrees]:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    trees = ParseTrees(connection)
    connection.add_log_listener(lambda _, message: trees._trees.append(message.detail or ""))
    await connection.execute("SET client_min_messages = log; SET debug_print_parse = on; SET debug_pretty_print = off")
    try:
        yield trees
    finally:
        connection.terminate()
