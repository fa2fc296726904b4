"""Which address of a shard is used, and which are tried."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simplu_worker.shards.postgres.address import ShardAddress
from simplu_worker.shards.routing.address_book import RETURN_REST_S, TRIAL_REST_MAX_S, TROUBLE_REST_MAX_S, AddressBook

OLD, NEW, OTHER = (ShardAddress("shard-1", f"postgresql://u:secret@{host}/d") for host in ("old", "new", "other"))


def proven(address: ShardAddress = OLD) -> AddressBook:
    """Return a book whose shard was found at *address*."""
    book = AddressBook()
    book.settle(address)
    book.proved(address)
    return book


def test_book_uses_what_is_named_until_the_shard_was_found() -> None:
    """Nothing is known to be better than the last word."""
    book = AddressBook()
    assert book.known("shard-1") is None
    assert book.settle(OLD) is OLD
    assert book.settle(NEW) is NEW
    book.proved(OLD)  # where it is not looked for any more
    assert book.settle(OTHER) is OTHER
    assert book.contested() == []


def test_book_keeps_the_address_where_the_shard_was_found() -> None:
    """Another one is to be tried; what else is said of the shard holds at once."""
    book = proven()
    named = ShardAddress("shard-1", NEW.connection_string, is_active=False, tenant_count=7)

    used = book.settle(named)

    assert used == ShardAddress("shard-1", OLD.connection_string, is_active=False, tenant_count=7)
    assert book.known("shard-1") == used
    assert book.contested() == ["shard-1"]
    assert book.due("shard-1", 0.0, is_well=True) is named
    assert "secret" not in repr(book)


def test_book_uses_an_address_once_the_shard_was_found_there() -> None:
    """And the one before is an address like any other then."""
    book = proven()
    book.settle(NEW)
    book.adopted(NEW, 10.0)

    assert book.settle(NEW) is NEW
    assert book.contested() == []
    assert book.settle(OLD).connection_string == NEW.connection_string
    assert book.contested() == ["shard-1"]


def test_book_does_not_try_what_is_not_named_any_more() -> None:
    """A mistake that was taken back is none."""
    book = proven()
    book.settle(NEW)
    book.settle(OLD)
    assert book.due("shard-1", 0.0, is_well=False) is None
    assert book.due("nobody", 0.0, is_well=False) is None


def test_book_tries_a_refused_address_less_and_less_often_while_the_shard_is_well() -> None:
    """But every second while it does not answer where it was: the promotion may be under way."""
    book, now, rests = proven(), 0.0, []
    for _ in range(8):
        book.settle(NEW)
        book.refused(NEW, now, draw=1.0)
        assert book.due("shard-1", now + TROUBLE_REST_MAX_S, is_well=False) is NEW
        rest_s = next(s for s in range(1, 100) if book.due("shard-1", now + s, is_well=True))
        rests.append(rest_s)
        now += rest_s
    assert rests == [1, 2, 4, 8, 16, TRIAL_REST_MAX_S, TRIAL_REST_MAX_S, TRIAL_REST_MAX_S]


def test_book_tries_another_address_at_once() -> None:
    """The rest is that of the one which was refused."""
    book = proven()
    book.settle(NEW)
    book.refused(NEW, 0.0, draw=1.0)
    book.settle(OTHER)
    book.refused(NEW, 0.0, draw=1.0)  # of a trial that began before
    assert book.due("shard-1", 0.0, is_well=True) is OTHER


def test_book_does_not_go_to_and_fro_while_the_shard_is_well() -> None:
    """A Citrus that changes its mind with every answer is followed once a minute; at once where it is right to."""
    book = proven()
    book.settle(NEW)
    book.adopted(NEW, 0.0)
    book.settle(OLD)

    assert book.due("shard-1", RETURN_REST_S - 1, is_well=True) is None
    assert book.due("shard-1", RETURN_REST_S, is_well=True) is OLD
    assert book.due("shard-1", 1.0, is_well=False) is OLD


def test_book_tries_the_replica_only_while_the_shard_does_not_answer() -> None:
    """And the former primary likewise: back as it was, it must not take over from the one that works."""
    book = AddressBook()
    book.add(OLD, spare=NEW)
    assert book.known("shard-1") is OLD
    assert book.due("shard-1", 0.0, is_well=True) is None
    assert book.due("shard-1", 0.0, is_well=False) is NEW
    assert book.is_spare(NEW)

    book.refused(NEW, 0.0, draw=1.0)  # not promoted yet
    assert book.due("shard-1", TROUBLE_REST_MAX_S / 2, is_well=False) is None
    assert book.due("shard-1", TROUBLE_REST_MAX_S, is_well=False) is NEW
    book.adopted(NEW, 1.0)
    assert book.known("shard-1") is NEW
    assert book.due("shard-1", 1e6, is_well=True) is None
    assert book.due("shard-1", 1.0, is_well=False) is OLD


def test_book_passes_on_what_may_not_be_used() -> None:
    """A refused address says so to whoever asks, and changes nothing."""
    book = proven()
    refused = ShardAddress("shard-1", "", refusal="not allowed")
    assert book.settle(refused) is refused
    assert book.known("shard-1") is OLD


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
    """Whatever is named in whatever order, once the shard was found it stays found."""
    book = proven(real)
    for now, (what, address) in enumerate(steps):
        if what == "name":
            assert book.settle(address).connection_string == real.connection_string
        elif (due := book.due("shard-1", float(now), is_well=True)) is not None:
            assert due.connection_string != real.connection_string
            book.refused(due, float(now), draw=0.5)


def added(*, is_proven: bool = True) -> AddressBook:
    """Return a book whose shard was added at OLD with a replica at NEW."""
    book = AddressBook()
    book.add(OLD, spare=NEW)
    if is_proven:
        book.proved(OLD)
    return book


def test_book_follows_a_shard_that_is_renamed_once_it_was_found_there() -> None:
    """And its new replica is the one that is tried after that."""
    book = added()
    spare = ShardAddress("shard-1", "postgresql://u:secret@spare/d")
    book.rename(OTHER, spare=spare)
    assert book.known("shard-1") == OLD
    assert book.due("shard-1", 0.0, is_well=True) == OTHER
    assert not book.is_spare(OTHER)

    book.adopted(OTHER, 10.0)

    assert book.known("shard-1") == OTHER
    assert book.due("shard-1", 100.0, is_well=True) is None
    assert book.due("shard-1", 100.0, is_well=False) == spare


def test_book_uses_a_new_name_at_once_where_the_shard_was_never_found() -> None:
    """Nothing is known to be better than the last word."""
    book = added(is_proven=False)
    book.rename(OTHER)

    assert book.known("shard-1") == OTHER
    assert book.contested() == []


def test_book_keeps_a_promoted_replica_that_is_renamed_as_the_shard() -> None:
    """The map says now what was found before; the former primary is the replica."""
    book = added()
    book.adopted(NEW, 10.0)
    book.rename(NEW, spare=OLD)

    assert book.known("shard-1") == NEW
    assert book.due("shard-1", 100.0, is_well=True) is None
    assert book.due("shard-1", 100.0, is_well=False) == OLD


def test_book_forgets_a_mistaken_name_that_is_taken_back() -> None:
    """The address in use never changed."""
    book = added()
    book.rename(OTHER)
    book.rename(OLD, spare=NEW)

    assert book.known("shard-1") == OLD
    assert book.due("shard-1", 0.0, is_well=True) is None
    assert book.due("shard-1", 0.0, is_well=False) == NEW


def test_book_minds_no_trial_of_a_shard_that_was_removed() -> None:
    """It may end after that, either way."""
    book = added()
    book.remove("shard-1")
    book.remove("shard-1")
    book.refused(NEW, 1.0, draw=0.0)
    book.adopted(NEW, 1.0)

    assert book.known("shard-1") is None
    assert not book.is_spare(NEW)
