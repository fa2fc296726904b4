"""SQL read far enough to find the tables that a statement touches, and the conditions that narrow each of them. Pure.

Not a parser of all of SQL: it knows the shapes in this package's files. Anything else counts as a table without a
condition, so that a test fails rather than passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from simplu_worker.shards.schema.type_files import TypeFile

TOKEN = re.compile(
    r"""
    (?P<skip> \s+ | --[^\n]* | /\*.*?\*/ )
    | (?P<body> (?P<tag> \$ \w* \$ ) .*? (?P=tag) )
    | (?P<text> [eE]? '(?: [^'] | '' )*' )
    | (?P<argument> \$\d+ )
    | (?P<quoted> "(?: [^"] | "" )*" )
    | (?P<word> [A-Za-z_]\w* )
    | (?P<sign> :: | <> | >= | <= | @> | -> | . )
    """,
    re.VERBOSE | re.DOTALL,
)
CLAUSES = {"SELECT", "FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "WINDOW", "SET", "VALUES", "RETURNING"}
BEGINNINGS = {"SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "VALUES"}
JOINS = {"CROSS", "FULL", "INNER", "JOIN", "LATERAL", "LEFT", "ON", "RIGHT", "USING"}
NO_ALIAS = CLAUSES | JOINS | {"AS", "DO", "FOR", "TABLESAMPLE"}


@dataclass(frozen=True)
class Token:
    """One word, sign or literal; *group* has the tokens between parentheses, for a `(` token."""

    text: str
    kind: str
    group: tuple[Token, ...] = ()

    @property
    def is_query(self) -> bool:
        return bool(self.group) and (self.group[0].text in BEGINNINGS or self.group[0].is_query)


@dataclass
class Arm:
    """One SELECT, INSERT, UPDATE or DELETE: its tables by the name they have there, and which are narrowed by what.

    *inner* are the queries within it, which see its tables.
    """

    tables: dict[str, str] = field(default_factory=dict)
    links: list[tuple[str, str, str | None]] = field(
        default_factory=list
    )  # (table's name, column, name of the other table; None: an argument)
    inner: list[Arm] = field(default_factory=list)
    inserted: dict[str, list[str]] = field(default_factory=dict)  # the columns that are named


def tokens_of(sql: str) -> tuple[Token, ...]:
    stack: list[list[Token]] = [[]]
    for match in TOKEN.finditer(sql):
        kind = str(match.lastgroup if match.lastgroup != "tag" else "body")
        if kind == "skip":
            continue
        if match[0] == "(":
            stack.append([])
        elif match[0] == ")":
            group = tuple(stack.pop())
            stack[-1].append(Token("(", "group", group))
        else:
            text = match[0][1:-1] if kind == "quoted" else match[0]
            stack[-1].append(Token(text, kind))
    assert len(stack) == 1, "parentheses that do not match"
    return tuple(stack[0])


def statements_of(sql: str) -> list[tuple[Token, ...]]:
    return [statement for statement in _cut(tokens_of(sql), ";") if statement]


def arms_of(statement: Sequence[Token]) -> list[Arm]:
    """Return the arms of a query: of a UNION, one each; of one WITH, those of its parts too."""
    if len(statement) == 1 and statement[0].is_query:
        return arms_of(statement[0].group)
    return [_arm(part) for part in _cut(statement, "UNION")]


def unbound(
    arm: Arm, columns: Mapping[str, Sequence[str]], outer: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Yield (table, its name) for each table of *columns* that neither *arm* nor its context narrows to given tenants.

    *columns* maps each table with rows of tenants to the columns of which one names the tenant, or a row of one. A
    table is narrowed by an argument, by a table that is narrowed, or by one that has no tenants' rows, such as a
    batch. *outer* are the names that are narrowed around the arm.
    """
    bound = (set(outer) - arm.tables.keys()) | {name for name, table in arm.tables.items() if table not in columns}
    bound |= {
        name for name, named in arm.inserted.items() if not set(columns.get(arm.tables[name], ())).isdisjoint(named)
    }
    is_growing = True
    while is_growing:
        found = {
            name
            for name, column, by in arm.links
            if name in arm.tables
            and column in {*columns.get(arm.tables[name], ()), "ctid"}
            and (by is None or by in bound)
        }
        is_growing = not found <= bound
        bound |= found
    yield from ((table, name) for name, table in arm.tables.items() if name not in bound)
    for inner in arm.inner:
        yield from unbound(inner, columns, frozenset(bound))


def tables_of(arm: Arm) -> set[str]:
    return set(arm.tables.values()).union(*(tables_of(inner) for inner in arm.inner))


def views_of(file: TypeFile) -> list[tuple[str, str, str]]:
    """Return each view of a packaged business type, with the two resource types that it shows."""
    return [(view, *one.names) for view, one in file.views.items()]  # type: ignore[misc]


def _cut(tokens: Sequence[Token], at: str) -> list[tuple[Token, ...]]:
    parts: list[list[Token]] = [[]]
    for token in tokens:
        if token.text == at and token.kind in {"word", "sign"}:
            parts.append([])
        elif not (at == "UNION" and token.text == "ALL" and not parts[-1]):
            parts[-1].append(token)
    return [tuple(part) for part in parts]


