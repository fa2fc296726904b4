"""The statement that `shards query` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.citrus.cases import API_KEY
from support.settings import settings_in

from simplu_local.processes.loopback import HOST
from simplu_local.stack.citrus_server import CitrusServer
from simplu_worker.cli import app
from simplu_worker.commands.output import show
from simplu_worker.commands.shards.query import read_statement
from simplu_worker.commands.shards.show import route_keys
from simplu_worker.config.settings import Settings
from simplu_worker.errors import UsageError

EXPECTED = "expected a statement that begins with SELECT, VALUES, TABLE or WITH"


def test_statement_is_the_argument_or_the_content_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "count.sql").write_text("\ufeff-- how many\nSELECT count(*) FROM tenants;\n", encoding="utf-8")
    (tmp_path / "select.sql").write_text("VALUES (1)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert read_statement("TABLE tenants") == "TABLE tenants"
    assert read_statement("count.sql") == "-- how many\nSELECT count(*) FROM tenants;\n"
    assert read_statement("select.sql") == "VALUES (1)"
    assert read_statement(long := f"SELECT '{'x' * 5000}'") == long


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("DELETE FROM tenants", f"{EXPECTED}, or a readable file of UTF-8 with one, got 'DELETE FROM tenants'"),
        ("none.sql", f"{EXPECTED}, or a readable file of UTF-8 with one, got 'none.sql'"),
        (".", "or a readable file of UTF-8 with one, got '.'"),
        ("latin.sql", "or a readable file of UTF-8 with one, got 'latin.sql'"),
        ("copy.sql", f"{EXPECTED} in copy.sql, got 'COPY tenants TO STDOUT'"),
        ("D" * 5000, f"got '{'D' * 59}…'"),
        ("DELETE\0", "got 'DELETE"),
    ],
)
def test_statement_that_does_not_read_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    (tmp_path / "copy.sql").write_text("COPY tenants TO STDOUT", encoding="utf-8")
    (tmp_path / "latin.sql").write_bytes(b"SELECT '\xe9'")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        read_statement(argument)
    assert message in str(caught.value)


def test_shards_and_a_tenant_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="expected --shard or --tenant, got both"):
        app(["shards", "query", "SELECT 1", "--shard", "db-1", "--tenant", "clinic", "main"])


URL = "postgresql://user:correct-horse@db{}.internal:5432/shard"
KEYS = [f"clinic-{number}" for number in range(200)]


def settings_of(
    folder: Path, count: int, *, retired: frozenset[int] = frozenset(), pins: dict[str, str] | None = None
) -> Settings:
    shards = [
        {"shardId": f"shard-{number}", "connectionString": URL.format(number), "retired": number in retired}
        for number in range(count)
    ]
    path = folder / "map.json"
    path.write_text(json.dumps({"shards": shards, "tenants": pins or {}}))
    return settings_in({"AWS_REGION": "eu-west-1", "SHARD_MAP_FILE": str(path)})


async def printed(settings: Settings, *words: str, capfd: pytest.CaptureFixture[str]) -> Any:
    status = await show(route_keys(settings, words), as_json=True)
    out = capfd.readouterr().out
    assert "correct-horse" not in out
    return json.loads(out) | {"status": status}


async def test_route_names_the_shard_of_each_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    retired = frozenset({1, 3})
    settings = settings_of(tmp_path, 5, retired=retired, pins={"clinic-7": "shard-3"})

    said = await printed(settings, *KEYS, KEYS[0], capfd=capfd)

    assert said["status"] == 0
    assert [route["key"] for route in said["routes"]] == KEYS
    for route in said["routes"]:
        if route["key"] == "clinic-7":
            assert route == {"key": "clinic-7", "shardId": "shard-3", "pinned": True}
        else:
            assert route["shardId"] in {"shard-0", "shard-2", "shard-4"}


def citrus_settings(url: str) -> Settings:
    env = {"AWS_REGION": "eu-west-1", "CITRUS_SERVER_URL": url, "CITRUS_API_KEY": API_KEY, "CITRUS_RETRY_ATTEMPTS": "1"}
    return settings_in(env)


async def test_route_asks_citrus_where_keys_are_registered(capfd: pytest.CaptureFixture[str]) -> None:
    async def make_shard() -> tuple[str, str]:
        raise AssertionError

    citrus = CitrusServer(api_key=API_KEY, make_shard=make_shard, max_businesses=10)
    for number in (1, 2):
        citrus.add_shard(f"shard-{number}", f"postgresql://user:correct-horse@{HOST}:1/shard_{number}")
    for key, shard_id in {"a-1": "shard-1", "b/1": "shard-2"}.items():
        citrus.registry.place(key, citrus.registry.shards[shard_id])
    citrus.registry.shards["shard-2"].is_active = False
    async with citrus.serve() as url:
        said = await printed(citrus_settings(url), "a-1", "b/1", capfd=capfd)
        unknown = await printed(citrus_settings(url), "a-1", "c-1", capfd=capfd)

    assert said["routes"] == [
        {"key": "a-1", "shardId": "shard-1"},
        {"key": "b/1", "shardId": "shard-2", "inactive": True},
    ]
    assert (said["status"], unknown["status"]) == (0, 1)
    assert unknown["routes"][1] == {"key": "c-1", "odd": "not registered"}
