from __future__ import annotations

import re

import pytest
from support.postgres.upgrades import MADE_UP

from simplu_worker.shards.schema.migrations import (
    NAMED_MAX,
    STEP,
    Migration,
    MissingPart,
    ShardSchema,
    migration_of,
    plan_upgrade,
    refusal_of,
    refusal_of_missing,
    steps_of,
    tables_of,
    without_concurrently,
)
from simplu_worker.shards.schema.schema_check import MIGRATIONS

BUILD = "CREATE INDEX CONCURRENTLY IF NOT EXISTS tenants_age ON tenants (created_at)"
FIRST, SECOND = Migration(1, "first", ""), Migration(2, "second", "", works_from=1)
THIRD = Migration(3, "third", "", works_from=2)


def test_steps_are_cut_at_their_lines() -> None:
    drop = "DROP INDEX CONCURRENTLY IF EXISTS public.old"
    text = f"-- About.\n\nSELECT 1;\nSELECT 2;{STEP}-- For ages.\n{BUILD};{STEP}{drop}\n"

    first, second, third = steps_of(text)

    assert STEP.join(step.text for step in (first, second, third)) == text
    assert (first.title, first.is_concurrent, first.index) == ("SELECT 1;", False, None)
    assert (second.title, second.is_concurrent, second.index) == (f"{BUILD};", True, "tenants_age")
    assert (third.is_concurrent, third.index) == (True, None)


@pytest.mark.parametrize("unique", ["", "UNIQUE "])
def test_nothing_is_concurrent_in_one_transaction(unique: str) -> None:
    text = f"CREATE {unique}INDEX CONCURRENTLY IF NOT EXISTS one ON t (a);"
    assert [step.index for step in steps_of(text)] == ["one"]
    assert without_concurrently(text) == f"CREATE {unique}INDEX IF NOT EXISTS one ON t (a);"


@pytest.mark.parametrize(
    "text",
    [
        "CREATE INDEX CONCURRENTLY one ON t (a)",
        "CREATE INDEX CONCURRENTLY ON t (a)",
        'CREATE INDEX CONCURRENTLY IF NOT EXISTS "One" ON t (a)',
        f"SELECT 1; {BUILD}",
        f"{BUILD}; SELECT 1",
    ],
)
def test_step_is_refused_when_it_cannot_be_run_again(text: str) -> None:
    with pytest.raises(ValueError, match="expected CREATE INDEX CONCURRENTLY IF NOT EXISTS"):
        steps_of(text)


@pytest.mark.parametrize(
    ("text", "works_from"),
    [
        ("-- About.\n-- works-from: 1\nSELECT 1;", 1),
        ("-- works-from: 12\n\n-- About.\nSELECT 1;", 12),
        ("SELECT 1;\n-- works-from: 1\nSELECT 2;", None),
        ("-- It works-from: 1 on.\nSELECT 1;", None),
        ("", None),
    ],
)
def test_migration_says_which_workers_work_with_it(text: str, works_from: int | None) -> None:
    assert migration_of(2, "two", text) == Migration(2, "two", text, works_from)


@pytest.mark.parametrize(
    ("worker", "version", "works_from", "works"),
    [
        (1, 1, None, True),
        (2, 2, None, True),
        (2, 1, None, True),  # the version before, with any works-from
        (3, 1, None, False),
        (2, 3, None, False),
        (2, 3, 2, True),
        (1, 3, 2, False),
        (1, 3, 1, True),
        (2, 4, 2, True),
        (2, 2, 2, True),
        (2, None, None, False),
    ],
)
def test_worker_works_on_the_versions_that_suit_it(
    worker: int, version: int | None, works_from: int | None, *, works: bool
) -> None:
    refusal = refusal_of(ShardSchema(version, works_from), worker_version=worker)

    assert (refusal is None) == works
    assert refusal is None or (f"expected schema version {worker}" in refusal or "got 1" in refusal)


@pytest.mark.parametrize(
    ("version", "migrations", "works_from"), [(1, [SECOND, THIRD], 2), (2, [THIRD], 2), (3, [], 2)]
)
def test_plan_has_the_migrations_after_the_shards_version(
    version: int, migrations: list[Migration], works_from: int
) -> None:
    plan = plan_upgrade(ShardSchema(version, 2), [FIRST, SECOND, THIRD], [])

    assert plan.migrations == migrations
    assert plan.business_types == []
    assert plan.is_needed == bool(migrations)
    assert (plan.version, plan.works_from, plan.refusal) == (3, works_from, None)


