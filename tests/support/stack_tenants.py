"""A tenant of a running stack, and operations for it: for tests of a worker beside the stack."""

from __future__ import annotations

import json

from support.full_stack import make_record, poll_until_true

from simplu_local.stack.aws import STREAM_NAME
from simplu_local.stack.stack import Stack
from simplu_local.verify.shard_checker import read_tenant_ids, shard_urls
from simplu_local.workload.producer import create_tenants
from simplu_local.workload.workload import Tenant


async def provision(stack: Stack, tenant: Tenant, *, within_s: float) -> None:
    async def is_there() -> bool:
        return tenant.tenant_id in await read_tenant_ids(shard_urls(stack.env))

    async with stack.aws_client("sqs") as sqs:
        await create_tenants(sqs, stack.env["SQS_SHARD_CREATION_QUEUE_URL"], [tenant])
    await poll_until_true(is_there, within_s=within_s)


async def put_creates(stack: Stack, tenant: Tenant, *request_ids: str, stream: str = STREAM_NAME) -> None:
    """Put a create of a resource of its own for each request id, all in one stream shard."""
    async with stack.aws_client("kinesis") as kinesis:
        for request_id in request_ids:
            record = make_record(tenant, "create", request_id, resourceId=request_id, data={"name": "somebody"})
            await kinesis.put_record(StreamName=stream, PartitionKey="key", Data=json.dumps(record).encode())
