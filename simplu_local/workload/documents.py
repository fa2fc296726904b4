"""Random but repeatable content: JSON documents, ids and times, with the awkward kinds that real producers send."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from random import Random

STRINGS = (
    "",
    "plain",
    "Ünïcödé ß",
    "e\u0301 is not \u00e9",
    "漢字かな",
    "🦷 🏋️‍♀️ 🏨",
    "\u202eright to left",
    "\ufeffmarked",
    "\uffff and \U0010ffff",
    "tab\tline\nend\r",
    'quote " and backslash \\',
    "\u0001\u001f\x7f\u2028",
    "'; DROP TABLE resources; --",
    "100 % %s %n ${x} {{y}}",
    "\\u0000 as text",
    "null",
)
NUMBERS = (
    "0",
    "-0",
    "1",
    "1.0",
    "1.50",
    "-17",
    "9223372036854775807",
    "9223372036854775808",
    "-18446744073709551616",
    "123456789012345678901234567890123456789",
    "0.1",
    "0.10000000000000000000000000000000000000001",
    "3.14159265358979323846264338327950288419716939937510",
    "1e2",
    "1E+400",
    "-2.5e-300",
    "1.7976931348623157e309",
)
MEMBERS = ("name", "note", "tags", "price", "details", "Größe", "ключ", "🔑", 'with "quotes"', "", "a.b", "$ref")
STATUSES = ("planned", "confirmed", "done", "cancelled")
ID_TAILS = ("", "-x", " with space", "/../..", "'quoted\"", "%2F%00", "🦷", "e\u0301", "\u202e", "\\", "\t", "ß" * 100)
DEPTH_MAX = 4
LONG_TEXT_CHARS = 120_000
UNSTORABLE = (
    '{"note": "\\u0000"}',
    '{"\\u0000": 1}',
    '{"deep": [{"note": "before\\u0000after"}]}',
    '{"note": "\\ud800"}',
    '{"note": "\\udc00\\ud800"}',
    '{"price": 1e200000}',
    '{"price": -9E+131072}',
)


TIMES = ("2024-01-01", "2024-01-01T23:30:00Z", "2024-01-02T00:30:00+01:00", "2024-01-02T10:00:00", "soon")


def document(random: Random, *, long: bool = False) -> str:
    """Return the JSON text of an object with random members, and `status` and `rank` for the filters of lists."""
    members = [_member(random, "status", random.choice(STATUSES)), f'"rank": {random.randrange(5)}']
    members += [_random_member(random, 1) for _ in range(random.randrange(5))]
    if random.random() < 0.3:
        members.append(_member(random, random.choice(("appointmentTime", "startsAt")), random.choice(TIMES)))
    if long:
        members.append(f'"long": {json.dumps("long text " * (LONG_TEXT_CHARS // 10))}')
    return _object(random, members)


def patch_document(random: Random) -> str:
    """Return the JSON text of an RFC 7396 patch that sets, merges and removes members."""
    members = [f'"rank": {random.randrange(5)}'] if random.random() < 0.5 else []
    for _ in range(random.randrange(1, 4)):
        name = json.dumps(random.choice(MEMBERS), ensure_ascii=False)
        members.append(f"{name}: null" if random.random() < 0.3 else _random_member(random, 1))
    if random.random() < 0.2:
        members.append('"details": {"inner": null, "kept": {"x": [null, 1.0]}}')
    return _object(random, members)


def _random_member(random: Random, depth: int) -> str:
    return f"{json.dumps(random.choice(MEMBERS), ensure_ascii=random.random() < 0.3)}: {_value(random, depth)}"


def _member(random: Random, name: str, text: str) -> str:
    return f"{json.dumps(name)}: {json.dumps(text, ensure_ascii=random.random() < 0.5)}"


def _value(random: Random, depth: int) -> str:
    draw = random.random()
    if depth < DEPTH_MAX and draw < 0.2:
        # Names are drawn with repetition: duplicate keys are part of the load.
        return _object(random, [_random_member(random, depth + 1) for _ in range(random.randrange(4))])
    if depth < DEPTH_MAX and draw < 0.35:
        return f"[{', '.join(_value(random, depth + 1) for _ in range(random.randrange(4)))}]"
    if draw < 0.6:
        return random.choice(NUMBERS)
    if draw < 0.7:
        return random.choice(("true", "false", "null"))
    return json.dumps(random.choice(STRINGS), ensure_ascii=random.random() < 0.5)


def _object(random: Random, members: list[str]) -> str:
    random.shuffle(members)
    return random.choice(("{%s}", "{ %s }", "{\n %s\n}", "{%s\t}")) % ", ".join(members)


def resource_id(random: Random, resource_type: str, number: int) -> str:
    """Return an id unique to *number*, one in five of an awkward kind; at most 256 characters."""
    tail = random.choice(ID_TAILS) if random.random() < 0.2 else ""
    return f"{resource_type[:100]}-{number}{tail}"


def timestamp(random: Random, moment: datetime) -> str:
    """Format *moment*, or rarely a time far away, in one of the formats that producers use."""
    draw = random.random()
    if draw < 0.01:
        return random.choice(
            ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "1969-12-31", "2024-02-29t12:00:00")
        )
    if draw < 0.03:
        return moment.strftime("%Y-%m-%d")
    if draw < 0.1:
        return moment.astimezone(timezone(timedelta(hours=5, minutes=45))).isoformat(timespec="microseconds")
    if draw < 0.2:
        return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
