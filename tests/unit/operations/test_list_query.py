"""The members `filters` and `pagination` of a `list`, member by member, as docs/sending.md has them."""

from __future__ import annotations

import base64
import json
from datetime import date
from typing import Any

import pytest

from simplu_worker.operations.json_record import EXPECTED_TIME, InvalidRecordError
from simplu_worker.operations.list_query import (
    CURSOR_MAX,
    FILTERS_MAX,
    NAME_MAX,
    PATH_MAX,
    SORTED_CHARS,
    VALUES_MAX,
    ListRules,
    decode_list_query,
    resolved,
)
from simplu_worker.operations.operation import Days, ListIndex, ListProblem, ListQuery, Sort

OPERATORS = "a value, or an object of `from` and `to`, `in`, `exists` or `equals`"
BOUNDS = "`from` and `to` to be two texts or two numbers"
SCALAR = "a text, a number, true, false or null"
PATHS = f"1 to {PATH_MAX} names of members with dots between, each of 1 to {NAME_MAX} characters"
AFTER = "the `next` of a page of this list, with the same filters and sort"
SORT = "an object of `by`, the name of a member, and `descending`, true or false"
JAN_1, JAN_5, JAN_9 = (date(2026, 1, day) for day in (1, 5, 9))


def decoded(filters: object = None, pagination: object = None, list_limit: int = 1000) -> ListQuery:
    texts = (b"" if one is None else json.dumps(one).encode() for one in (filters, pagination))
    return decode_list_query(next(texts), next(texts), "patient", list_limit)


def asked(query: ListQuery, rules: ListRules) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(resolved(query, rules).asked)
    return found


def test_list_without_members_asks_for_its_first_page() -> None:
    query = decoded()
    assert (query.page, query.limit, query.members, query.values, query.path) == (1, 100, "{}", "{}", "")
    assert (query.days, query.indexes, query.names, query.sort) == (Days(), (), (), None)
    assert (query.after, query.has_total, query.problem) == (None, False, None)


@pytest.mark.parametrize(
    ("pagination", "page", "limit"),
    [
        ({"page": 3, "limit": 20}, 3, 20),
        ({"page": 2.0, "limit": 1.0}, 2, 1),
        ({"limit": 1001}, 1, 1000),
        ({"limit": 1000}, 1, 1000),
        ({"page": 10**30, "limit": 10**30}, 2**31, 1000),
        ({"page": None, "limit": None}, 1, 100),
    ],
)
def test_page_and_limit(pagination: object, page: int, limit: int) -> None:
    query = decoded(None, pagination)
    assert (query.page, query.limit) == (page, limit)


@pytest.mark.parametrize(
    ("pagination", "member"),
    [({"page": "2"}, "pagination.page"), ({"limit": 0}, "pagination.limit"), ({"page": 1.5}, "pagination.page")],
)
def test_page_that_is_no_number_of_one_is_refused(pagination: object, member: str) -> None:
    with pytest.raises(InvalidRecordError, match=f"^{member}: "):
        decoded(None, pagination)


@pytest.mark.parametrize(
    ("filters", "members"),
    [
        ({"status": "open", "size": 3}, {"status": "open", "size": 3}),
        ({"status": {"equals": {"of": ["a"]}}}, {"status": {"of": ["a"]}}),
        ({"tags": ["a", "b"]}, {"tags": ["a", "b"]}),
    ],
)
def test_equality_of_whole_members_is_left_to_the_index(filters: dict[str, Any], members: object) -> None:
    query = decoded(filters)
    assert (json.loads(query.members), query.path, query.names) == (members, "", tuple(filters))


