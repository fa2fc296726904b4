"""Read the `traceparent` of producers, as W3C Trace Context (level 2, section 3.2) has it. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

MEMBER: Final = "traceparent"  # of a record, and the message attribute of that name
TEXT_MAX_LENGTH: Final = 512  # later versions may append fields
_FORM: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?",
    re.DOTALL,
)
_SAMPLED: Final = 0x01


class ProducerSpan(NamedTuple):
    """The span in which a producer sent a record; *is_sampled*: the producer may have recorded it."""

    trace_id: int
    span_id: int
    is_sampled: bool


class ChosenLinks(NamedTuple):
    """The spans to link to, how many others there were, and how many texts were malformed."""

    spans: list[ProducerSpan]
    left_out_count: int
    malformed_count: int


def parse_traceparent(text: str) -> ProducerSpan | None:
    """Return the span that *text* names; None if it is malformed."""
    found = _FORM.fullmatch(text) if len(text) <= TEXT_MAX_LENGTH else None
    if found is None or found["version"] == "ff" or (found["version"] == "00" and found["more"] is not None):
        return None
    span = ProducerSpan(int(found["trace"], 16), int(found["span"], 16), bool(int(found["flags"], 16) & _SAMPLED))
    return span if span.trace_id and span.span_id else None


def choose_links(texts: Iterable[str], max_count: int) -> ChosenLinks:
    """Return the spans that *texts*, one for each record that has any, name: each once, *max_count* at most.

    Sampled ones go first: a link to a span that was not recorded leads nowhere. Otherwise in the order of the texts.
    """
    malformed_count = 0
    spans: dict[ProducerSpan, None] = {}
    for text, count in Counter(texts).items():
        span = parse_traceparent(text)
        if span is None:
            malformed_count += count
        else:
            spans[span] = None
    in_turn = sorted(spans, key=lambda span: not span.is_sampled)  # stable
    return ChosenLinks(in_turn[:max_count], max(0, len(in_turn) - max_count), malformed_count)
