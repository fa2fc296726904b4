"""One group of a FIFO queue through the lanes of Postgres shards: put back, received again, given up, deleted.

A message is the number of its place in the group. It belongs to a tenant, whose home is one of two shards. It finds its
home, waits in the lane of that shard, is sent, and is deleted once it is settled; one that cannot go on returns to the
queue. Order and one effect rest on these rules:

- With the first message that returns, all those behind it return too, out of their lanes as well. The first stays
  hidden until its target is back, and the queue gives out no message of a group while one is hidden.
- A message is sent in the transaction of those before it, if they have the same tenant, or after they are settled. As
  right: in the next transaction to the same shard, if that finds the former ones in the log.
- Settled is what is safe on the standby: a commit, or the mark of an operation given up, behind its dead letter.
- A dead letter without a mark is for what every shard refuses for ever.

They rest neither on visibility (a zombie may send, mark and delete messages: the log drops what is settled) nor on the
order in which returned messages become visible. A transaction that nobody waits for may commit later, even after a
failover. Not searched: two groups; the clock (`letters_model.py`); one `deduplicationId` for two messages. A standard
queue is a group for each message.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from enum import IntEnum
from itertools import takewhile
from typing import TypeAlias

from model.search import StatePart, one_less, put_at
from msgspec.structs import replace

SHARD_NAMES, TENANT_NAMES = "AB", "abc"
TRIES = 2
MOVING = 2  # in place of a home: MOVING + the shard that the tenant moves to
UNREGISTERED = 4  # likewise

# Where the queue has a message; BACK + x, hidden until shard x is up, until tenant x - MOVING has arrived, or for long
# enough.
VISIBLE, OURS, GONE, BACK = range(4)
FOR_NOW = 9

# What a worker has of a message; with the number of the shard where one is meant.
NOT_IN_HAND, WAITING, EXHAUSTED, SETTLED = range(4)
LANE, FLIGHT, UNSAFE = 4, 6, 8
LETTER, REFUSED = 10, 11  # its dead letter is stored, and its row not yet marked; it will have no row
Hand: TypeAlias = tuple[int, ...]  # by message
NO_AIR: tuple[tuple[int, int], ...] = ()


class Log(IntEnum):
    """The row of a message's operation on the shard of its tenant."""

    NONE = 0
    APPLIED = 1  # on the primary
    APPLIED_SAFE = 2  # on the standby too
    MARKED = 3
    MARKED_SAFE = 4


IN_EFFECT = (Log.APPLIED, Log.APPLIED_SAFE)
SAFE = (Log.APPLIED_SAFE, Log.MARKED_SAFE)
REPLICATED = {Log.APPLIED: Log.APPLIED_SAFE, Log.MARKED: Log.MARKED_SAFE}


@dataclass(frozen=True, slots=True)
class Rules:
    """How the pipeline goes about it; each switch is a deviation from the agreed way."""

    returns_one: bool = False  # the message at fault alone, or the transaction, and none behind it
    returns_run: bool = False  # of one tenant; the next one's goes on to the lane of its own shard
    lane_keeps_returned: bool = False  # what was put back stays in the lane, and is sent when its turn comes
    returns_at_once: bool = False  # visible again while the target is still away
    delay_unlocks: bool = False  # those behind become visible before a message that is put back
    deletes_unsafe: bool = False
    next_before_safe: bool = False  # the next of the tenant is sent in the transaction after, to the same shard
    checks_former: bool = False  # beside the switch above: that transaction needs those before it in the log. As right
    next_run_before_safe: bool = False  # to any shard
    runs_by_shard: bool = False  # a transaction may have two tenants of a group
    next_before_letter: bool = False  # behind an operation that failed too often, its dead letter not yet stored
    leaves_no_mark: bool = False
    marks_unsafe: bool = False  # deleted and followed before the mark is safe
    lost_unmarked: bool = False  # a worker that has lost a message leaves the mark to the next one, but deletes
    admits_late: bool = False  # a tenant's messages that were overdue before the tenant was registered
    has_no_log: bool = False


AGREED = Rules()


class Trouble(IntEnum):
    OUTAGE = 0
    FAILOVER = 1
    MOVE = 2
    LOSS = 3
    UNNOTICED = 4
    NO_ANSWER = 5
    CURE = 6
    REGISTRATION = 7


