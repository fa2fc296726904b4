"""Settings, env files and secret files: accepted values, refused ones, and secrets, which are never shown."""

from __future__ import annotations

import shlex
import time
import timeit
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.config.environment import (
    OWN_SECRETS,
    apply_env_file,
    parse_env,
    prepare_aws_environment,
    read_env_file,
)
from simplu_worker.config.kinds import Secret
from simplu_worker.config.settings import VARIABLES, Settings, draft_settings, load_settings
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
    """Keep the secrets of these tests out of all others."""
    before, log_module._secrets = log_module._secrets, log_module._Secrets()
    yield
    log_module._secrets = before


def _problems_of(environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(environ)
    return raised.value.problems


def test_settings_have_the_defaults_of_the_contract_when_only_the_needed_is_set() -> None:
    """Each default is the one of docs/configuration.md, and unknown variables are ignored."""
    settings = load_settings({**COMPLETE, "DATABASE_TYPE": "postgres", "RDS_HOST": "x"})
    assert settings.sqs_retry_delays_seconds == (1.0, 5.0, 15.0)
    assert (
        settings.kinesis_application_name,
        settings.kinesis_initial_position,
        settings.kinesis_lease_duration_seconds,
    ) == ("simplu-worker", "TRIM_HORIZON", 10)
    assert (
        settings.tenant_wait_seconds,
        settings.operation_retention_hours,
        settings.operation_max_bytes,
        settings.list_result_limit,
        settings.prefetch_max_bytes,
    ) == (900, 360, 10_485_760, 1000, 67_108_864)
    assert (settings.tenant_destroy_grace_hours, settings.allow_destructive_http, settings.redis_url) == (
        168,
        False,
        None,
    )
    assert settings.citrus_server_url == "http://citrus.server.com:8080"
    assert settings.citrus_api_key is None


GOOD = [
    ("AWS_REGION", "us-east-1", "us-east-1"),
    ("KINESIS_STREAM_NAME", "arn:aws:kinesis:us-east-1:123456789012:stream/a.b", None),
    ("KINESIS_CREATE_STREAM", "false", False),
    ("KINESIS_CREATE_STREAM", "0", False),
    ("KINESIS_CREATE_STREAM", "No", False),
    ("KINESIS_CREATE_STREAM", "ON", True),
    ("KINESIS_SHARD_COUNT", " 16 ", 16),
    ("KINESIS_SHARD_COUNT", "16.0", 16),
    ("KINESIS_INITIAL_POSITION", "LATEST", "LATEST"),
    ("KINESIS_INITIAL_POSITION", "2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
    ("KINESIS_INITIAL_POSITION", "2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ("KINESIS_INITIAL_POSITION", "2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
    ("KINESIS_LEASE_DURATION_SECONDS", "1.5", 1.5),
    ("KINESIS_COORDINATOR_TABLE", "app-state", "app-state"),
    ("KINESIS_WORKER_METRICS_TABLE", "app.metrics_1", "app.metrics_1"),
    ("PREFETCH_MAX_BYTES", "1048576", 1_048_576),
    ("PREFETCH_MAX_BYTES", "68719476736", 68_719_476_736),
    ("SQS_RETRY_DELAYS_SECONDS", "0.1, 2,3", (0.1, 2.0, 3.0)),
    ("SQS_RETRY_DELAYS_SECONDS", "", (1, 5, 15)),
    ("DATABASE_ALLOWED_HOSTS", "*.example.com,10.0.0.1", ("*.example.com", "10.0.0.1")),
    ("DYNAMODB_BUSINESS_INFO_TABLE", "business-info", "business-info"),
    ("HTTP_PORT", "0", 0),
    ("HTTP_HOST", "::1", "::1"),
    ("LOG_LEVEL", "DEBUG", "debug"),
    ("LOG_LEVEL", "warn", "warning"),
    ("LOG_FORMAT", "console", "console"),
    ("API_TOKEN", "t0ken", Secret("t0ken")),
    ("SQS_ORDER_EVENTS_QUEUE_URL", "https://sqs.eu-central-1.amazonaws.com/1/orders.fifo", None),
    ("SQS_PRIORITY_QUEUE_URL", "https://sqs.eu-central-1.amazonaws.com/1/urgent.fifo", None),
    ("TENANT_DESTROY_GRACE_HOURS", "0", 0),
    ("TENANT_DESTROY_GRACE_HOURS", "1.5", 1.5),
    ("REDIS_URL", "redis://cache:6379/1", Secret("redis://cache:6379/1")),
    ("REDIS_URL", "rediss://user:word@cache", Secret("rediss://user:word@cache")),
    ("REDIS_URL", "unix:///run/redis.sock", Secret("unix:///run/redis.sock")),
    ("ALLOW_DESTRUCTIVE_HTTP", "true", True),
    ("PROVISION_ON_FIRST_USE", "true", True),
]


@pytest.mark.parametrize(("variable", "value", "expected"), GOOD)
def test_settings_accept_a_value(variable: str, value: str, expected: object) -> None:
    """A good value has its type in the attribute of its name."""
    settings = load_settings({**COMPLETE, variable: value})
    assert (value if expected is None else expected) == getattr(settings, variable.lower())


BAD = [
    ("AWS_REGION", "EU Central"),
    ("DYNAMODB_ENDPOINT", "localhost:8000"),
    ("KINESIS_STREAM_NAME", "two words"),
    ("KINESIS_STREAM_NAME", "arn:aws:sqs:us-east-1:123456789012:queue"),
    ("KINESIS_SHARD_COUNT", "0"),
    ("KINESIS_SHARD_COUNT", "one"),
    ("KINESIS_SHARD_COUNT", "1.5"),
    ("KINESIS_SHARD_COUNT", "1" * 90),
    ("DATABASE_NAME", "\udcff"),
    ("KINESIS_CREATE_STREAM", "maybe"),
    ("KINESIS_APPLICATION_NAME", "ab"),
    ("KINESIS_COORDINATOR_TABLE", "two words"),
    ("KINESIS_WORKER_METRICS_TABLE", "ab"),
    ("KINESIS_INITIAL_POSITION", "yesterday"),
    ("KINESIS_INITIAL_POSITION", "0001-01-01"),
    ("KINESIS_LEASE_DURATION_SECONDS", "0.5"),
    ("KINESIS_LEASE_DURATION_SECONDS", "nan"),
    ("PREFETCH_MAX_BYTES", "1048575"),
    ("PREFETCH_MAX_BYTES", "68719476737"),
    ("PREFETCH_MAX_BYTES", "64 MiB"),
    ("SQS_SHARD_CREATION_QUEUE_URL", "shard-creation"),
    ("SQS_ORDER_EVENTS_QUEUE_URL", "orders.fifo"),
    ("SQS_PRIORITY_QUEUE_URL", "https:///orders"),
    ("SQS_DEAD_LETTER_QUEUE_URL", "ftp://host/queue"),
    ("SQS_RETRY_DELAYS_SECONDS", "1,,5"),
    ("SQS_RETRY_DELAYS_SECONDS", "1,-5"),
    ("SQS_RETRY_DELAYS_SECONDS", "50000"),
    ("CITRUS_SERVER_URL", "http://host:99999"),
    ("CITRUS_SERVER_URL", "http://host/?a=b"),
    ("CITRUS_SERVER_URL", "http://[::1"),
    ("CITRUS_TIMEOUT", "-1"),
    ("CITRUS_TIMEOUT", "1.5"),
    ("CITRUS_RETRY_ATTEMPTS", "0"),
    ("DATABASE_PORT", "65536"),
    ("DATABASE_ALLOWED_HOSTS", "a,,b"),
    ("DATABASE_POOL_SIZE", "0"),
    ("DATABASE_MAX_CONNECTIONS", "many"),
    ("DYNAMODB_BUSINESS_INFO_TABLE", "x"),
    ("TENANT_WAIT_SECONDS", "0"),
    ("TENANT_DESTROY_GRACE_HOURS", "-1"),
    ("ALLOW_DESTRUCTIVE_HTTP", "sometimes"),
    ("TENANT_WAIT_SECONDS", "inf"),
    ("OPERATION_RETENTION_HOURS", "0"),
    ("OPERATION_MAX_BYTES", "0"),
    ("LIST_RESULT_LIMIT", "-3"),
    ("HTTP_HOST", "a b"),
    ("HTTP_PORT", "-1"),
    ("LOG_LEVEL", "loud"),
    ("LOG_FORMAT", "xml"),
    ("SHARD_MAP_FILE", "/nowhere/map.json"),
    ("SHUTDOWN_GRACE_SECONDS", "soon"),
]


@pytest.mark.parametrize(("variable", "value"), BAD)
def test_settings_name_variable_value_and_expectation_when_a_value_is_wrong(variable: str, value: str) -> None:
    """A wrong value is one problem: the variable, the expected value, the actual one."""
    environ = {**COMPLETE, variable: value}
    if variable == "SHARD_MAP_FILE":
        del environ["CITRUS_SERVER_URL"]
    expected = f"{variable}: expected {VARIABLES[variable].kind.expected}, got {value!r}"
    assert (expected,) == _problems_of(environ)


def test_settings_refuse_more_delays_than_a_message_may_have() -> None:
    """A message has a hundred retries at most; a long value is shown in part."""
    load_settings({**COMPLETE, "SQS_RETRY_DELAYS_SECONDS": ",".join("1" * 100)})
    (problem,) = _problems_of({**COMPLETE, "SQS_RETRY_DELAYS_SECONDS": ",".join("1" * 101)})
    assert problem.startswith("SQS_RETRY_DELAYS_SECONDS: expected comma-separated seconds")
    assert len(problem) < 200


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:5432", "udp://[fd00::1]:53", "tcp://fd00::1:5432"])
@pytest.mark.parametrize(("name", "default"), [("DATABASE_PORT", 5432), ("HTTP_PORT", 8080)])
def test_port_is_unset_when_it_is_the_address_of_a_service(name: str, default: int, address: str) -> None:
    """Kubernetes sets it in every pod, for a service called "database" or "http"."""
    settings = load_settings({**COMPLETE, name: address})

    assert getattr(settings, name.lower()) == default


@pytest.mark.parametrize(
    "value", ["http://10.0.0.1:5432", "tcp://10.0.0.1", "tcp://10.0.0.1:5432/", "tcp://:5432", "x"]
)
def test_port_is_a_problem_when_it_is_anything_else(value: str) -> None:
    """Only the exact form is of Kubernetes."""
    assert _problems_of({**COMPLETE, "DATABASE_PORT": value}) != ()


def test_other_settings_are_problems_when_they_are_addresses_of_services() -> None:
    """Kubernetes sets no other variable to one."""
    assert _problems_of({**COMPLETE, "KINESIS_SHARD_COUNT": "tcp://10.0.0.1:5432"}) != ()


def test_settings_say_the_bounds_when_a_number_is_outside() -> None:
    """The words of a problem are those of the type and its bounds."""
    assert _problems_of({**COMPLETE, "DATABASE_PORT": "x", "TENANT_WAIT_SECONDS": "-1", "LOG_LEVEL": "y"}) == (
        "DATABASE_PORT: expected an integer between 1 and 65535, got 'x'",
        "TENANT_WAIT_SECONDS: expected a number above 0, at most 31536000, got '-1'",
        "LOG_LEVEL: expected debug, info, warning or error, got 'y'",
    )


RULES = [
    ({"SQS_DEAD_LETTER_QUEUE_URL": ""}, ["SQS_DEAD_LETTER_QUEUE_URL"]),
    ({"KINESIS_STREAM_NAME": ""}, ["KINESIS_STREAM_NAME"]),
    ({"KINESIS_STREAM_NAME": "", "SQS_DEAD_LETTER_QUEUE_URL": ""}, ["KINESIS_STREAM_NAME"]),
    ({"KINESIS_STREAM_NAME": "", "SQS_SHARD_CREATION_QUEUE_URL": "http://h/q"}, []),
    ({"SQS_DEAD_LETTER_QUEUE_URL": "", "SQS_SHARD_CREATION_QUEUE_URL": "http://h/q"}, []),
    (
        {"SQS_DEAD_LETTER_QUEUE_URL": "", "SQS_SHARD_CREATION_QUEUE_URL": "http://h/" + "q" * 80},
        ["SQS_DEAD_LETTER_QUEUE_URL"],
    ),
    (
        {
            "SQS_DEAD_LETTER_QUEUE_URL": "",
            "SQS_SHARD_CREATION_QUEUE_URL": "http://h/q",
            "SQS_PRIORITY_QUEUE_URL": "http://h/q-dead-letters/",
        },
        ["SQS_DEAD_LETTER_QUEUE_URL"],
    ),
    ({"ORDER_EVENTS_BUSINESS_ID": "shop"}, ["ORDER_EVENTS_LOCATION_ID"]),
    ({"ORDER_EVENTS_LOCATION_ID": "web"}, ["ORDER_EVENTS_BUSINESS_ID"]),
    ({"ORDER_EVENTS_BUSINESS_ID": "shop", "ORDER_EVENTS_LOCATION_ID": "web"}, []),
    ({"SQS_SHARD_CREATION_QUEUE_URL": COMPLETE["SQS_DEAD_LETTER_QUEUE_URL"]}, ["SQS_DEAD_LETTER_QUEUE_URL"]),
    ({"KINESIS_STREAM_NAME": "", "SQS_ORDER_EVENTS_QUEUE_URL": "http://h/q"}, []),
    ({"KINESIS_STREAM_NAME": "", "SQS_PRIORITY_QUEUE_URL": "http://h/q"}, []),
    ({"SQS_ORDER_EVENTS_QUEUE_URL": COMPLETE["SQS_DEAD_LETTER_QUEUE_URL"] + "/"}, ["SQS_DEAD_LETTER_QUEUE_URL"]),
    ({"SQS_PRIORITY_QUEUE_URL": COMPLETE["SQS_DEAD_LETTER_QUEUE_URL"]}, ["SQS_DEAD_LETTER_QUEUE_URL"]),
    (
        {"SQS_ORDER_EVENTS_QUEUE_URL": "http://h/q", "SQS_PRIORITY_QUEUE_URL": "http://h/q"},
        ["SQS_PRIORITY_QUEUE_URL"],
    ),
    (
        {"SQS_SHARD_CREATION_QUEUE_URL": "http://h/q", "SQS_ORDER_EVENTS_QUEUE_URL": "http://h/q"},
        ["SQS_ORDER_EVENTS_QUEUE_URL"],
    ),
    ({"SHARD_MAP_FILE": __file__}, ["SHARD_MAP_FILE"]),
    ({"SHARD_MAP_FILE": __file__, "CITRUS_SERVER_URL": ""}, []),
    ({"CITRUS_SERVER_URL": ""}, ["CITRUS_SERVER_URL"]),
    ({"CITRUS_SERVER_URL": "", "DATABASE_NAME": "simplu"}, ["CITRUS_SERVER_URL"]),
    ({"CITRUS_SERVER_URL": "", "DATABASE_HOST": "db"}, ["DATABASE_NAME", "DATABASE_USERNAME"]),
    ({"CITRUS_SERVER_URL": "", "DATABASE_HOST": "db", "DATABASE_NAME": "n", "DATABASE_USERNAME": "u"}, []),
    ({"DATABASE_HOST": "db"}, []),
    ({"AWS_REGION": ""}, ["AWS_REGION"]),
    ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "us-east-1"}, []),
    ({"AWS_REGION": "", "AWS_PROFILE": "work"}, []),
    ({"AWS_REGION": "", "HOME": "/nowhere"}, ["AWS_REGION"]),
    ({"DATABASE_POOL_SIZE": "8", "DATABASE_MAX_CONNECTIONS": "2"}, []),
]


@pytest.mark.parametrize(("change", "expected"), RULES)
def test_settings_follow_the_rules_across_variables(change: dict[str, str], expected: list[str]) -> None:
    """What cannot be meant together, and what `run` cannot do without, is a problem of the variable to change."""
    environ = {**COMPLETE, **change}
    if not expected:
        load_settings(environ)
    else:
        assert expected == [problem.partition(":")[0] for problem in _problems_of(environ)]


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
def test_region_is_that_of_the_control_queue_when_nothing_else_names_one(url: str, region: str | None) -> None:
    """The references name the queue and no region; a profile may name one, and goes first."""
    environ = {**COMPLETE, "AWS_REGION": "", "SQS_SHARD_CREATION_QUEUE_URL": url}
    assert draft_settings(environ, for_run=True).settings.aws_region == region
    assert draft_settings({**environ, "AWS_PROFILE": "work"}, for_run=True).settings.aws_region is None
    assert draft_settings({**environ, "AWS_REGION": "eu-north-1"}, for_run=True).settings.aws_region == "eu-north-1"


@pytest.mark.parametrize("name", ["control", "control.fifo", "control/"])
def test_dead_letter_queue_is_beside_the_control_queue_when_none_is_named(name: str) -> None:
    """The default is a standard queue; a named queue goes first."""
    named = {**COMPLETE, "SQS_SHARD_CREATION_QUEUE_URL": f"http://h:4566/0/{name}"}
    default = load_settings({**named, "SQS_DEAD_LETTER_QUEUE_URL": ""})
    assert default.dead_letter_queue_url == "http://h:4566/0/control-dead-letters"
    assert load_settings(named).dead_letter_queue_url == COMPLETE["SQS_DEAD_LETTER_QUEUE_URL"]


def test_settings_report_rules_when_single_values_are_wrong_too() -> None:
    """Every problem is reported at once, rules across variables included."""
    names = [problem.partition(":")[0] for problem in _problems_of({"KINESIS_STREAM_NAME": "a b", "HTTP_PORT": "x"})]
    assert names == ["KINESIS_STREAM_NAME", "HTTP_PORT", "SQS_DEAD_LETTER_QUEUE_URL", "AWS_REGION", "CITRUS_SERVER_URL"]


def test_settings_need_less_when_not_for_run() -> None:
    """A command that needs no sources gets settings without them, but never contradictory ones."""
    load_settings({}, for_run=False)
    with pytest.raises(ConfigurationError, match="got both"):
        load_settings({"CITRUS_SERVER_URL": "http://c", "SHARD_MAP_FILE": __file__}, for_run=False)


def test_settings_take_the_second_region_when_the_first_is_empty() -> None:
    """AWS_DEFAULT_REGION counts when AWS_REGION is unset or empty."""
    settings = load_settings({**COMPLETE, "AWS_REGION": "", "AWS_DEFAULT_REGION": "us-west-2"})
    assert settings.aws_region == "us-west-2"


def test_settings_are_frozen_and_read_no_environment_when_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the given environment counts, and it is not changed."""
    monkeypatch.setenv("HTTP_PORT", "1")
    settings = Settings(http_port=2)
    assert settings.http_port == 2
    assert Settings().http_port == 8080
    with pytest.raises(AttributeError):
        settings.http_port = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", OWN_SECRETS)
def test_settings_read_a_secret_from_its_file_when_name_file_is_set(name: str, tmp_path: Path) -> None:
    """NAME_FILE gives the file's text without the line break at its end."""
    secret = f"rediss://user:{PLANTED.replace('/', '%2F')}@cache/0" if name == "REDIS_URL" else PLANTED
    (file := tmp_path / "secret").write_bytes(secret.encode() + b"\r\n")
    settings = load_settings({**COMPLETE, f"{name}_FILE": str(file), name: ""})
    assert getattr(settings, name.lower()).reveal() == secret
    assert secret not in repr(settings)


@pytest.mark.parametrize("url", ["cache:6379", "http://cache", "redis://", "redis://a b", "redis://cache:0", "unix://"])
def test_settings_refuse_a_redis_url_that_is_none_and_do_not_show_it(url: str) -> None:
    """A value that is no URL of Redis may still contain its password."""
    expected = "REDIS_URL: expected a redis://, rediss:// or unix:// URL, got something else, which is not shown"
    assert _problems_of({**COMPLETE, "REDIS_URL": url}) == (expected,)


def test_settings_mask_the_password_of_the_redis_url_and_leave_its_host_readable() -> None:
    """An error about the cache names where it is; the password in the URL is a secret wherever it turns up."""
    load_settings({**COMPLETE, "REDIS_URL": "redis://:passw0rd-of-redis@cache.internal:6379/0"})
    text = log_module.scrub_text("cannot reach cache.internal:6379 with passw0rd-of-redis")
    assert text == "cannot reach cache.internal:6379 with ***"


def test_settings_report_secret_files_when_they_cannot_be_read(tmp_path: Path) -> None:
    """A problem names the variable, the path and the reason."""
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + PLANTED.encode())
    problems = _problems_of(
        {
            **COMPLETE,
            "API_TOKEN_FILE": str(tmp_path / "none"),
            "CITRUS_API_KEY_FILE": str(tmp_path / "empty"),
            "DATABASE_PASSWORD_FILE": str(tmp_path / "binary"),
            "AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path),
            "AWS_SESSION_TOKEN_FILE": "/dev/zero",
        }
    )
    assert [
        f"CITRUS_API_KEY_FILE: expected a readable file with the secret in it, got '{tmp_path}/empty' (empty)",
        f"DATABASE_PASSWORD_FILE: expected a readable file with the secret in it, got '{tmp_path}/binary' (not UTF-8)",
    ] == list(problems[:2])
    assert [problem.partition(":")[0] for problem in problems[2:]] == [
        "API_TOKEN_FILE",
        "AWS_SECRET_ACCESS_KEY_FILE",
        "AWS_SESSION_TOKEN_FILE",
    ]


