"""The schema of a shard's tables in SQL texts that are written for `public`."""

from __future__ import annotations

import pytest

from simplu_worker.shards.postgres.home import at_home, quote_name


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT FROM public.tenants", 'SELECT FROM "it""s".tenants'),
        (
            "ALTER TABLE public.moves; SELECT public.simplu_f(a)",
            'ALTER TABLE "it""s".moves; SELECT "it""s".simplu_f(a)',
        ),
        (
            "SELECT 'public.tenants'::regclass, 'is public. Yes'",
            "SELECT '\"it\"\"s\".tenants'::regclass, 'is public. Yes'",
        ),
        ("SELECT republic.a, publics.b", "SELECT republic.a, publics.b"),
    ],
)
def test_sql_is_for_the_home_of_the_shard(sql: str, expected: str) -> None:
    """Wherever a name has a schema; a shard in `public` gets the text as it is."""
    assert at_home(sql, 'it"s') == expected
    assert at_home(sql, "public") is sql


@pytest.mark.parametrize("home", ["it's", "back\\slash"])
def test_home_is_refused_when_its_name_would_end_a_literal(home: str) -> None:
    """It would be a way to have another statement run."""
    with pytest.raises(ValueError, match="expected a schema without"):
        at_home("SELECT 'public.tenants'", home)


def test_name_is_quoted() -> None:
    """As Postgres reads it."""
    assert quote_name('a"B') == '"a""B"'
