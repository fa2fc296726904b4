"""Describe any DynamoDB table."""

from __future__ import annotations

import msgspec

from simplu_worker.aws.clients import AWS_ERRORS, Client, error_code, translate


class TableSummary(msgspec.Struct, frozen=True):
    """The status of a table, and the names of its key attributes, the partition key first.

    *read_units* are the read capacity units a second that are provisioned for it; 0 when it is on-demand.
    """

    status: str
    key: tuple[str, ...]
    read_units: int = 0


async def describe_table(client: Client, name: str) -> TableSummary | None:
    """Return the description of table *name*; None when it does not exist.

    Raises RetryableError or PermanentError when DynamoDB gives no answer.
    """
    try:
        table = (await client.describe_table(TableName=name))["Table"]
    except AWS_ERRORS as exc:
        if error_code(exc) == "ResourceNotFoundException":
            return None
        raise translate(exc) from exc
    parts = sorted(table["KeySchema"], key=lambda part: str(part["KeyType"]))  # HASH before RANGE
    return TableSummary(
        status=table["TableStatus"],
        key=tuple(part["AttributeName"] for part in parts),
        read_units=table.get("ProvisionedThroughput", {}).get("ReadCapacityUnits", 0),
    )
