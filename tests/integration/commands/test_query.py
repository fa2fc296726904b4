from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
from support.postgres.databases import ShardMaker, copy_shard, execute
from support.postgres.faults import in_recovery
from support.postgres.tenant_cases import add_tenant_at
from support.settings import settings_in

from simplu_local.postgres.server import PostgresServer
from simplu_local.processes.loopback import poll_until
from simplu_worker.commands.shards.query import Asked, query_shards
from simplu_worker.config.settings import Settings
from simplu_worker.errors import PermanentError
from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.postgres.connector import TargetSessionAttrs
from simplu_worker.shards.questions import ShardQuestion
from simplu_worker.shards.routing.locator import read_shard_map

pytestmark = pytest.mark.slow


PASSWORD = "wholly/secret@word"  # the server asks for none
GRANTS = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
FOR_ALL = "CREATE POLICY {role} ON {table} FOR SELECT TO {role} USING (true)"
RESOURCE = """
INSERT INTO resources (id, "businessType", "resourceName", "resourceId", data, date, "lastUpdated")
VALUES ($1 || '-main', 'dental', 'patient', 'p1', '{"name": "Ana"}', '2026-01-01', '2026-01-01')
"""
PATIENTS = "SELECT id, data ->> 'name' AS name FROM resources"
RUNNING = """
SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state = 'active' AND query LIKE '%pg_sleep%'
"""

Two = tuple[ShardAddress, ShardAddress]
ReaderMaker = Callable[..., Awaitable[str]]  # (*shards, statements=…, options=…) -> the role
_numbers = itertools.count(1)


@pytest.fixture
async def make_reader(make_shard: ShardMaker) -> AsyncIterator[ReaderMaker]:
    made: list[tuple[str, Sequence[ShardAddress]]] = []

    async def make(
        *shards: ShardAddress,
        options: str = "",
        statements: Sequence[str] = (GRANTS, FOR_ALL.replace("{table}", "resources")),
    ) -> str:
        role = f"asking_{next(_numbers)}"
        made.append((role, shards))
        await execute(shards[0].connection_string, f"CREATE ROLE {role} LOGIN {options}")
        for shard in shards:
            for statement in statements:
                await execute(shard.connection_string, statement.format(role=role))
        return role

    yield make
    for role, shards in made:
        for shard in shards:
            await execute(shard.connection_string, f"DROP OWNED BY {role}")
        await execute(shards[0].connection_string, f"DROP ROLE {role}")


def settings_of(
    folder: Path, role: str | None, *shards: ShardAddress, standbys: Sequence[ShardAddress | None] = ()
) -> Settings:
    path = folder / "map.json"
    path.write_text(
        json.dumps(
            {
                "shards": [
                    {"shardId": shard.shard_id, "connectionString": shard.connection_string}
                    | ({} if standby is None else {"replicaConnectionString": standby.connection_string})
                    for shard, standby in itertools.zip_longest(shards, standbys)
                ]
            }
        )
    )
    reader = {} if role is None else {"READER_USERNAME": role, "READER_PASSWORD": PASSWORD}
    return settings_in({"SHARD_MAP_FILE": str(path)} | reader)


class Printed(msgspec.Struct):
    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


class Run:
    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    async def __call__(
        self,
        settings: Settings,
        statement: str,
        *,
        as_json: bool = True,
        asked: Asked | None = None,
        **bounds: Any,
    ) -> Printed:
        self._capfd.readouterr()
        status = await query_shards(settings, ShardQuestion(statement, **bounds), asked or Asked(), as_json=as_json)
        out, err = self._capfd.readouterr()
        for shard in read_shard_map(Path(str(settings.shard_map_file)), ()).shards:
            assert str(urlsplit(shard.connection_string).password) not in out + err
        assert PASSWORD not in out + err
        return Printed(status, out, err)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return Run(capfd)


@pytest.fixture
async def two(make_shard: ShardMaker) -> tuple[ShardAddress, ShardAddress]:
    shards = await make_shard("db-1"), await make_shard("db-2")
    for shard, business_id in zip(shards, ("clinic", "smile"), strict=True):
        await add_tenant_at(shard, (business_id, "main"))
        await execute(shard.connection_string, RESOURCE, business_id)
    return shards


