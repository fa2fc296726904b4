"""Which address of a shard is used, and which are tried."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.route_cache import (
    TRIAL_BACKOFF_MAX_S,
    UNHEALTHY_BACKOFF_MAX_S,
    AddressBook,
)

OLD, NEW, OTHER = (ShardAddress("shard-1", f"postgresql://u:secret@{host}/d") for host in ("old", "new", "other"))


def proven(address: ShardAddress = OLD) -> AddressBook:
    book = AddressBook()
    book.resolve(address)
    book.mark_proven(address)
    return book


def test_book_uses_what_is_named_until_the_shard_was_found() -> None:
    book = AddressBook()
    assert book.known_address("shard-1") is None
    assert book.resolve(OLD) is OLD
    assert book.resolve(NEW) is NEW
    book.mark_proven(OLD)  # where it is not looked for any more
    assert book.resolve(OTHER) is OTHER
    assert book.contested_shard_ids() == []


def test_book_keeps_the_address_where_the_shard_was_found() -> None:
    book = proven()
    named = ShardAddress("shard-1", NEW.connection_string, is_active=False, business_count=7)

    used = book.resolve(named)

    assert used == ShardAddress("shard-1", OLD.connection_string, is_active=False, business_count=7)
    assert book.known_address("shard-1") == used
    assert book.contested_shard_ids() == ["shard-1"]
    assert book.due_candidate("shard-1", 0.0, is_healthy=True) is named


def test_book_uses_an_address_once_the_shard_was_found_there() -> None:
    book = proven()
    book.resolve(NEW)
    book.switch_to(NEW)

    assert book.resolve(NEW) is NEW
    assert book.contested_shard_ids() == []
    assert book.resolve(OLD).connection_string == NEW.connection_string
    assert book.contested_shard_ids() == ["shard-1"]


def test_book_does_not_try_what_is_not_named_any_more() -> None:
    book = proven()
    book.resolve(NEW)
    book.resolve(OLD)
    assert book.due_candidate("shard-1", 0.0, is_healthy=False) is None
    assert book.due_candidate("nobody", 0.0, is_healthy=False) is None


def test_book_tries_a_refused_address_less_and_less_often_while_the_shard_is_well() -> None:
    book, now, rests = proven(), 0.0, []
    for _ in range(8):
        book.resolve(NEW)
        book.record_failure(NEW, now, draw=1.0)
        assert book.due_candidate("shard-1", now + UNHEALTHY_BACKOFF_MAX_S, is_healthy=False) is NEW
        rest_s = next(s for s in range(1, 100) if book.due_candidate("shard-1", now + s, is_healthy=True))
        rests.append(rest_s)
        now += rest_s
    assert rests == [1, 2, 4, 8, 16, TRIAL_BACKOFF_MAX_S, TRIAL_BACKOFF_MAX_S, TRIAL_BACKOFF_MAX_S]


def test_book_tries_another_address_at_once() -> None:
    book = proven()
    book.resolve(NEW)
    book.record_failure(NEW, 0.0, draw=1.0)
    book.resolve(OTHER)
    book.record_failure(NEW, 0.0, draw=1.0)  # of a trial that began before
    assert book.due_candidate("shard-1", 0.0, is_healthy=True) is OTHER


def test_book_tries_the_replica_only_while_the_shard_does_not_answer() -> None:
    book = AddressBook()
    book.update(OLD, standby=NEW)
    assert book.known_address("shard-1") is OLD
    assert book.due_candidate("shard-1", 0.0, is_healthy=True) is None
    assert book.due_candidate("shard-1", 0.0, is_healthy=False) is NEW
    assert book.is_standby(NEW)

    book.record_failure(NEW, 0.0, draw=1.0)  # not promoted yet
    assert book.due_candidate("shard-1", UNHEALTHY_BACKOFF_MAX_S / 2, is_healthy=False) is None
    assert book.due_candidate("shard-1", UNHEALTHY_BACKOFF_MAX_S, is_healthy=False) is NEW
    book.switch_to(NEW)
    assert book.known_address("shard-1") is NEW
    assert book.due_candidate("shard-1", 1e6, is_healthy=True) is None
    assert book.due_candidate("shard-1", 1.0, is_healthy=False) is OLD


def test_book_passes_on_what_may_not_be_used() -> None:
    book = proven()
    refused = ShardAddress("shard-1", "", refusal="not allowed")
    assert book.resolve(refused) is refused
    assert book.known_address("shard-1") is OLD


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("name"), st.sampled_from([OLD, NEW, OTHER])),
            st.tuples(st.just("try"), st.sampled_from([OLD, NEW, OTHER])),
        )
    ),
    st.sampled_from([OLD, NEW, OTHER]),
)
def test_book_only_ever_uses_addresses_where_the_shard_is(
    steps: list[tuple[str, ShardAddress]], real: ShardAddress
) -> None:
    book = proven(real)
    for now, (what, address) in enumerate(steps):
        if what == "name":
            assert book.resolve(address).connection_string == real.connection_string
        elif (due := book.due_candidate("shard-1", float(now), is_healthy=True)) is not None:
            assert due.connection_string != real.connection_string
            book.record_failure(due, float(now), draw=0.5)


def added(*, is_proven: bool = True) -> AddressBook:
    book = AddressBook()
    book.update(OLD, standby=NEW)
    if is_proven:
        book.mark_proven(OLD)
    return book


def test_book_follows_a_shard_that_is_renamed_once_it_was_found_there() -> None:
    book = added()
    spare = ShardAddress("shard-1", "postgresql://u:secret@spare/d")
    book.update(OTHER, standby=spare)
    assert book.known_address("shard-1") == OLD
    assert book.due_candidate("shard-1", 0.0, is_healthy=True) == OTHER
    assert not book.is_standby(OTHER)

    book.switch_to(OTHER)

    assert book.known_address("shard-1") == OTHER
    assert book.due_candidate("shard-1", 100.0, is_healthy=True) is None
    assert book.due_candidate("shard-1", 100.0, is_healthy=False) == spare


def test_book_keeps_a_promoted_replica_that_is_renamed_as_the_shard() -> None:
    book = added()
    book.switch_to(NEW)
    book.update(NEW, standby=OLD)

    assert book.known_address("shard-1") == NEW
    assert book.due_candidate("shard-1", 100.0, is_healthy=True) is None
    assert book.due_candidate("shard-1", 100.0, is_healthy=False) == OLD


def test_book_forgets_a_mistaken_name_that_is_taken_back() -> None:
    book = added()
    book.update(OTHER)
    book.update(OLD, standby=NEW)

    assert book.known_address("shard-1") == OLD
    assert book.due_candidate("shard-1", 0.0, is_healthy=True) is None
    assert book.due_candidate("shard-1", 0.0, is_healthy=False) == NEW


def test_book_minds_no_trial_of_a_shard_that_was_removed() -> None:
    book = added()
    book.remove("shard-1")
    book.remove("shard-1")
    book.record_failure(NEW, 1.0, draw=0.0)
    book.switch_to(NEW)

    assert book.known_address("shard-1") is None
    assert not book.is_standby(NEW)


def test_book_adds_a_shard_that_is_new_in_the_map() -> None:
    book = AddressBook()
    book.update(OLD, standby=NEW)

    assert book.known_address("shard-1") == OLD
    assert (book.is_standby(NEW), book.contested_shard_ids()) == (True, ["shard-1"])
    assert book.due_candidate("shard-1", 0.0, is_healthy=False) == NEW


def test_book_forgets_the_standby_that_a_new_map_does_not_have() -> None:
    for is_proven in (False, True):
        book = added(is_proven=is_proven)
        book.update(OLD)
        assert book.known_address("shard-1") == OLD
        assert (book.is_standby(NEW), book.contested_shard_ids()) == (False, [])
        assert book.due_candidate("shard-1", 0.0, is_healthy=False) is None


def test_book_knows_nothing_of_a_shard_that_was_never_named() -> None:
    book = AddressBook()
    book.mark_proven(OLD)
    book.resolve(OLD)
    assert book.resolve(NEW) is NEW
