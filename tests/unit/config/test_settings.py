from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Secret

from simplu_worker.config.loading import draft_settings, load_env_file, prepare_environment
from simplu_worker.config.settings import SECRETS, VARIABLES, Settings
from simplu_worker.config.values import describe_values
from simplu_worker.errors import ConfigurationError
from simplu_worker.telemetry import log as log_module

PLANTED = "pl4nted-s3cret/with+odd=chars"
COMPLETE = {
    "AWS_REGION": "eu-central-1",
    "KINESIS_STREAM_NAME": "resources-operations",
    "SQS_DEAD_LETTER_QUEUE_URL": "http://127.0.0.1:4566/000000000000/dead-letters",
    "CITRUS_SERVER_URL": "http://citrus.server.com:8080/",
}


@pytest.fixture(autouse=True, scope="module")
def _own_secrets() -> Iterator[None]:
    before, log_module._secrets = log_module._secrets, log_module._Secrets()
    yield
    log_module._secrets = before


def draft_of(environ: Mapping[str, str], *, for_run: bool = True) -> tuple[Settings, list[str]]:
    with patch.dict(os.environ, environ, clear=True):
        return draft_settings(for_run=for_run)


def settings_of(environ: Mapping[str, str]) -> Settings:
    settings, problems = draft_of(environ)
    assert problems == []
    return settings


def problems_of(environ: Mapping[str, str], *, for_run: bool = True) -> list[str]:
    return draft_of(environ, for_run=for_run)[1]


def variables_in(file: Path) -> dict[str, str]:
    with patch.dict(os.environ, clear=True):
        load_env_file(file)
        return dict(os.environ)


def names_of(problems: list[str]) -> list[str]:
    return [problem.partition(":")[0] for problem in problems]


GOOD = [
    ("KINESIS_STREAM_NAME", "arn:aws:kinesis:us-east-1:123456789012:stream/a.b", None),
    ("KINESIS_CREATE_STREAM", "ON", True),
    ("KINESIS_SHARD_COUNT", " 16 ", 16),
    ("KINESIS_INITIAL_POSITION", "LATEST", "LATEST"),
    ("KINESIS_INITIAL_POSITION", "1970-01-01", datetime(1970, 1, 1, tzinfo=UTC)),
    ("KINESIS_INITIAL_POSITION", "2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
    ("KINESIS_INITIAL_POSITION", "2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
    ("KINESIS_LEASE_DURATION_SECONDS", "1.5", 1.5),
    ("SQS_RETRY_DELAYS_SECONDS", "0.1, 2,3", (0.1, 2.0, 3.0)),
    ("DATABASE_ALLOWED_HOSTS", "*.example.com,10.0.0.1", ("*.example.com", "10.0.0.1")),
    ("FEED_ALLOWED_HOSTS", "10.0.0.0/8,*.internal", ("10.0.0.0/8", "*.internal")),
    ("HTTP_PORT", "0", 0),
    ("LOG_LEVEL", "DEBUG", "debug"),
    ("API_TOKEN", "t0ken", Secret("t0ken")),
    ("SQS_ORDER_EVENTS_QUEUE_URL", "https://sqs.eu-central-1.amazonaws.com/1/orders.fifo", None),
    ("REDIS_URL", "rediss://user:word@cache", Secret("rediss://user:word@cache")),
    ("REDIS_URL", "unix:///run/redis.sock", Secret("unix:///run/redis.sock")),
]


@pytest.mark.parametrize(("variable", "value", "expected"), GOOD)
def test_settings_accept_a_value(variable: str, value: str, expected: object) -> None:
    settings = settings_of({**COMPLETE, variable: value})
    assert (value if expected is None else expected) == getattr(settings, variable.lower())


BAD = [
    ("AWS_REGION", "EU Central", "the name of a region, such as eu-central-1"),
    ("DYNAMODB_ENDPOINT", "localhost:8000", "an http(s) URL without credentials, query and fragment"),
    ("KINESIS_STREAM_NAME", "two words", "the name or ARN of a stream"),
    ("KINESIS_SHARD_COUNT", "0", "an integer between 1 and 10000"),
    ("DATABASE_NAME", "\udcff", "text"),
    ("KINESIS_CREATE_STREAM", "maybe", "true or false"),
    ("KINESIS_INITIAL_POSITION", "yesterday", "TRIM_HORIZON or LATEST or a time of RFC 3339"),
    ("KINESIS_INITIAL_POSITION", "1767322800", "TRIM_HORIZON or LATEST or a time of RFC 3339"),
    ("KINESIS_INITIAL_POSITION", "1969-12-31", "TRIM_HORIZON or LATEST or a time of RFC 3339"),
    ("KINESIS_LEASE_DURATION_SECONDS", "nan", "a number between 1 and 3600"),
    ("PREFETCH_MAX_BYTES", "68719476737", "an integer between 1048576 and 68719476736"),
    ("SQS_ORDER_EVENTS_QUEUE_URL", "orders.fifo", "the http(s) URL of a queue, without credentials"),
    ("SQS_RETRY_DELAYS_SECONDS", "1,,5", "comma-separated seconds, at most 100, each between 0 and 43200"),
    ("CITRUS_SERVER_URL", "http://host:99999", "an http(s) URL without credentials, query and fragment"),
    ("TENANT_WAIT_SECONDS", "0", "a number above 0, at most 31536000"),
    ("HTTP_HOST", "a b", "a host name or an address"),
    ("LOG_LEVEL", "loud", "debug, info, warning or error"),
    ("FEED_ALLOWED_HOSTS", "10.0.0.0/99", "comma-separated host patterns, addresses and networks"),
]


@pytest.mark.parametrize(("variable", "value", "words"), BAD)
def test_settings_say_what_is_wrong_with_a_value(variable: str, value: str, words: str) -> None:
    settings, problems = draft_of({**COMPLETE, variable: value})
    assert [f"{variable}: expected {words}, got {value!r}"] == problems
    assert getattr(settings, variable.lower()) == VARIABLES[variable].default


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"minLength": 1, "maxLength": 9}, "1 to 9 characters"),
        ({"format": "path"}, "the path of a file"),
        ({"anyOf": [{"type": "null"}, {"format": "date-time"}]}, "a time of RFC 3339"),
        ({"type": "array", "title": "a list"}, "a list"),
        ({"type": "string"}, "text"),
    ],
)
def test_words_for_values_are_those_of_their_schema(schema: dict[str, Any], words: str) -> None:
    assert describe_values(schema) == words


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:5432", "udp://[fd00::1]:53"])
@pytest.mark.parametrize(("name", "default"), [("DATABASE_PORT", 5432), ("HTTP_PORT", 8080)])
def test_port_is_unset_when_it_is_the_address_of_a_service(name: str, default: int, address: str) -> None:
    assert getattr(settings_of({**COMPLETE, name: address}), name.lower()) == default
    assert problems_of({**COMPLETE, "KINESIS_SHARD_COUNT": address}) != []


