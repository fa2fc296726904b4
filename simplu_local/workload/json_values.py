"""JSON values as jsonb has them: numbers to the digit, and equal where jsonb calls them equal."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TypeAlias

JsonValue: TypeAlias = "bool | str | Decimal | list[JsonValue] | dict[str, JsonValue] | None"


def parse_json(text: str) -> JsonValue:
    """Parse JSON as jsonb does: the last of duplicate keys wins, numbers are exact."""
    value: JsonValue = json.loads(text, parse_int=Decimal, parse_float=Decimal)
    return value


def canonical_text(value: JsonValue) -> str:
    """Return the same text for all values that are equal as jsonb: sorted keys; 1, 1.0 and 10e-1 alike."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value)
        case Decimal():
            return _canonical_number(value)
        case list():
            return f"[{','.join(map(canonical_text, value))}]"
        case dict():
            return f"{{{','.join(f'{json.dumps(name)}:{canonical_text(value[name])}' for name in sorted(value))}}}"


def _canonical_number(number: Decimal) -> str:
    # Not Decimal.normalize(): it rounds to the context's 28 digits.
    sign, digits, exponent = number.as_tuple()
    significant = "".join(map(str, digits)).lstrip("0")
    stripped = significant.rstrip("0")
    if not stripped:
        return "0"
    return f"{'-' if sign else ''}{stripped}e{int(exponent) + len(significant) - len(stripped)}"