@pytest.mark.parametrize(
    ("filters", "path", "values"),
    [
        ({"a.b": 1}, 'strict ($."a"."b" == $v0)', {"v0": 1}),
        ({"a": {"in": [1, None, "x"]}}, 'strict ($."a" == $v0 || $."a" == $v1 || $."a" == $v2)', [1, None, "x"]),
        ({"a": {"exists": True}}, 'strict (exists($."a"))', {}),
        ({"a": {"exists": False}}, 'strict ((exists($."a")) is unknown)', {}),
        ({"a": {"exists": None}}, 'strict ((exists($."a")) is unknown)', {}),
        ({"a": {"from": 1, "to": 2}}, 'strict ($."a" >= $v0 && $."a" <= $v1)', {"v0": 1, "v1": 2}),
        ({"a": {"from": None, "to": 2}}, 'strict ($."a" <= $v0)', {"v0": 2}),
        ({"a": {"from": None}}, "", {}),
        ({"a.b": {"equals": True}, "c": {"from": 1}}, 'strict ($."a"."b" == $v0) && ($."c" >= $v1)', [True, 1]),
        ({'q"uote.x': 1}, 'strict ($."q\\"uote"."x" == $v0)', {"v0": 1}),
    ],
)
def test_other_filters_become_one_path_with_variables(filters: object, path: str, values: object) -> None:
    query = decoded(filters)
    if isinstance(values, list):
        values = {f"v{number}": value for number, value in enumerate(values)}
    assert (query.path, json.loads(query.values), query.problem) == (path, values, None)


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"a.b": "x"}, ListIndex(("a", "b"), "x", "x")),
        ({"a": {"in": ["x"]}}, ListIndex(("a",), "x", "x")),
        ({"a": {"from": "x"}}, ListIndex(("a",), "x", None)),
        ({"a": {"from": "x", "to": "z"}}, ListIndex(("a",), "x", "z")),
        ({"a": {"to": "z"}}, ListIndex(("a",), None, "z")),
        ({"a": {"to": "z" * (SORTED_CHARS + 1)}}, ListIndex(("a",), None, "z" * SORTED_CHARS)),
        ({"a": {"from": "x\0"}}, None),
        ({"a": {"in": ["x", "y"]}}, None),
        ({"a.b": 1}, None),
        ({"a": {"from": 1}}, None),
        ({"a": {"from": None}}, None),
    ],
)
def test_texts_may_be_found_by_an_index(filters: object, index: ListIndex | None) -> None:
    assert decoded(filters).indexes == (() if index is None else (index,))


@pytest.mark.parametrize(
    ("filters", "days"),
    [
        ({"date": "2026-01-05"}, Days(JAN_5, JAN_5, is_one=True)),
        ({"startDate": "2026-01-01"}, Days(JAN_1, None)),
        ({"endDate": "2026-01-08T23:30:00-01:00"}, Days(None, JAN_9)),
        ({"startDate": "2026-01-01", "endDate": "2026-01-09"}, Days(JAN_1, JAN_9)),
        ({"date": "2026-01-05", "startDate": "2026-01-01", "endDate": "2026-01-09"}, Days(JAN_5, JAN_5, is_one=True)),
        ({"date": "2026-01-05", "startDate": "2026-01-09", "endDate": "2026-01-01"}, Days(JAN_9, JAN_1, is_one=True)),
        ({"date": None, "startDate": None}, Days()),
    ],
)
def test_days_are_no_members(filters: object, days: Days) -> None:
    query = decoded(filters)
    assert (query.days, query.members, query.path, query.names) == (days, "{}", "", ())


@pytest.mark.parametrize(
    ("filters", "pagination", "member", "expected"),
    [
        ({"a": {}}, None, "filters.a", OPERATORS),
        ({"a": {"from": 1, "in": [2]}}, None, "filters.a", OPERATORS),
        ({"a": {"in": [1], "exists": True}}, None, "filters.a", OPERATORS),
        ({"a": {"exists": True, "equals": 1}}, None, "filters.a", OPERATORS),
        ({"a.b": {"equals": 1, "to": 1}}, None, "filters.a.b", OPERATORS),
        ({"a": {"other": 1}}, None, "filters.a", OPERATORS),
        ({"a": {"from": 1, "to": "x"}}, None, "filters.a", BOUNDS),
        ({"a": {"from": True}}, None, "filters.a", BOUNDS),
        ({"a": {"in": [[1]]}}, None, "filters.a.in", SCALAR),
        ({"a.b": {"equals": {"x": 1}}}, None, "filters.a.b.equals", SCALAR),
        ({"a": {"in": []}}, None, "filters.a.in", f"a list of 1 to {VALUES_MAX} values"),
        ({"a": {"in": 1}}, None, "filters.a.in", f"a list of 1 to {VALUES_MAX} values"),
        ({"a": {"in": [1] * (VALUES_MAX + 1)}}, None, "filters.a.in", f"a list of 1 to {VALUES_MAX} values"),
        ({"a": {"exists": "yes"}}, None, "filters.a.exists", "true or false"),
        ({"a..b": 1}, None, "filters.a..b", PATHS),
        ({".".join("a" * (PATH_MAX + 1)): 1}, None, f"filters.{'.'.join('a' * (PATH_MAX + 1))}", PATHS),
        ({f"a.{'b' * 127}": 1, f"a.{'b' * 129}": 1}, None, f"filters.a.{'b' * 126}", PATHS),
        ({"a.\0": 1}, None, "filters.a.\0", PATHS),
        (
            {f"a.{number}": 1 for number in range(FILTERS_MAX + 1)},
            None,
            "filters",
            f"at most {FILTERS_MAX} of nested members and with operators",
        ),
        ({"date": "soon"}, None, "filters.date", EXPECTED_TIME),
        ({"endDate": 5}, None, "filters.endDate", EXPECTED_TIME),
        (None, {"sort": {"by": "a", "other": 1}}, "pagination.sort", SORT),
        (None, {"sort": "a"}, "pagination.sort", SORT),
        (None, {"sort": {"by": ""}}, "pagination.sort.by", PATHS),
        (None, {"total": "yes"}, "pagination.total", "true or false"),
        (None, {"after": "?"}, "pagination.after", AFTER),
        (None, {"after": 1}, "pagination.after", AFTER),
    ],
)
def test_query_that_cannot_be_meant(filters: object, pagination: object, member: str, expected: str) -> None:
    query = decoded(filters, {"page": 2, "limit": 7} | (pagination if isinstance(pagination, dict) else {}))
    assert query.problem == ListProblem(member, expected)
    assert (query.page, query.limit) == (2, 7)


