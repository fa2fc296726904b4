"""What lies between a process and the services it asks: delays, requests that get lost, answers that get lost.

A request that was sent lands, and has its effect, also when the process that sent it is stopped or dead by then.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, TypeVar

import msgspec
from simulation.defects import DefectError
from simulation.simulated_faults import Fault, FaultCounts
from simulation.virtual_time import VirtualLoop

T = TypeVar("T")

LONG_DELAY_CHANCE = 0.02
LATE_S = 1.0  # what counts as late


class Trouble(msgspec.Struct):
    """How bad it is now: chances for one request, and the longest delay in seconds."""

    request_lost: float = 0.0
    answer_lost: float = 0.0
    throttled: float = 0.0
    stale: float = 0.0  # of a row in a scan
    longest_s: float = 0.05
    foreign: float = 0.0  # the door to the service raises what its callers do not foresee


class Network:
    """The one network of a simulation. All its draws come from *draws*."""

    def __init__(self, loop: VirtualLoop, draws: Random) -> None:
        self.loop = loop
        self.draws = draws
        self.trouble = Trouble()
        self.down: set[str] = set()  # services that answer nobody
        self.slow: dict[str, float] = {}  # by service: how many seconds longer it takes
        self.faults = FaultCounts()
        self.nobody = contextvars.copy_context()  # what lands runs as no process, so it runs whoever is stopped

    async def ask(self, service: str, serve: Callable[[], T], *, lost: Callable[[], Exception]) -> T:
        """Run *serve* at *service* some time later; return, or raise, its result after some more time.

        *lost* makes the error of a request that had no answer: it may have landed, or may not.
        """
        trouble, draw = self.trouble, self.draws.random
        answer: asyncio.Future[T] = self.loop.create_future()
        if trouble.foreign and draw() < trouble.foreign:
            self.faults.fired[Fault.FOREIGN] += 1
            if draw() < 0.5:
                self._later(self._land, serve, answer, DefectError, Fault.FOREIGN)
            else:
                self._later(self._fail, answer, DefectError(), Fault.FOREIGN)
            return await answer
        fate = draw()
        if service in self.down or fate < trouble.request_lost:
            fault = Fault.AWAY if service in self.down else Fault.REQUEST_LOST
            self.faults.fired[fault] += fault is Fault.REQUEST_LOST
            self._later(self._fail, answer, lost(), fault)
        else:
            is_lost = fate < trouble.request_lost + trouble.answer_lost
            slow_s = self.slow.get(service, 0.0)
            self.faults.fired[Fault.ANSWER_LOST] += is_lost
            felt = Fault.ANSWER_LOST if is_lost else Fault.SLOW if slow_s else None
            self._later(self._land, serve, answer, lost if is_lost else None, felt, longer_s=slow_s)
        return await answer

    def _land(
        self,
        serve: Callable[[], T],
        answer: asyncio.Future[T],
        lost: Callable[[], Exception] | None,
        fault: Fault | None,
    ) -> None:
        if answer.cancelled() and self.draws.random() < 0.5:
            return  # the sender hung up in time
        try:
            result = serve()
        except Exception as exc:  # noqa: BLE001 - whatever the service raises is its answer
            self._later(self._fail, answer, exc if lost is None else lost(), fault)
            return
        if lost is None:
            self._later(self._answer, answer, result, fault)
        else:
            self._later(self._fail, answer, lost(), fault)

    def _answer(self, answer: asyncio.Future[T], result: T, fault: Fault | None) -> None:
        self._note_felt(answer, fault)
        if not answer.done():
            answer.set_result(result)

    def _fail(self, answer: asyncio.Future[T], exc: Exception, fault: Fault | None) -> None:
        self._note_felt(answer, fault)
        if not answer.done():
            answer.set_exception(exc)

    def _note_felt(self, answer: asyncio.Future[Any], fault: Fault | None) -> None:
        if fault is not None and not answer.done():
            self.faults.felt[fault] += 1

    def _note_late(self, callback: Callable[..., None], *arguments: object) -> None:
        answer = next(one for one in arguments if isinstance(one, asyncio.Future))
        self._note_felt(answer, Fault.LATE)
        callback(*arguments)

    def _later(self, callback: Callable[..., None], *arguments: object, longer_s: float = 0.0) -> None:
        draw = self.draws.random
        delay_s = 0.001 + draw() * 0.02 + longer_s * (0.5 + draw() / 2)
        if draw() < LONG_DELAY_CHANCE:
            late_s = draw() * self.trouble.longest_s
            delay_s += late_s
            if late_s > LATE_S:
                self.faults.fired[Fault.LATE] += 1
                callback = partial(self._note_late, callback)
        self.loop.call_later(delay_s, callback, *arguments, context=self.nobody)