@pytest.mark.parametrize("name", ["API_VIEWER_TOKEN", "API_VIEWER_TOKEN_FILE"])
def test_settings_refuse_one_token_for_both_roles(name: str, tmp_path: Path) -> None:
    """In a variable or in a file; the token is not shown."""
    (file := tmp_path / "token").write_text(PLANTED)
    token = str(file) if name.endswith("_FILE") else PLANTED
    (problem,) = _problems_of({**COMPLETE, "API_TOKEN": PLANTED, name: token})
    assert problem.startswith("API_VIEWER_TOKEN: expected another token than API_TOKEN")
    assert PLANTED not in problem
    load_settings({**COMPLETE, "API_TOKEN": f"{PLANTED}2", name: token})


@given(st.dictionaries(st.sampled_from(list(VARIABLES)), st.text(st.characters(codec=None))))
def test_settings_are_read_or_refused_when_values_are_anything(environ: dict[str, str]) -> None:
    """Any text in any variable gives settings or a ConfigurationError, one line a problem, never another exception."""
    problems: tuple[str, ...] = ()
    try:
        load_settings(environ, for_run=False)
    except ConfigurationError as exc:
        problems = exc.problems
    assert [len(problem.splitlines()) for problem in problems] == [1] * len(problems)


LEAKS = [
    {"API_TOKEN": f"{PLANTED} with a space"},
    {"API_TOKEN": PLANTED, "API_TOKEN_FILE": "/nowhere"},
    {"CITRUS_API_KEY": f"{PLANTED}\nX-Header: 1"},
    {"CITRUS_SERVER_URL": f"http://user:{PLANTED}@citrus"},
    {"CITRUS_SERVER_URL": f"http://{PLANTED}@citrus"},
    {"DYNAMODB_ENDPOINT": f"http://user:{PLANTED}@dynamo"},
    {"SQS_DEAD_LETTER_QUEUE_URL": f"https://user:{PLANTED}@sqs/queue"},
    {"REDIS_URL": f"http://user:{PLANTED}@cache"},
    {"DATABASE_HOST": f"postgres://user:{PLANTED}@host/db"},
    {"DATABASE_HOST": f"postgres://host/db?password={PLANTED}"},
    {"DATABASE_PASSWORD": PLANTED, "DATABASE_PORT": PLANTED},
    {"AWS_SECRET_ACCESS_KEY": PLANTED, "KINESIS_STREAM_NAME": f"/{PLANTED}"},
]