async def test_query_prints_the_rows_of_all_shards_with_their_shards(
    run: Run, tmp_path: Path, two: Two, make_reader: ReaderMaker
) -> None:
    settings = settings_of(tmp_path, await make_reader(*two), *two)

    table = await run(settings, PATIENTS, as_json=False)
    lines = [line.replace("│", " ").split() for line in table.out.splitlines() if "-main" in line]
    assert (table.status, lines) == (0, [["db-1", "clinic-main", "Ana"], ["db-2", "smile-main", "Ana"]])
    as_json = await run(settings, PATIENTS)
    assert sorted(as_json.rows, key=lambda row: row["shardId"]) == [
        {"shardId": "db-1", "row": {"id": "clinic-main", "name": "Ana"}},
        {"shardId": "db-2", "row": {"id": "smile-main", "name": "Ana"}},
    ]

    one = await run(settings, PATIENTS, asked=Asked(("db-2", "db-2")))
    assert [row["shardId"] for row in one.rows] == ["db-2"]
    with pytest.raises(PermanentError, match="expected a shard out of db-1, db-2; got db-3"):
        await run(settings, PATIENTS, asked=Asked(("db-3",)))
    assert table.err == as_json.err == one.err == ""


async def test_query_of_a_tenant_asks_its_shard_as_one_tenant(
    run: Run, tmp_path: Path, two: Two, make_reader: ReaderMaker
) -> None:
    role = await make_reader(*two, statements=[GRANTS])
    settings = settings_of(tmp_path, role, *two)

    printed = await run(settings, "TABLE resources", asked=Asked(tenant=("smile", "main")))
    assert [(row["shardId"], row["row"]["id"]) for row in printed.rows] == [("db-2", "smile-main")]
    assert (printed.status, printed.err) == (0, "")
    nothing = await run(settings, "TABLE resources")
    assert (nothing.status, nothing.out) == (0, "")
    assert nothing.err.startswith(f"db-1, db-2: the role {role} sees no more than one tenant's rows of resources")
    with pytest.raises(PermanentError, match="expected a tenant that lives on a shard, got nobody-main"):
        await run(settings, "TABLE resources", asked=Asked(tenant=("nobody", "main")))


VALUES = """
SELECT
    '{"b": [1, null], "a": 1e3}'::jsonb AS jsonb, E'{"a":\\n 1}'::json AS json,
    '2026-03-01 12:00:00.5+02'::timestamptz AS timestamptz, 'infinity'::timestamptz AS forever,
    '0044-03-15 BC'::date AS date, '1 mon 2 days'::interval AS interval,
    12345678901234567890.1230::numeric AS numeric, 'NaN'::numeric AS nan, 9007199254740993::bigint AS bigint,
    true AS boolean, NULL::text AS nothing, '' AS empty, E'a,"b"\\n' AS text, '\\x00ff'::bytea AS bytea,
    ARRAY[1, NULL, 3] AS array, ARRAY['a', 'b,c'] AS texts, ROW(1, 'x') AS record,
    'f81d4fae-7dec-11d0-a765-00a0c91e6bf6'::uuid AS uuid, 'a' AS answer
"""


async def test_query_prints_values_as_the_server_writes_them(
    run: Run, tmp_path: Path, make_shard: ShardMaker, make_reader: ReaderMaker
) -> None:
    shard = await make_shard()
    settings = settings_of(tmp_path, await make_reader(shard), shard)

    line = (await run(settings, VALUES)).out
    assert line.count("\n") == 1
    assert '"numeric":12345678901234567890.1230,"nan":"NaN","bigint":9007199254740993' in line
    row = json.loads(line)["row"]
    assert (row["jsonb"], row["json"]) == ({"b": [1, None], "a": 1000}, {"a": 1})
    assert (row["timestamptz"], row["forever"]) == ("2026-03-01T10:00:00.5+00:00", "infinity")
    assert (row["date"], row["interval"]) == ("0044-03-15 BC", "1 mon 2 days")
    assert (row["boolean"], row["nothing"], row["empty"], row["text"]) == (True, None, "", 'a,"b"\n')
    assert (row["bytea"], row["array"], row["texts"]) == ("\\x00ff", [1, None, 3], ["a", "b,c"])
    assert (row["record"], row["answer"]) == ({"f1": 1, "f2": "x"}, "a")

    table = (await run(settings, VALUES, as_json=False)).out
    texts = ("2026-03-01 10:00:00.5+00", "12345678901234567890.1230", '{"a": 1000, "b": [1, null]}', 'a,"b"\\n')
    assert all(text in table for text in (*texts, "\\x00ff", "{1,NULL,3}", '{a,"b,c"}'))


