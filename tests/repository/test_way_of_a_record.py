"""The ways in `docs/architecture.md`, there and back, are those of the source, and short.

A link is a call whose receiver has the next station's class, by the annotations and assignments of the source: another
function of the same name is none.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.requires import ROOT

STATIONS_MAX = 21
TURNS_BACK_MAX = 6
HAND_OVERS_MAX = 3  # between tasks, of one way
PACKAGE = ROOT / "simplu_worker"
HEADINGS = ("### One record, function by function", "### The way back", "### One order event", "### Back to its delete")
ROW = re.compile(r"^(\w+)\.(\w+) +([\w/]+\.py)(?: +(.+))?$", re.MULTILINE)
BACK = re.compile(r"back in (\w+)\.(\w+)")
DEPTH_MAX = 8  # of expressions whose types are looked for

Station = tuple[str, str, str, str]  # class, method, file, what comes before the next one
Function = ast.FunctionDef | ast.AsyncFunctionDef

PAGE = (ROOT / "docs" / "architecture.md").read_text()
THERE, BACK_AGAIN, EVENT, TO_THE_DELETE = (
    [*map(tuple, ROW.findall(PAGE.split(one)[1].split("```")[1]))] for one in HEADINGS
)
WAYS = {"a record": THERE, "the way back": BACK_AGAIN, "an order event": EVENT, "to the delete": TO_THE_DELETE}
each = pytest.mark.parametrize("stations", WAYS.values(), ids=WAYS)


class Source:
    """The classes and the aliases of types of the package, by name."""

    def __init__(self) -> None:
        self.classes: defaultdict[str, list[ast.ClassDef]] = defaultdict(list)
        self.files: dict[ast.ClassDef, Path] = {}
        self._aliases: dict[str, ast.expr] = {}
        for path in PACKAGE.rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self.classes[node.name].append(node)
                    self.files[node] = path
            for one in tree.body:
                if isinstance(one, (ast.Assign, ast.AnnAssign)) and isinstance(one.value, (ast.Subscript, ast.BinOp)):
                    target = one.target if isinstance(one, ast.AnnAssign) else one.targets[0]
                    self._aliases[ast.unparse(target)] = one.value

    def find(self, class_name: str, file: str) -> ast.ClassDef:
        (found,) = [one for one in self.classes[class_name] if self.files[one].match(f"*/{file}")]
        return found

    def named_in(self, annotation: ast.expr | None) -> set[str]:
        if annotation is None:
            return set()
        names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(annotation) if isinstance(node, ast.Attribute)}  # of a module
        texts = [node.value for node in ast.walk(annotation) if isinstance(node, ast.Constant)]
        names |= {word for text in texts if isinstance(text, str) for word in re.findall(r"\w+", text)}
        aliased = [self._aliases[name] for name in names if name in self._aliases]
        return names.union(*map(self.named_in, aliased))

    def bases(self, class_name: str) -> set[str]:
        direct = {name for one in self.classes[class_name] for base in one.bases for name in self.named_in(base)}
        return {class_name}.union(*(self.bases(name) for name in direct if name != class_name))

    def methods(self, class_name: str) -> dict[str, Function]:
        inherited = sorted(self.bases(class_name) - {class_name})
        classes = [one for name in (*inherited, class_name) for one in self.classes[name]]
        return {node.name: node for one in classes for node in one.body if isinstance(node, Function)}

    def is_one_of(self, class_name: str, expected: set[str]) -> bool:
        """Return whether a class is one of *expected*, or fits a protocol among them."""
        own = self.methods(class_name).keys()
        known = [one for name in expected for one in self.classes[name]]
        protocols = [one for one in known if any("Protocol" in self.named_in(base) for base in one.bases)]
        asked = [{node.name for node in one.body if isinstance(node, Function)} for one in protocols]
        return bool(self.bases(class_name) & expected) or any(names <= own for names in asked if names)

    def attribute_types(self, class_name: str, name: str, depth: int) -> set[str]:
        methods = self.methods(class_name)
        if name in methods:
            return self.named_in(methods[name].returns)
        found: set[str] = set()
        for one in [one for base in self.bases(class_name) for one in self.classes[base]]:
            for node in ast.walk(one):
                if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in (name, f"self.{name}"):
                    found |= self.named_in(node.annotation)
            for function in (node for node in one.body if isinstance(node, Function)):
                for node in ast.walk(function):
                    if isinstance(node, ast.Assign) and f"self.{name}" in map(ast.unparse, node.targets):
                        found |= self.types_of(node.value, function, class_name, depth + 1)
        return found

    def types_of(self, value: ast.expr, function: Function, class_name: str, depth: int = 0) -> set[str]:
        if depth > DEPTH_MAX:
            return set()
        match value:
            case ast.Name(id="self"):
                return {class_name}
            case ast.Name(id=name):
                found = {name} & self.classes.keys()
                for argument in (*function.args.args, *function.args.kwonlyargs):
                    found |= self.named_in(argument.annotation) if argument.arg == name else set()
                for annotation, values in bindings_of(name, function):
                    found |= self.named_in(annotation)
                    for one in values:
                        found |= self.types_of(one, function, class_name, depth + 1)
                return found
            case ast.Attribute(value=ast.Name(), attr=name) if name in self.classes:
                return {name}
            case ast.Attribute(value=owner, attr=name):
                owners = self.types_of(owner, function, class_name, depth + 1)
                found = {one for each in owners for one in self.attribute_types(each, name, depth)}
                return found or owners  # a container hands out what it contains
        inner = [child for child in ast.iter_child_nodes(value) if isinstance(child, ast.expr)]
        return {one for child in inner for one in self.types_of(child, function, class_name, depth + 1)}


def bindings_of(name: str, function: Function) -> Iterator[tuple[ast.expr | None, list[ast.expr]]]:
    for node in ast.walk(function):
        match node:
            case ast.AnnAssign(target=ast.Name(id=bound), annotation=annotation) if bound == name:
                yield annotation, []
            case ast.NamedExpr(target=ast.Name(id=bound), value=value) if bound == name:
                yield None, [value]
            case ast.Assign(targets=[ast.Name(id=bound)], value=value) if bound == name:
                yield None, [value]
            case ast.For(target=target, iter=value) if re.search(rf"\b{name}\b", ast.unparse(target)):
                yield None, [value]


@cache
def source() -> Source:
    return Source()


def uses_in(function: Function, name: str) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Attribute) and node.attr == name)


def leads_to(start: tuple[str, str], station: Station) -> bool:
    class_name, name = start
    function = source().methods(class_name)[name]
    uses = [*uses_in(function, station[1])]
    receivers = [source().types_of(use.value, function, class_name) for use in uses]
    is_called = any(source().is_one_of(station[0], receiver) for receiver in receivers)
    return is_called or (bool(uses) and is_handed_over(station, class_name))


def is_handed_over(station: Station, class_name: str) -> bool:
    """Return whether the class of *station* makes a *class_name* to which it gives its method to call."""
    nodes = [node for one in source().methods(station[0]).values() for node in ast.walk(one)]
    made = [node for node in nodes if isinstance(node, ast.Call)]
    calls = [node for node in made if ast.unparse(node.func).rpartition(".")[2] == class_name]
    return f"self.{station[1]}" in {ast.unparse(argument) for call in calls for argument in call.args}


@each
def test_way_is_short(stations: list[Station]) -> None:
    assert 5 < len(stations) <= STATIONS_MAX
    assert sum(then.startswith("back in") for *_, then in stations) <= TURNS_BACK_MAX
    own = sum("the task of" in then for *_, then in stations)
    others = [*THERE[first_shared() :], *TO_THE_DELETE] if stations is EVENT else []
    shared = sum("the task of" in then for *_, then in others)
    assert 1 <= own + shared <= HAND_OVERS_MAX


def first_shared() -> int:
    """Return the index of the station of a record where the way of an order event meets it."""
    met = EVENT[-1]
    assert met[3] == "as a record"
    return [station[:3] for station in THERE].index(met[:3])


@pytest.mark.slow
@each
def test_each_station_leads_to_the_next_one(stations: list[Station]) -> None:
    broken = []
    for station, following in itertools.pairwise(stations):
        class_name, name, file, then = station
        assert name in source().methods(source().find(class_name, file).name)
        back = BACK.match(then)
        assert back or not then, f"{name}: {then!r}"
        start = (back[1], back[2]) if back else (class_name, name)
        if not leads_to(start, following):
            broken.append(f"{'.'.join(start)} does not call {'.'.join(following[:2])}")
    assert broken == []


@pytest.mark.parametrize(("stations", "door"), [(THERE, "_send"), (BACK_AGAIN, "call")], ids=["a record", "back"])
def test_last_station_writes(stations: list[Station], door: str) -> None:
    class_name, name, _, then = stations[-1]
    assert any(uses_in(source().methods(class_name)[name], door))
    assert all((PACKAGE / path).is_file() for path in re.findall(r"([\w/]+\.sql)", then))
