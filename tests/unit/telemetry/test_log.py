from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from support.processor_time import cpu_s, least_cpu_s

from simplu_worker.telemetry import log as log_module
from simplu_worker.telemetry.log import (
    LINES_MAX,
    BackgroundStream,
    configure_logging,
    recent_errors,
    register_secret,
    scrub,
    scrub_text,
)
from simplu_worker.telemetry.log_folding import FOLDED_LEVELS, Facts, LogDeduplicator, dedup_key

PLANTED = "s3cret-of/the'day%40\\x"


@pytest.fixture(autouse=True, scope="module")
def _own_secrets() -> Iterator[None]:
    before, log_module._secrets = log_module._secrets, log_module._Secrets()
    yield
    log_module._secrets = before


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    monkeypatch.setattr(log_module, "_secrets", log_module._Secrets())
    configure_logging("info", "json", stream=(stream := io.StringIO()), clock=lambda: 0.0)
    yield stream
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)
    monkeypatch.setattr(log_module, "_output", None)


def _lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def _logger(name: str = "simplu_worker.test") -> Any:
    return structlog.get_logger(name)


def test_log_writes_one_json_line_with_facts_when_an_event_comes(stream: io.StringIO) -> None:
    _logger().info("batch.applied", shard_id="a", operation_count=3, at=None, odd="\ud800\u2028")
    _logger().debug("batch.planned")
    (line,) = _lines_of(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "simplu_worker.test",
        "event": "batch.applied",
        "shard_id": "a",
        "operation_count": 3,
        "at": None,
        "odd": "\ud800\u2028",
    }


def test_log_takes_libraries_from_warning_on(stream: io.StringIO) -> None:
    register_secret(PLANTED)
    logging.getLogger("asyncpg").info("connected")
    logging.getLogger("asyncpg").warning("lost %s", PLANTED)
    odd = logging.LogRecord("aiohttp.server", logging.ERROR, "", 0, "odd %d", ("x",), None)
    log_module._LibraryHandler().emit(odd)  # not by its logger: pytest's own handler would refuse it
    assert [(line["level"], line["logger"], line["event"]) for line in _lines_of(stream)] == [
        ("warning", "asyncpg", "lost ***"),
        ("error", "aiohttp.server", "odd %d"),
    ]


def test_log_keeps_bodies_of_aws_calls_out_when_debug(stream: io.StringIO) -> None:
    configure_logging("debug", "json", stream=stream)
    logging.getLogger("botocore.endpoint").debug("body")
    logging.getLogger("botocore.credentials").info("found")
    logging.getLogger("asyncpg").debug("seen")
    _logger().debug("stream.read")
    assert [line["event"] for line in _lines_of(stream)] == ["found", "seen", "stream.read"]


SCRUBBED = [
    ("postgresql://user:pa55word@host:5432/db", "postgresql://user:***@host:5432/db"),
    ("at postgres://u:p@ss:w/o#rd?@host/db now", "at postgres://u:***@host/db now"),
    ("redis://:pa55word@host", "redis://:***@host"),
    ("http://host:8080/path is fine", "http://host:8080/path is fine"),
    ("host=h password=pa55word dbname=d", "host=h password=*** dbname=d"),
    ("host=h password = 'pa55 \\'word' dbname=d", "host=h password = *** dbname=d"),
    ("postgres://h/db?user=u&password=pa55word", "postgres://h/db?user=u&password=***"),
    ("PGPASSWORD=pa55word psql", "PGPASSWORD=*** psql"),
    ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7", "AWS_SECRET_ACCESS_KEY=***"),
    ('{"password": "pa55 word", "a": 1}', '{"password": ***, "a": 1}'),
    ("{'apiKey': 'pa55word', 'a': 1}", "{'apiKey': ***, 'a': 1}"),
    ('"{\\"password\\":\\"pa55word\\"}"', '"{\\"password\\":\\***'),
    ("Authorization: Bearer abcdef.ghi", "Authorization: ***"),
    ("'Authorization': 'AWS4-HMAC-SHA256 Credential=AKIA/x, Signature=abc'", "'Authorization': ***"),
    ("sent Bearer abcdef.ghi to", "sent Bearer *** to"),
    ("API_TOKEN: expected visible ASCII", "API_TOKEN: expected visible ASCII"),
    ("password authentication failed for user", "password authentication failed for user"),
]


@pytest.mark.parametrize(("text", "expected"), SCRUBBED)
def test_scrubbing_masks_what_looks_like_a_secret(text: str, expected: str) -> None:
    assert expected == scrub_text(text)