async def test_query_bounds_the_rows_of_each_shard_and_says_so(
    run: Run, tmp_path: Path, two: Two, make_reader: ReaderMaker
) -> None:
    settings = settings_of(tmp_path, await make_reader(*two), *two)
    numbers = "SELECT n FROM generate_series(1, 12) AS n ORDER BY n DESC;"

    printed = await run(settings, numbers, row_limit=11)
    assert [row["row"]["n"] for row in printed.rows if row["shardId"] == "db-1"] == [*range(12, 1, -1)]
    assert (printed.status, printed.err) == (1, "db-1, db-2: more than 11 rows, the --limit\n")
    wanted = await run(settings, numbers, row_limit=11, asked=Asked(wants_all=False))
    assert wanted.status == 0
    whole = await run(settings, numbers, row_limit=12)
    assert (len(whole.rows), whole.err) == (24, "")


@pytest.mark.slow(2)
async def test_query_bounds_the_bytes_of_each_shard(
    run: Run, tmp_path: Path, make_shard: ShardMaker, make_reader: ReaderMaker
) -> None:
    shard = await make_shard()
    settings = settings_of(tmp_path, await make_reader(shard), shard)
    growing = "SELECT n, repeat('x', 100 * n) AS text FROM generate_series(1, {}) AS n"

    printed = await run(settings, growing.format(5), byte_limit=1000)
    assert [row["row"]["n"] for row in printed.rows] == [1, 2, 3]
    assert (printed.status, printed.err) == (1, "shard-1: more than 16 MiB of rows\n")
    huge = await run(settings, "SELECT repeat('x', 200000000) AS text")
    assert (huge.out, huge.err) == ("", "shard-1: more than 16 MiB of rows\n")


STATEMENT_ERRORS = [
    ("SELECT nobody FROM tenants", 'column "nobody" does not exist (42703)'),
    ("SELECT 1; SELECT 2", "cannot insert multiple commands into a prepared statement (42601)"),
    ("SELECT $1::text AS a", "expected a statement without parameters, got one with $1; write the value"),
    ("SELECT", "expected a statement that returns columns, got one that returns none"),
    ("SELECT 1 AS a, 2 AS a", "expected columns with different names, as each row is a JSON object, got"),
    ("SELECT id FROM tenants FOR UPDATE", "cannot execute SELECT FOR UPDATE in a read-only transaction (25006)"),
    ("SELECT kept()", "cannot execute INSERT in a read-only transaction (25006)"),
    (
        "SELECT set_config('transaction_read_only', 'off', true)",
        "transaction read-write mode must be set before any query (25001)",
    ),
    ("SELECT set_config('role', 'postgres', false)", 'permission denied to set role "postgres" (42501)'),
]


async def test_query_names_the_error_of_a_statement_once(
    run: Run, tmp_path: Path, two: Two, make_reader: ReaderMaker
) -> None:
    made = ["CREATE TABLE noted (n integer)"]
    function = (
        "CREATE FUNCTION kept() RETURNS integer LANGUAGE sql SECURITY DEFINER "
        "AS 'INSERT INTO noted VALUES (1) RETURNING n'"
    )
    role = await make_reader(*two, statements=[*made, function, GRANTS, FOR_ALL.replace("{table}", "resources")])
    settings = settings_of(tmp_path, role, *two)
    for statement, error in STATEMENT_ERRORS:
        printed = await run(settings, statement)
        assert (statement, printed.status, printed.out) == (statement, 1, "")
        assert printed.err.startswith("db-1, db-2: no rows: "), printed.err
        assert (error in printed.err, printed.err.count("\n")) == (True, 1), printed.err


