"""Make loops of a worker raise, each once: Python imports this module first where its folder is on PYTHONPATH.

A loop of AT_ONCE raises in its first turn, one of LATER in the first turn after the file DEFECTS_FILE exists. A file
beside it, with `.raised` behind its name, gets the name of each loop that has raised. LASTING raises in each turn while
a file with `.lasting` behind its name exists.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from pathlib import Path
from typing import Any

CONSUMERS = "simplu_worker.consumers."
# Those that have a turn in minutes only.
AT_ONCE = (
    "simplu_worker.status.replica:ReplicaStatus.note_history",
    "simplu_worker.status.replica:ReplicaStatus.note_top_tenants",
    "simplu_worker.shards.log:LogRetention.take_turn",
    "simplu_worker.shards.tenants.deletion:TenantDeleter.delete_due",
    "simplu_worker.shards.tenants.home_confirmation:ConfirmationSweep.sweep",
    "simplu_worker.shards.health.citrus_watch:CitrusWatch.run",
    "simplu_worker.dead_letters.queue:DeadLetterQueue.read_limits",
    f"{CONSUMERS}kinesis.fleet.lease_cleanup:LeaseCleanup.run",
    f"{CONSUMERS}kinesis.leases.lease_audit:LeaseAudit.run",
    f"{CONSUMERS}kinesis.leases.kcl_leader_watch:KclLeaderWatch.check",
)
LATER = (
    "simplu_worker.shards.routing.route_refresh:RouteRefresh.tick",
    "simplu_worker.shards.health.prober:Prober._fails",
    "simplu_worker.shards.apply.writer:ShardWriter.apply",
    f"{CONSUMERS}rejection_notes:RejectionNotes._write_batch",
    f"{CONSUMERS}kinesis.fleet.fleet:Fleet._turn",
    f"{CONSUMERS}kinesis.fleet.position_sync:PositionSync._compare",
    f"{CONSUMERS}kinesis.leases.lease_table:LeaseTable.renew",
    f"{CONSUMERS}kinesis.reader.stream_shard_reader:StreamShardReader._dispatch_records",
    f"{CONSUMERS}kinesis.dispatch.dispatcher:Dispatcher.settle",
    f"{CONSUMERS}pipeline.lane:Lane._next_batch",
    f"{CONSUMERS}pipeline.lane:Lane._decide",
    f"{CONSUMERS}kinesis.reader.catch_up:CatchUps._start_ready",
    f"{CONSUMERS}sqs.receive.poller:Poller._poll",
    f"{CONSUMERS}sqs.receive.receiver:QueueReceiver._carry_out",
    f"{CONSUMERS}sqs.receive.deleter:DeleteBatcher._delete",
    f"{CONSUMERS}sqs.orders.handler:OrderHandler.handle",
    f"{CONSUMERS}sqs.orders.handler:OrderHandler.settle",
    f"{CONSUMERS}sqs.control.handler:ControlHandler.handle",
)
LASTING = f"{CONSUMERS}kinesis.reader.stream_shard_reader:StreamShardReader._dispatch_records"


class ForeignError(Exception):
    """Nobody foresees it."""


def arm(loop: str, trigger: Path | None) -> None:
    """Make the method *loop* raise once; with *trigger* after that file exists."""
    module_name, _, path = loop.partition(":")
    owner_name, _, name = path.partition(".")
    owner = getattr(importlib.import_module(module_name), owner_name)
    method = getattr(owner, name)
    has_raised = False

    def is_due() -> bool:
        nonlocal has_raised
        if loop == LASTING and TRIGGER.with_name(f"{TRIGGER.name}.lasting").exists():
            return True
        if has_raised or (trigger is not None and not trigger.exists()):
            return False
        has_raised = True
        with RAISED.open("a") as raised:
            raised.write(f"{loop}\n")
        return True

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if is_due():
            raise ForeignError
        return method(*args, **kwargs)

    @functools.wraps(method)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        if is_due():
            raise ForeignError
        return await method(*args, **kwargs)

    setattr(owner, name, call_async if inspect.iscoroutinefunction(method) else call)


if "DEFECTS_FILE" in os.environ:
    TRIGGER = Path(os.environ["DEFECTS_FILE"])
    RAISED = TRIGGER.with_name(f"{TRIGGER.name}.raised")
    for one in AT_ONCE:
        arm(one, None)
    for one in LATER:
        arm(one, TRIGGER)
