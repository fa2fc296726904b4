"""What tenants took of a shard: within the window, the largest for certain, in bounded memory."""

from __future__ import annotations

import pytest

from simplu_worker.fairness import (
    COUNTED_MAX,
    HOUR_SLOT_S,
    MINUTE_SLOT_S,
    RANK_COUNT,
    SLOT_COUNT,
    TenantUsage,
    TenantUse,
)

NOW = 1_000_000.0  # the begin of a slot of both windows, or not


def took(**seconds: float) -> dict[str, TenantUse]:
    return {tenant_id: TenantUse(took_s, 1, 100) for tenant_id, took_s in seconds.items()}


def test_tenant_has_the_sums_of_all_that_it_took_and_waited() -> None:
    usage = TenantUsage()
    usage.note(took(a=1.0, b=0.5), NOW)
    usage.note({"a": TenantUse(2.0, 3, 50, 0.25)}, NOW + 15)
    usage.note_waits({"a": 4.0, "b": 0.0}, NOW + 16)

    for use in (usage.last_minute(NOW + 20), usage.last_hour(NOW + 20)):
        assert use.by_tenant == {"a": TenantUse(3.0, 4, 150, 4.25), "b": TenantUse(0.5, 1, 100, 0.0)}
        assert (use.total_s, use.largest()) == (3.5, ["a", "b"])


def test_tenant_that_did_not_wait_is_not_counted() -> None:
    usage = TenantUsage()
    usage.note_waits({"a": 1.0, "b": 0.0}, NOW)
    assert usage.last_minute(NOW).by_tenant == {"a": TenantUse(waited_s=1.0)}


def test_slot_counts_the_largest_tenants() -> None:
    usage, names = TenantUsage(), [f"t{number:02}" for number in range(2 * COUNTED_MAX + 1)]
    seconds = {name: 1.0 + number for number, name in enumerate(names)}
    largest = set(names[-COUNTED_MAX:])

    usage.note(took(**{name: seconds[name] for name in names[1:]}), NOW)
    assert usage.last_minute(NOW).by_tenant.keys() == set(names[1:])
    usage.note(took(**{names[0]: seconds[names[0]]}), NOW)
    assert usage.last_minute(NOW).by_tenant.keys() == largest

    ended = TenantUsage()
    ended.note(took(**{name: seconds[name] for name in names[1:]}), NOW)
    ended.note(took(later=1.0), NOW + MINUTE_SLOT_S)
    assert ended.last_minute(NOW + MINUTE_SLOT_S).by_tenant.keys() == largest | {"later"}


def test_slot_ends_where_the_next_one_begins() -> None:
    usage, began_at = TenantUsage(), NOW - NOW % HOUR_SLOT_S
    usage.note(took(a=1.0), began_at + 9.0)
    usage.note(took(b=1.0), began_at + MINUTE_SLOT_S)
    assert usage.last_minute(began_at + 59.0).by_tenant.keys() == {"a", "b"}
    assert usage.last_minute(began_at + 60.0).by_tenant.keys() == {"b"}


@pytest.mark.parametrize(
    ("after_s", "windows"),
    [(0, (True, True)), (50, (True, True)), (60, (False, True)), (3000, (False, True)), (3600, (False, False))],
)
@pytest.mark.parametrize("interval_s", [5, 10_000])
def test_window_has_what_came_in_it(after_s: int, windows: tuple[bool, bool], interval_s: int) -> None:
    usage, began_at = TenantUsage(), NOW - NOW % HOUR_SLOT_S
    usage.note(took(a=1.0), began_at)
    for passed_s in range(interval_s, after_s + 1, interval_s):
        usage.note(took(b=0.125), began_at + passed_s)
    now = began_at + after_s

    assert ("a" in usage.last_minute(now).by_tenant, "a" in usage.last_hour(now).by_tenant) == windows


def test_window_keeps_no_slot_that_is_over() -> None:
    usage = TenantUsage()
    for number in range(2 * SLOT_COUNT):
        usage.note(took(a=1.0), NOW + number * HOUR_SLOT_S)
    assert [len(window._slots) for window in (usage._minute, usage._hour)] == [SLOT_COUNT] * 2


def test_ten_are_shown_and_none_that_only_waited() -> None:
    usage = TenantUsage()
    usage.note(took(**{f"t{number:02}": 1.0 + number // 2 for number in range(30)}), NOW)
    usage.note_waits({"idle": 100.0}, NOW)
    assert usage.last_minute(NOW).largest() == [f"t{n:02}" for n in (28, 29, 26, 27, 24, 25, 22, 23, 20, 21)]
    assert len(usage.last_minute(NOW).largest()) == RANK_COUNT

    quiet = TenantUsage()
    quiet.note_waits({"idle": 1.0}, NOW)
    assert quiet.last_minute(NOW).largest() == []


def test_use_is_added_to_another() -> None:
    use = TenantUse(1.0, 2, 3, 4.0)
    use.add(TenantUse(0.5, 1, 10, 0.25))
    assert use == TenantUse(1.5, 3, 13, 4.25)