@pytest.mark.parametrize("change", LEAKS)
def test_settings_show_no_secret_when_it_is_part_of_a_problem(change: dict[str, str]) -> None:
    """No problem shows a secret, in any variable; nor does the error's repr or its cause."""
    with pytest.raises(ConfigurationError) as raised:
        load_settings({**COMPLETE, **change})
    assert PLANTED not in f"{raised.value}{raised.value!r}{raised.value.__cause__!r}{raised.value.__context__!r}"


ENV_TEXTS = [
    ("A=1\n", {"A": "1"}),
    ("export A=1", {"A": "1"}),
    ("\ufeffA=1\r\nB='2'\r\n", {"A": "1", "B": "2"}),
    ("# comment\n\n  # another\nA=1\n", {"A": "1"}),
    ("A=some text  # comment\nB=x#y\nC=#none\n", {"A": "some text", "B": "x#y", "C": ""}),
    (
        "DYNAMODB_ENDPOINT=http://localhost:8000  # For local development\n",
        {"DYNAMODB_ENDPOINT": "http://localhost:8000"},
    ),
    ("A = b \n", {"A": "b"}),
    ("A=\nB=''\n", {"A": "", "B": ""}),
    ("A='it'\"'\"'s #1' # comment\n", {"A": "it's #1"}),
    ("A='\\'\nB='x\\\\y'\n", {"A": "\\", "B": "x\\\\y"}),
    ('A="a \\"b\\" \\$c \\n"\n', {"A": 'a "b" $c \\n'}),
    ('A="two\nlines"\nB=1\n', {"A": "two\nlines", "B": "1"}),
    ("A=$HOME/${B}\n", {"A": "$HOME/${B}"}),
    ("A=it's fine\nB=C:\\new\n", {"A": "it's fine", "B": "C:\\new"}),
    ("A=1\nA=2\n", {"A": "2"}),
]


