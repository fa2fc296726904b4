"""One object for equal texts that come from outside, so that they take less memory and compare by identity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

TEXTS_MAX: Final = 50_000

_known: dict[str, str] = {}


def shared(texts: Iterable[str]) -> list[str]:
    """Return *texts*, each as the object that came before, for as long as it is remembered.

    Not by `sys.intern`: CPython from 3.12.0 to 3.12.6 never frees what that has seen (python/cpython#113993), and
    producers may send any number of texts.
    """
    if len(_known) >= TEXTS_MAX:
        _known.clear()
    return [_known.setdefault(text, text) for text in texts]
