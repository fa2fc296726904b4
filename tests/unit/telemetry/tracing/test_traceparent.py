"""The producers' spans: which texts name one, and which of many are linked to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.telemetry.tracing.traceparent import ChosenLinks, ProducerSpan, choose_links, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KNOWN = ProducerSpan(int(TRACE, 16), int(SPAN, 16), is_sampled=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", KNOWN),
        (f"00-{TRACE}-{SPAN}-00", KNOWN._replace(is_sampled=False)),
        (f"00-{TRACE}-{SPAN}-03", KNOWN),  # and random
        (f"00-{TRACE}-{SPAN}-02", KNOWN._replace(is_sampled=False)),
        (f"01-{TRACE}-{SPAN}-01", KNOWN),  # a later version
        (f"cc-{TRACE}-{SPAN}-01-what the future holds", KNOWN),
        (f"00-{TRACE}-{SPAN}-01-more", None),  # version 00 has no more
        (f"01-{TRACE}-{SPAN}-01.more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE[1:]}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        (f" 00-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-0１", None),  # a digit, but not of ASCII
        (f"01-{TRACE}-{SPAN}-01-" + "x" * 512, None),
        ("", None),
    ],
)
def test_traceparent_is_read_as_the_recommendation_has_it(text: str, expected: ProducerSpan | None) -> None:
    """Its own examples, the bounds of each field, and later versions."""
    assert expected == parse_traceparent(text)


@given(st.text())
def test_any_text_is_a_span_or_malformed(text: str) -> None:
    """Nothing else: no exception, no span that OpenTelemetry would refuse."""
    span = parse_traceparent(text)
    assert span is None or (0 < span.trace_id < 2**128 and 0 < span.span_id < 2**64)


def _text(number: int, *, is_sampled: bool = True) -> str:
    return f"00-{number:032x}-{number:016x}-{is_sampled:02x}"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], ([], 0, 0)),
        ([_text(1), _text(2)], ([1, 2], 0, 0)),
        ([_text(2), _text(1), _text(2)], ([2, 1], 0, 0)),  # once each
        ([_text(1), _text(2), _text(3), _text(4), _text(4)], ([1, 2, 3], 1, 0)),
        ([_text(1, is_sampled=False), _text(2), _text(3), _text(4)], ([2, 3, 4], 1, 0)),
        ([_text(1, is_sampled=False), _text(2)], ([2, 1], 0, 0)),
        (["", "x", "x", _text(1)], ([1], 0, 3)),
    ],
)
def test_links_are_few_and_sampled_ones_go_first(texts: list[str], expected: tuple[list[int], int, int]) -> None:
    """Each span once, three at most here; the rest is counted, and each malformed text is."""
    chosen = choose_links(texts, 3)
    assert expected == ([span.trace_id for span in chosen.spans], *chosen[1:])


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())), st.integers(0, 5))
def test_no_link_is_lost_from_the_count(spans: list[tuple[int, bool]], max_count: int) -> None:
    """Links, those left out, and malformed ones (number 0) make up all that was sent."""
    texts = [_text(number, is_sampled=is_sampled) for number, is_sampled in spans]
    chosen = choose_links(texts, max_count)
    assert isinstance(chosen, ChosenLinks)
    assert len(chosen.spans) <= max_count
    assert len(chosen.spans) + chosen.left_out_count == len({one for one in spans if one[0]})
    assert chosen.malformed_count == sum(number == 0 for number, _ in spans)
