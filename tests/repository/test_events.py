"""docs/events.md has every log event above debug, with its levels; the keys of an event never vary."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest
from support.requires import ROOT

PACKAGE = ROOT / "simplu_worker"
PAGE = ROOT / "docs" / "events.md"
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
MAY_LOG = re.compile(r"\blog\b|\bget_logger\b")  # a source without such a name has no logger: see `levels_named_in`
EVENT = r"[a-z]+(?:_[a-z]+)*\.[a-z]+(?:_[a-z]+)*"
ROW = re.compile(rf"^\| `({EVENT})` \(([a-z ]+)\) \|", re.MULTILINE)

Assigned: TypeAlias = Mapping[str, list[ast.expr]]


class LoggedEvent(NamedTuple):
    """An event as one call logs it."""

    event: str
    levels: frozenset[str]
    keys: frozenset[str]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def events_in(tree: ast.AST) -> Iterator[LoggedEvent]:
    """Yield each event that *tree* logs; event, level and keys may go through a name of the same function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    returned = {
        one.name: [node.value for node in ast.walk(one) if isinstance(node, ast.Return) and node.value is not None]
        for one in functions
    }
    seen: set[int] = set()
    for scope in [*reversed(functions), tree]:  # the innermost first: its names are meant
        nodes = [*ast.walk(scope)]
        assigned = assignments_in(nodes)
        for node in nodes:
            if isinstance(node, ast.Call) and id(node) not in seen and (levels := levels_of(node, assigned)):
                seen.add(id(node))
                keys = keys_of(node, assigned, returned)
                for event in names_of(node, assigned):
                    yield LoggedEvent(event, frozenset(levels), frozenset(keys))


def assignments_in(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    assigned: defaultdict[str, list[ast.expr]] = defaultdict(list)
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    assigned[target.id].append(node.value)
    return assigned


def levels_of(call: ast.Call, assigned: Assigned) -> set[str]:
    """Return the levels at which *call* logs; none when it does not log."""
    if not call.args:
        return set()
    function = call.func
    if isinstance(function, ast.Name):
        return {level for value in assigned.get(function.id, ()) for level in levels_named_in(value)}
    return set(levels_named_in(function)) if isinstance(function, ast.Attribute) else set()


def levels_named_in(expression: ast.expr) -> Iterator[str]:
    for node in ast.walk(expression):
        if isinstance(node, ast.Attribute) and node.attr in LEVELS:
            logger = ast.unparse(node.value)
            if logger == "log" or logger.startswith("structlog.get_logger("):
                yield LEVELS[node.attr]


def names_of(call: ast.Call, assigned: Assigned) -> set[str]:
    first = call.args[0]
    texts = assigned.get(first.id, []) if isinstance(first, ast.Name) else [first]
    found = {one.value for text in texts for one in ast.walk(text) if isinstance(one, ast.Constant)}
    events = {event for event in found if isinstance(event, str)}
    assert events, f"line {call.lineno}: expected the event as a literal, got {ast.unparse(first)}"
    return events


def keys_of(call: ast.Call, assigned: Assigned, returned: Assigned) -> set[str]:
    """Return the keys of the line that *call* logs; that of an exception is on every line with one."""
    keys: set[str] = set()
    for keyword in call.keywords:
        keys |= dict_keys(keyword.value, assigned, returned) if keyword.arg is None else {keyword.arg}
    return keys - {"exc_info"}


def dict_keys(expression: ast.expr, assigned: Assigned, returned: Assigned) -> set[str]:
    """Return the keys of a dict: a display, a union of dicts, a name, or a call of a function of the module."""
    match expression:
        case ast.Dict(keys=keys) if all(isinstance(key, ast.Constant) for key in keys):
            return {str(key.value) for key in keys if isinstance(key, ast.Constant)}
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return dict_keys(left, assigned, returned) | dict_keys(right, assigned, returned)
        case ast.Name(id=name) if assigned.get(name):
            values = assigned[name]
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if returned.get(name):
            values = returned[name]
        case _:
            raise AssertionError(f"line {expression.lineno}: expected keys as literals, got {ast.unparse(expression)}")
    found = [dict_keys(value, assigned, returned) for value in values]
    assert found.count(found[0]) == len(found), f"line {expression.lineno}: {ast.unparse(expression)} has varying keys"
    return found[0]


@cache
def logged_events() -> tuple[LoggedEvent, ...]:
    """Return every event of the package, once for each call that logs it."""
    sources = (path.read_text(encoding="utf-8") for path in modules())
    return tuple(event for source in sources if MAY_LOG.search(source) for event in events_in(ast.parse(source)))


def levels_by_event() -> dict[str, set[str]]:
    """Return the levels of every event that is not for `debug` alone."""
    levels: defaultdict[str, set[str]] = defaultdict(set)
    for one in logged_events():
        levels[one.event] |= one.levels
    return {event: found for event, found in levels.items() if found != {"debug"}}


def catalogued_events() -> list[tuple[str, set[str]]]:
    events, _, _ = PAGE.read_text(encoding="utf-8").partition("\n## Keys\n")
    return [(event, set(levels.split(" or "))) for event, levels in ROW.findall(events)]


@pytest.mark.slow
def test_events_are_in_the_catalogue_and_only_those_that_exist() -> None:
    assert sorted(levels_by_event()) == sorted(event for event, _ in catalogued_events())


def test_catalogue_names_the_level_at_which_an_event_is_logged() -> None:
    assert dict(catalogued_events()) == levels_by_event()


def test_keys_of_an_event_are_the_same_wherever_it_is_logged() -> None:
    keys: defaultdict[str, set[frozenset[str]]] = defaultdict(set)
    for one in logged_events():
        keys[one.event].add(one.keys)
    assert {event: sorted(map(sorted, found)) for event, found in keys.items() if len(found) > 1} == {}
