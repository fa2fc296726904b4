"""The bounds of a document, by its text alone: values, digits of a number, text with every number written out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processor_time import least_cpu_s

from simplu_worker.operations.json_record import (
    DOCUMENT_MAX_BYTES,
    DOCUMENT_MAX_VALUES,
    NUMBER_MAX_DIGITS,
    exceeds_bounds,
)

BOMB = "1e131071"


def array_of(count: int, text: str, *, separator: str = ",") -> str:
    return f'{{"a":[{separator.join([text] * count)}]}}'


def sized(members: str, more: int) -> str:
    """Return a document of so many bytes more than a document may have."""
    text = "x" * (DOCUMENT_MAX_BYTES + more - 8 - len(members))
    return f'{{"a":"{text}"{members}}}'


def plain_digits(literal: str) -> int:
    """Return the digits of a number as Postgres writes it out: with all places behind the point that were sent."""
    return sum(character.isdigit() for character in format(Decimal(literal), "f"))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("{}", False),
        ('{"a": 1e999}', False),
        ('{"a": 1e1000}', True),
        ('{"a": -1E+999}', False),
        ('{"a": -12E+999}', True),
        ('{"a":1e-999}', False),
        ('{"a":1e-1000}', True),
        ('{"a": 0e-16000}', True),
        ('{"a": 0e99999}', False),
        ('{"a": 1e0000000000000003}', False),
        ('{"a": 1e99999999999999999999}', True),
        ('{"a": 0.001e1002}', False),
        ('{"a": 0.001e1003}', True),
        ('{"a": "1e5000", "b 1e5000": ", 1e5000"}', False),
        ('{"a": "\\", 1e5000", "\\\\": 1e5000}', True),
        ('{"a": "\\\\\\", 1e5000"}', False),
        (f'{{"a": {"7" * NUMBER_MAX_DIGITS}}}', False),
        (f'{{"a": {"7" * (NUMBER_MAX_DIGITS + 1)}}}', True),
        (f'{{"a": -0.{"7" * (NUMBER_MAX_DIGITS - 1)}}}', False),
        (f'{{"a": -0.{"7" * NUMBER_MAX_DIGITS}}}', True),
        (f'{{"a": "{"7" * 5000}"}}', False),
        (f'{{"a":{" " * 700}{"7" * 1001}{" " * 700}}}', True),
        ('{"a":' + "[" * 511 + "]" * 511 + "}", False),
        ('{"a":' + "[" * 512 + "]" * 512 + "}", True),
        ('{"a":1e10,"b":' + '{"a":' * 511 + "{}" + "}" * 512, True),
        ('{"a":"' + "[" * 5000 + '"}', False),
        ('{"a": "x\\u0000y"}', True),
        ('{"a\\\\\\u0000": 1}', True),
        ('{"a": "\\\\u0000 \\ud83d\\ude00"}', False),
        ('{"a": ["\\uDc00"]}', True),
        ('{"a": -1e999, "b": "x"}', False),
        (f'{{"a": -{"7" * NUMBER_MAX_DIGITS}, "b": 1e10}}', False),
        (f'{{"a": -{"7" * NUMBER_MAX_DIGITS}.5, "b": 1e10}}', True),
        ('{"a": 0e-999}', False),
        ('{"a": 0.00e1}', False),
        ('{"a": 10e-9}', False),
        ('{"a": 1e99999}', True),
        ('{"a": 1e999999}', True),
        ('{"a": 1e9999999}', True),
        ('{"a": 0e123456}', False),
        ('{"a": 0e1234567}', True),
    ],
    ids=itertools.count(),
)
def test_document_exceeds_the_bounds(document: str, *, expected: bool) -> None:
    assert exceeds_bounds(document.encode()) is expected


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: array_of(7000, BOMB), True),
        (lambda: array_of(10_000, "1e999"), False),
        (lambda: array_of(16_600, "1e999"), False),
        (lambda: array_of(16_800, "1e999"), True),
        (lambda: array_of(DOCUMENT_MAX_VALUES - 1, "1"), False),
        (lambda: array_of(DOCUMENT_MAX_VALUES, "1"), True),
        (lambda: array_of(DOCUMENT_MAX_VALUES - 1, '"1,2"', separator=" , "), False),
        (lambda: array_of(DOCUMENT_MAX_VALUES, '""', separator=" , "), True),
        (lambda: array_of(DOCUMENT_MAX_VALUES - 1, "{}"), False),
        (lambda: array_of(DOCUMENT_MAX_VALUES - 1, "[]"), False),
        (lambda: array_of(DOCUMENT_MAX_VALUES // 2 - 1, "[ ]"), False),
        (lambda: array_of(DOCUMENT_MAX_VALUES // 2, "[{}]"), True),
        (lambda: json.dumps({str(number): number for number in range(DOCUMENT_MAX_VALUES)}), False),
        (lambda: json.dumps({str(number): number for number in range(DOCUMENT_MAX_VALUES + 1)}), True),
        (lambda: json.dumps({str(number): "x" for number in range(DOCUMENT_MAX_VALUES)}), False),
        (lambda: json.dumps({str(number): "x" for number in range(DOCUMENT_MAX_VALUES + 1)}), True),
        (lambda: json.dumps({"a": 'a, "quoted" [word] {and}, ' * 50_000}), False),
        (lambda: json.dumps({"a": "x" * 16_777_205}), False),
        (lambda: json.dumps({"a": "x" * 16_777_209}), True),
        (lambda: sized("", 0), False),
        (lambda: sized("", 1), True),
        (lambda: sized(',"b":-1.5E+2', 3), False),  # -150 is three characters shorter
        (lambda: sized(',"b":-1.5E+2', 4), True),
        (lambda: sized(',"b":1e-1', 1), False),
        (lambda: sized(',"b":1e-1', 2), True),
        (lambda: sized(',"b":1e10,"c":-1e-9', -14), False),  # 7 characters longer each
        (lambda: sized(',"b":1e10,"c":-1e-9', -13), True),
        (lambda: '{"a":"%s"}' % ('\\"' * 500_000), False),
    ],
    ids=itertools.count(),
)
def test_large_document_exceeds_the_bounds(make: Callable[[], str], *, expected: bool) -> None:
    assert exceeds_bounds(make().encode()) is expected


@pytest.mark.slow
@given(st.from_regex(r"-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,5})?[eE][+-]?0{0,2}([0-9]|9[89][0-9]|100[0-9])", fullmatch=True))
def test_number_has_the_digits_that_postgres_writes(literal: str) -> None:
    value = Decimal(literal)
    digits = plain_digits(literal) if value or "e-" in literal.lower() else len(format(value.quantize(Decimal(1)), "f"))
    if not value and "e-" not in literal.lower():
        digits = 1

    assert exceeds_bounds(f'{{"a": {literal}}}'.encode()) is (digits > NUMBER_MAX_DIGITS)


@given(
    st.sampled_from(["", *" \t\n\r"]),
    st.sampled_from(["", *" \t\n\r"]),
    st.sampled_from(['{{"a":{}}}', '{{"a":[{}]}}', '{{"a":[1,{},2]}}', '{{"a":{},"b":"c"}}']),
    st.uuids(version=4),
)
def test_number_is_found_wherever_it_may_be(before: str, behind: str, form: str, id_: UUID) -> None:
    ids = f', "4e50-{id_}": "{id_}"' + "}"
    assert exceeds_bounds((form.format(f"{before}-1.5E+1000{behind}")[:-1] + ids).encode())
    assert not exceeds_bounds((form.format(f"{before}-1.5E+10{behind}")[:-1] + ids).encode())


@pytest.mark.slow
@pytest.mark.parametrize("text", ["1e5", '"\\""', "7" * 499, "[]", '", 1e77"', '{"1e55":[]}'])
def test_bounds_take_linear_time(text: str) -> None:
    def least_s(size: int) -> float:
        document = f'{{"e": 1e99, {array_of(size // len(text), text)[1:]}'.encode()
        return least_cpu_s(lambda: exceeds_bounds(document))

    assert least_s(200_000) < 9 * least_s(50_000)