@pytest.mark.parametrize(
    ("options", "statement", "able"),
    [
        ("SUPERUSER", "SELECT 1", None),
        ("", "GRANT INSERT ON resources TO {role}", None),
        ("IN ROLE pg_write_all_data", "SELECT 1", None),
        ("IN ROLE pg_signal_backend", "SELECT 1", "pg_signal_backend"),
        ("NOINHERIT IN ROLE postgres", "SELECT 1", "postgres"),
    ],
)
async def test_query_refuses_a_role_that_can_do_more_than_read(
    run: Run,
    tmp_path: Path,
    make_shard: ShardMaker,
    make_reader: ReaderMaker,
    options: str,
    statement: str,
    able: str | None,
) -> None:
    shard = await make_shard()
    role = await make_reader(shard, options=options, statements=[GRANTS, statement])
    printed = await run(settings_of(tmp_path, role, shard), "SELECT 1 AS a")
    more = "which can do more" if able is None else f"which may become {able}, and that one can do more"
    expected = f"got {role}, {more};"
    assert (printed.status, printed.out, expected in printed.err) == (1, "", True), printed.err


async def test_query_ends_a_statement_by_its_timeout(
    run: Run, tmp_path: Path, two: Two, make_reader: ReaderMaker
) -> None:
    settings = settings_of(tmp_path, await make_reader(*two), *two)
    slow = "SELECT CASE WHEN shard_id = 'db-1' THEN pg_sleep(60)::text ELSE 'quick' END AS a FROM shard_meta"
    printed = await run(settings, slow, timeout_s=1.0)
    assert (printed.status, [row["row"] for row in printed.rows]) == (1, [{"a": "quick"}])
    assert printed.err == "db-1: no rows: canceling statement due to statement timeout (57014)\n"


@pytest.mark.slow(0.3)
async def test_query_asks_the_standby_of_a_shard(
    run: Run,
    tmp_path: Path,
    make_shard: ShardMaker,
    make_reader: ReaderMaker,
    breakable_server: PostgresServer,
) -> None:
    primary, standby = await make_shard(), await copy_shard(breakable_server)
    lone = await make_shard("lone")
    role = await make_reader(primary, lone)
    for statement in (f"CREATE ROLE {role} LOGIN", GRANTS.format(role=role)):
        await execute(standby.connection_string, statement)
    where = "SELECT pg_is_in_recovery() AS is_standby"

    async with in_recovery(breakable_server):
        for first, second in ((primary, standby), (standby, primary)):
            settings = settings_of(tmp_path, role, first, lone, standbys=[second])
            asked = await run(settings, where, asked=Asked(target=TargetSessionAttrs.STANDBY))
            assert asked.rows == [{"shardId": "shard-1", "row": {"is_standby": True}}]
            assert asked.status == 1
            assert asked.err.splitlines()[-1].startswith("lone: no rows: expected a shard with a standby, got one")
            found = await run(settings, where, asked=Asked(("shard-1",)))
            assert (found.status, found.rows[0]["row"]) == (0, {"is_standby": False})
    await execute(standby.connection_string, f"DROP OWNED BY {role}")
    await execute(standby.connection_string, f"DROP ROLE {role}")


async def started(statement: str, settings: Settings, *options: str) -> asyncio.subprocess.Process:
    password = settings.reader_password
    assert password is not None
    reader = {"READER_USERNAME": str(settings.reader_username), "READER_PASSWORD": password.get_secret_value()}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "simplu_worker", "shards", "query", statement, *options),
        env=os.environ | {"SHARD_MAP_FILE": str(settings.shard_map_file)} | reader,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow(3)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_signal_ends_the_statements_of_a_query_on_all_servers(
    tmp_path: Path, two: Two, make_reader: ReaderMaker, number: int, status: int
) -> None:
    role = await make_reader(*two)
    connection = await asyncpg.connect(two[0].connection_string)

    async def has_running(count: int) -> bool:
        return bool(await connection.fetchval(RUNNING, role) == count)

    async def all_run() -> bool:
        return await has_running(2)

    async def none_runs() -> bool:
        return await has_running(0)

    try:
        process = await started("SELECT pg_sleep(600)::text AS a", settings_of(tmp_path, role, *two), "--timeout=600")
        assert await poll_until(all_run, within_s=60)
        process.send_signal(number)
        out, err = await process.communicate()
        assert (process.returncode, out, err) == (status, b"", b"")
        assert await poll_until(none_runs, within_s=60)  # a server takes a moment
    finally:
        await connection.close()
