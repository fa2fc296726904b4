"""The slots of a receiver, each for a message in hand: how many polls fill them, when, and whose messages. Pure.

A business waits when a tenth of its messages were held, or are in hand for a second while slots are short, and after a
return for twice as long as that hides them. Those that wait have half of the slots in equal parts, each a quarter at
most, which its locations share. Messages beyond that return to the queue, hidden for 5 to 10 s at first and twice as
long each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from simplu_worker.aws.sqs_queue import BATCH_MAX_COUNT, Message
from simplu_worker.timing.waits import backoff_s

Tenant: TypeAlias = tuple[str, str]  # its business and location


class PollPlan:
    """How many polls run, and for how many messages each asks.

    One more runs after each full answer, one again after an empty answer or a failure. Polls under way have their room
    reserved, by the largest recent size.
    """

    def __init__(self, *, poll_count: int, message_count: int, byte_count: int) -> None:
        self._poll_count = max(poll_count, 1)
        self._message_count = message_count
        self._byte_count = byte_count
        self.wanted_count = 1
        self._asked_count = 0
        self._largest_bytes = 0.0

    def reserve(self, *, in_flight_count: int, in_flight_bytes: int) -> int:
        """Reserve room for a poll; return how many messages to ask for."""
        room = min(self._message_count - in_flight_count - self._asked_count, BATCH_MAX_COUNT)
        room_bytes = self._byte_count - in_flight_bytes - self._asked_count * self._largest_bytes
        if self._largest_bytes:
            room = min(room, int(room_bytes // self._largest_bytes))
        if room < 1 and not in_flight_count and not self._asked_count:
            room = 1  # a message that is larger than all the room must be received at some time
        count = max(room, 0)
        self._asked_count += count
        return count

    def record_answer(self, asked_count: int, sizes_bytes: Sequence[int]) -> None:
        """Record that a poll for *asked_count* messages received messages of these sizes."""
        self._asked_count -= asked_count
        if not sizes_bytes:
            self.wanted_count = 1
            return
        self._largest_bytes = max(*sizes_bytes, 0.9 * self._largest_bytes, 1.0)
        if len(sizes_bytes) >= asked_count == BATCH_MAX_COUNT:
            self.wanted_count = min(self.wanted_count + 1, self._poll_count)

    def record_failure(self, asked_count: int) -> None:
        """Record a failed poll: one is enough to notice the recovery."""
        self._asked_count -= asked_count
        self.wanted_count = 1


POLLS_AHEAD: Final = 4  # of the queue that goes first
SHUT_MAX_S: Final = 1.0


class PriorityGate:
    """A gate before the polls of a queue: shut while another is busy, until POLLS_AHEAD polls of that, or a second.

    *activity* returns whether the other one is busy, and how many of its polls were answered.
    """

    def __init__(self, activity: Callable[[], tuple[bool, int]]) -> None:
        self._activity = activity
        self._opens_at = POLLS_AHEAD
        self._shut_since: float | None = None

    def lets_pass(self, now: float) -> bool:
        """Return whether a poll may begin; the gate is shut behind it."""
        is_busy, poll_count = self._activity()
        since = self._shut_since = now if self._shut_since is None else self._shut_since
        if is_busy and poll_count < self._opens_at and now - since < SHUT_MAX_S:
            return False
        self._shut_since, self._opens_at = None, poll_count + POLLS_AHEAD
        return True


WAITING_RATIO: Final = 10  # of a business's messages in hand to the late ones, from which on it waits
LATE_AFTER_S: Final = 1.0  # in hand
SHORT_RATIO: Final = 0.9  # of the slots in use, from which on they are short
PUT_BACK_BASE_S: Final = 10.0
PUT_BACK_MAX_S: Final = 240.0  # two minutes at least: 100 receives are hours
HIDDEN_MAX_COUNT: Final = 60_000  # half of what a queue may have in flight: SQS quotas, 120,000
PUT_BACK_MAX_COUNT: Final = 10_000  # of one replica, between two looks at how much the queue has in flight


class SlotShare:
    """The shares of businesses in the slots, once messages are late. *tenant_of* may name no location."""

    def __init__(self, message_count: int, tenant_of: Callable[[Message], Tenant | None], *, is_fifo: bool) -> None:
        self._half_count = message_count // 2
        self._tenant_of = tenant_of
        self._is_fifo = is_fifo
        self.max_receive_count: int | None = None  # of the queue: a message that has as many must not return
        self._tenants: dict[str, Tenant | None] = {}  # by message id
        self._late: set[str] = set()  # message ids: held, or in hand for long
        self._waiting_until: dict[str, float] = {}  # by business with messages that were put back
        self._begun: list[str] = []  # businesses that wait since the last call of `take_begun`

    def is_last_receive(self, message: Message) -> bool:
        """Return whether SQS would move a message away that returned to the queue."""
        return self.max_receive_count is not None and message.receive_count >= self.max_receive_count

    def note_late(self, message_ids: Iterable[str]) -> None:
        """Note that messages are held, or in hand for LATE_AFTER_S."""
        self._late.update(message_ids)

    def over_share(self, unstarted: Sequence[Message], in_hand: Sequence[Message], *, now: float) -> list[Message]:
        """Return those of *unstarted* messages that have to be put back."""
        if not self._late and not self._waiting_until:
            return []
        counts = self._count(in_hand, now)
        location_counts = Counter(business_id for business_id, _ in counts)
        businesses = Counter[str]()
        for (business_id, _), count in counts.items():
            businesses[business_id] += count
        limit = max(self._half_count // max(len(businesses), 2), 1)
        excess = businesses.total() - self._half_count if len(businesses) > self._half_count else 0
        staying = {self._lane_of(one) for one in in_hand if self.is_last_receive(one)}
        over: list[Message] = []
        for message in reversed(unstarted):  # of a group the last ones
            if (tenant := self._tenants.get(message.message_id)) is None or self._lane_of(message) in staying:
                continue
            most = 0 if excess > 0 else limit
            if businesses[tenant[0]] > most and counts[tenant] > most // location_counts[tenant[0]]:
                counts[tenant] -= 1
                businesses[tenant[0]] -= 1
                excess -= 1
                over.append(message)
        return over[::-1]

    def put_back_s(self, message: Message, *, now: float, draw: float) -> float:
        """Note that *message* is put back; return for how long."""
        delay_s = backoff_s(message.receive_count, draw=draw, base_s=PUT_BACK_BASE_S, max_s=PUT_BACK_MAX_S)
        if (tenant := self._tenants.get(message.message_id)) is not None:
            if tenant[0] not in self._waiting_until:
                self._begun.append(tenant[0])
            self._waiting_until[tenant[0]] = max(now + 2 * delay_s, self._waiting_until.get(tenant[0], now))
        return delay_s

    def take_begun(self) -> list[str]:
        """Return the businesses that wait since the last call."""
        begun, self._begun = self._begun, []
        return begun

    def _lane_of(self, message: Message) -> str:
        return (self._is_fifo and message.group_id) or message.message_id

    def _count(self, in_hand: Iterable[Message], now: float) -> Counter[Tenant]:
        """Return how many messages the tenants of businesses that wait have in hand."""
        known = self._tenants
        self._tenants = {
            one.message_id: known[one.message_id] if one.message_id in known else self._tenant_of(one)
            for one in in_hand
        }
        self._late &= self._tenants.keys()
        self._waiting_until = {one: until for one, until in self._waiting_until.items() if until > now}
        tenants = [one for one in self._tenants.values() if one is not None]
        late = Counter(tenant[0] for one in self._late if (tenant := self._tenants[one]) is not None)
        sums = Counter(business_id for business_id, _ in tenants)
        waiting = {
            one for one, count in sums.items() if one in self._waiting_until or count <= WAITING_RATIO * late[one]
        }
        return Counter(tenant for tenant in tenants if tenant[0] in waiting)
