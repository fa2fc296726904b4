"""The reference's database is imported under load on a small scale, and the command that does it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from acceptance.programs import run_program
from support.postgres.databases import execute
from support.restaurants import fill_restaurants, mapping_text, row_count
from support.runbook.scene import Scene
from support.runbook.world import open_world

RESTAURANTS, ORDERS = 4, 6

in_module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.slow(30)
def test_source_is_followed_under_load_until_the_cut_over() -> None:
    out = run_program("acceptance.importing", "--restaurants", "5", "--orders", "20", "--follow")
    assert "rows that differ, operations lost, done twice or dead: nothing" in out
    assert "cut over in" in out


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene() -> AsyncIterator[Scene]:
    """Run two shards and a worker, and the server of a source."""
    async with open_world() as world, Scene(world, "importing") as scene:
        await scene.deploy("db-1", "db-2")
        source = await scene.add_server("old-db", database="pos")
        await fill_restaurants(source.url, restaurants=RESTAURANTS, orders=ORDERS)
        scene.write("restaurants.toml", mapping_text())
        scene.write("source-url", source.url)
        yield scene


async def run_import(scene: Scene, options: str = "", *, status: int) -> dict[str, Any]:
    """Return the JSON of `tenants import` with *options*."""
    command = f"simplu-worker tenants import {options} --json --env-file worker.env 2>err"
    found, out = await scene.run_lines(f"IMPORT_SOURCE_URL_FILE=source-url {command}")
    assert found == status, (out, (scene.folder / "err").read_text())
    answer: dict[str, Any] = json.loads(out)
    return answer


@in_module_loop
@pytest.mark.slow(10)
async def test_command_plans_imports_and_prints_certificates_again(scene: Scene) -> None:
    await execute(scene.servers["old-db"].url, "UPDATE themes SET updated_at = '-infinity' WHERE restaurant_id = 2")
    planned = await run_import(scene, "restaurants.toml --refused-file refused", status=1)
    path = scene.folder / "refused"
    (line,) = path.read_text().splitlines()
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(line) == planned["refused"]["first"][0]
    assert (planned["counts"], planned["rows"]) == ({"import": RESTAURANTS}, row_count(RESTAURANTS, ORDERS) - 1)
    found, out = await scene.run_lines(
        "IMPORT_SOURCE_URL_FILE=source-url simplu-worker tenants import restaurants.toml"
        " --refused-file refused --env-file worker.env"
    )
    assert (found, "--refused-file: expected a new file at refused, got: File exists" in out) == (78, True)

    left = await run_import(scene, "restaurants.toml --apply", status=1)
    assert left["counts"] == {"imported": RESTAURANTS - 1, "left": 1}
    for option, state in (("", "discard"), (" --apply", "discarded")):
        discarded = await run_import(scene, f"--discard{option}", status=0)
        assert [(one["name"], one["state"]) for one in discarded["tenants"]] == [("2 main", state)]
    result = await run_import(scene, "restaurants.toml --apply --leave-refused", status=1)
    assert result["counts"] == {"imported": 1, "there": RESTAURANTS - 1}
    again = await run_import(scene, "restaurants.toml --apply", status=0)
    assert again["counts"] == {"there": RESTAURANTS}
    of_left = {one["name"]: one["certificate"] for one in left["tenants"] if one["state"] == "imported"}
    of_again = {one["name"]: one["certificate"] for one in again["tenants"]}
    assert of_again == of_left | {"2 main": result["tenants"][1]["certificate"]}


@in_module_loop
@pytest.mark.slow(5)
async def test_command_follows_until_it_is_interrupted(scene: Scene) -> None:
    source = scene.servers["old-db"].url
    await execute(source, "INSERT INTO restaurants VALUES (9, 'New', NULL, NULL, now(), now())")
    words = ("tenants", "import", str(scene.folder / "restaurants.toml"), "--apply", "--follow", "--json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "simplu_worker", *words),
        env=os.environ | scene.environment | {"IMPORT_SOURCE_URL": source},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while "following until Ctrl-C" not in (await process.stderr.readline()).decode():
            pass
        await execute(source, "UPDATE restaurants SET name = 'Newer', updated_at = now() WHERE id = 9")
        while "followed to" not in (await process.stderr.readline()).decode():
            pass
        process.send_signal(signal.SIGINT)
        answer = json.loads(await process.stdout.read())
        assert await process.wait() == 0
    assert answer["counts"] == {"followed": 1, "there": RESTAURANTS}
    result = await run_import(scene, "restaurants.toml --apply", status=0)
    assert result["counts"] == {"imported": 1, "there": RESTAURANTS}


@in_module_loop
@pytest.mark.slow(5)
async def test_command_takes_the_source_from_its_variable_only(scene: Scene) -> None:
    """Without it 78, and the name of the variable; no password is ever shown, whatever the URL is.

    A command that failed leaves no file, and can run again as it is.
    """
    status, out = await scene.run_lines("simplu-worker tenants import --env-file worker.env")
    assert (status, out.partition(":")[0]) == (78, "IMPORT_SOURCE_URL")
    for url in ("mysql://a:topsecret@b/c", "postgresql://a:topsecret@127.0.0.1:1/c"):
        status, out = await scene.run_lines(
            f"IMPORT_SOURCE_URL={url} simplu-worker tenants import --refused-file unused --env-file worker.env"
        )
        assert (status, "topsecret" in out, "IMPORT_SOURCE_URL" in out) == (1, False, True), out
        assert not (scene.folder / "unused").exists()
    status, out = await scene.run_lines("simplu-worker tenants import --discard --follow --env-file worker.env")
    assert (status, "expected --discard alone or with --apply" in out) == (2, True)
    status, out = await scene.run_lines("simplu-worker tenants import --source 'pos of 7' --env-file worker.env")
    assert (status, "expected --source with --discard" in out) == (2, True)
    gone = "IMPORT_SOURCE_URL=postgresql://127.0.0.1:1/c simplu-worker tenants import --discard --env-file worker.env"
    status, out = await scene.run_lines(f"{gone} --source 'pos of 7'")
    assert (status, "pos of 7: nothing to discard" in out) == (0, True), out
