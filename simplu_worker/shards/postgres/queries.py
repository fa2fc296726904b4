"""The named queries of `shards/sql/queries/`, read once, and columns packed for them.

A file has queries (`-- name: x`) and fragments (`-- fragment: x`), which a query of any file includes as `:x`. `public`
stands for the home of a shard: the schema with our tables and functions. Columns of a batch are joined texts, which
Postgres splits by `string_to_array`: asyncpg spends 0.2 to 0.6 microseconds on each element of an array, twenty times
as much.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import count
from typing import Final

DEFAULT_HOME: Final = "public"

_HEADING = re.compile(r"^-- (name|fragment): (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"^ *--.*(?:\n|$)", re.MULTILINE)
_OF_HOME = re.compile(r"\bpublic\.(?=[\w\"%])")
_INCLUDE = re.compile(r"(?<!:):([a-z]\w*)")  # `::x` is a cast


def read_queries(texts: Iterable[str]) -> dict[str, str]:
    """Return the queries of the query files *texts* by name, with their fragments included.

    Raises `KeyError` for a missing fragment.
    """
    parts = [part for text in texts for part in _parts_of(text)]
    fragments = {name: sql for kind, name, sql in parts if kind == "fragment"}

    @cache
    def whole_fragment(name: str) -> str:
        return include(fragments[name])

    def include(sql: str) -> str:
        return _INCLUDE.sub(lambda match: whole_fragment(match[1]), sql)

    return {name: include(sql) for kind, name, sql in parts if kind == "name"}


def _parts_of(text: str) -> Iterable[tuple[str, str, str]]:
    _, *parts = _HEADING.split(text)
    sqls = [_COMMENT.sub("", sql).strip() for sql in parts[2::3]]
    return zip(parts[::3], parts[1::3], sqls, strict=True)


def sql_files(folder: str, *, package: str = "simplu_worker.shards") -> list[Traversable]:
    """Return the files of a folder in the `sql/` of *package*, by name."""
    return sorted((files(package) / "sql" / folder).iterdir(), key=lambda file: file.name)


def quote_name(name: str) -> str:
    """Return *name* as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def at_home(sql: str, home: str) -> str:
    """Return *sql* for a shard with the schema *home*. Raises `ValueError` for a name that would end a literal."""
    if home == DEFAULT_HOME:
        return sql
    if "'" in home or "\\" in home:
        raise ValueError(f"expected a schema without ' and \\ in its name, got {home}; rename it")
    return _OF_HOME.sub(lambda _: f"{quote_name(home)}.", sql)


def affected_count(status: str) -> int:
    """Return the number of rows in the status of a statement, such as `DELETE 1000`."""
    return int(status.rpartition(" ")[2])


QUERIES = read_queries(file.read_text() for file in sql_files("queries"))


SEPARATOR: Final = "\x1f"  # never in a JSON text (RFC 8259, section 7), and hardly ever in an id


def pack_columns(texts: Sequence[Sequence[str]], plain: Sequence[Sequence[str]] = ()) -> list[str]:
    """Return a separator, and each column joined by it to one text: first *texts*, of any content, then *plain*.

    The texts of *plain*, such as JSON, contain no character of separators. In the statement a shorter column is padded
    with NULL, and a single empty text is no element: read it with `nullif(…, '')`.
    """
    for separator in _separators():
        joined = [separator.join(column) for column in texts]
        seams = [max(0, len(column) - 1) for column in texts]
        if [text.count(separator) for text in joined] == seams:
            return [separator, *joined, *[separator.join(column) for column in plain]]
    raise AssertionError("there is always another separator")


def _separators() -> Iterator[str]:
    yield SEPARATOR
    for number in count():
        yield f"\x1f{number}\x1e"
