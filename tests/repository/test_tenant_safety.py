"""Every SQL file: no statement touches rows of a tenant that is not named (invariant 7), and readers are bounded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.postgres.sql_text import Arm, Token, arms_of, statements_of, tables_of, tokens_of, unbound

import simplu_worker
from simplu_worker.shards.schema.schema_check import BUSINESS_TYPES, MIGRATIONS
from simplu_worker.shards.schema.type_files import view_statements
from simplu_worker.transfers import QUERIES

FOLDERS = sorted(Path(simplu_worker.__file__).parent.glob("*/sql/*"))

# The column that names the tenant, of each table that has rows of tenants.
TENANT_COLUMNS = {
    "tenants": "id",
    "resources": "id",
    "log_rows": "tenant_no",
    "log_outcomes": "tenant_no",
    "transfers": "tenant_id",
    "rejections": "tenant_id",
    "resource_versions": "tenant_no",
}
# Of views, and of rows that belong to a row of another table.
OTHER_COLUMNS = {"operations": ("tenant_id",), "log_outcomes": ("tenant_no", "position")}
OF_NO_TENANT = {
    "business_controls": "what people set for all tenants of a business",
    "limit_buckets": "numbers alone, which batches count by",
    "business_types": "what every tenant of a type begins with",
    "log_batches": "what the rows of one transaction share; whose these are is in `log_rows`",
    "feed_cursors": "of a destination; the held tenants that it names are the feed's to know",
    "feed_refusals": "of a destination: what it refused, whosever it is",
    "feed_shards": "the shard's own",
    "log_forgotten": "the shard's own",
    "history_names": "names of resource types and of sources",
    "history_types": "what is kept of each resource type",
    "schema_migrations": "the shard's own",
    "shard_meta": "the shard's own",
    "position_merges": "of the stream: tokens of the rows of `stream_positions`",
    "usage": "of a shard, for bills: counts alone",
    "usage_progress": "the shard's own",
    "stream_positions": "of the stream; the tenants that it names are the reader's to know",
}
TABLES = [
    table
    for migration in MIGRATIONS
    for table in re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?public\.(\w+)", migration.text)
]
BEING_MADE = {f"simplu_adoption.{table}": column for table, column in TENANT_COLUMNS.items()}

# Queries about more than the tenants they are given, each with the reason why it must be.
NOT_OF_ONE_TENANT = {
    "count_unknown_names": "counts alone, by the names of resources that a business type does not know",
    "list_tenants_of_type": "ids alone, of those whose documents a command judges one by one",
    "read_types": "counts alone, of the tenants of each business type",
    "count_living_tenants": "the count alone, for a shard that is to leave the map",
    "count_tenants": "the count alone, for capacity",
    "describe_content": "times alone, of a backup",
    "begin_history": "marks for each tenant of a business type, without its rows",
    "forget_versions": "versions go by their age, whosever they are",
    "forget_controls": "what is set for businesses without tenants on the shard",
    "set_business_controls": "whether the business has tenants on the shard",
    "find_adopted_shard": "docs/adopting.md: the id of the shard, which the row has in place of a tenant's",
    "find_deletions": "what a shard has to delete, whosever it is",
    "find_left_behind": "what a shard has to delete, whosever it is",
    "list_begun_moves": "the moves from a shard, to end them before others begin",
    "list_moves": "the moves from a shard, for people who operate it",
    "find_locations": "docs/sending.md: `destroy_all` is for every location of a business",
    "find_operation_of_any_tenant": "docs/outcomes.md: without the tenant all shards are asked",
    "find_rejection_of_any_tenant": "docs/outcomes.md: without the tenant all shards are asked",
    "find_open_imports": "what an import that is given up has left, whosever it is",
    "find_other_names": "counts alone, and the tenants of a business type, for `types apply`",
    "insert_position": "how the tenants came, for what is known of a stream shard",
    "read_feed": "the feed is of all tenants; each event names its own",
    "read_offset": "a number alone, beside the highest of any tenant's",
    "raise_offset": "a number alone, above the highest of any tenant's",
    "read_tenant_arrivals": "times alone, of the first and of the last that was moved here",
    "find_unplaced_rejections": "rows of tenants without a home, by the names in their records",
    "note_rejections": "the count alone of such rows, to bound them",
    "forget_old_rejections": "rows go by their age, whosever they are",
    "forget_batches": "rows go by their age, whosever they are",
    "list_tenants": "docs/commands.md: `tenants list`",
    "read_usage": "counts alone, for bills",
    "roll_up_usage": "counts alone, for bills",
    "sample_usage": "counts and sizes alone, for bills",
    "weigh_load": "counts alone, to balance shards",
    "weigh_resources": "counts and sizes alone, to balance shards",
}
# What is not a named query, by folder.
SCRIPTS = {
    "migrations": "makes the tables; may touch no row in them",
    "adoption": "about another program's table; may touch no row of ours",
}


def unnamed(sql: str) -> set[str]:
    columns = {table: (column,) for table, column in (TENANT_COLUMNS | BEING_MADE).items()} | OTHER_COLUMNS
    return {table for arm in all_arms(sql) for table, _ in unbound(arm, columns)}


def all_arms(sql: str) -> list[Arm]:
    return [arm for statement in statements_of(sql) for arm in arms_of(statement)]


def bodies_of(tokens: tuple[Token, ...]) -> list[str]:
    return [token.text.strip("$") for token in tokens if token.kind == "body"]


def test_queries_about_rows_of_tenants_name_the_tenant() -> None:
    assert {name for name, text in QUERIES.items() if unnamed(text)} == NOT_OF_ONE_TENANT.keys()


def test_every_table_names_the_tenant_or_has_none() -> None:
    assert set(TABLES) == TENANT_COLUMNS.keys() | OF_NO_TENANT.keys()


def test_every_sql_file_is_looked_at() -> None:
    assert {folder.name for folder in FOLDERS} == {"queries", *SCRIPTS}


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.name)
        for folder in FOLDERS
        if folder.name in SCRIPTS
        for file in sorted(folder.glob("*.sql"))
    ],
)
def test_script_touches_no_tenants_rows(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    code = [text, *(body for statement in statements_of(text) for body in bodies_of(statement))]
    changing = [
        arm
        for part in code
        for statement in statements_of(part)
        if not {"VIEW", "simplu_operation"}.intersection(token.text for token in statement[:5])
        for arm in arms_of(statement)
    ]
    touched = {table for arm in changing for table in tables_of(arm)}

    assert not touched & (TENANT_COLUMNS | OTHER_COLUMNS).keys()


@pytest.mark.parametrize("name", BUSINESS_TYPES)
def test_view_shows_whose_each_row_is(name: str) -> None:
    statements = view_statements(BUSINESS_TYPES[name].type, server_version=18)

    for view, statement in zip(BUSINESS_TYPES[name].views, statements, strict=True):
        head, query = statement.split(" AS\n", 1)
        (arm,) = all_arms(query)
        tokens = tokens_of(query)
        assert view.startswith(f"{name}_")
        assert [token.text for token in tokens[:2]] == ["SELECT", "id"]
        assert set(arm.tables.values()) == {"resources"}
        assert re.search(rf"WHERE \"businessType\" = '{name}' AND \"resourceName\" = ", query)
        assert head == f'CREATE OR REPLACE VIEW public."{view}" WITH (security_invoker = true)'
