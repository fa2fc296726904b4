"""The home of a shard: the schema of its database with our tables and functions. Pure.

All SQL texts have `public` as the home, so that nothing in them is looked up in the search path.
"""

from __future__ import annotations

import re
from typing import Final

DEFAULT_HOME: Final = "public"

_DEFAULT: Final = re.compile(r"\bpublic\.(?=[\w\"%])")


def quote_name(name: str) -> str:
    """Return *name* as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def at_home(sql: str, home: str) -> str:
    """Return the SQL text *sql* for a shard with the schema *home*.

    Raises `ValueError` for a name that would end a text literal.
    """
    if home == DEFAULT_HOME:
        return sql
    if "'" in home or "\\" in home:
        raise ValueError(f"expected a schema without ' and \\ in its name, got {home}; rename it")
    return _DEFAULT.sub(lambda _: f"{quote_name(home)}.", sql)
