"""Requests that wait until an operation is decided or held: one query a shard for all of them (docs/outcomes.md)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from simplu_worker.bulkheads import contain
from simplu_worker.errors import WorkerError
from simplu_worker.operations.operation import tenant_id_of
from simplu_worker.status.connection_order import Places
from simplu_worker.timing.clock import loop_time
from simplu_worker.timing.waits import wait_any
from simplu_worker.vocabulary import TargetKind

WAIT_MAX_S: Final = 20.0
WAITS_MAX: Final = 80  # of one replica
WAITS_OF_TOKEN_MAX: Final = 40
WAITS_OF_TENANT_MAX: Final = 20
LOOK_EVERY_S: Final = 0.2


class OperationWaits:
    """The waits of one replica; *is_decided* asks the tenant's shard, *is_held* tells what is in memory.

    Each wait looks for itself, so that a silent shard delays no other one's answer; but all look at the same moments,
    when *is_decided* can ask a shard for all of them.
    """

    def __init__(
        self,
        is_decided: Callable[[str, str, str], Awaitable[bool]],
        is_held: Callable[[str, str], bool],
        *,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._is_decided = is_decided
        self._is_held = is_held
        self._every_s = every_s
        self._of_tokens = Places(each_max=WAITS_OF_TOKEN_MAX, all_max=WAITS_MAX)
        self._of_tenants = Places(each_max=WAITS_OF_TENANT_MAX, all_max=WAITS_MAX)

    def __repr__(self) -> str:
        return f"OperationWaits({self._of_tokens}, {self._of_tenants})"

    async def wait(
        self, token: str, business_id: str, location_id: str, request_id: str, within_s: float, end: asyncio.Event
    ) -> bool:
        """Return once the operation is decided or held, *end* is set, or after *within_s*.

        False, at once: too many wait, in all, with *token*, or for the tenant.
        """
        tenant_id = tenant_id_of(business_id, location_id)
        if not self._of_tokens.take(token):
            return False
        if not self._of_tenants.take(tenant_id):
            self._of_tokens.free(token)
            return False
        try:
            async with asyncio.TaskGroup() as tasks:
                looking = tasks.create_task(
                    self._look(business_id, location_id, request_id, end), name="operation-wait"
                )
                await wait_any(end, within_s=within_s)
                looking.cancel()
        finally:
            self._of_tokens.free(token)
            self._of_tenants.free(tenant_id)
        return True

    async def _look(self, business_id: str, location_id: str, request_id: str, end: asyncio.Event) -> None:
        tenant_id = tenant_id_of(business_id, location_id)
        while not end.is_set():
            with contain(TargetKind.REPLICA, "waits", "waits"), contextlib.suppress(WorkerError):
                if self._is_held(business_id, location_id) or await self._is_decided(
                    tenant_id, business_id, request_id
                ):
                    end.set()
            await asyncio.sleep(self._every_s - loop_time() % self._every_s)
