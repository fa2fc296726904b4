"""Pages of docs/ that are made from code or hold it: references, correctness, vocabulary and the static map."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation.campaign import CAMPAIGNS, expected_faults
from simulation.left_out_rules import BY_DESIGN, DESIGNS, ELSEWHERE
from support.campaigns import read_campaigns
from support.correctness_page import PAGE as CORRECTNESS
from support.correctness_page import SAFE, SUBJECTS, WRONG
from support.correctness_page import render as render_correctness
from support.page_examples import page_examples
from support.requires import ROOT
from support.vocabulary_lists import pages, render_page, unexplained

from simplu_worker.shards.routing.shard_map import ShardMap, hash_of, parse_shard_map

REFERENCES: Final = ROOT / "docs" / "references.md"
TEXTS: Final = ("seed-000", "seed-001", "seed-002", "seed-003", "seed-004")
SHOWN: Final = {"works", "differs"}
OTHERS: Final = {"management server", "API server", "Citrus", "you"}
TEST: Final = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


class Row(NamedTuple):
    """A statement of a text, what is here (the words in bold), and how."""

    text: str
    statement: str
    here: str
    how: str


def rows() -> list[Row]:
    found = []
    for section in REFERENCES.read_text(encoding="utf-8").split("\n## ")[1:]:
        text = re.findall(r"\((seed-\d+)\)$", section.partition("\n")[0])[0]
        for line in re.findall(r"^\| (.+) \|$", section, flags=re.MULTILINE)[1:]:
            statement, here, how = (cell.strip() for cell in re.split(r" \|(?: |$)", line, maxsplit=2))
            found.append(Row(text, statement, here.strip("*"), how))
    return found


def test_table_has_rows_of_each_text_in_order() -> None:
    found = rows()
    assert tuple(dict.fromkeys(row.text for row in found)) == TEXTS
    assert len(found) > 100
    assert len({(row.text, row.statement) for row in found}) == len(found)
    explained = set(re.findall(r"\*\*([\w ]+)\*\*", REFERENCES.read_text(encoding="utf-8").partition("\n## ")[0]))
    assert {row.here for row in found} == SHOWN | OTHERS == explained


@pytest.mark.parametrize(("path", "name"), dict.fromkeys(TEST.findall(REFERENCES.read_text(encoding="utf-8"))))
def test_named_test_exists(path: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_figures_of_the_page_are_those_of_the_runs() -> None:
    page = CORRECTNESS.read_text(encoding="utf-8")
    assert page == render_correctness(page)
    assert "<!-- figures: models -->\n| model" in page


def test_every_model_is_in_the_table() -> None:
    assert {name.partition(":")[0] for name in (*SAFE, *WRONG)} == SUBJECTS.keys()


def test_every_left_out_rule_is_left_out_in_code_or_has_a_reason() -> None:
    elsewhere = [rule for one in ELSEWHERE for rule in one.tests]
    assert sorted(WRONG) == sorted([*BY_DESIGN, *elsewhere])
    assert set(BY_DESIGN.values()) - DESIGNS == set()
    assert [test for one in ELSEWHERE for test in one.tests.values() if test and not _exists(test)] == []


def test_every_fault_of_a_weather_has_changed_histories() -> None:
    campaigns = read_campaigns(CAMPAIGNS)
    last = [one["faults"] for one in campaigns if one["commit"] == campaigns[-1]["commit"]]
    without = [
        (weather, fault.value)
        for weather in last[-1]
        for fault in expected_faults(weather)
        if not sum(faults[weather][fault][1] for faults in last)
    ]
    assert without == []


def _exists(test: str) -> bool:
    path, _, name = test.partition("::")
    return f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_lists_are_made_from_the_vocabulary(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert render_page(page) == page
    assert list(unexplained(page)) == []


EXAMPLES: Final = {(what, name): text for what, name, text in page_examples(ROOT / "docs" / "routing.md")}
VECTORS: Final[list[dict[str, Any]]] = json.loads(
    (ROOT / "docs" / "examples" / "static_map_vectors.json").read_text(encoding="utf-8")
)
# Texts that are ids too: neither a lone surrogate nor U+0000.
IDS: Final = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


def page_function() -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    names: dict[str, Any] = {}
    exec(EXAMPLES["run", "static map"], names)
    return names["shard_of"]  # type: ignore[no-any-return]  # of the page's code


def written_map(count: int, retired: set[int], tenants: dict[str, str] | None = None) -> dict[str, Any]:
    shards = [
        {"shardId": f"{place}", "connectionString": f"postgresql://u@h/{place}", "retired": place in retired}
        for place in range(count)
    ]
    return {"shards": shards, "tenants": tenants or {}}


def read_map(written: dict[str, Any]) -> ShardMap:
    return parse_shard_map(json.dumps(written).encode(), ())


def test_vectors_of_the_page_are_the_workers() -> None:
    shard_of = page_function()
    assert len(VECTORS) > 5
    for vector in VECTORS:
        written = written_map(vector["shards"], set(vector["retired"]))
        places = [int(read_map(written).shard_of(vector["key"]).shard_id)]
        places.append(int(shard_of(vector["key"], written)["shardId"]))
        assert f"{hash_of(vector['key']):016x}" == vector["hash"], vector
        assert places == [vector["place"]] * 2, vector


@pytest.mark.slow
@given(IDS, st.integers(1, 200), st.sets(st.integers(0, 199)))
def test_code_of_the_page_finds_the_workers_shard(key: str, count: int, retired: set[int]) -> None:
    written = written_map(count, retired - {count - 1})
    assert page_function()(key, written)["shardId"] == read_map(written).shard_of(key).shard_id
