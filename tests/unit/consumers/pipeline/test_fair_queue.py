from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.queued_operations import queued_operation

from simplu_worker.consumers.pipeline.results import BatchBounds, FairQueue
from simplu_worker.fairness import Demand, ShardTime
from simplu_worker.operations.operation import Operation

WIDE = BatchBounds(10**9, 10**9, 1e9)
EXACT_S = 2**-9  # sums of it are exact
COSTS = {"heavy": 0.02, "light": 0.0005, "p": EXACT_S, "q": EXACT_S}  # by tenant; others cost a millisecond


class Entry(msgspec.Struct, eq=False):
    chain: str
    operation: Operation
    number: int

    def __repr__(self) -> str:
        return f"{self.chain}:{self.number}"


def entries_of(tenant_id: str, count: int, *, first: int = 0) -> list[Entry]:
    operation = queued_operation(tenant_id, business_id=tenant_id.partition("-")[0]).operation
    return [Entry(tenant_id, operation, first + number) for number in range(count)]


class Known(ShardTime):
    def cost_s(self, operation: Operation) -> float:
        return COSTS.get(operation.tenant_id, 0.001)

    def costs_s(self, operations: Iterable[Operation]) -> list[float]:
        return list(map(self.cost_s, operations))

    def batch_cost_s(self, demand: Demand) -> float:
        return sum(count * COSTS.get(tenant_id, 0.001) for (tenant_id, _), count in demand.counts.items())


def queue_of(*runs: tuple[str, int]) -> FairQueue[Entry]:
    queue: FairQueue[Entry] = FairQueue(Known())
    for tenant_id, count in runs:
        queue.append(entries_of(tenant_id, count))
    return queue


def counts(batch: list[Entry]) -> dict[str, int]:
    return dict(Counter(entry.chain for entry in batch))


def test_tenant_that_comes_later_saves_up_nothing() -> None:
    queue = queue_of(("a", 1000), ("b", 1000))
    for _ in range(10):
        queue.take(BatchBounds(2000, 10**9, 0.1))
    queue.append(entries_of("new", 1000))

    batch = counts(queue.take(BatchBounds(2000, 10**9, 0.09)))

    assert max(batch.values()) - min(batch.values()) <= 3
    assert set(batch) == {"a", "b", "new"}


def test_tenants_with_entries_and_those_that_had_none() -> None:
    queue = queue_of(("a", 1), ("b", 2), ("c", 1))
    assert queue.businesses == queue.arrived == dict(zip("abc", "abc", strict=True))

    queue.take(BatchBounds(2, 10**9, 1e9))
    queue.remove({id(entry) for entry in queue.of_tenant("c")})
    queue.arrived = {}
    queue.append([entry for tenant_id in "bc" for entry in entries_of(tenant_id, 1)])

    assert (queue.businesses, queue.arrived) == ({"b": "b", "c": "c"}, {"c": "c"})


def test_tenant_that_was_served_is_behind_those_that_were_not() -> None:
    queue = queue_of(*((tenant_id, 9) for tenant_id in "bcef"), ("heavy", 1))
    assert counts(queue.take(BatchBounds(8, 10**9, 1e9))) == {"b": 2, "c": 2, "e": 2, "f": 1, "heavy": 1}
    queue.append([*entries_of("a", 1), *entries_of("heavy", 1)])
    assert counts(queue.take(BatchBounds(2, 10**9, 1e9))) == {"a": 1, "f": 1}


def test_turn_ends_a_quantum_after_the_next_tenant() -> None:
    queue = queue_of(("light", 9), ("z", 9))
    assert [entry.chain for entry in queue.take(BatchBounds(4, 10**9, 1e9))] == ["light", "light", "z", "z"]


def test_turn_lasts_as_long_as_the_weight_says() -> None:
    queue = queue_of(("light", 9), ("z", 9))
    queue._time.note_weights({}, {"light": 2.0})
    assert [entry.chain for entry in queue.take(BatchBounds(6, 10**9, 1e9))] == [*["light"] * 4, "z", "z"]
    queue = queue_of(("a-1", 9), ("a-2", 9))
    queue._time.note_weights({"a-1": 3.0}, {})
    assert [entry.chain for entry in queue.take(BatchBounds(4, 10**9, 1e9))] == [*["a-1"] * 3, "a-2"]