LETTERS = "SQS_DEAD_LETTER_QUEUE_URL"
CONTROL, ORDERS, PRIORITY = "SQS_SHARD_CREATION_QUEUE_URL", "SQS_ORDER_EVENTS_QUEUE_URL", "SQS_PRIORITY_QUEUE_URL"
NO_CITRUS = {"CITRUS_SERVER_URL": ""}
NO_REGION = {"AWS_REGION": ""}
RULES = [
    ({LETTERS: ""}, [LETTERS]),
    ({"KINESIS_STREAM_NAME": ""}, ["KINESIS_STREAM_NAME"]),
    ({"KINESIS_STREAM_NAME": "", CONTROL: "http://h/q"}, []),
    ({LETTERS: "", CONTROL: "http://h/q"}, []),
    ({LETTERS: "", CONTROL: "http://h/" + "q" * 80}, [LETTERS]),
    ({LETTERS: "", CONTROL: "http://h/q", PRIORITY: "http://h/q-dead-letters/"}, [LETTERS]),
    ({"ORDER_EVENTS_BUSINESS_ID": "shop"}, ["ORDER_EVENTS_LOCATION_ID"]),
    ({"ORDER_EVENTS_BUSINESS_ID": "shop", "ORDER_EVENTS_LOCATION_ID": "web"}, []),
    ({"KINESIS_STREAM_NAME": "", ORDERS: "http://h/q"}, []),
    ({ORDERS: COMPLETE[LETTERS] + "/"}, [LETTERS]),
    ({ORDERS: "http://h/q", PRIORITY: "http://h/q"}, [PRIORITY]),
    ({CONTROL: "http://h/q", ORDERS: "http://h/q"}, [ORDERS]),
    ({"SHARD_MAP_FILE": __file__}, ["SHARD_MAP_FILE"]),
    (NO_CITRUS | {"SHARD_MAP_FILE": __file__}, []),
    (NO_CITRUS, ["CITRUS_SERVER_URL"]),
    (NO_CITRUS | {"DATABASE_HOST": "db"}, ["DATABASE_NAME", "DATABASE_USERNAME"]),
    (NO_CITRUS | {"DATABASE_HOST": "db", "DATABASE_NAME": "n", "DATABASE_USERNAME": "u"}, []),
    ({"DATABASE_HOST": "db"}, []),
    (NO_REGION | {"HOME": "/nowhere"}, ["AWS_REGION"]),
    (NO_REGION | {"AWS_DEFAULT_REGION": "us-east-1"}, []),
    (NO_REGION | {"AWS_PROFILE": "work"}, []),
]


