"""A producer in a separate process, so that it takes no time of the process that measures.

    python -m support.load.chain_producer PLAN.json

puts the operations of a plan, one request after the other, until it has put the ordered number or gets SIGTERM. Each
line of its output is the number of operations put so far.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from support.load.operation_chains import ChainPlan

from simplu_local.processes.worker_process import log_tail
from simplu_local.workload.producer import POLL_INTERVAL_S, Position, open_client, put_items
from simplu_local.workload.workload import Item

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simplu_local.processes.watchdog import ProcessGroup

POLL_S = 0.1
STOP_WITHIN_S = 60.0
LINE_BYTES = 32  # more than the last line has


class ProducerOrder(msgspec.Struct, frozen=True):
    """An order to a producer. *rate* is the maximum of records a second, *count* their number; none: no limit.

    A request has those of *interval_s*. The producer makes up for a delay, of *late_most_s* at most if given.
    """

    plan: ChainPlan
    stream: str
    rate: float | None = None
    count: int | None = None
    interval_s: float = POLL_INTERVAL_S
    late_most_s: float | None = None


class ProducerFailedError(Exception):
    """A producer failed, or did not finish in time."""


class ChainProducer:
    """The producer's process, for the process that started it; *group* ends the one with the other."""

    def __init__(self, group: ProcessGroup, env: Mapping[str, str], order: ProducerOrder) -> None:
        self._log_path = group.directory / f"producer-{order.plan.name}.log"
        order_path = self._log_path.with_suffix(".json")
        order_path.write_bytes(msgspec.json.encode(order))
        argv = [sys.executable, "-m", order.plan.producer, str(order_path)]
        inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
        self._process: subprocess.Popen[bytes] = group.spawn(argv, log_path=self._log_path, env=inherited | dict(env))

    @property
    def put_count(self) -> int:
        with self._log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LINE_BYTES))
            lines = log.read().split(b"\n")
        return int(lines[-2]) if len(lines) > 1 and lines[-2].isdigit() else 0

    def check_running(self) -> None:
        """Raise `ProducerFailedError` when the producer has failed."""
        if self._process.poll():
            raise ProducerFailedError(f"a producer failed; its log ends with:\n{log_tail(self._log_path)}")

    async def wait_until_done(self, *, within_s: float) -> int:
        """Wait until the producer has put all records; return their number."""
        deadline = asyncio.get_running_loop().time() + within_s
        while self._process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                raise ProducerFailedError(f"a producer has put only {self.put_count} within {within_s:.0f} s")
            await asyncio.sleep(POLL_S)
        self.check_running()
        return self.put_count

    async def stop(self) -> int:
        """End the producer after its current request; return the number of records it has put."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return await self.wait_until_done(within_s=STOP_WITHIN_S)


async def produce(order: ProducerOrder) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    put_count = 0

    def items() -> Iterator[Item]:
        number = 0
        while not stopping.is_set() and number != order.count:
            yield order.plan.item(number)
            number += 1

    def note(pairs: Sequence[tuple[Position, Item]]) -> None:
        nonlocal put_count
        put_count += len(pairs)
        sys.stdout.write(f"{put_count}\n")
        sys.stdout.flush()

    async with open_client("kinesis", os.environ) as kinesis:
        await put_items(
            kinesis,
            order.stream,
            items(),
            on_put=note,
            rate=order.rate,
            interval_s=order.interval_s,
            late_most_s=order.late_most_s,
        )


def main(order_type: type[ProducerOrder] = ProducerOrder) -> None:
    asyncio.run(produce(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=order_type)))


if __name__ == "__main__":
    main()