@pytest.mark.parametrize(("text", "expected"), ENV_TEXTS)
def test_env_file_is_read_as_people_write_it(text: str, expected: dict[str, str]) -> None:
    """Shell quoting, `.env` habits, comments, CRLF and a byte order mark are all understood."""
    assert (expected, []) == parse_env(text)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_][A-Z0-9_]*", fullmatch=True), st.text(st.characters(exclude_characters="\0\r"))
    )
)
def test_env_file_gives_back_what_was_shell_quoted(variables: dict[str, str]) -> None:
    """What `stack` writes with shlex.quote is read as it was, line breaks included."""
    text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    assert (variables, []) == parse_env(text)


@given(st.text())
def test_env_file_parses_when_it_is_anything(text: str) -> None:
    """Any text gives variables and bad lines, never an exception, and line numbers rise."""
    _, bad_lines = parse_env(text)
    assert sorted(set(bad_lines)) == bad_lines


def test_env_file_problems_name_lines_without_their_text_when_they_cannot_be_read(tmp_path: Path) -> None:
    """Every bad line is named by its number; its text may be a secret."""
    (file := tmp_path / "env").write_text('A=1\nhunter2 hunter2\nB=\'hunter2\nC="x" hunter2\nD=1\n')
    with pytest.raises(ConfigurationError) as raised:
        read_env_file(file)
    assert raised.value.problems == tuple(
        f"--env-file: expected NAME=value in {file}, line {line}; quote the value or comment it out"
        for line in (2, 3, 4)
    )


