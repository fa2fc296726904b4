"""What each kind of operation needs and does: one table, which decoding, waves, statements and the log follow. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, assert_never

import msgspec

from simplu_worker.vocabulary import OperationKind


class Verb(msgspec.Struct, frozen=True, gc=False):
    """A kind of operation; *code* is its letter in the log, in capitals of a row whose key another operation took.

    *has_document*: its `data` are the whole document. *has_query*: it is about all resources of its type.
    """

    kind: OperationKind
    code: str
    needs_id: bool = True
    has_data: bool = False
    has_document: bool = False
    is_reading: bool = False
    has_query: bool = False


def _verb_of(kind: OperationKind) -> Verb:
    match kind:
        case OperationKind.CREATE:
            return Verb(kind, "c", needs_id=False, has_data=True, has_document=True)
        case OperationKind.UPDATE:
            return Verb(kind, "u", has_data=True, has_document=True)
        case OperationKind.PATCH:
            return Verb(kind, "p", has_data=True)
        case OperationKind.DELETE:
            return Verb(kind, "d")
        case OperationKind.READ:
            return Verb(kind, "r", is_reading=True)
        case OperationKind.LIST:
            return Verb(kind, "l", needs_id=False, is_reading=True, has_query=True)
        case _:
            assert_never(kind)


VERBS: Final[Mapping[str, Verb]] = {kind: _verb_of(kind) for kind in OperationKind}
KINDS_WITH_DATA: Final = frozenset(verb.kind for verb in VERBS.values() if verb.has_data)
KINDS_WITH_ID: Final = frozenset(verb.kind for verb in VERBS.values() if verb.needs_id)
READING_KINDS: Final = frozenset(verb.kind for verb in VERBS.values() if verb.is_reading)
