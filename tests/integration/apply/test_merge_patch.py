from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.postgres.tenant_cases import NO_CHECKS, TenantCase

from simplu_local.workload.json_values import canonical_text, parse_json
from simplu_local.workload.reference_model import merge_patch
from simplu_worker.shards.apply.write_attempt import SUCCEEDED

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

_resource_numbers = itertools.count(1)


@pytest.mark.slow(3)
@settings(max_examples=60, suppress_health_check=NO_CHECKS)
@given(pairs=st.lists(st.tuples(OBJECTS, OBJECTS | st.dictionaries(NAMES, SCALARS)), min_size=1, max_size=20))
async def test_patch_keeps_to_the_rfc_for_any_documents(tenant: TenantCase, pairs: list[tuple[Any, Any]]) -> None:
    ids = [f"r{next(_resource_numbers)}" for _ in pairs]
    sent = [tenant.operation("create", *one) for one in zip(ids, (target for target, _ in pairs), strict=True)]
    sent += [tenant.operation("patch", *one) for one in zip(ids, (patch for _, patch in pairs), strict=True)]

    assert await tenant.apply(*sent) == [SUCCEEDED] * len(sent)

    stored = await tenant.resources()
    for resource_id, (target, patch) in zip(ids, pairs, strict=True):
        expected = merge_patch(parse_json(json.dumps(target)), parse_json(json.dumps(patch)))
        assert canonical_text(stored["patient", resource_id]) == canonical_text(expected)
