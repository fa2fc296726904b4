"""The messages of one call that keep their order: a group of a FIFO queue, or one message of a standard queue. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final, cast

import msgspec

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.verdicts import Done, RetryHeld, ReturnToQueue, ToDeadLetter, Verdict
from simplu_worker.operations.operation import Operation, RejectedRecord
from simplu_worker.vocabulary import DeadLetterReason

BEHIND_VERDICT: Final = ReturnToQueue(0)  # behind an undecided message of its group
RETRIABLE_LETTERS: Final = frozenset({DeadLetterReason.UNKNOWN_TENANT, DeadLetterReason.RETRIES_EXHAUSTED})


class Deferral(msgspec.Struct, frozen=True):
    """Why messages are deferred; with the tenant's ids when the tenant is the cause."""

    text: str
    business_id: str | None = None
    location_id: str | None = None


class ChainState(Enum):
    """How far a chain is."""

    IDLE = auto()  # its next run may be sent
    SENT = auto()  # its run is on its way to a shard
    ENDED = auto()


MAY_FOLLOW: Final = {
    ChainState.IDLE: {ChainState.SENT, ChainState.ENDED},
    ChainState.SENT: {ChainState.IDLE, ChainState.ENDED},
    ChainState.ENDED: set[ChainState](),
}


class OrderMessage(msgspec.Struct, eq=False):
    """A message with its decoded content, its verdict once it is decided, and why it is deferred.

    *shard_id* is the shard to which its operation is on its way.
    """

    message: Message
    chain: str
    decoded: Operation | RejectedRecord
    members: Chain
    shard_id: str | None = None
    verdict: Verdict | None = None
    deferral: Deferral | None = None

    @property
    def operation(self) -> Operation:
        """The operation of a message that was not rejected."""
        return cast(Operation, self.decoded)

    @property
    def allows_next(self) -> bool:
        """Whether the next message of its chain may be applied in the same call.

        Not behind an operation that may yet be applied, if the worker dies before the dead letter is stored.
        """
        match self.verdict:
            case Done():
                return True
            case ToDeadLetter(reason=reason):
                return reason not in RETRIABLE_LETTERS
            case _:
                return False


class Chain:
    """The messages of one chain in one call, in order. Runs of one tenant are sent, each after the one before."""

    def __init__(self) -> None:
        self.members: list[OrderMessage] = []
        self.state = ChainState.IDLE
        self.has_ended = asyncio.Event()
        self._position = 0  # of the first message behind the run that was sent last

    def __repr__(self) -> str:
        return f"Chain({self.state.name.lower()}, {self._position} of {len(self.members)})"

    def _enter(self, state: ChainState) -> None:
        if state not in MAY_FOLLOW[self.state]:
            raise ValueError(f"{self}: expected a state that may follow, got {state.name}")
        self.state = state

    @property
    def has_decided_run(self) -> bool:
        """Whether no message of the run that was sent waits for its verdict."""
        return all(one.verdict is not None for one in self.members[: self._position])

    def next_run(self) -> Sequence[OrderMessage]:
        """Return the next messages to send, of one tenant; none where the chain ends here.

        Those before them have a verdict, and so have the rejected ones among them.
        """
        if self.state is ChainState.SENT:
            self._enter(ChainState.IDLE)
        while self._position < len(self.members) and all(one.allows_next for one in self.members[: self._position]):
            run = _run_from(self.members, self._position)
            self._position += len(run)
            if pending := [one for one in run if one.verdict is None]:
                self._enter(ChainState.SENT)
                return pending
        return ()

    def undecided(self) -> list[OrderMessage]:
        """Return the messages that were sent and have no verdict."""
        return [one for one in self.members[: self._position] if one.verdict is None]

    def stop_behind(self, stopping: OrderMessage) -> list[OrderMessage]:
        """Defer the messages behind one that may not be passed; return those that were sent and had no verdict."""
        place = self.members.index(stopping) + 1
        sent = [one for one in self.members[place : self._position] if one.verdict is None]
        for one in sent:
            one.verdict = BEHIND_VERDICT
        return sent

    def end(self) -> None:
        """Defer the messages behind the first that may not be passed.

        Behind a dead letter they are handled again as soon as it is stored; further dead letters are stored with it.
        """
        self._enter(ChainState.ENDED)
        self.has_ended.set()
        first = next((index for index, one in enumerate(self.members) if not one.allows_next), len(self.members))
        is_dead_letter = first < len(self.members) and isinstance(self.members[first].verdict, ToDeadLetter)
        for one in self.members[first + 1 :]:
            if not (is_dead_letter and isinstance(one.verdict, ToDeadLetter)):
                one.verdict, one.deferral = RetryHeld(0.0) if is_dead_letter else BEHIND_VERDICT, None


def _run_from(members: Sequence[OrderMessage], position: int) -> Sequence[OrderMessage]:
    """Return the messages from *position* on that belong to one tenant, with the rejected messages among them."""
    tenant_id: str | None = None
    for end in range(position, len(members)):
        decoded = members[end].decoded
        if isinstance(decoded, Operation):
            if tenant_id not in {None, decoded.tenant_id}:
                return members[position:end]
            tenant_id = decoded.tenant_id
    return members[position:]