@pytest.mark.parametrize("content", [None, b"A=\xff\n"])
def test_env_file_is_a_configuration_error_when_missing_or_not_text(content: bytes | None, tmp_path: Path) -> None:
    """A file that cannot be read is named."""
    file = tmp_path / "env"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="--env-file: expected a readable UTF-8 file"):
        read_env_file(file)


def test_env_file_fills_only_what_the_environment_lacks(tmp_path: Path) -> None:
    """The environment wins; its empty variables are filled; a secret and its NAME_FILE count as one variable."""
    (file := tmp_path / "env").write_text("A=file\nB=file\nC=file\nAPI_TOKEN_FILE=/file\nCITRUS_API_KEY=file\n")
    environ = {"A": "environment", "B": "", "API_TOKEN": "token", "CITRUS_API_KEY_FILE": "/key"}
    apply_env_file(file, environ)
    assert environ == {
        "A": "environment",
        "B": "file",
        "C": "file",
        "API_TOKEN": "token",
        "CITRUS_API_KEY_FILE": "/key",
    }


def test_aws_environment_is_what_botocore_reads_when_prepared(tmp_path: Path) -> None:
    """Empty variables are gone, secrets come out of their files, botocore's own _FILE variables stay."""
    (file := tmp_path / "key").write_text("secret-key\n")
    environ = {
        "AWS_PROFILE": "",
        "AWS_ACCESS_KEY_ID": "id-of-the-key",
        "AWS_SECRET_ACCESS_KEY_FILE": str(file),
        "AWS_CONFIG_FILE": "/config",
        "OTHER": "",
    }
    expected = {
        "AWS_ACCESS_KEY_ID": "id-of-the-key",
        "AWS_SECRET_ACCESS_KEY": "secret-key",
        "AWS_CONFIG_FILE": "/config",
        "OTHER": "",
    }
    prepare_aws_environment(environ)
    assert environ == expected
    prepare_aws_environment(environ)
    assert environ == expected


@pytest.mark.parametrize(
    "line", ["bad line\n", "#\nbad\n", "A='x\n", 'A="\n', "A='x' y\n", "A=''\n", "A=1\n", " ", "\n", "A"]
)
def test_env_file_is_read_in_linear_time(line: str) -> None:
    """Four times the lines take four times as long, or a little more, whatever is wrong with them."""

    def least_s(count: int) -> float:
        text = line * count
        return min(timeit.repeat(lambda: parse_env(text), timer=time.process_time, number=1, repeat=3))

    assert least_s(16_000) < 9 * least_s(4_000)
