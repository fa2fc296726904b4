"""Cut records into requests of PutRecords. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from simplu_worker.consumers.kinesis.stream.client import NewRecord

PUT_MAX_COUNT: Final = 500  # records: Kinesis API reference
PUT_MAX_BYTES: Final = 3_500_000  # below the 5 MiB of PutRecords, which some servers count after base64


def cut_into_puts(records: Iterable[NewRecord]) -> Iterator[list[NewRecord]]:
    """Cut *records* into requests, in order, none with two records of one partition key.

    A request that Kinesis refuses in part may store its records in any order, which must not change the order of a key.
    """
    put: list[NewRecord] = []
    keys: set[str] = set()
    size_bytes = 0
    for record in records:
        record_bytes = len(record.data) + len(record.partition_key.encode())
        is_full = len(put) == PUT_MAX_COUNT or size_bytes + record_bytes > PUT_MAX_BYTES
        if put and (is_full or record.partition_key in keys):
            yield put
            put, keys, size_bytes = [], set(), 0
        put.append(record)
        keys.add(record.partition_key)
        size_bytes += record_bytes
    if put:
        yield put
