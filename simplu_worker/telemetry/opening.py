"""Turn tracing on and off; OpenTelemetry is imported only when it is on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from simplu_worker.errors import ConfigurationError
from simplu_worker.telemetry.log import register_secret, scrub_text
from simplu_worker.telemetry.spans import TRACING

if TYPE_CHECKING:
    from simplu_worker.telemetry.exported_spans import SpanExport

PROTOCOL: Final = "http/protobuf"
PROTOCOL_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")  # the first one wins
HEADER_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")


def check_tracing(environ: Mapping[str, str] = os.environ) -> None:
    """Raise `ConfigurationError` where spans cannot be exported."""
    try:
        import simplu_worker.telemetry.exported_spans  # noqa: F401, PLC0415 - the packages are an extra
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            f"TRACES: expected the extra `tracing` to be installed, got no module {exc.name}; "
            "install simplu-worker[tracing]"
        ) from None
    for name in PROTOCOL_VARIABLES:
        if protocol := environ.get(name):
            if protocol != PROTOCOL:
                raise ConfigurationError(f"{name}: expected {PROTOCOL}, got {scrub_text(protocol)!r}")
            return


@contextmanager
def open_tracing(
    *, group_name: str, replica_name: str, environ: Mapping[str, str] = os.environ
) -> Iterator[SpanExport]:
    """Trace until left; close the export before. Raises `ConfigurationError` for wrong values of `OTEL_*` too."""
    check_tracing(environ)
    from simplu_worker.telemetry.exported_spans import create_span_export  # noqa: PLC0415 - see above

    for name in HEADER_VARIABLES:
        for header in environ.get(name, "").split(","):
            register_secret(header.partition("=")[2].strip())
    try:
        export = create_span_export(group_name=group_name, replica_name=replica_name, environ=environ)
    except ValueError as exc:
        raise ConfigurationError(
            f"OTEL_*: expected values that OpenTelemetry knows, got: {scrub_text(str(exc))}"
        ) from None
    TRACING.tracer = export
    try:
        yield export
    finally:
        TRACING.tracer = None
