"""The statement that `shards query` takes, and its lines of CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.cli import app
from simplu_worker.commands.shards.query import csv_line, read_statement
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
        ("D" * 5000, f"got '{'D' * 60}…'"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shard", "db-1", "--tenant", "clinic", "main"), "expected --shard or --tenant, got both"),
        (("--json", "--format", "csv"), "expected --json or --format, got --json and --format csv"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        app(["shards", "query", "SELECT 1", *options])


@given(st.lists(st.text(alphabet=st.sampled_from('a",\r\n ;é')), min_size=1))
def test_line_of_csv_is_read_back_as_it_was(cells: list[str]) -> None:
    assert [*csv.reader(io.StringIO(csv_line(cells), newline=""))] == [cells]


def test_null_is_empty_in_csv_and_an_empty_text_is_quoted() -> None:
    assert csv_line([None, "", "a", "b c", "1,2"]) == ',"",a,b c,"1,2"\n'