@dataclass(frozen=True, slots=True)
class Budget:
    outages: int = 0
    failovers: int = 0
    moves: int = 0
    losses: int = 0  # of the messages' visibility, or of the worker: another one receives them
    unnoticed: int = 0  # losses; the worker goes on beside the next one
    no_answers: int = 0
    cures: int = 0  # the operation that fails does so no longer
    registrations: int = 0  # of a tenant after its messages are overdue


class State(StatePart, frozen=True):
    queue: tuple[int, ...]
    owner: Hand
    zombie: Hand
    log: tuple[Log, ...]
    letters: int  # bits of the messages with a stored dead letter
    failures: int  # of the operation that fails, counted by the worker that has the messages
    is_failing: bool
    homes: tuple[int, ...]
    is_up: tuple[bool, ...]
    air: tuple[tuple[int, int], ...]  # shard and bits of transactions that nobody waits for
    left: tuple[int, ...]  # by Trouble
    promise: str = ""  # broken on the way here


class PutBackModel:
    """A group of which everything has to be applied, or given up, once and in order."""

    def __init__(
        self, tenants: str, homes: str, budget: Budget, rules: Rules = AGREED, *, failing: int | None = None
    ) -> None:
        self._tenants = tuple(map(TENANT_NAMES.index, tenants))
        self._homes = tuple(UNREGISTERED if name == "." else SHARD_NAMES.index(name) for name in homes)
        self._budget = budget
        self._rules = rules
        self._failing = failing
        self._all = range(len(tenants))
        self._nothing = (NOT_IN_HAND,) * len(tenants)

    def first(self) -> State:
        return State(
            queue=(VISIBLE,) * len(self._all),
            owner=self._nothing,
            zombie=self._nothing,
            log=(Log.NONE,) * len(self._all),
            letters=0,
            failures=0,
            is_failing=self._failing is not None,
            homes=self._homes,
            is_up=(True, True),
            air=NO_AIR,
            left=astuple(self._budget),
        )

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Return what the queue, the worker and the standbys do, and the end of outages and of moves."""
        yield from self._receive(state)
        for message, place in enumerate(state.queue):
            if place >= BACK and self._is_back(state, place - BACK):
                yield f"{message} is visible", replace(state, queue=put_at(state.queue, message, VISIBLE))
        for label, after, hand in self._work(state, state.owner, is_ours=True):
            yield label, replace(after, owner=hand)
        for shard, name in enumerate(SHARD_NAMES):
            rows = [
                REPLICATED.get(row, row) if self._is_on(state, m, shard) else row for m, row in enumerate(state.log)
            ]
            if (log := tuple(rows)) != state.log:
                yield f"the standby of {name} has everything", replace(state, log=log)
            if not state.is_up[shard]:
                yield f"{name} is up", replace(state, is_up=put_at(state.is_up, shard, True))
        for tenant, home in enumerate(state.homes):
            own = [row for row, its in zip(state.log, self._tenants, strict=True) if its == tenant]
            if MOVING <= home < UNREGISTERED and not any(row in REPLICATED for row in own):
                arrived = put_at(state.homes, tenant, home - MOVING)
                yield f"{TENANT_NAMES[tenant]} arrives on {SHARD_NAMES[home - MOVING]}", replace(state, homes=arrived)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        for label, after, hand in self._work(state, state.zombie, is_ours=False):
            yield f"zombie: {label}", replace(after, zombie=hand)
        for shard, bits in state.air:
            if state.is_up[shard]:
                rest = replace(state, air=tuple(one for one in state.air if one != (shard, bits)))
                yield f"late on {SHARD_NAMES[shard]}: {self._named(bits)}", self._commit(rest, shard, bits)[0]
        yield from self._trouble_of_shards(state)
        yield from self._trouble_of_tenants(state)
        yield from self._losses(state)

    def _trouble_of_shards(self, state: State) -> Iterator[tuple[str, State]]:
        for shard, name in enumerate(SHARD_NAMES):
            if state.left[Trouble.OUTAGE] and state.is_up[shard]:
                yield f"{name} is down", replace(_spend(state, Trouble.OUTAGE), is_up=put_at(state.is_up, shard, False))
            if state.left[Trouble.FAILOVER]:
                is_lost = [row in REPLICATED and self._is_on(state, m, shard) for m, row in enumerate(state.log)]
                log = tuple(Log.NONE if lost else row for lost, row in zip(is_lost, state.log, strict=True))
                if any(is_lost):
                    yield f"{name} fails over", replace(_spend(state, Trouble.FAILOVER), log=log)

    def _trouble_of_tenants(self, state: State) -> Iterator[tuple[str, State]]:
        for tenant, home in enumerate(state.homes):
            name = TENANT_NAMES[tenant]
            if state.left[Trouble.MOVE] and home < MOVING:
                leaving = put_at(state.homes, tenant, MOVING + 1 - home)
                yield f"{name} leaves", replace(_spend(state, Trouble.MOVE), homes=leaving)
            if state.left[Trouble.REGISTRATION] and home == UNREGISTERED:
                registered = replace(_spend(state, Trouble.REGISTRATION), homes=put_at(state.homes, tenant, 0))
                yield f"{name} is registered on {SHARD_NAMES[0]}", registered
        if state.left[Trouble.CURE] and state.is_failing:
            yield "the cause of the failure ends", replace(_spend(state, Trouble.CURE), is_failing=False)

    def _losses(self, state: State) -> Iterator[tuple[str, State]]:
        if OURS in state.queue:
            queue = tuple(BACK + FOR_NOW if place == OURS else place for place in state.queue)
            if state.left[Trouble.LOSS]:
                lost = self._to_air(_spend(state, Trouble.LOSS), state.owner)
                yield "lost", replace(lost, queue=queue, owner=self._nothing, failures=0)
            if state.left[Trouble.UNNOTICED]:
                lost = self._to_air(_spend(state, Trouble.UNNOTICED), state.zombie)
                following = replace(lost, queue=queue, owner=self._nothing, zombie=state.owner, failures=0)
                yield "lost, unnoticed", following
        sent = [message for message, stage in enumerate(state.owner) if _shard_in(stage, FLIGHT) is not None]
        if state.left[Trouble.NO_ANSWER] and sent:
            after, hand = self._put_back(_spend(state, Trouble.NO_ANSWER), state.owner, sent[0], FOR_NOW, is_ours=True)
            yield f"no answer, {sent[0]} returns", replace(after, owner=hand)

    def broken(self, state: State) -> str:
        if state.promise:
            return state.promise
        for message, place in enumerate(state.queue):
            if place == GONE and state.log[message] is not Log.APPLIED_SAFE and not state.letters >> message & 1:
                return f"lost: {message} is deleted, and its row is {state.log[message].name}"
        return ""

    def unsettled(self, state: State) -> str:
        return "" if all(place == GONE for place in state.queue) else f"unsettled: {state}"

    # The queue

    def _receive(self, state: State) -> Iterator[tuple[str, State]]:
        is_locked = OURS in state.queue or (
            any(place >= BACK for place in state.queue) and not self._rules.delay_unlocks
        )
        if is_locked or any(state.owner):
            return
        there = [message for message, place in enumerate(state.queue) if place == VISIBLE]
        for count in range(1, len(there) + 1):
            queue, hand = list(state.queue), list(state.owner)
            for message in there[:count]:
                queue[message], hand[message] = OURS, WAITING
            yield f"receive {there[:count]}", replace(state, queue=tuple(queue), owner=tuple(hand))

    def _put_back(self, state: State, hand: Hand, first: int, target: int, *, is_ours: bool) -> tuple[State, Hand]:
        last = len(hand)
        if self._rules.returns_run:
            last = first + len(list(takewhile(lambda m: self._tenants[m] == self._tenants[first], self._all[first:])))
        if self._rules.returns_one:
            last = first + 1 + len(list(takewhile(lambda m: hand[m] == hand[first] >= FLIGHT, self._all[first + 1 :])))
        back = [m for m in self._all[first:last] if hand[m] != NOT_IN_HAND]
        state = self._to_air(state, tuple(stage if m in back else NOT_IN_HAND for m, stage in enumerate(hand)))
        after, queue = list(hand), list(state.queue)
        for message in back:
            after[message] = NOT_IN_HAND
            if is_ours and queue[message] == OURS:
                is_waiting = message == first and not self._rules.returns_at_once
                queue[message] = BACK + (target if is_waiting else FOR_NOW)
        if self._rules.lane_keeps_returned and is_ours:
            kept = (hand[m] if m in back and _shard_in(hand[m], LANE) is not None else NOT_IN_HAND for m in self._all)
            state = replace(state, zombie=tuple(kept))
        return replace(state, queue=tuple(queue)), tuple(after)

    def _is_back(self, state: State, target: int) -> bool:
        if target == FOR_NOW:
            return True
        return state.is_up[target] if target < MOVING else state.homes[target - MOVING] < MOVING

    # The worker

    def _work(self, state: State, hand: Hand, *, is_ours: bool) -> Iterator[tuple[str, State, Hand]]:
        for message, stage in enumerate(hand):
            if stage == WAITING and self._may_queue(state, hand, message):
                yield from self._find_home(state, hand, message, is_ours=is_ours)
            elif stage in (EXHAUSTED, REFUSED):
                is_marked = stage == EXHAUSTED and not self._rules.leaves_no_mark
                lettered = put_at(hand, message, LETTER if is_marked else SETTLED)
                yield f"dead letter of {message}", replace(state, letters=state.letters | 1 << message), lettered
            elif stage == LETTER:
                yield self._mark(state, hand, message, is_ours=is_ours)
            elif (shard := _shard_in(stage, UNSAFE)) is not None:
                yield from self._await_safety(state, hand, message, shard, is_ours=is_ours)
            elif stage == SETTLED:
                gone = replace(state, queue=put_at(state.queue, message, GONE))
                yield f"delete {message}", gone, put_at(hand, message, NOT_IN_HAND)
        yield from self._work_lanes(state, hand, is_ours=is_ours)

    def _work_lanes(self, state: State, hand: Hand, *, is_ours: bool) -> Iterator[tuple[str, State, Hand]]:
        for shard, name in enumerate(SHARD_NAMES):
            waiting = [m for m in self._all if hand[m] in (LANE + shard, FLIGHT + shard)]
            if waiting and not state.is_up[shard]:
                back = self._put_back(state, hand, waiting[0], shard, is_ours=is_ours)
                yield f"{waiting[0]} returns: {name} is down", *back
            elif batch := [m for m in waiting if hand[m] == FLIGHT + shard]:
                yield self._answer(state, hand, shard, batch, is_ours=is_ours)
            elif waiting and self._may_send(hand, waiting[0]):
                sent = tuple(FLIGHT + shard if m in waiting else stage for m, stage in enumerate(hand))
                yield f"send {waiting} to {name}", state, sent

    def _find_home(self, state: State, hand: Hand, message: int, *, is_ours: bool) -> Iterator[tuple[str, State, Hand]]:
        home = state.homes[self._tenants[message]]
        if home < MOVING:
            yield f"{message} to the lane of {SHARD_NAMES[home]}", state, put_at(hand, message, LANE + home)
        elif any(_shard_in(stage, LANE, FLIGHT, UNSAFE) is not None for stage in hand[:message]):
            return
        elif home == UNREGISTERED:
            yield f"{message} has no home and is overdue", state, put_at(hand, message, REFUSED)
        else:
            target = MOVING + self._tenants[message]
            back = self._put_back(state, hand, message, target, is_ours=is_ours)
            yield f"{message} returns: its tenant moves", *back

    def _may_queue(self, state: State, hand: Hand, message: int) -> bool:
        for earlier in self._all[:message]:
            stage = hand[earlier]
            shard = _shard_in(stage, LANE, FLIGHT, UNSAFE)
            is_alike = self._tenants[earlier] == self._tenants[message] or self._rules.runs_by_shard
            is_same_lane = is_alike and shard == state.homes[self._tenants[message]]
            may_pass = _shard_in(stage, UNSAFE) is not None and self._rules.next_run_before_safe
            may_pass = may_pass or (stage in (EXHAUSTED, LETTER) and self._rules.next_before_letter)
            if not (stage in (NOT_IN_HAND, SETTLED) or is_same_lane or may_pass):
                return False
        return True

    def _may_send(self, hand: Hand, message: int) -> bool:
        stages = [hand[m] for m in self._all[:message]]
        if self._rules.next_before_safe or self._rules.next_run_before_safe:
            stages = [stage for stage in stages if _shard_in(stage, UNSAFE) is None]
        if self._rules.next_before_letter:
            stages = [stage for stage in stages if stage not in (EXHAUSTED, LETTER)]
        return all(stage in (NOT_IN_HAND, SETTLED) for stage in stages)

    def _answer(
        self, state: State, hand: Hand, shard: int, batch: list[int], *, is_ours: bool
    ) -> tuple[str, State, Hand]:
        state, failed, homeless = self._commit(state, shard, sum(1 << m for m in batch))
        after = list(hand)
        for message in batch:
            is_behind = failed is not None and message > failed
            after[message] = WAITING if is_behind else REFUSED if self._is_late(message) else UNSAFE + shard
        label = f"{SHARD_NAMES[shard]} has {batch}"
        if homeless is not None:
            stopped = self._put_back(state, tuple(after), homeless, FOR_NOW, is_ours=is_ours)
            return f"{label}: {homeless} is not here", *stopped
        if failed is None:
            return label, state, tuple(after)
        failures = min(state.failures + 1, TRIES)
        after[failed] = EXHAUSTED if failures == TRIES else WAITING
        for message in self._all[failed + 1 :]:  # of its chain, in the lane
            if _shard_in(after[message], LANE) is not None:
                after[message] = WAITING
        return f"{label}: {failed} fails", replace(state, failures=failures), tuple(after)

    def _commit(self, state: State, shard: int, bits: int) -> tuple[State, int | None, int | None]:
        homeless = None
        sent = [message for message in self._all if bits >> message & 1]
        if self._rules.checks_former and self._lacks_former(state, sent[0]):
            return state, None, sent[0]
        for message in sent:
            if state.homes[self._tenants[message]] != shard:
                homeless = message if homeless is None else homeless
            elif (state.log[message] is Log.NONE or self._rules.has_no_log) and not self._is_late(message):
                if state.is_failing and message == self._failing:
                    return state, message, homeless
                promise = state.promise
                if any(row in IN_EFFECT for row in state.log[message + 1 :]):
                    promise = f"order: {message} took effect after a later one"
                if state.log[message] in IN_EFFECT:
                    promise = f"twice: {message} took effect again"
                state = replace(state, log=put_at(state.log, message, Log.APPLIED), promise=promise)
        return state, None, homeless

    def _await_safety(
        self, state: State, hand: Hand, message: int, shard: int, *, is_ours: bool
    ) -> Iterator[tuple[str, State, Hand]]:
        row = state.log[message]
        is_enough = row in SAFE or self._rules.deletes_unsafe or (row is Log.MARKED and self._rules.marks_unsafe)
        if is_enough:
            yield f"{message} is settled", state, put_at(hand, message, SETTLED)
        elif row is Log.NONE or not state.is_up[shard]:
            target = FOR_NOW if state.is_up[shard] else shard
            yield (
                f"{message} returns: not known to be safe",
                *self._put_back(state, hand, message, target, is_ours=is_ours),
            )

    def _mark(self, state: State, hand: Hand, message: int, *, is_ours: bool) -> tuple[str, State, Hand]:
        home = state.homes[self._tenants[message]]
        if not is_ours and self._rules.lost_unmarked:
            return f"leave {message} unmarked", state, put_at(hand, message, SETTLED)
        if home >= MOVING or not state.is_up[home]:
            target = home if home < MOVING else MOVING + self._tenants[message]
            back = self._put_back(state, hand, message, target, is_ours=is_ours)
            return f"{message} returns: it cannot be marked", *back
        row = Log.MARKED if state.log[message] is Log.NONE else state.log[message]
        return (
            f"mark {message}",
            replace(state, log=put_at(state.log, message, row)),
            put_at(hand, message, UNSAFE + home),
        )

    # Small things

    def _to_air(self, state: State, hand: Hand) -> State:
        air = set(state.air)
        for shard in range(len(SHARD_NAMES)):
            if bits := sum(1 << m for m in self._all if hand[m] == FLIGHT + shard):
                air.add((shard, bits))
        return replace(state, air=tuple(sorted(air)))

    def _lacks_former(self, state: State, message: int) -> bool:
        rows = zip(self._tenants, state.log[:message], strict=False)
        return any(tenant == self._tenants[message] and row is Log.NONE for tenant, row in rows)

    def _is_late(self, message: int) -> bool:
        return self._homes[self._tenants[message]] == UNREGISTERED and not self._rules.admits_late

    def _is_on(self, state: State, message: int, shard: int) -> bool:
        home = state.homes[self._tenants[message]]
        return home == shard or home == MOVING + 1 - shard

    def _named(self, bits: int) -> list[int]:
        return [message for message in self._all if bits >> message & 1]


def _shard_in(stage: int, *kinds: int) -> int | None:
    return next((stage - kind for kind in kinds if kind <= stage < kind + len(SHARD_NAMES)), None)


def _spend(state: State, kind: Trouble) -> State:
    return replace(state, left=one_less(state.left, kind))
