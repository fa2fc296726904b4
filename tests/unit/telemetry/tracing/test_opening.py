from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest
from support.tracing.recorded_spans import record_spans

from simplu_worker.assembly.worker import check_tracing, open_tracing
from simplu_worker.errors import ConfigurationError
from simplu_worker.telemetry import exported_spans
from simplu_worker.telemetry.exported_spans import choose_links
from simplu_worker.telemetry.log import scrub_text
from simplu_worker.telemetry.spans import TRACING, receive_span


def test_missing_extra_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, exported_spans.__name__)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"^TRACES: .* install simplu-worker\[tracing\]$"):
        check_tracing({})


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, None),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": ""}, None),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, got 'grpc'"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: expected http/protobuf, got 'http/json'",
        ),
    ],
)
def test_other_protocol_is_a_wrong_setting(environ: Mapping[str, str], problem: str | None) -> None:
    if problem is None:
        check_tracing(environ)
        return
    with pytest.raises(ConfigurationError, match=f"^{problem}$"):
        check_tracing(environ)


async def test_process_traces_while_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": "a=first-key-of-mine,b=second%20key"}
    with open_tracing(group_name="g", replica_name="replica-1", environ=environ) as export:
        assert export is TRACING.tracer
        await export.close(within_s=5)
        await export.close(within_s=5)
    tracer: object = TRACING.tracer
    assert tracer is None
    assert scrub_text("first-key-of-mine and second key") == "*** and ***"


def test_receive_without_records_has_no_span() -> None:
    with record_spans() as spans:
        with receive_span("sqs", "orders") as span:
            span.note_records(0)
        with pytest.raises(OSError, match="gone"), receive_span("kinesis", "stream", "shardId-0"):
            raise OSError("gone")
        with receive_span("kinesis", "stream", "shardId-0") as span:
            span.note_records(7)
        failed, received = spans.ended()
    assert ((failed.attributes or {})["error.type"], failed.status.description) == ("OSError", "OSError")
    assert (received.attributes or {})["messaging.batch.message_count"] == 7
    assert "messaging.batch.message_count" not in (failed.attributes or {})


def _text(number: int, *, is_sampled: bool = True) -> str:
    return f"00-{number:032x}-{number:016x}-{is_sampled:02x}"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], []),
        ([_text(2), _text(1), _text(2)], [2, 1]),  # once each
        ([_text(1), _text(2), _text(3), _text(4)], [1, 2, 3]),
        ([_text(1, is_sampled=False), _text(2), _text(3), _text(4)], [2, 3, 4]),
        (["", "x", "x", _text(1)], [1]),
        ([f"{_text(1)}-more", f"cc{_text(2)[2:]}-more"], [2]),  # a later version may have more fields
    ],
)
def test_links_are_few_and_sampled_ones_go_first(texts: list[str], expected: list[int]) -> None:
    assert [span.trace_id for span in choose_links(texts, 3)] == expected