def test_bounds_themselves_are_allowed() -> None:
    longest = f"a.{'b' * NAME_MAX}"
    deepest = ".".join("a" * PATH_MAX)
    filters = {f"a.{number}": 1 for number in range(FILTERS_MAX - 3)}
    query = decoded({**filters, longest: 1, deepest: 1, "c": {"in": [1] * VALUES_MAX}, "d": 1})
    assert query.problem is None
    assert query.names == (*filters, longest, deepest, "c", "d")


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ({"by": "name"}, Sort(("name",), is_descending=False)),
        ({"by": "a.b", "descending": True}, Sort(("a", "b"), is_descending=True)),
        ({"descending": True}, Sort((), is_descending=True)),
        ({}, Sort((), is_descending=False)),
        (None, None),
    ],
)
def test_sort(sort: object, expected: Sort | None) -> None:
    assert decoded(None, {"sort": sort}).sort == expected


def cursor(list_id: str, *, number: str = "12.5", text: str = "x", resource_id: str = "p-1", rank: int = 1) -> str:
    return base64.b64encode(json.dumps([list_id, False, rank, number, text, resource_id]).encode()).decode()


def test_page_begins_after_the_cursor_of_the_same_list() -> None:
    list_id = decoded({"a": 1}, {"sort": {"by": "a"}}).list_id
    query = decoded({"a": 1}, {"sort": {"by": "a"}, "after": cursor(list_id), "total": True})
    assert query.after is not None
    assert json.loads(query.after) == [list_id, False, 1, "12.5", "x", "p-1"]
    assert (query.has_total, query.list_id, query.problem) == (True, list_id, None)


@pytest.mark.parametrize(
    ("filters", "sort"), [({"a": 1, "b": 2}, None), ({"a": 2}, None), ({"a": 1}, {"by": "b"}), (None, None)]
)
def test_cursor_of_another_list_is_refused(filters: object, sort: object) -> None:
    list_id = decoded({"a": 1}).list_id
    query = decoded(filters, {"sort": sort, "after": cursor(list_id)})
    assert query.problem == ListProblem("pagination.after", AFTER)


def test_order_of_filters_makes_no_other_list() -> None:
    assert decoded({"a": 1, "b": 2}).list_id == decoded({"b": 2, "a": 1}).list_id
    assert decode_list_query(b"", b"", "product", 10).list_id != decode_list_query(b"", b"", "patient", 10).list_id


@pytest.mark.parametrize(
    "members", [{"number": "1e5"}, {"number": "1\n"}, {"text": "\0"}, {"resource_id": "\0"}, {"rank": 4}, {"rank": -4}]
)
def test_made_up_cursor_is_refused(members: dict[str, Any]) -> None:
    query = decoded(None, {"after": cursor(decoded().list_id, **members)})
    assert query.problem == ListProblem("pagination.after", AFTER)


