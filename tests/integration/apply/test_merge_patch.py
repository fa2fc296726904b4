"""`simplu_merge_patch` as of schema version 2: quicker, and in all it gives the one of version 1, and RFC 7396."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.postgres.tenant_cases import NO_CHECKS, TenantCase

from simplu_local.workload.reference_model import canonical_text, merge_patch, parse_json
from simplu_worker.shards.apply.writer import SUCCEEDED
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.pool import Connection, ShardPool
from simplu_worker.shards.schema.sql_files import MIGRATIONS

NAMES = st.sampled_from(["", "a", "b", "A", "é", "$", "0", '"', "\\", "a.b"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(float),
    st.text("ab\x01é💊", max_size=3),
)
# Rather objects within objects than lists: there the rule is.
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=15,
)
OBJECTS = st.dictionaries(NAMES, JSON, max_size=6)
PAIRS = st.lists(st.tuples(JSON | OBJECTS, JSON | OBJECTS), min_size=1, max_size=20)
DEPTH = 1000

_resource_numbers = itertools.count(1)

MERGED = """
SELECT
    simplu_merge_patch(target::jsonb, patch::jsonb)::text AS new,
    pg_temp.merge_patch_of_version_1(target::jsonb, patch::jsonb)::text AS old
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS sent (target, patch, place)
ORDER BY place
"""


@pytest.fixture
async def connection(common_address: ShardAddress) -> AsyncIterator[Connection]:
    """Give a connection to a shard that has, for this connection alone, the function of version 1 too."""
    first = re.search(r"CREATE FUNCTION simplu_merge_patch\(.*?\n\$\$;\n", MIGRATIONS[0].text, re.DOTALL)
    assert first is not None
    pool = ShardPool(common_address, size=1)
    async with pool.connection() as lent:
        await lent.execute(first[0].replace("simplu_merge_patch", "pg_temp.merge_patch_of_version_1"))
        yield lent
    await pool.close()


async def merged(connection: Connection, pairs: Sequence[tuple[Any, Any]]) -> list[tuple[str | None, str | None]]:
    """Return what both functions make of (target, patch), each None for no value at all."""
    texts = [[None if one is ... else json.dumps(one) for one in column] for column in zip(*pairs, strict=True)]
    return [(row["new"], row["old"]) for row in await connection.fetch(MERGED, *texts)]


@pytest.mark.slow(3)
@settings(max_examples=150, suppress_health_check=NO_CHECKS)
@given(pairs=PAIRS)
async def test_merge_patch_equals_the_first_one_and_the_rfc_for_any_documents(
    connection: Connection, pairs: list[tuple[Any, Any]]
) -> None:
    """To the digit as before, and as in RFC 7396."""
    for (new, old), (target, patch) in zip(await merged(connection, pairs), pairs, strict=True):
        assert new == old
        assert new is not None
        expected = merge_patch(parse_json(json.dumps(target)), parse_json(json.dumps(patch)))
        assert canonical_text(parse_json(new)) == canonical_text(expected)


@pytest.mark.slow(3)
@settings(max_examples=60, suppress_health_check=NO_CHECKS)
@given(pairs=st.lists(st.tuples(OBJECTS, OBJECTS | st.dictionaries(NAMES, SCALARS)), min_size=1, max_size=20))
async def test_patch_operations_keep_to_the_rfc_with_and_without_the_function(
    tenant: TenantCase, pairs: list[tuple[Any, Any]]
) -> None:
    """A wave merges the flat ones without the function, with any names of members."""
    ids = [f"r{next(_resource_numbers)}" for _ in pairs]
    sent = [tenant.operation("create", *one) for one in zip(ids, (target for target, _ in pairs), strict=True)]
    sent += [tenant.operation("patch", *one) for one in zip(ids, (patch for _, patch in pairs), strict=True)]

    assert await tenant.apply(*sent) == [SUCCEEDED] * len(sent)

    stored = await tenant.resources()
    for resource_id, (target, patch) in zip(ids, pairs, strict=True):
        expected = merge_patch(parse_json(json.dumps(target)), parse_json(json.dumps(patch)))
        assert canonical_text(stored["patient", resource_id]) == canonical_text(expected)


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"a": 1}, {"a": [{"b": None}, [{"c": None}]]}, {"a": [{"b": None}, [{"c": None}]]}),
        ({"a": [None]}, {"b": []}, {"a": [None], "b": []}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
        ({"a": 1}, {"a": {}}, {"a": {}}),
        ({"a": 1}, {"a": {"b": None}}, {"a": {}}),
        ({"a": {"b": 1}}, {"a": {"c": {"d": None, "e": 1}}}, {"a": {"b": 1, "c": {"e": 1}}}),
        ({"a": {"b": 1}}, {"a": {"b": None}, "c": 1}, {"a": {}, "c": 1}),
        ({"a": None}, {}, {"a": None}),
        ({}, {"a": None, "b": None}, {}),
        ([1], {"a": 1}, {"a": 1}),
        ([1], {"a": {"b": 1}}, {"a": {"b": 1}}),
        ("text", {}, {}),
        (None, {"a": None}, {}),
        (..., {"a": {"b": None}}, {"a": {}}),
        ({"a": 1}, ..., {"a": 1}),
        ([1], ..., {}),
        (..., ..., {}),
        ({"a": 1}, [None], [None]),
        ({"a": 1}, None, None),
    ],
)
async def test_merge_patch_keeps_to_the_rule_when_it_takes_its_short_way(
    connection: Connection, target: Any, patch: Any, expected: Any
) -> None:
    """A list's elements are no patches, an empty object is one, and other values are replaced (`...` is SQL's null)."""
    ((new, old),) = await merged(connection, [(target, patch)])

    assert new is not None
    assert json.loads(new) == expected
    assert new == old


async def test_merge_patch_goes_as_deep_as_the_first_one(connection: Connection) -> None:
    """Patches that merged before an upgrade merge after it; a patch that is too deep is an error of its data."""
    text = '{"a": ' * DEPTH + "1" + ', "b": null}' * DEPTH
    query = "SELECT {}('{{}}', $1::text::jsonb)::text"

    new = await connection.fetchval(query.format("simplu_merge_patch"), text)

    assert new == await connection.fetchval(query.format("pg_temp.merge_patch_of_version_1"), text)
    with pytest.raises(asyncpg.InvalidTextRepresentationError):  # of the data, as when the stack ends
        await connection.fetchval(query.format("simplu_merge_patch"), '{"a": ' * 9000 + "1" + "}" * 9000)


async def test_merge_patch_takes_less_time_than_the_first_one(connection: Connection) -> None:
    """Measured in one server: a flat patch of a few members, as nearly all are, in less than three quarters."""
    target = json.dumps({f"member{number}": f"value {number}" for number in range(15)})
    patch = json.dumps({"member1": "another", "member2": 5})
    spent = dict.fromkeys(("simplu_merge_patch", "pg_temp.merge_patch_of_version_1"), float("inf"))
    query = (
        "EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) SELECT {}($1::jsonb, jsonb_set($2::jsonb, '{{n}}', to_jsonb(n)))"
        " FROM generate_series(1, 2000) AS n"
    )

    for function in [*spent] * 5:
        plan = json.loads(await connection.fetchval(query.format(function), target, patch))
        spent[function] = min(spent[function], plan[0]["Execution Time"])

    assert spent["simplu_merge_patch"] < 0.75 * spent["pg_temp.merge_patch_of_version_1"]
