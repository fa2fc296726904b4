"""Strategies of inputs: JSON texts with every oddity that JSON has room for, and usual inputs with splices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

ODD_VALUES = (
    *("null", "true", "0", "-1", "1.5", "1e999", "-1e-999", "1e131071", "9" * 1200, "18446744073709551616", "01", "1."),
    *('""', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"' + "x" * 300 + '"', '"\\\\"', '"'),
    *("{}", "[]", "NaN", "[1,]", '{"a":1,"a":2}', '"2026-01-31"', '"0001-01-01T00:00:00+14:00"', '"漢"'),
)
WORDS = (
    *(b'"', b"\\", b"\\u0000", b"\\ud800", b"\\udfff", b"{", b"}", b"[", b"]", b",", b":", b"null", b"\xff", b"\x00"),
    *(b"1e9", b"-", b" ", b"[[[[", b"]]]]", b'{"a":', b"e131071", b"\xed\xa0\x80", b"\n", b"\x1e", b"\x1f"),
)


def json_texts(names: Sequence[str]) -> st.SearchStrategy[str]:
    """Return JSON texts, some of them none, with members of *names* and others, some of them nested deep."""
    scalars = st.sampled_from(ODD_VALUES) | st.text(max_size=8).map(json.dumps) | st.integers().map(str)
    keys = st.sampled_from([*names, "a", "\0", "\ud800", ""]).map(json.dumps)
    return st.recursive(scalars, lambda inner: _lists(inner) | _objects(keys, inner) | _nests(inner), max_leaves=12)


def _lists(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(inner, max_size=4).map(lambda texts: f"[{','.join(texts)}]")


def _objects(keys: st.SearchStrategy[str], inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.tuples(keys, inner).map(":".join)
    return st.lists(members, max_size=5).map(lambda texts: f"{{{', '.join(texts)}}}")


def _nests(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.sampled_from([("[", "]"), ('{"a":', "}"), ('[[],"]",', "]"), ("[1,{},", ",[2]]")])
    depths = st.sampled_from([1, 2, 255, 256, 257, 510, 511, 512, 513, 514, 769, 1025, 5_000])
    return st.tuples(pairs, depths, inner).map(lambda drawn: drawn[0][0] * drawn[1] + drawn[2] + drawn[0][1] * drawn[1])


def messages(usual: Mapping[str, object]) -> st.SearchStrategy[bytes]:
    """Return JSON objects with the members *usual*, each as it is, missing, twice, or with another value."""
    texts = json_texts(list(usual))
    members = [
        st.sampled_from([[json.dumps(value)], [json.dumps(value)], []]) | st.lists(texts, max_size=2)
        for value in usual.values()
    ]

    def text_of(drawn: Sequence[Sequence[str]]) -> bytes:
        pairs = [f"{json.dumps(name)}: {value}" for name, values in zip(usual, drawn, strict=True) for value in values]
        return f"{{{','.join(pairs)}}}".encode("utf-8", "surrogatepass")

    return st.tuples(*members).map(text_of)


@st.composite
def spliced(draw: st.DrawFn, texts: st.SearchStrategy[bytes], words: Sequence[bytes]) -> bytes:
    text = draw(texts)
    pieces = st.sampled_from([*words, *WORDS]) | st.binary(max_size=4)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.sampled_from([0, 0, 1, 2, 8]))
        times = draw(st.sampled_from([1, 1, 1, 2, 40, 1000]))
        text = text[:at] + draw(pieces) * times + text[at + cut :]
    return text
