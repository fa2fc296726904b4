"""The ways of a record and of an order event in `docs/architecture.md` are those of the source, and short."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from support.requires import ROOT

STATIONS_MAX = 20
TURNS_BACK_MAX = 6
HAND_OVERS_MAX = 3  # between tasks, of one way
PACKAGE = ROOT / "simplu_worker"
HEADINGS = "### One record, function by function", "### One order event"
ROW = re.compile(r"^(\w+)\.(\w+) +([\w/]+\.py)(?: +(.+))?$", re.MULTILINE)
BACK = re.compile(r"back in (\w+)\.(\w+)")

Station = tuple[str, str, str, str]  # class, method, file, what comes before the next one

PAGE = (ROOT / "docs" / "architecture.md").read_text()
STATIONS, EVENT_STATIONS = ([*map(tuple, ROW.findall(PAGE.split(one)[1].split("```")[1]))] for one in HEADINGS)
FILES = {class_name: file for class_name, _, file, _ in [*STATIONS, *EVENT_STATIONS]}
both = pytest.mark.parametrize("stations", [STATIONS, EVENT_STATIONS], ids=["a record", "an order event"])


def function_of(class_name: str, name: str) -> Callable[..., Any]:
    (path,) = PACKAGE.rglob(FILES[class_name])
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found: Callable[..., Any] = getattr(getattr(module, class_name), name)
    return found


def names_of(function: Callable[..., Any]) -> set[str]:
    """Return the names of all functions that the source of a function calls."""
    return set(re.findall(r"\b(\w+)\(", inspect.getsource(function)))


@both
def test_way_is_short(stations: list[Station]) -> None:
    assert 8 < len(stations) <= STATIONS_MAX
    assert sum(then.startswith("back in") for *_, then in stations) <= TURNS_BACK_MAX
    own = sum("the task of" in then for *_, then in stations)
    shared = 0 if stations is STATIONS else sum("the task of" in then for *_, then in STATIONS[first_shared() :])
    assert 2 <= own + shared <= HAND_OVERS_MAX


def first_shared() -> int:
    """Return the index of the station of a record where the way of an order event meets it."""
    met = EVENT_STATIONS[-1]
    assert met[3] == "as a record"
    return [station[:3] for station in STATIONS].index(met[:3])


@pytest.mark.slow
@both
def test_each_station_leads_to_the_next_one(stations: list[Station]) -> None:
    broken = []
    for station, following in itertools.pairwise(stations):
        class_name, name, _, then = station
        back = BACK.match(then)
        function_of(class_name, name)
        source = function_of(*(back.groups() if back else (class_name, name)))
        assert back or not then, f"{name}: {then!r}"
        if following[1] not in names_of(source):
            broken.append(f"{source.__qualname__} does not call {following[1]}")
    assert broken == []


def test_last_station_sends_the_statement() -> None:
    class_name, name, _, then = STATIONS[-1]
    assert "_send" in names_of(function_of(class_name, name))
    assert "QUERIES" in inspect.getsource(function_of(class_name, "_send"))
    (path,) = re.findall(r"([\w/]+\.sql)", then)
    assert (PACKAGE / path).is_file()