@pytest.mark.parametrize(("change", "expected"), RULES)
def test_settings_follow_the_rules_across_variables(change: dict[str, str], expected: list[str]) -> None:
    assert expected == names_of(problems_of({**COMPLETE, **change}))


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.us-east-1.amazonaws.com/123456789012/shard-creation-queue", "us-east-1"),
        ("https://sqs.us-gov-west-1.amazonaws.com/123456789012/q.fifo", "us-gov-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q", "cn-north-1"),
        ("https://eu-west-3.queue.amazonaws.com/123456789012/q", "eu-west-3"),
        ("https://queue.amazonaws.com/123456789012/q", None),
        ("http://127.0.0.1:4566/000000000000/sqs.us-east-1.amazonaws.com", None),
    ],
)
def test_region_may_be_that_of_the_control_queue(url: str, region: str | None) -> None:
    environ = {**COMPLETE, "AWS_REGION": "", "SQS_SHARD_CREATION_QUEUE_URL": url}
    assert draft_of(environ)[0].aws_region == region
    assert draft_of({**environ, "AWS_PROFILE": "work"})[0].aws_region == region
    assert draft_of({**environ, "AWS_DEFAULT_REGION": "us-west-2"})[0].aws_region == "us-west-2"
    assert draft_of({**environ, "AWS_REGION": "eu-north-1"})[0].aws_region == "eu-north-1"


@pytest.mark.parametrize("name", ["control", "control.fifo", "control/"])
def test_dead_letter_queue_may_be_beside_the_control_queue(name: str) -> None:
    named = {**COMPLETE, "SQS_SHARD_CREATION_QUEUE_URL": f"http://h:4566/0/{name}"}
    default = settings_of({**named, "SQS_DEAD_LETTER_QUEUE_URL": ""})
    assert default.dead_letter_queue_url == "http://h:4566/0/control-dead-letters"
    assert settings_of(named).dead_letter_queue_url == COMPLETE["SQS_DEAD_LETTER_QUEUE_URL"]


def test_settings_need_less_when_not_for_run() -> None:
    assert problems_of({}, for_run=False) == []
    both = {"CITRUS_SERVER_URL": "http://c", "SHARD_MAP_FILE": __file__}
    assert names_of(problems_of(both, for_run=False)) == ["SHARD_MAP_FILE"]


@pytest.mark.parametrize("name", SECRETS)
def test_settings_read_a_secret_from_its_file(name: str, tmp_path: Path) -> None:
    secret = f"rediss://user:{PLANTED.replace('/', '%2F')}@cache/0" if name == "REDIS_URL" else PLANTED
    (file := tmp_path / "secret").write_bytes(secret.encode() + b"\r\n")
    settings = settings_of({**COMPLETE, f"{name}_FILE": str(file), name: ""})
    assert getattr(settings, name.lower()).get_secret_value() == secret
    assert secret not in repr(settings)


def test_line_end_in_a_variable_of_every_request_is_refused() -> None:
    names = ["AWS_SECRET_ACCESS_KEY", "AWS_EXECUTION_ENV", "AWS_SECURITY_TOKEN", "https_proxy"]
    problems = problems_of(COMPLETE | dict.fromkeys(names, f"{PLANTED}\n") | {"AWS_ACCESS_KEY_ID": "a"})
    assert [problem.partition(":")[0] for problem in problems] == names
    assert PLANTED not in "".join(problems)


@pytest.mark.parametrize("url", ["cache:6379", "http://cache", "redis://", "redis://a b", "redis://cache:0", "unix://"])
def test_settings_refuse_a_wrong_redis_url_unseen(url: str) -> None:
    expected = "REDIS_URL: expected a redis://, rediss:// or unix:// URL, got something else, which is not shown"
    assert problems_of({**COMPLETE, "REDIS_URL": url}) == [expected]


def test_settings_mask_the_password_of_the_redis_url_alone() -> None:
    settings_of({**COMPLETE, "REDIS_URL": "redis://:passw0rd-of-redis@cache.internal:6379/0"})
    text = log_module.scrub_text("cannot reach cache.internal:6379 with passw0rd-of-redis")
    assert text == "cannot reach cache.internal:6379 with ***"


