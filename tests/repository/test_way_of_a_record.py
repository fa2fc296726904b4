"""The way of a record in `docs/architecture.md` is that of the source, and short."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from support.requires import ROOT

STATIONS_MAX = 20
TURNS_BACK_MAX = 6
PACKAGE = ROOT / "simplu_worker"
ROW = re.compile(r"^\| (\d+) \| `(\w+)\.(\w+)` \(`(\w+\.py)`\) \| (.+) \|$", re.MULTILINE)
BACK = re.compile(r"back in `(\w+)\.(\w+)`")

Station = tuple[str, str, str, str, str]  # number, class, method, file, what comes then

PAGE = (ROOT / "docs" / "architecture.md").read_text()
STATIONS: list[Station] = ROW.findall(PAGE)
FILES = {class_name: file for _, class_name, _, file, _ in STATIONS}


def function_of(class_name: str, name: str) -> Callable[..., Any]:
    """Import a method by the names in the table."""
    (path,) = PACKAGE.rglob(FILES[class_name])
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found: Callable[..., Any] = getattr(getattr(module, class_name), name)
    return found


def names_of(function: Callable[..., Any]) -> set[str]:
    """Return the names of all functions that the source of a function calls."""
    return set(re.findall(r"\b(\w+)\(", inspect.getsource(function)))


def test_way_of_a_record_is_short() -> None:
    """A reader of the code keeps it in mind."""
    assert [int(number) for number, *_ in STATIONS] == list(range(1, len(STATIONS) + 1))
    assert 10 < len(STATIONS) <= STATIONS_MAX
    assert sum(then.startswith("back in") for *_, then in STATIONS) <= TURNS_BACK_MAX


def test_each_station_leads_to_the_next_one() -> None:
    """By a call in its own source, or in that of the function to which control returns."""
    broken = []
    for station, following in itertools.pairwise(STATIONS):
        _, class_name, name, _, then = station
        back = BACK.match(then)
        function_of(class_name, name)
        source = function_of(*(back.groups() if back else (class_name, name)))
        assert back or then == "calls", f"{name}: {then!r}"
        if following[2] not in names_of(source):
            broken.append(f"{source.__qualname__} does not call {following[2]}")
    assert broken == []


def test_last_station_sends_the_statement() -> None:
    """The one whose text the table names."""
    _, class_name, name, _, then = STATIONS[-1]
    assert "_send" in names_of(function_of(class_name, name))
    assert "QUERIES" in inspect.getsource(function_of(class_name, "_send"))
    (path,) = re.findall(r"`([\w/]+\.sql)`", then)
    assert (PACKAGE / path).is_file()
