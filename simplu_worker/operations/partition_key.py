"""The partition key that an operation has to have. Pure."""

from __future__ import annotations

from typing import Final, assert_never

from simplu_worker.vocabulary import PartitionKeyRule

KEY_MAX: Final = 256  # characters: Kinesis API reference, PutRecord


def partition_key_by(rule: PartitionKeyRule, tenant_id: str, resource_type: str) -> str:
    """Return the key by *rule*, which may be longer than Kinesis allows; where any may be used, the usual one."""
    match rule:
        case PartitionKeyRule.TENANT:
            return tenant_id
        case PartitionKeyRule.RESOURCE_TYPE | PartitionKeyRule.ANY:
            return f"{tenant_id}-{resource_type}"
        case _:
            assert_never(rule)
