"""The settings of a command: every problem at once, those of its parts and misspelt variables included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from simplu_worker.cli import app
from simplu_worker.commands.running import read_settings
from simplu_worker.errors import ConfigurationError
from simplu_worker.telemetry import log as log_module

COMPLETE = {
    "AWS_REGION": "eu-central-1",
    "KINESIS_STREAM_NAME": "resources-operations",
    "SQS_DEAD_LETTER_QUEUE_URL": "http://127.0.0.1:4566/000000000000/dead-letters",
    "CITRUS_SERVER_URL": "http://citrus.server.com:8080/",
}
WORD = "pl4nted-s3cret"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in os.environ:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    before, log_module._secrets = log_module._secrets, log_module._Secrets()
    yield
    log_module._secrets = before


def problems_of(monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str], *, for_run: bool = True) -> list[str]:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    problems: tuple[str, ...] = ()
    try:
        read_settings(None, for_run=for_run)
    except ConfigurationError as exc:
        problems = exc.problems
    assert WORD not in "".join(problems)
    return list(problems)


def names_of(problems: list[str]) -> list[str]:
    return [problem.partition(":")[0] for problem in problems]


@pytest.fixture
def _without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "simplu_worker.cache.redis_commands", raising=False)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)


@pytest.mark.usefixtures("_without_redis")
@pytest.mark.parametrize("as_file", [False, True])
def test_redis_without_its_extra_is_named_with_all_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, as_file: bool
) -> None:
    (path := tmp_path / "url").write_text("redis://cache")
    redis = {"REDIS_URL_FILE": str(path)} if as_file else {"REDIS_URL": "redis://cache"}
    problems = problems_of(monkeypatch, COMPLETE | redis | {"HTTP_PORT": "x", "SQS_DEAD_LETTER_QUEUE_URL": ""})
    assert names_of(problems) == ["HTTP_PORT", "SQS_DEAD_LETTER_QUEUE_URL", "REDIS_URL"]
    assert "install simplu-worker[cache]" in problems[-1]


def test_problems_of_all_parts_are_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (path := tmp_path / "map.json").write_text(
        json.dumps(
            {
                "shards": [
                    {"shardId": "a", "connectionString": f"postgresql://u:{WORD}@db.example/one"},
                    {"shardId": "a", "connectionString": f"postgresql://u:{WORD}@db.example/two"},
                ]
            }
        )
    )
    changes = {
        "CITRUS_SERVER_URL": "",
        "SHARD_MAP_FILE": str(path),
        "DATABASE_ALLOWED_HOSTS": "*.internal",
        "REDIS_URL": f"redis://:{WORD}@cache/0?nonsense=1",
        "AWS_PROFILE": "nowhere",
        "HTTP_PORT": "x",
    }
    problems = problems_of(monkeypatch, COMPLETE | changes)
    assert sorted(set(names_of(problems))) == ["AWS_PROFILE", "HTTP_PORT", "REDIS_URL", "SHARD_MAP_FILE"]
    assert any("listed twice" in problem for problem in problems)
    assert any("db.example" in problem for problem in problems)


def test_region_that_a_profile_lacks_is_named_with_all_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (config := tmp_path / "config").write_text("[default]\noutput = json\n")
    changes = {"AWS_REGION": "", "AWS_CONFIG_FILE": str(config), "HTTP_PORT": "x"}
    assert names_of(problems_of(monkeypatch, COMPLETE | changes)) == ["HTTP_PORT", "AWS_REGION"]
    config.write_text("[default]\nregion = eu-central-1\n")
    assert names_of(problems_of(monkeypatch, COMPLETE | changes)) == ["HTTP_PORT"]


@pytest.mark.parametrize("for_run", [True, False])
def test_misspelt_variable_is_named_beside_the_problem_it_caused(
    monkeypatch: pytest.MonkeyPatch, *, for_run: bool
) -> None:
    problems = problems_of(monkeypatch, COMPLETE | {"HTTP_PORT": "x", "CITRUS_API_KYE": WORD}, for_run=for_run)
    expected = "expected the name of a variable, got one that the worker ignores; did you mean CITRUS_API_KEY?"
    assert problems[1:] == [f"CITRUS_API_KYE: {expected}"]


@pytest.mark.slow
def test_variables_that_the_worker_ignores_are_warnings(tmp_path: Path) -> None:
    (path := tmp_path / "map.json").write_text(
        json.dumps({"shards": [{"shardId": "a", "connectionString": "postgresql://u@db.example/one"}]})
    )
    (tmp_path / "local.env").write_text(f"SHARD_MAP_FILE={path}\nDATABASE_PORT=5433\nDATABASE_PASWORD={WORD}\n")
    route = ["shards", "route", "smile-berlin", "--json", "--env-file", str(tmp_path / "local.env")]
    ran = subprocess.run(
        [sys.executable, "-m", "simplu_worker", *route],
        env={"HTTP_PORT": "tcp://10.0.0.1:80", "DATABASE_PORT": "tcp://10.0.0.1:5432", "LOG_FORMAT": "json"},
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert json.loads(ran.stdout)
    (misspelt,) = map(json.loads, ran.stderr.splitlines())
    assert (misspelt["event"], misspelt["variable"], misspelt["nearest"]) == (
        "variable.ignored",
        "DATABASE_PASWORD",
        "DATABASE_PASSWORD",
    )
    assert WORD not in ran.stdout + ran.stderr


@pytest.mark.parametrize("command", ["replay --since 2026-01-01", "tap", "operations show r-1", "dead-letters list"])
def test_tenant_cannot_be_left_empty(command: str) -> None:
    with pytest.raises(CycloptsError):
        app.parse_args([*command.split(), "--empty-tenant"], exit_on_error=False, print_error=False)
