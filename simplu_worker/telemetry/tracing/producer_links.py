"""Choose the spans of producers to link to, by the texts of their `traceparent` (W3C Trace Context)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_NOWHERE: Final = Context()


class ChosenLinks(NamedTuple):
    """The spans to link to, how many others there were, and how many texts were malformed."""

    spans: list[SpanContext]
    left_out_count: int
    malformed_count: int


def choose_links(texts: Iterable[str], max_count: int) -> ChosenLinks:
    """Return the spans that *texts*, one for each record that has any, name: each once, *max_count* at most.

    Sampled ones go first: a link to a span that was not recorded leads nowhere. Otherwise in the order of the texts.
    """
    malformed_count = 0
    spans: dict[tuple[int, int, bool], SpanContext] = {}
    for text, count in Counter(texts).items():
        span = get_current_span(_PROPAGATOR.extract({"traceparent": text}, _NOWHERE)).get_span_context()
        if span.is_valid:
            spans.setdefault((span.trace_id, span.span_id, span.trace_flags.sampled), span)
        else:
            malformed_count += count
    in_turn = sorted(spans.values(), key=lambda span: not span.trace_flags.sampled)  # stable
    return ChosenLinks(in_turn[:max_count], max(0, len(in_turn) - max_count), malformed_count)