def _arm(tokens: Sequence[Token]) -> Arm:
    arm = Arm()
    clause = joined = ""
    is_outer_join = has_or = is_optional = False
    case_depth = 0  # within a CASE nothing need hold
    links: list[tuple[str, str, str | None]] = []
    for place, token in enumerate(tokens):
        before = tokens[place - 1].text if place else ""
        _take_queries(arm, token)
        if token.kind != "word":
            pass
        elif token.text in {"FROM", "JOIN", "INTO", "UPDATE"} and before not in {"DISTINCT", "DO", "FOR"}:
            clause = "FROM"
            is_outer_join = token.text == "JOIN" and before in {"LEFT", "RIGHT", "FULL", "OUTER"}
            joined = _table(arm, tokens, place + 1, is_insert=token.text == "INTO")
        elif token.text == "USING" and not tokens[place + 1].group:
            joined = _table(arm, tokens, place + 1)
        elif token.text == "USING":
            others = [name for name in arm.tables if name != joined]
            names = [(joined, by) for by in others] + [(by, joined) for by in others if not is_outer_join]
            arm.links += [(name, column.text, by) for name, by in names for column in tokens[place + 1].group]
        elif token.text in CLAUSES or (token.text == "ON" and tokens[place + 1].text != "CONFLICT"):
            clause, is_optional = token.text, token.text == "ON" and is_outer_join
        case_depth += {"CASE": 1, "END": -1}.get(token.text, 0)
        has_or = has_or or (token.text == "OR" and clause in {"WHERE", "ON"} and not case_depth)
        if token.text in {",", "CROSS"} and clause == "FROM":
            joined = _table(arm, tokens, place + 1) if token.text == "," else joined
        if token.text == "=" and clause in {"WHERE", "ON"} and not case_depth:
            links += [link for link in _links(tokens, place) if not is_optional or link[0] in {joined, ""}]
    if not has_or:  # else none of them need hold
        read = [name for name in arm.tables if name not in arm.inserted]
        only = read[0] if len(read) == 1 else ""
        arm.links += [(name or only, column, by) for name, column, by in links]
    return arm


def _take_queries(arm: Arm, token: Token) -> None:
    if token.is_query:
        arm.inner += arms_of(token.group)
    else:
        for inner in token.group:
            _take_queries(arm, inner)


def _table(arm: Arm, tokens: Sequence[Token], place: int, *, is_insert: bool = False) -> str:
    while place < len(tokens) and tokens[place].text in {"LATERAL", "ONLY"}:
        place += 1
    if place >= len(tokens) or tokens[place].kind not in {"word", "quoted", "group"}:
        return ""
    name = table = tokens[place].text
    place += 1
    if place < len(tokens) and tokens[place].text == "." and not tokens[place].group:
        name = tokens[place + 1].text
        table, place = name if table == "public" else f"{table}.{name}", place + 2
    while place < len(tokens) and tokens[place].group and not is_insert:  # a function's arguments
        table, place = "(", place + 1
    if tokens[place - 1].text == "(":
        table = "("
    while place < len(tokens) and tokens[place].text in {"WITH", "ORDINALITY"}:
        place += 1
    if place < len(tokens) and tokens[place].text == "AS":
        name, place = tokens[place + 1].text, place + 2
    elif place < len(tokens) and tokens[place].kind == "word" and tokens[place].text not in NO_ALIAS:
        name = tokens[place].text
    if is_insert:  # under a name of its own: the inserted rows may come from the same table
        name = f"INTO {name}"
        arm.inserted[name] = [column.text for column in tokens[place].group] if place < len(tokens) else []
    arm.tables[name] = table
    return name


def _links(tokens: Sequence[Token], place: int) -> Iterator[tuple[str, str, str | None]]:
    start = place - 3 if place >= 3 and tokens[place - 2].text == "." else place - 1
    if start > 0 and tokens[start - 1].text == "NOT":
        return
    left, right = _column(tokens, start), _column(tokens, place + 1)
    if left is not None and (by := _giver(tokens, place + 1, right)) is not None:
        yield (*left, by or None)
    if right is not None and (by := _giver(tokens, start, left)) is not None:
        yield (*right, by or None)


def _column(tokens: Sequence[Token], place: int) -> tuple[str, str] | None:
    if place >= len(tokens) or tokens[place].kind not in {"word", "quoted"}:
        return None
    if place + 2 < len(tokens) and tokens[place + 1].text == "." and tokens[place + 2].kind in {"word", "quoted"}:
        return tokens[place].text, tokens[place + 2].text
    return None if place + 1 < len(tokens) and tokens[place + 1].group else ("", tokens[place].text)


def _giver(tokens: Sequence[Token], place: int, column: tuple[str, str] | None) -> str | None:
    """Return the owner of the value at *place*: a table's name, nothing for an argument, None for anything else."""
    if column is not None and column[0]:
        return column[0]
    token = tokens[place]
    if token.kind == "argument" or token.is_query:  # the query is looked at itself
        return ""
    if token.text == "ANY" and place + 1 < len(tokens):
        inside = tokens[place + 1].group
        if inside and (
            inside[0].kind == "argument" or inside[0].text == "ARRAY"
        ):  # the query in it is looked at itself
            return ""
    return None
