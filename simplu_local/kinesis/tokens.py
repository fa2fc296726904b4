"""Sequence numbers, iterators and page tokens of the local Kinesis. Pure.

Sequence numbers are integers of 186 bits, 56 decimal digits, like AWS's. From the highest bits: a 2, the second of the
stream shard's creation, the stream shard's lowest digit, the record's number, the second of its arrival, the stream
shard, a 2. So they grow within a stream shard. A child's numbers are all greater than its parents', because its second
of creation is later than theirs, if necessary in the future.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from simplu_local.aws_server.sealing import seal, unseal

VERSION = 2
LAST_ORDINAL = 0x7FFF_FFFF_FFFF_FFFF  # of the number that ends a closed stream shard
INDEX_BIT, SECOND_BIT, ORDINAL_BIT, DIGIT_BIT, MADE_BIT, TOP_BIT = 4, 36, 80, 144, 148, 184


class SequenceNumber(NamedTuple):
    """The parts of a sequence number. *ordinal* is 0 for the start of the stream shard and 1 for its first record."""

    made_s: int
    shard_index: int
    ordinal: int
    second: int


def encode_sequence_number(parts: SequenceNumber) -> int:
    """Return the sequence number that consists of *parts*."""
    return (
        VERSION << TOP_BIT
        | parts.made_s << MADE_BIT
        | (parts.shard_index & 0xF) << DIGIT_BIT
        | parts.ordinal << ORDINAL_BIT
        | parts.second << SECOND_BIT
        | parts.shard_index << INDEX_BIT
        | VERSION
    )


def parse_sequence_number(text: str) -> SequenceNumber | None:
    """Return the parts of a sequence number; none when `encode_sequence_number` did not make it."""
    number = int(text)
    parts = SequenceNumber(
        made_s=number >> MADE_BIT & (1 << 36) - 1,
        shard_index=number >> INDEX_BIT & (1 << 32) - 1,
        ordinal=number >> ORDINAL_BIT & (1 << 64) - 1,
        second=number >> SECOND_BIT & (1 << 36) - 1,
    )
    return parts if encode_sequence_number(parts) == number else None


class IteratorToken(msgspec.Struct, frozen=True, array_like=True, tag="iterator"):
    """A position in a stream shard: that of the next record to read.

    *created_ms* distinguishes a stream from an earlier one of the same name. *generation* is the account's, which grows
    when all iterators are to expire.
    """

    stream: str
    created_ms: int
    stream_shard_id: str
    position: int
    issued_ms: int
    generation: int


class PageToken(msgspec.Struct, frozen=True, array_like=True, tag="page"):
    """The start of the next page of ListShards, and the query of the first page."""

    stream: str
    created_ms: int
    after: str
    filter_type: str
    filter_ms: int
    issued_ms: int


Token = IteratorToken | PageToken


def seal_token(token: Token) -> str:
    """Return *token* as the opaque text that a client hands back."""
    return seal(msgspec.json.encode(token))


def unseal_token(text: str) -> Token | None:
    """Return the token of *text*; none when `seal_token` did not make it."""
    payload = unseal(text)
    if payload is None:
        return None
    token: Token = msgspec.json.decode(payload, type=Token)
    return token