@pytest.mark.parametrize("location_count", [1, 5, 20, 100])
def test_business_has_one_share_whatever_its_locations(location_count: int) -> None:
    queue = queue_of(*((f"chain-{number}", 1000) for number in range(location_count)), ("b", 1000), ("heavy", 1000))
    taken: Counter[str] = Counter()
    for _ in range(10):
        taken.update(counts(queue.take(BatchBounds(2000, 10**9, 0.3))))
    chain = [taken[f"chain-{number}"] for number in range(location_count)]
    assert [sum(chain), taken["b"], 20 * taken["heavy"]] == pytest.approx([1000] * 3, abs=25)
    assert max(chain) - min(chain) <= 2


def test_weights_count_between_businesses_and_within_one() -> None:
    time = Known()
    time.note_weights({"a-1": 3.0}, {"b": 4.0})
    queue: FairQueue[Entry] = FairQueue(time)
    for tenant_id in ("a-1", "a-2", "b-1", "b-2"):
        queue.append(entries_of(tenant_id, 5000))
    batch = counts(queue.take(BatchBounds(4000, 10**9, 1e9)))
    assert batch["b-1"] == pytest.approx(batch["b-2"], abs=5)
    assert batch["a-1"] == pytest.approx(3 * batch["a-2"], abs=5)
    assert batch["b-1"] + batch["b-2"] == pytest.approx(4 * (batch["a-1"] / 3 + batch["a-2"]), abs=10)


def test_location_that_was_served_is_behind_though_it_was_emptied() -> None:
    queue = queue_of(("a-1", 200), ("z", 1000))
    for _ in range(9):
        queue.append([Entry("a-2", queued_operation("heavy", business_id="a").operation, 0)])
        queue.take(BatchBounds(2000, 10**9, 0.05))
    assert len(queue.of_tenant("a-1")) < 130


@pytest.mark.parametrize("bounds", [BatchBounds(1, 10**9, 1e9), BatchBounds(9, 10**9, 1e-9)], ids=["others", "nobody"])
def test_served_tenant_is_forgotten_once_nobody_waits(bounds: BatchBounds) -> None:
    queue = queue_of(("heavy", 1))
    if bounds.count == 1:
        queue.append(entries_of("z", 1))
    queue.take(bounds)
    queue.take(WIDE)
    queue.append([*entries_of("heavy", 1), *entries_of("z", 1)])
    assert counts(queue.take(BatchBounds(1, 10**9, 1e9))) == {"heavy": 1}


def test_tenant_is_forgotten_once_the_queue_was_cleared() -> None:
    queue = queue_of(("heavy", 2), ("z", 2))
    queue.put_back(queue.take(BatchBounds(1, 10**9, 1e9)))
    assert [entry.chain for entry in queue.clear()] == ["heavy", "heavy", "z", "z"]
    assert (len(queue), list(queue)) == (0, [])

    queue.append([*entries_of("heavy", 1), *entries_of("z", 1)])
    assert counts(queue.take(BatchBounds(1, 10**9, 1e9))) == {"heavy": 1}


def test_tenant_that_is_hurried_does_not_wait_for_its_turn() -> None:
    queue = queue_of(("a", 10), ("heavy", 3), ("b", 10))
    queue.hurried = frozenset({"heavy"})

    batch = counts(queue.take(BatchBounds(2000, 10**9, 0.07)))

    assert batch["heavy"] == 3
    assert batch["a"] + batch["b"] == 10


@pytest.mark.parametrize("bounds", [BatchBounds(1, 1, 1e9), BatchBounds(9, 1, 1e9), BatchBounds(9, 10**9, 1e-9)])
def test_one_entry_always_goes(bounds: BatchBounds) -> None:
    assert len(queue_of(("a", 5)).take(bounds)) == 1


