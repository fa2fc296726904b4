"""Sequence numbers, iterators and page tokens of the local Kinesis. Does no I/O.

Sequence numbers are integers of 186 bits, 56 decimal digits, as AWS's look. From the highest bits: a 2, the second in
which the stream shard was made, the stream shard's lowest digit, the record's number, the second in which it came, the
stream shard, a 2. So they grow within a stream shard; and a child's are all greater than its parents', because a child
is made in a later second than its parents, if need be one that is still to come.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from simplu_worker.local.aws_server.sealing import seal, unseal

VERSION = 2
LAST_ORDINAL = 0x7FFF_FFFF_FFFF_FFFF  # of the number that ends a closed stream shard
INDEX_BIT, SECOND_BIT, ORDINAL_BIT, DIGIT_BIT, MADE_BIT, TOP_BIT = 4, 36, 80, 144, 148, 184


class SequenceNumber(NamedTuple):
    """What a sequence number says. *ordinal* is 0 for the start of the stream shard and 1 for its first record."""

    made_s: int
    shard_index: int
    ordinal: int
    second: int


def encode_sequence_number(parts: SequenceNumber) -> int:
    """Return the sequence number that says *parts*."""
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
    """Return what a sequence number says; none when it is not one of ours."""
    number = int(text)
    parts = SequenceNumber(
        made_s=number >> MADE_BIT & (1 << 36) - 1,
        shard_index=number >> INDEX_BIT & (1 << 32) - 1,
        ordinal=number >> ORDINAL_BIT & (1 << 64) - 1,
        second=number >> SECOND_BIT & (1 << 36) - 1,
    )
    return parts if encode_sequence_number(parts) == number else None


class IteratorToken(msgspec.Struct, frozen=True, array_like=True, tag="iterator"):
    """A place in a stream shard: the next record to read is number *position*, counted from 0 over all its life.

    *born_ms* tells a stream from an earlier one of the same name. *generation* grows when all iterators are to expire.
    """

    stream: str
    created_ms: int
    stream_shard_id: str
    position: int
    issued_ms: int
    generation: int


class PageToken(msgspec.Struct, frozen=True, array_like=True, tag="page"):
    """Where the next page of ListShards starts, and what it was asked for."""

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
