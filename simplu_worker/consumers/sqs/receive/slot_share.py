"""How many slots, places for messages in hand, a tenant may have while its messages wait. Pure.

A tenant waits when a tenth of its messages in hand were held, or are in hand for a second while slots are short: its
shard is slow or down, or it is locked. All tenants that wait share half of the slots, and none has more than a quarter.
Messages beyond that return to the queue, hidden for 5 to 10 s at first and twice as long each time, up to minutes, so
that they are received rarely. Until they are back, the tenant counts as one that waits. All others may have all slots:
they soon leave them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from simplu_worker.aws.sqs_queue import Message
from simplu_worker.consumers.sqs.receive.verdicts import RetryHeld, ReturnToQueue, Verdict
from simplu_worker.timing.backoff import backoff_s

WAITING_RATIO: Final = 10  # of a tenant's messages in hand to the late ones, from which on it waits
LATE_AFTER_S: Final = 1.0  # in hand
SHORT_RATIO: Final = 0.9  # of the slots in use, from which on they are short
PUT_BACK_BASE_S: Final = 10.0
PUT_BACK_MAX_S: Final = 240.0  # two minutes at least: 100 receives are hours
HIDDEN_MAX_COUNT: Final = 60_000  # half of what a queue may have in flight: SQS quotas, 120,000
PUT_BACK_MAX_COUNT: Final = 10_000  # of one replica, between two looks at how much the queue has in flight
NAMED_EVERY_S: Final = 30.0
SPREAD: Final = (math.sqrt(5) - 1) / 2  # multiples of it, without their whole part, are spread evenly


class SlotShare:
    """The tenants of the messages in hand, once one of these is late; *tenant_of* tells the tenant of a message."""

    def __init__(self, message_count: int, tenant_of: Callable[[Message], str | None], *, is_fifo: bool) -> None:
        self._half_count = message_count // 2
        self._tenant_of = tenant_of
        self._is_fifo = is_fifo
        self.max_receive_count: int | None = None  # of the queue: a message that has as many must not return
        self._tenants: dict[str, str | None] = {}  # by message id
        self._late: set[str] = set()  # message ids: held, or in hand for long
        self._waiting_until: dict[str, float] = {}  # by tenant with messages that were put back
        self._put_back_count = 0
        self._unnamed: set[str] = set()  # tenants that wait since the last call of `begun`
        self._named_at = float("-inf")

    def __repr__(self) -> str:
        return f"SlotShare({len(self._late)} of {len(self._tenants)} were held)"

    def note_late(self, message_ids: Iterable[str]) -> None:
        """Note that messages are in hand for LATE_AFTER_S while slots are short."""
        self._late.update(message_ids)

    def over_share(self, unstarted: Sequence[Message], in_hand: Sequence[Message], *, now: float) -> list[Message]:
        """Return those of *unstarted* messages, which are some of those in hand, that have to be put back."""
        if not self._late and not self._waiting_until:
            return []
        room = self._count(in_hand, now)
        staying = self._staying_lanes(in_hand)
        over = [
            message
            for message in reversed(unstarted)
            if self._lane_of(message) not in staying and room.give_up(self._tenants.get(message.message_id))
        ]
        return over[::-1]  # of a group the last ones

    def bounded(
        self,
        call: Sequence[Message],
        verdicts: Sequence[Verdict],
        in_hand: Sequence[Message],
        *,
        now: float,
        draw: float,
    ) -> list[Verdict]:
        """Return *verdicts* on a call, but the return of those that are to be held beyond the share of their tenant."""
        pairs = list(zip(call, verdicts, strict=True))
        to_hold = {one.message_id for one, verdict in pairs if isinstance(verdict, RetryHeld) and verdict.delay_s}
        if not to_hold:
            return list(verdicts)
        self._late |= to_hold
        room, staying = self._count(in_hand, now), self._staying_lanes(in_hand)
        sizes = Counter(map(self._lane_of, in_hand))

        def bound(message: Message, verdict: Verdict) -> Verdict:
            lane, tenant_id = self._lane_of(message), self._tenants.get(message.message_id)
            if not isinstance(verdict, RetryHeld) or message.message_id not in to_hold or lane in staying:
                return verdict
            if not room.give_up(tenant_id, sizes[lane]):  # those behind it in its group return with it
                return verdict
            return ReturnToQueue(math.ceil(max(verdict.delay_s, self.put_back_s(message, now=now, draw=draw))))

        return [bound(*pair) for pair in reversed(pairs)][::-1]

    def put_back_s(self, message: Message, *, now: float, draw: float) -> float:
        """Note that *message* is put back, and return for how long; one *draw* spreads many."""
        self._put_back_count += 1
        draw = (draw + self._put_back_count * SPREAD) % 1.0
        delay_s = backoff_s(message.receive_count, draw=draw, base_s=PUT_BACK_BASE_S, max_s=PUT_BACK_MAX_S)
        if (tenant_id := self._tenants.get(message.message_id)) is not None:
            if tenant_id not in self._waiting_until:
                self._unnamed.add(tenant_id)
            self._waiting_until[tenant_id] = max(now + 2 * delay_s, self._waiting_until.get(tenant_id, now))
        return delay_s

    def begun(self, *, now: float) -> Sequence[str]:
        """Return the tenants whose messages are put back from now on; each once, and none twice in NAMED_EVERY_S."""
        if not self._unnamed or now - self._named_at < NAMED_EVERY_S:
            return ()
        self._named_at = now
        begun, self._unnamed = sorted(self._unnamed), set()
        return begun

    def _lane_of(self, message: Message) -> str:
        return (self._is_fifo and message.group_id) or message.message_id

    def _staying_lanes(self, in_hand: Iterable[Message]) -> set[str]:
        """Return the lanes with a message that SQS would move to another queue in place of its next receive."""
        most = self.max_receive_count
        return set() if most is None else {self._lane_of(one) for one in in_hand if one.receive_count >= most}

    def _count(self, in_hand: Iterable[Message], now: float) -> _Room:
        known = self._tenants
        self._tenants = {
            one.message_id: known[one.message_id] if one.message_id in known else self._tenant_of(one)
            for one in in_hand
        }
        self._late &= self._tenants.keys()
        counts = Counter(self._tenants.values())
        late_counts = Counter(self._tenants[message_id] for message_id in self._late)
        self._waiting_until = {one: until for one, until in self._waiting_until.items() if until > now}
        waiting = {
            one: count
            for one, count in counts.items()
            if one is not None and (one in self._waiting_until or count <= WAITING_RATIO * late_counts[one])
        }
        return _Room(waiting, self._half_count)


class _Room:
    """How many slots each tenant that waits has, and may have."""

    def __init__(self, counts: dict[str, int], half_count: int) -> None:
        self._counts = counts
        self._limit = _limit_of(counts.values(), half_count)
        self._over_count = (
            sum(counts.values()) - half_count if len(counts) > half_count else 0
        )  # with one slot for each

    def give_up(self, tenant_id: str | None, count: int = 1) -> bool:
        """Take *count* slots from a tenant that has more than its share; return whether it had."""
        if tenant_id is None or (own_count := self._counts.get(tenant_id)) is None:
            return False
        if own_count <= self._limit and (self._over_count <= 0 or own_count <= 0):
            return False
        self._counts[tenant_id] = own_count - count
        self._over_count -= count
        return True


def _limit_of(counts: Collection[int], half_count: int) -> int:
    """Return how many slots a tenant may have, where the others leave it what they do not need."""
    left_count = half_count
    for number, count in enumerate(sorted(counts)):
        fair_count = left_count // (len(counts) - number)
        if count > fair_count:
            return max(min(fair_count, half_count // 2), 1)
        left_count -= count
    return max(half_count // 2, 1)
