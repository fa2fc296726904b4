"""A kind of operation, and a column of resources, are named wherever they have to be."""

from __future__ import annotations

from typing import get_args, get_type_hints

import msgspec
import pytest
from simplu_client import messages
from support.postgres.tenant_cases import operation

from simplu_local.workload import reference_model
from simplu_worker.operations.business_types import RESOURCE_COLUMNS
from simplu_worker.operations.verbs import READING_KINDS, VERBS, Verb, _verb_of
from simplu_worker.operations.waves import plan_waves
from simplu_worker.shards.apply.wave_run import statement_for
from simplu_worker.shards.postgres.queries import QUERIES, sql_files
from simplu_worker.transfers import QUERIES as TRANSFERS
from simplu_worker.vocabulary import OperationKind

SCHEMA = sql_files("migrations")[0].read_text()


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_kind_is_in_schema_statements_and_waves(verb: Verb) -> None:
    assert f"WHEN '{verb.code}' THEN '{verb.kind}'" in SCHEMA
    statement = statement_for([verb.kind] if verb.is_reading else [])
    for query in (statement, f"{statement}_new", *([] if verb.is_reading else ["fast_path"])):
        assert f"'{verb.kind}'" in QUERIES[query]
    (wave,) = plan_waves([operation(verb.kind, None if verb.has_query else "r1", "{}" if verb.has_data else None)])
    assert bool(wave.reads) is verb.is_reading


TABLE = {  # code; needs an id, has data, a whole document, reads, has a query
    "create": ("c", False, True, True, False, False),
    "update": ("u", True, True, True, False, False),
    "patch": ("p", True, True, False, False, False),
    "delete": ("d", True, False, False, False, False),
    "read": ("r", True, False, False, True, False),
    "list": ("l", False, False, False, True, True),
}


def test_kinds_need_and_do_what_the_table_says() -> None:
    assert {kind: msgspec.structs.astuple(_verb_of(kind)) for kind in OperationKind} == {
        kind: (kind, *row) for kind, row in TABLE.items()
    }


def test_codes_of_kinds_are_letters_of_their_own() -> None:
    codes = [verb.code for verb in VERBS.values()]
    assert len({*codes, "m"}) == len(OperationKind) + 1  # m: no operation
    assert all(len(code) == 1 and code.islower() for code in codes)


def test_model_and_client_have_all_kinds() -> None:
    sent = {get_type_hints(one)["operation"] for one in get_args(messages.Operation)}
    assert {kind for one in sent for kind in get_args(one)} == set(OperationKind)
    assert {*reference_model.WRITING_KINDS} == set(OperationKind) - READING_KINDS
    assert {*reference_model.READING_KINDS} == READING_KINDS


def test_columns_of_resources_are_listed_in_their_order() -> None:
    listed = ", ".join(name if name.islower() else f'"{name}"' for name in RESOURCE_COLUMNS)
    table = SCHEMA.partition("CREATE TABLE public.resources (")[2].partition("PRIMARY KEY")[0]
    lines = [line.split()[0].strip('"') for line in table.splitlines() if line.strip()]

    assert tuple(lines) == RESOURCE_COLUMNS
    assert f"INSERT INTO public.resources ({listed})" in TRANSFERS["write_resources"]
    assert [name for name in RESOURCE_COLUMNS[1:] if name not in TRANSFERS["checksum_resources"]] == []
