from __future__ import annotations

from simplu_worker.consumers.kinesis.leases.balancing import LostOwners
from simplu_worker.consumers.kinesis.leases.lease import Lease, Observation, observe
from simplu_worker.consumers.kinesis.stream.positions import Position

DURATION_S = 10.0


class Table:
    """A lease table that is scanned each second, whose owners renew at every third scan."""

    def __init__(self, **owners: str) -> None:
        self.owners: dict[str, str | None] = {**owners}
        self.silent: set[str] = set()
        self.lost = LostOwners(DURATION_S)
        self.now = 0.0
        self._counters = dict.fromkeys(owners, 0)
        self._seen: dict[str, Observation] = {}

    def pass_time(self, seconds: int) -> list[str]:
        for _ in range(seconds):
            for key, owner in self.owners.items():
                self._counters[key] += owner not in self.silent and self.now % 3 == 0
            self.scan()
        return [owner for owner, _ in self.lost.gone(now=self.now)]

    def scan(self) -> None:
        self.now += 1.0
        leases = [
            Lease(key, Position(1), owner=owner, counter=self._counters[key]) for key, owner in self.owners.items()
        ]
        self._seen = observe(self._seen, leases, now=self.now)
        self.lost.note(self._seen, now=self.now)

    def take(self, owner: str, *keys: str) -> None:
        for key in keys:
            self.owners[key] = owner
            self._counters[key] += 1


def test_killed_owner_is_gone_until_a_new_one_comes() -> None:
    table = Table(s="a", t="b", u="c")
    table.pass_time(20)
    table.silent = {"b", "c"}
    assert table.pass_time(11) == []
    table.take("a", "t", "u")
    assert table.pass_time(3) == ["b", "c"]
    ages = [age_s for _, age_s in table.lost.gone(now=table.now)]
    assert all(11 <= age_s <= 17 for age_s in ages)
    table.take("d", "t")
    assert len(table.pass_time(3)) == 1
    table.take("e", "u")
    assert table.pass_time(3) == []


def test_owner_that_hands_over_in_order_is_not_gone() -> None:
    table = Table(s="a", t="b")
    table.pass_time(20)
    table.take("a", "t")
    assert table.pass_time(20) == []
