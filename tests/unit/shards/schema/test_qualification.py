"""Statements of released files, which have names without schemas, and what is run in their place."""

from __future__ import annotations

import pytest

from simplu_worker.shards.schema.qualification import qualify
from simplu_worker.shards.schema.sql_files import BUSINESS_TYPES, MIGRATIONS

TEXTS = {migration.name: migration.text for migration in MIGRATIONS} | BUSINESS_TYPES


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("CREATE TABLE a (b text, PRIMARY KEY (b))", "CREATE TABLE public.a (b text, PRIMARY KEY (b))"),
        ("CREATE TABLE IF NOT EXISTS a (b int)", "CREATE TABLE IF NOT EXISTS public.a (b int)"),
        ("ALTER TABLE a ADD COLUMN IF NOT EXISTS b text", "ALTER TABLE public.a ADD COLUMN IF NOT EXISTS b text"),
        ("CREATE INDEX IF NOT EXISTS i ON a (b)", "CREATE INDEX IF NOT EXISTS i ON public.a (b)"),
        ("DROP POLICY IF EXISTS p ON a", "DROP POLICY IF EXISTS p ON public.a"),
        ("CREATE OR REPLACE VIEW v AS SELECT b FROM a", "CREATE OR REPLACE VIEW public.v AS SELECT b FROM public.a"),
        ("SELECT relname FROM pg_class", "SELECT relname FROM pg_catalog.pg_class"),
        ("INSERT INTO a (b) VALUES (1) ON CONFLICT (b) DO UPDATE SET b = 2",
         "INSERT INTO public.a (b) VALUES (1) ON CONFLICT (b) DO UPDATE SET b = 2"),
        ("CREATE FUNCTION f(a int) RETURNS int", "CREATE FUNCTION public.f(a int) RETURNS int"),
        ("SELECT simplu_f(coalesce(length(b), 0))", "SELECT public.simplu_f(coalesce(pg_catalog.length(b), 0))"),
        ("SELECT has('a'::regclass, 'b')", "SELECT pg_catalog.has('public.a'::regclass, 'b')"),
        ("SELECT d ->> 'x', d -> 'y'", "SELECT d OPERATOR(pg_catalog.->>) 'x', d OPERATOR(pg_catalog.->) 'y'"),
        ("SELECT 'now() FROM a', \"f\" -- f() FROM a", "SELECT 'now() FROM a', \"f\" -- f() FROM a"),
        ("AS $$ SELECT f() FROM a $$", "AS $$ SELECT f() FROM a $$"),
        ("DO $x$ BEGIN ALTER VIEW v SET (c = 1); END $x$", "DO $x$ BEGIN ALTER VIEW public.v SET (c = 1); END $x$"),
    ],
)  # fmt: skip
def test_names_are_qualified(sql: str, expected: str) -> None:
    """Functions, relations and the operators on JSON; not what is text, a comment, or the body of a function."""
    assert qualify(sql) == expected


@pytest.mark.parametrize("name", TEXTS)
def test_qualified_text_stays_as_it_is(name: str) -> None:
    """So newer files run as they are written."""
    assert qualify(qualify(TEXTS[name])) == qualify(TEXTS[name])
