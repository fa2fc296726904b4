"""Qualify the names in the SQL files that were released without: their text is frozen, and they run again. Pure.

So no name in a statement is looked up in the search path, where another role may have made something of that name. The
bodies of functions stay as they are: a later migration makes these again. In new files all names are qualified.
"""

from __future__ import annotations

import re
from typing import Final

_TOKEN: Final = re.compile(
    r"""
    (?P<space> \s+ | --[^\n]* | /\*.*?\*/ )
    | (?P<body> (?P<tag> \$ (?: [A-Za-z_]\w* )? \$ ) .*? (?P=tag) )
    | (?P<literal> [eE]? '(?: [^'] | '' )*' )
    | (?P<quoted> "(?: [^"] | "" )*" )
    | (?P<word> [A-Za-z_]\w* )
    | (?P<sign> :: | ->> | -> | . )
    """,
    re.VERBOSE | re.DOTALL,
)
# Written like a function's name, directly before a parenthesis, but known to the grammar alone.
_GRAMMAR: Final = frozenset({"any", "array", "coalesce", "extract", "greatest", "least", "nullif", "operator", "when"})
_BEFORE_RELATION: Final = frozenset({"EXISTS", "FROM", "INTO", "JOIN", "ON", "TABLE", "UPDATE", "VIEW"})
# After these words no relation follows, although one of those above stands there.
_NO_RELATION: Final = frozenset(
    {"CONFLICT", "IF", "INDEX", "ONLY", "SET", "TABLE", "COLUMN", "FUNCTION", "OF", "PUBLIC", "true"}
)
_EXISTS_OF_NO_RELATION: Final = frozenset({"COLUMN", "CONSTRAINT", "CONCURRENTLY", "INDEX", "POLICY", "TRIGGER"})


def qualify(sql: str) -> str:
    """Return the statements *sql* with schemas before the names of functions, relations and JSON operators."""
    parts: list[str] = []
    words: list[str] = []  # all tokens before but spaces and comments
    matches = list(_TOKEN.finditer(sql))
    for place, match in enumerate(matches):
        text, kind = match[0], str(match.lastgroup)
        if kind == "space":
            parts.append(text)
            continue
        following = matches[place + 1][0] if place + 1 < len(matches) else ""
        parts.append(_qualified(text, kind, words, following))
        words.append(text)
    return "".join(parts)


def _qualified(text: str, kind: str, words: list[str], following: str) -> str:
    before = words[-1] if words else ""
    if kind in {"body", "tag"}:
        return _in_block(text) if before.upper() == "DO" else text
    if text in {"->", "->>"} and before != ".":
        return f"OPERATOR(pg_catalog.{text})"
    if kind == "literal" and following == "::" and _is_name(text):
        return f"'{_schema_of(text[1:-1])}.{text[1:-1]}'"
    if kind != "word" or before in {".", "::", "AS"} or following == ".":
        return text
    if following == "(":
        is_ours = text.startswith("simplu_") or before.upper() == "FUNCTION"
        return text if text.lower() in _GRAMMAR else f"{'public' if is_ours else 'pg_catalog'}.{text}"
    return f"{_schema_of(text)}.{text}" if _names_relation(text, words) else text


def _in_block(body: str) -> str:
    """Return the dollar-quoted *body* of a DO block, qualified."""
    quote = body[: body.index("$", 1) + 1]
    return f"{quote}{qualify(body[len(quote) : -len(quote)])}{quote}"


def _is_name(literal: str) -> bool:
    return re.fullmatch(r"'[a-z]\w*'", literal) is not None


def _schema_of(relation: str) -> str:
    return "pg_catalog" if relation.startswith("pg_") else "public"


def _names_relation(text: str, words: list[str]) -> bool:
    """Return whether the word *text* after *words* is the name of a table or a view."""
    before = words[-1].upper() if words else ""
    if before not in _BEFORE_RELATION or text.upper() in _NO_RELATION or text in _NO_RELATION:
        return False
    if before == "EXISTS":  # IF EXISTS, IF NOT EXISTS
        kind = next((word.upper() for word in reversed(words) if word.upper() not in {"IF", "NOT", "EXISTS"}), "")
        return kind not in _EXISTS_OF_NO_RELATION
    return not (before == "UPDATE" and len(words) > 1 and words[-2].upper() in {"DO", "FOR", "OR"})