def test_cursor_is_bounded() -> None:
    list_id = decoded().list_id
    room = CURSOR_MAX * 3 // 4 - len(json.dumps([list_id, False, 1, "12.5", "", "p-1"]))
    for length, is_refused in ((room, False), (room + 3, True)):
        query = decoded(None, {"after": cursor(list_id, text="x" * length)})
        assert (query.problem is not None) is is_refused


PLAIN = ListRules()
DATED = ListRules(date=("when",), filtered=frozenset({("when",), ("a",)}))


@pytest.mark.parametrize("rules", [PLAIN, DATED])
def test_plain_equality_asks_for_nothing_more(rules: ListRules) -> None:
    query = decoded({"status": "open"}, {"page": 2})
    assert asked(query, rules) == {
        "page": 2,
        "limit": query.limit,
        "listId": query.list_id,
        "names": ["status"],
        "madeFrom": None,
        "madeTo": None,
        "hasTotal": False,
        "isDescending": False,
    }


def test_days_of_creation_are_asked_without_a_date() -> None:
    found = asked(decoded({"startDate": "2026-01-01", "endDate": "2026-01-03"}), PLAIN)
    assert (found["madeFrom"], found["madeTo"]) == ("2026-01-01T00:00:00Z", "2026-01-03T23:59:59.999999Z")
    assert "date" not in found


@pytest.mark.parametrize(
    ("filters", "rules", "expected"),
    [
        ({"date": "2026-01-05"}, PLAIN, {"date": ["date"], "orCreation": True}),
        ({"date": "2026-01-05"}, DATED, {"date": ["when"], "orCreation": False}),
        ({"startDate": "2026-01-05", "endDate": "2026-01-05"}, DATED, {"date": ["when"], "orCreation": False}),
    ],
)
def test_days_of_the_own_date(filters: object, rules: ListRules, expected: dict[str, Any]) -> None:
    query = resolved(decoded(filters), rules)
    found = json.loads(query.asked)
    assert "madeFrom" not in found
    assert {name: found[name] for name in expected} == expected
    assert (found["first"], found["last"], "isSorted" in found) == ("2026-01-05", "2026-01-05", False)
    is_indexed = {"path": ["when"], "isTime": True} if rules is DATED else None
    assert found.get("index") == is_indexed


def test_own_date_without_an_index() -> None:
    found = asked(
        decoded({"date": "2026-01-05", "a.b": "x"}), ListRules(date=("when",), filtered=frozenset({("a", "b")}))
    )
    assert "index" not in found


@pytest.mark.parametrize(
    ("filters", "filtered", "index"),
    [
        ({"a": {"from": "x"}}, {("a",)}, {"path": ["a"], "isTime": False, "low": "x", "high": None}),
        ({"b": {"to": "y"}, "a": {"from": "x"}}, {("a",)}, {"path": ["a"], "isTime": False, "low": "x", "high": None}),
        ({"a": {"from": "x"}}, {("b",)}, None),
        ({"when": {"from": "x"}}, {("when",)}, None),
    ],
)
def test_index_of_a_filtered_member(filters: object, filtered: set[tuple[str, ...]], index: object) -> None:
    assert asked(decoded(filters), ListRules(date=("when",), filtered=frozenset(filtered))).get("index") == index


def test_what_is_asked_beyond_equality() -> None:
    list_id = decoded({"a": {"from": 1}}, {"sort": {"by": "b", "descending": True}}).list_id
    pagination = {"sort": {"by": "b", "descending": True}, "after": cursor(list_id), "total": True}
    query = decoded({"a": {"from": 1}}, pagination)
    assert (query.members, query.values) == ("{}", '{"v0":1}')
    assert asked(query, PLAIN) == {
        "page": 1,
        "limit": query.limit,
        "listId": list_id,
        "madeFrom": None,
        "madeTo": None,
        "path": query.path,
        "values": {"v0": 1},
        "isSorted": True,
        "by": ["b"],
        "after": [list_id, False, 1, "12.5", "x", "p-1"],
        "hasTotal": True,
        "isDescending": True,
        "names": ["a"],
    }
    for alone in ({"sort": {"by": "b"}}, {"total": True}, {"after": cursor(decoded().list_id)}):
        found = asked(decoded(None, alone), PLAIN)
        assert ("isSorted" in found, found["hasTotal"], "after" in found) == (
            "sort" in alone,
            "total" in alone,
            "after" in alone,
        )
        assert (found["isDescending"], "path" in found, "values" in found, found["names"]) == (False, False, False, [])