def test_what_was_put_back_goes_first_and_others_follow() -> None:
    queue = queue_of(("a", 5), ("b", 5))
    batch = queue.take(BatchBounds(4, 10**9, 1e9))
    queue.put_back(batch)

    assert queue.take(BatchBounds(1, 10**9, 1e9)) == batch[:1]
    rest = queue.take(BatchBounds(4, 10**9, 1e9))
    assert (rest[:3], len(rest), len(queue)) == (batch[1:], 4, 5)


@pytest.mark.parametrize(
    "bounds",
    [BatchBounds(5, 10**9, 1e9), BatchBounds(100, 10, 1e9), BatchBounds(100, 10**9, 0.0055)],
    ids=["count", "bytes", "cost"],
)
def test_what_was_put_back_counts_towards_the_bounds(bounds: BatchBounds) -> None:
    queue = queue_of(("a", 50), ("b", 50))
    queue.put_back(queue.take(BatchBounds(3, 10**9, 1e9)))
    assert (len(queue.take(bounds)), len(queue)) == (5, 95)


@pytest.mark.parametrize(
    "bounds",
    [BatchBounds(8, 10**9, 1e9), BatchBounds(100, 16, 1e9), BatchBounds(100, 10**9, 8 * EXACT_S)],
    ids=["count", "bytes", "cost"],
)
def test_batch_of_everything_has_no_turns(bounds: BatchBounds) -> None:
    queue = queue_of(("p", 5), ("q", 3))
    queue.put_back(queue.take(BatchBounds(2, 10**9, 1e9)))
    assert [entry.chain for entry in queue.take(bounds)] == list("pqppppqq")

    queue = queue_of(("p", 5), ("q", 4))
    assert [entry.chain for entry in queue.take(bounds)] != list("pppppqqq")


def test_newest_entries_beyond_a_time_are_those_that_leave() -> None:
    queue = queue_of(("a", 5), ("b", 5))
    entries = queue.of_tenant("a")

    assert queue.newest_of({"a": 0.0035}) == queue.newest_of({"a": 0.003}) == entries[3:]
    assert queue.newest_of({"a": 0.003, "b": 0.004}) == [*entries[3:], *queue.of_tenant("b")[4:]]
    assert queue.newest_of({"a": 1.0, "c": 0.0}) == []
    assert queue.cost_s(lambda tenant_id: tenant_id == "b") == pytest.approx(0.005)
    assert queue.costs_s(lambda tenant_id: tenant_id == "b") == {"a": {"a": pytest.approx(0.005)}}


@pytest.mark.slow
@given(st.data())
def test_order_of_a_tenant_is_kept_and_nothing_is_lost(data: st.DataObject) -> None:
    queue: FairQueue[Entry] = FairQueue(Known())
    sent: defaultdict[str, list[Entry]] = defaultdict(list)
    taken: defaultdict[str, list[Entry]] = defaultdict(list)
    removed: set[int] = set()
    names = st.sampled_from(["heavy", "light", "a-1", "a-2", "b"])
    for _ in range(data.draw(st.integers(1, 20))):
        match data.draw(st.sampled_from(["append", "take", "put back", "remove", "take tenant"])):
            case "append":
                name, count = data.draw(names), data.draw(st.integers(0, 6))
                entries = entries_of(name, count, first=len(sent[name]))
                sent[name] += entries
                queue.append(entries)
            case "take" | "put back" as what:
                bounds = BatchBounds(data.draw(st.integers(1, 8)), 10**9, data.draw(st.sampled_from([0.001, 0.05])))
                batch = queue.take(bounds)
                assert len(batch) <= bounds.count
                if what == "put back":
                    queue.put_back(batch)
                else:
                    for entry in batch:
                        taken[entry.chain].append(entry)
            case "remove":
                ids = {id(entry) for entry in queue if data.draw(st.booleans())}
                removed |= ids
                queue.remove(ids)
            case _:
                own = queue.of_tenant(name := data.draw(names))
                assert own == [entry for entry in queue if entry.chain == name]
                removed |= {id(entry) for entry in own}
                queue.remove({id(entry) for entry in own})
        assert len(queue) == len(list(queue))
    for entry in queue.clear():
        taken[entry.chain].append(entry)

    assert len(queue) == 0
    for name, entries in sent.items():
        assert taken[name] == [entry for entry in entries if id(entry) not in removed]
