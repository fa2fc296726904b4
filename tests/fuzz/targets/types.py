"""Files of business types: views whose statements have no text of a file outside of quotes, or problems for people."""

from __future__ import annotations

import json
import re
from typing import Final

from fuzz.inputs import messages, spliced
from fuzz.quiet import begin, check_faults
from fuzz.target import Target
from hypothesis import strategies as st

from simplu_worker.shards.schema.type_files import TypeFileError, read_type, stored_type, view_statements

QUOTED: Final = re.compile(r'"[^"]*"|\'[^\']*\'')
OWN_WORDS: Final = re.compile(r"[A-Za-z_.,()\s=:>-]*")


def check(data: bytes) -> None:
    begin(data)
    try:
        file = read_type(data.decode("utf-8", "replace"))
    except TypeFileError:
        check_faults()
        return
    assert stored_type(file.text) == file
    for statement in view_statements(file.type, server_version=18):
        rest = QUOTED.sub("", statement)
        assert OWN_WORDS.fullmatch(rest), rest
        assert "public." not in "".join(QUOTED.findall(statement))
        assert "\\" not in statement
    check_faults()


COLUMN: Final[dict[str, object]] = {"name": "price", "path": ["a", "b"], "type": "number", "alsoAt": [["c"], ["d"]]}
RESOURCE: Final[dict[str, object]] = {
    "name": "order",
    "alsoNamed": ["orders"],
    "view": "shop_orders",
    "columns": [COLUMN, {"name": "paid", "path": ["paid"], "type": "boolean"}],
    "validation": "warn",
    "schema": {"type": "object"},
}
TYPE: Final[dict[str, object]] = {
    "name": "shop",
    "defaultSettings": {"locale": "en"},
    "staffResourceType": "clerk",
    "resourceTypes": [RESOURCE, {"name": "note"}],
}
SEEDS: Final = (json.dumps(TYPE).encode(), json.dumps(TYPE | {"resourceTypes": []}).encode())
WORDS: Final = (
    *(json.dumps(name).encode() for name in (*TYPE, *RESOURCE, *COLUMN, "enforce", "timestamp", "public.tenants")),
    *(b'""', b"--", b"'", b";", b"\\u0000", b"\\u0027", b'"\\"'),
)
TARGET: Final = Target(
    check=check,
    seeds=SEEDS,
    words=WORDS,
    inputs=messages(TYPE) | spliced(st.sampled_from(SEEDS), WORDS),
    bytes_per_byte=2_000,
)
