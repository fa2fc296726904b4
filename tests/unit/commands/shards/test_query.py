"""The statement that `shards query` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from simplu_worker.cli import app
from simplu_worker.commands.shards.query import read_statement
from simplu_worker.errors import UsageError

EXPECTED = "expected a statement that begins with SELECT, VALUES, TABLE or WITH"


def test_statement_is_the_argument_or_the_content_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "count.sql").write_text("\ufeff-- how many\nSELECT count(*) FROM tenants;\n", encoding="utf-8")
    (tmp_path / "select.sql").write_text("VALUES (1)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert read_statement("TABLE tenants") == "TABLE tenants"
    assert read_statement("count.sql") == "-- how many\nSELECT count(*) FROM tenants;\n"
    assert read_statement("select.sql") == "VALUES (1)"
    assert read_statement(long := f"SELECT '{'x' * 5000}'") == long


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("DELETE FROM tenants", f"{EXPECTED}, or a readable file of UTF-8 with one, got 'DELETE FROM tenants'"),
        ("none.sql", f"{EXPECTED}, or a readable file of UTF-8 with one, got 'none.sql'"),
        (".", "or a readable file of UTF-8 with one, got '.'"),
        ("latin.sql", "or a readable file of UTF-8 with one, got 'latin.sql'"),
        ("copy.sql", f"{EXPECTED} in copy.sql, got 'COPY tenants TO STDOUT'"),
        ("D" * 5000, f"got '{'D' * 59}…'"),
        ("DELETE\0", "got 'DELETE"),
    ],
)
def test_statement_that_does_not_read_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    (tmp_path / "copy.sql").write_text("COPY tenants TO STDOUT", encoding="utf-8")
    (tmp_path / "latin.sql").write_bytes(b"SELECT '\xe9'")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        read_statement(argument)
    assert message in str(caught.value)


def test_shards_and_a_tenant_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="expected --shard or --tenant, got both"):
        app(["shards", "query", "SELECT 1", "--shard", "db-1", "--tenant", "clinic", "main"])