def test_plan_has_the_types_that_the_shard_lacks() -> None:
    plan = plan_upgrade(ShardSchema(1), [FIRST], ["gym"])
    assert (plan.business_types, plan.is_needed, plan.version) == (["gym"], True, 1)


@pytest.mark.parametrize(("version", "came"), [(4, "got 4; a schema never goes backwards"), (None, "got none")])
def test_plan_refuses_a_shard_that_is_newer_or_says_nothing(version: int | None, came: str) -> None:
    plan = plan_upgrade(ShardSchema(version), [FIRST, SECOND, THIRD], [])

    assert plan.refusal is not None
    assert came in plan.refusal
    assert not plan.is_needed


def test_later_migrations_can_be_run_again() -> None:
    for migration in [*MIGRATIONS[1:], MADE_UP]:
        for statement in re.findall(r"^(?:CREATE|DROP) (?!POLICY).*", migration.text, re.MULTILINE):
            assert re.match(r"CREATE OR REPLACE |.* IF (NOT )?EXISTS ", statement), statement


def test_tables_are_those_up_to_the_version_of_the_shard() -> None:
    first = "CREATE TABLE public.tenants (\n    id text\n);\nCREATE INDEX tenants_epoch ON public.tenants (epoch);"
    second = "-- none\nCREATE TABLE IF NOT EXISTS public.notes (\n    id integer\n);"
    migrations = [Migration(version, "", text) for version, text in ((1, first), (2, second))]

    assert tables_of(ShardSchema(None), migrations) == []
    assert tables_of(ShardSchema(1), migrations) == ["tenants"]
    assert [tables_of(ShardSchema(version), migrations) for version in (2, 9)] == [["tenants", "notes"]] * 2


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ([MissingPart("table", "transfers")], "without the table transfers; restore"),
        ([MissingPart("right", "a", "INSERT")], "one without the right to INSERT on a; as the owner"),
        ([MissingPart("right", "a", "INSERT"), MissingPart("table", "t")], "the table t; restore"),
        ([MissingPart("table", str(number)) for number in range(NAMED_MAX)], f"table {NAMED_MAX - 1}; restore"),
        (
            [MissingPart("table", str(number)) for number in range(NAMED_MAX + 2)],
            f"table {NAMED_MAX - 1} and 2 more; restore",
        ),
        ([MissingPart("policy", "t", "p"), MissingPart("key", "t")], "twice: the primary key of t. As"),
        ([MissingPart("policy", "t", "p")], "missing: p of the table t. As the owner"),
    ],
)
def test_refusal_names_what_a_shard_lacks(missing: list[MissingPart], named: str) -> None:
    assert named in (refusal_of_missing(missing) or "")


@pytest.mark.parametrize(("works_from", "needed"), [(None, 4), (3, 3)])
def test_refusal_of_a_later_schema_names_the_worker_for_it(works_from: int | None, needed: int) -> None:
    refusal = refusal_of(ShardSchema(4, works_from), worker_version=2)
    assert refusal is not None
    assert refusal.endswith(f"got 4; run a worker of schema version {needed} or newer")


@pytest.mark.parametrize("schema", [ShardSchema(None), ShardSchema(4, 3), ShardSchema(3, 2)])
def test_upgrade_that_does_nothing_leaves_the_schema_as_it_is(schema: ShardSchema) -> None:
    upgrade = plan_upgrade(schema, [FIRST, SECOND, THIRD], [])
    assert (upgrade.schema, upgrade.is_needed) == (schema, False)
    assert (upgrade.version, upgrade.works_from) == (schema.version, schema.works_from)


def test_upgrade_ends_at_the_last_migration() -> None:
    upgrade = plan_upgrade(ShardSchema(1), [FIRST, SECOND, THIRD], [])
    assert (upgrade.version, upgrade.works_from, upgrade.migrations) == (3, 2, [SECOND, THIRD])


def test_shard_that_lacks_nothing_is_not_refused() -> None:
    assert refusal_of_missing([]) is None