@pytest.mark.parametrize("name", ["API_VIEWER_TOKEN", "API_VIEWER_TOKEN_FILE"])
def test_settings_refuse_one_token_for_both_roles(name: str, tmp_path: Path) -> None:
    (file := tmp_path / "token").write_text(PLANTED)
    token = str(file) if name.endswith("_FILE") else PLANTED
    (problem,) = problems_of({**COMPLETE, "API_TOKEN": PLANTED, name: token})
    assert problem.startswith("API_VIEWER_TOKEN: expected another token than API_TOKEN")
    assert PLANTED not in problem
    settings_of({**COMPLETE, "API_TOKEN": f"{PLANTED}2", name: token})


LEAKS = [
    {"API_TOKEN": f"{PLANTED} with a space"},
    {"API_TOKEN": PLANTED, "API_TOKEN_FILE": "/nowhere"},
    {"CITRUS_API_KEY": f"{PLANTED}\nX-Header: 1"},
    {"CITRUS_SERVER_URL": f"http://user:{PLANTED}@citrus"},
    {"REDIS_URL": f"http://user:{PLANTED}@cache"},
    {"DATABASE_HOST": f"postgres://user:{PLANTED}@host/db"},
    {"DATABASE_HOST": f"postgres://host/db?password={PLANTED}"},
    {"DATABASE_PASSWORD": PLANTED, "DATABASE_PORT": PLANTED},
    {"AWS_SECRET_ACCESS_KEY": PLANTED, "KINESIS_STREAM_NAME": f"/{PLANTED}"},
]


@pytest.mark.parametrize("change", LEAKS)
def test_settings_show_no_secret_when_it_is_part_of_a_problem(change: dict[str, str]) -> None:
    problems = problems_of({**COMPLETE, **change})
    assert problems != []
    assert PLANTED not in "".join(problems)


ENV_TEXTS = [
    ("A=1\n", {"A": "1"}),
    ("\ufeffA=1\r\nB='2'\r\n", {"A": "1", "B": "2"}),
    ("A=some text  # comment\nB=x#y\n", {"A": "some text", "B": "x#y"}),
    ("A=\nB=''\n", {"A": "", "B": ""}),
    ('A="two\nlines"\nB=1\n', {"A": "two\nlines", "B": "1"}),
    ("A=$HOME/${B}\n", {"A": "$HOME/${B}"}),
]


@pytest.mark.parametrize(("text", "expected"), ENV_TEXTS)
def test_env_file_is_read_as_people_write_it(text: str, expected: dict[str, str], tmp_path: Path) -> None:
    (file := tmp_path / "env").write_bytes(text.encode())
    assert expected == variables_in(file)


@given(value=st.text(st.characters(exclude_characters="\0\r'\\", exclude_categories=["Cs"])))
def test_env_file_gives_back_what_stack_quotes(value: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    (file := tmp_path_factory.getbasetemp() / "quoted").write_bytes(f"A={shlex.quote(value)}\n".encode())
    assert variables_in(file) == {"A": value}


def test_env_file_problems_name_lines_without_their_text(tmp_path: Path) -> None:
    (file := tmp_path / "env").write_text('A=1\n\nhunter2 hunter2\nB=\'hunter2\nC="x" hunter2\nD=1\nhunter2\nE=\0\n')
    with pytest.raises(ConfigurationError) as raised:
        load_env_file(file)
    assert raised.value.problems == tuple(
        f"--env-file: expected NAME=value in {file}, line {line}; quote the value or comment it out"
        for line in (3, 4, 5, 7, 8)
    )


def test_env_file_fills_only_what_the_environment_lacks(tmp_path: Path) -> None:
    (file := tmp_path / "env").write_text("A=file\nB=file\nC=file\n")
    with patch.dict(os.environ, {"A": "environment", "B": ""}, clear=True):
        load_env_file(file)
        assert dict(os.environ) == {"A": "environment", "B": "file", "C": "file"}


def test_aws_environment_is_what_botocore_reads_when_prepared(tmp_path: Path) -> None:
    (file := tmp_path / "key").write_text("secret-key\n")
    keys = {"AWS_ACCESS_KEY_ID": "id-of-the-key", "AWS_CONFIG_FILE": "/config", "OTHER": ""}
    environ = keys | {"AWS_PROFILE": "", "AWS_SECRET_ACCESS_KEY_FILE": str(file)}
    with patch.dict(os.environ, environ, clear=True):
        prepare_environment(draft_settings(for_run=False)[0])
        assert dict(os.environ) == keys | {"AWS_SECRET_ACCESS_KEY": "secret-key"}
