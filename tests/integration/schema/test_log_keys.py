from __future__ import annotations

import json
import random
import re
import uuid
from typing import Any, Final

from support.postgres.tenant_cases import TenantCase, fetch
from support.requires import ROOT

from simplu_worker.shards.apply.write_attempt import DUPLICATE, SUCCEEDED
from simplu_worker.shards.log import id_of_key, key_of_id
from simplu_worker.shards.postgres.pool import Connection, ShardPool

UUID: Final = "0123abcd-89ab-cdef-0123-456789abcdef"
ALPHABETS: Final = ("abc-0123", "ABCDEF-0123456789", "é0-", "ж-", "日本", "😀-a", " %_\\'\"\t\n/")
LENGTHS: Final = (1, 2, 5, 15, 16, 17, 32, 35, 36, 37, 100, 256, 300)
PAGE: Final = ROOT / "docs" / "reading.md"
TENANT_ID: Final = "clinic-main"
REQUESTS: Final = ("00000000-0000-4000-8000-00000001e241", "order:123458")
# The view of each role, as docs/reading.md makes them.
VIEWS: Final = {"postgres": "operations", "clinic_site": "operations", "main_reports": "main_operations"}
ROLES: Final = f"""
CREATE ROLE clinic_site;
GRANT SELECT ON operations TO clinic_site;
CREATE ROLE main_reports;
CREATE VIEW main_operations WITH (security_barrier) AS SELECT * FROM operations WHERE tenant_id = '{TENANT_ID}';
GRANT SELECT ON main_operations TO main_reports
"""


def ids() -> list[str]:
    draw = random.Random(1)
    uuids = [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(200)]
    odd = [UUID.replace(one, other, 1) for one in "0-ce" for other in "g-_A é٠"]
    odd += [
        UUID.replace("-", ""),
        f"{{{UUID}}}",
        f"{UUID}\n",
        f"{UUID} ",
        UUID[:-1],
        "-" * 36,
        "\\x01",
        "\\x",
        "order:1",
    ]
    texts = [
        "".join(draw.choices(alphabet, k=length)) for alphabet in ALPHABETS for length in LENGTHS for _ in range(3)
    ]
    return [*uuids, *(one.upper() for one in uuids), *(one.title() for one in uuids), *odd, *texts]


async def test_keys_are_the_same_in_sql_and_come_back_as_ids(shard: ShardPool) -> None:
    texts = ids()
    keys = [key_of_id(text) for text in texts]
    rows = await fetch(
        shard,
        "SELECT encode(simplu_key(text), 'hex') AS key, simplu_id(decode(key, 'hex')) AS id,"
        " simplu_id('\\x03'::bytea || decode(key, 'hex') || int8send(-7) || int2send(3::smallint)) AS kept_id,"
        " encode('\\x03'::bytea || decode(key, 'hex') || int8send(-7) || int2send(3::smallint), 'hex') AS kept_key"
        " FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS sent (text, key, number) ORDER BY number",
        texts,
        keys,
    )

    assert [row["key"] for row in rows] == keys
    assert [row["id"] for row in rows] == texts
    assert [row["kept_id"] for row in rows] == texts
    assert [id_of_key(row["kept_key"]) for row in rows] == texts
    nothing = "SELECT simplu_key(NULL) AS key, simplu_id(NULL) AS id, simplu_id('\\x04ff') AS other"
    assert await fetch(shard, nothing) == [{"key": None, "id": None, "other": None}]


async def test_view_has_the_ids_as_they_were_sent(tenant: TenantCase) -> None:
    texts = list(dict.fromkeys(text for text in ids()[::3] if text.isprintable() and len(text) <= 128))
    sent = [tenant.operation("create", text, {}, request_id=text) for text in texts]

    assert await tenant.apply(*sent) == [SUCCEEDED] * len(sent)

    query = "SELECT request_id, resource_id FROM operations WHERE tenant_id = $1 ORDER BY position"
    rows = await fetch(tenant.pool, query, tenant.tenant_id)
    assert [(row["request_id"], row["resource_id"]) for row in rows] == [(text, text) for text in texts]
    found = await fetch(
        tenant.pool,
        "SELECT single.resource_id FROM unnest($2::text[]) WITH ORDINALITY AS sent (text, number)"
        " CROSS JOIN LATERAL simplu_operation($1, text) AS single ORDER BY number",
        tenant.tenant_id,
        texts,
    )
    assert [row["resource_id"] for row in found] == texts
    assert await tenant.apply(*sent) == [DUPLICATE] * len(sent)


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for inner in plan.get("Plans", ()) for node in nodes(inner))]


def log_scans(plan: str) -> list[dict[str, Any]]:
    return [node for node in nodes(json.loads(plan)[0]["Plan"]) if node.get("Relation Name") == "log_rows"]


async def plans_of(connection: Connection, query: str, request: str) -> list[str]:
    literals = query.replace("$1", f"'{TENANT_ID}'").replace("$2", f"'{request}'")
    await connection.execute(f"SET LOCAL plan_cache_mode = force_generic_plan; PREPARE asked (text, text) AS {query}")
    statements = (
        f"EXPLAIN (FORMAT JSON) {literals}",
        f"EXPLAIN (FORMAT JSON) EXECUTE asked ('{TENANT_ID}', '{request}')",
    )
    plans = [(await connection.fetch(statement))[0][0] for statement in statements]
    await connection.execute("DEALLOCATE asked")
    return plans


async def test_operation_is_found_by_the_key_as_the_page_says(tenant: TenantCase) -> None:
    (paragraph,) = re.findall(r"(?s)\*\*One operation\*\*.*?\n\n", PAGE.read_text(encoding="utf-8"))
    advice = " ".join(paragraph.split())
    (by_key,) = re.findall(r"`(request_key = simplu_key\()'…'\)`", advice)
    assert "`simplu_operation`" in advice
    assert "`CROSS JOIN LATERAL simplu_operation(…)`" in advice
    assert "`request_id` has no index" in advice
    async with tenant.pool.connection() as connection:
        await connection.execute(
            f"BEGIN; {ROLES}; SET LOCAL simplu.tenant = '{TENANT_ID}'; SET LOCAL enable_seqscan = off"
        )
        try:
            await _check_plans(connection, by_key)
        finally:
            await connection.execute("ROLLBACK")


async def _check_plans(connection: Connection, by_key: str) -> None:
    for role, view in VIEWS.items():
        await connection.execute(f"SET LOCAL ROLE {role}")
        fast = [f"SELECT * FROM {view} WHERE tenant_id = $1 AND {by_key}$2)"]
        if view == "operations":
            fast.append("SELECT * FROM simplu_operation($1, $2)")
            fast.append("SELECT * FROM unnest(ARRAY[$2, $2]) AS id CROSS JOIN LATERAL simplu_operation($1, id)")
        slow = f"SELECT * FROM {view} WHERE tenant_id = $1 AND request_id = $2"
        for request in REQUESTS:
            for query in fast:
                for plan in await plans_of(connection, query, request):
                    (scan,) = log_scans(plan)
                    assert scan.get("Index Name") == "log_rows_pkey", (role, query)
                    assert {"tenant_no = ", "request = "} <= set(re.findall(r"\w+ = ", scan["Index Cond"])), query
            for plan in await plans_of(connection, slow, request):
                (scan,) = log_scans(plan)
                assert "request" not in scan.get("Index Cond", ""), plan