def test_scrubbing_reaches_into_every_value(stream: io.StringIO) -> None:
    register_secret(PLANTED)
    register_secret("short")

    class Thing:
        def __repr__(self) -> str:
            return f"Thing({PLANTED!r})"

    value = {
        PLANTED: [PLANTED, (PLANTED, {"deep": {PLANTED}})],
        "bytes": PLANTED.encode(),
        "object": Thing(),
        "exception": ValueError(PLANTED),
        "quoted": quote(PLANTED, safe=""),
        "api_key": "unregistered",
        "password": None,
        "number": float("nan"),
        "text": "short",
    }
    assert scrub(value) == {
        "***": ["***", ["***", {"deep": ["***"]}]],
        "bytes": 'b"***"',
        "object": 'Thing("***")',
        "exception": "ValueError: ***",
        "quoted": "***",
        "api_key": "***",
        "password": None,
        "number": "nan",
        "text": "short",
    }


@given(before=st.text(), after=st.text(), secret=st.text("ab%2/'\"\\é", min_size=6))
def test_scrubbing_leaves_no_registered_secret_in_any_text(before: str, after: str, secret: str) -> None:
    secrets = log_module._Secrets()
    secrets.add(secret)
    for shown in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret)):
        assert shown not in secrets.mask(f"{before}{shown}{after}")


HOSTILE = ["a.", "a://b:", "password='", "secret", "authorization", "Bearer ", "x", "@", "\\'", "://:@ "]


@pytest.mark.parametrize("part", HOSTILE)
def test_scrubbing_is_quick_when_a_text_is_hostile(part: str) -> None:
    counting_s = least_cpu_s(lambda: sum(1 for _ in range(250_000)))
    assert cpu_s(lambda: scrub_text(part * (1_000_000 // len(part)))) < 80 * counting_s


def test_exceptions_are_written_with_type_and_scrubbed_message(stream: io.StringIO) -> None:
    register_secret(PLANTED)
    try:
        _fail()
    except ExceptionGroup:
        _logger().warning("shard.lost", exc_info=True, error=PLANTED)
        _logger().exception("task.failed", facts={"a": [PLANTED]})
    warning, error = _lines_of(stream)
    expected = {
        "type": "ExceptionGroup",
        "message": "tasks (1 sub-exception)",
        "exceptions": [{"type": "ValueError", "message": "***"}],
    }
    assert expected == warning["exception"]
    assert "OSError: dsn postgres://u:***@h" in error["exception"]["traceback"]
    assert PLANTED not in "".join(map(str, [warning, error]))
    assert "exc_info" not in error


def _fail() -> None:
    raise ExceptionGroup("tasks", [ValueError(PLANTED)]) from OSError(f"dsn postgres://u:{PLANTED}@h")


def _event(name: str = "shard.lost", level: str = "warning", **facts: Any) -> Facts:
    return {"event": name, "level": level, **facts}


def test_fold_writes_the_first_warning_and_then_a_count() -> None:
    fold = LogDeduplicator(window_s=10)
    assert [_event(n=1)] == fold.admit(_event(n=1), 0)
    assert fold.admit(_event(n=2), 1) == []
    assert fold.admit(_event(n=3), 9.9) == []
    assert [_event(n=3, repeated=2), _event("x", "info")] == fold.admit(_event("x", "info"), 10)
    assert [_event(n=4)] == fold.admit(_event(n=4), 11)


@pytest.mark.parametrize(
    "other",
    [
        {"shard_id": "b"},
        {"source": "sqs"},
        {"tenant_id": "t"},
        {"error": "OSError: x"},
        {"logger": "x"},
        {"event": "y"},
        {"level": "error"},
        {"exception": {"type": "ValueError"}},
    ],
)
def test_fold_keeps_apart_what_is_not_the_same(other: Facts) -> None:
    fold = LogDeduplicator()
    fold.admit(_event(), 0)
    assert [_event() | other] == fold.admit(_event() | other, 0)


def test_fold_of_what_goes_on_has_a_line_a_window() -> None:
    fold = LogDeduplicator(window_s=10)
    lines = [fold.admit(_event(n=second), second) for second in (0, 5, 10, 12, 20, 31, 40)]
    assert lines == [[_event(n=0)], [], [_event(n=10, repeated=2)], [], [_event(n=20, repeated=2)], [_event(n=31)], []]
    assert fold.admit(_event(n=42), 42) == [_event(n=42, repeated=2)]


def test_fold_forgets_the_oldest_event_with_its_line() -> None:
    fold = LogDeduplicator(window_s=10, max_keys=2)
    for name in ("a", "b", "a", "b"):
        fold.admit(_event(name), 0)
    assert fold.admit(_event("c"), 1) == [_event("a", repeated=1), _event("c")]
    assert fold.admit(_event("d"), 11) == [_event("b", repeated=1), _event("d")]
    fold.admit(_event("d"), 12)
    assert (fold.flush(), fold.flush()) == ([_event("d", repeated=1)], [])


def test_fold_knows_an_error_by_its_class() -> None:
    fold = LogDeduplicator()
    for error, is_written in (("OSError: a: b", True), ("OSError: c", False), ("OSError", False), ("", True)):
        assert bool(fold.admit(_event(error=error), 0)) is is_written
    assert fold.admit(_event(), 0) == []
    assert (dedup_key(_event(error="x")), dedup_key({})) == (("warning", "", "shard.lost", *[""] * 7, "x"), ("",) * 11)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["info", "warning"]), st.floats(0, 20)), max_size=60))
def test_fold_loses_no_event_whatever_comes(comings: list[tuple[str, str, float]]) -> None:
    fold, now, lines = LogDeduplicator(window_s=10, max_keys=2), 0.0, list[Facts]()
    for name, level, pause in comings:
        now += pause
        lines += fold.admit(_event(name, level), now)
    lines += fold.flush()
    for name in "abc":
        for level in ("info", "warning"):
            came = sum((name, level) == coming[:2] for coming in comings)
            written = [line for line in lines if (line["event"], line["level"]) == (name, level)]
            assert came == sum(line.get("repeated", 1) for line in written)
            assert level in FOLDED_LEVELS or all("repeated" not in line for line in written)


@pytest.mark.parametrize(
    ("facts", "about", "expected"),
    [
        ({"shard_id": "a", "error": "OSError"}, "a", "OSError"),
        ({"queue": "q", "reason": "late"}, "q", "late"),
        ({"shard_id": "a", "problems": ["TimeoutError", "it is 40 s behind"]}, "a", "TimeoutError; it is 40 s behind"),
        ({"queue": "q", "problem": "maxReceiveCount 3"}, "q", "maxReceiveCount 3"),
        ({"variable": "LOG_LVL", "nearest": "LOG_LEVEL"}, None, "variable LOG_LVL, nearest LOG_LEVEL"),
        ({"shard_id": "a", "count": 3, "error": None}, "a", "count 3"),
        ({"ids": ["x" * 300]}, None, "ids [" + '"' + 198 * "x" + "…"),
        ({"exc_info": OSError("gone")}, None, "OSError: gone"),
        ({"queue": "q", "stream": "s", "repeated": 3, "text": ["ü"]}, "q", 'stream s, text ["ü"]'),
        ({"ids": "x" * 200}, None, f"ids {'x' * 200}"),
        ({}, None, None),
    ],
)
@pytest.mark.usefixtures("stream")
def test_recent_errors_name_the_cause_of_each_event(
    facts: dict[str, Any], about: str | None, expected: str | None
) -> None:
    _logger().warning("thing.happened", **facts)
    (one,) = recent_errors()
    assert (one["event"], one["about"], one["error"], one["count"]) == ("thing.happened", about, expected, 1)


class _UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError(PLANTED)

    __repr__ = __str__


def test_log_writes_no_text_that_could_not_be_scrubbed(stream: io.StringIO) -> None:
    logging.getLogger("library").error("sent %s", PLANTED, exc_info=_UnprintableError())

    assert [line["event"] for line in _lines_of(stream)] == ["log.failed"]
    assert PLANTED not in stream.getvalue()


def test_stream_writes_in_order_and_drops_what_finds_no_room() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    dropped: list[int] = []
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        stream = BackgroundStream(file, on_drop=dropped.append)
        lines = [f"{number:5} {'ü' * 500}\n" for number in range(2 * LINES_MAX)]
        for line in lines:
            stream.write(line)
        assert sum(dropped) > 0
        kept, written = len(lines) - sum(dropped), b""
        while written.count(b"\n") < kept:
            written += os.read(reading, 65536)
        shown = written.decode().splitlines(keepends=True)
        assert (len(shown), shown) == (kept, [line for line in lines if line in set(shown)])
        assert stream.drain(within_s=60.0)
    os.close(reading)


def test_stream_drops_lines_when_its_pipe_is_closed() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    dropped: list[int] = []
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        stream = BackgroundStream(file, on_drop=dropped.append)
        stream.write("two\nlines\n")
        assert stream.drain(within_s=60.0)
    assert dropped == [2]
