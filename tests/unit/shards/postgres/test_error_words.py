"""Errors of Postgres in words."""

from __future__ import annotations

import ssl
from typing import Any

import asyncpg
import pytest

from simplu_worker.network_errors import NO_SERVER, UNEXPLAINED
from simplu_worker.shards.postgres import errors
from simplu_worker.shards.postgres.errors import state_words


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("28P01", "the server refuses the user's password (28P01); correct it"),
        ("22P99", "a value that the server does not take (22P99)"),
        ("ZZ000", "an error of Postgres (ZZ000)"),
        (None, "an error of Postgres (no SQLSTATE)"),
    ],
)
def test_state_has_meaning_code_and_remedy(code: str | None, words: str) -> None:
    assert state_words(code) == words


def test_words_have_no_colon() -> None:
    texts = [*errors._BY_CODE.values(), *(words for words, _ in errors._BY_CLASS.values())]
    assert [text for text in texts if ":" in text] == []


def test_each_code_with_a_reaction_has_words() -> None:
    assert errors._MEANING_BY_CODE.keys() - errors._BY_CODE.keys() <= {"0A000", "40001", "XX000"}  # as their class


def certificate_of_another_ca() -> ssl.SSLCertVerificationError:
    error: Any = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code = 18
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (ConnectionRefusedError(111, "Connect call failed"), NO_SERVER),
        (ConnectionError("PostgreSQL server at h:1 rejected SSL upgrade"), errors.NO_TLS),
        (asyncpg.InterfaceError("connection is closed"), errors.NOT_POSTGRES),
        (asyncpg.ClientConfigurationError("invalid port"), errors.WRONG_ADDRESS),
        (ValueError("postgresql://u:secret@h"), errors.WRONG_ADDRESS),
        (FileNotFoundError(2, "No such file or directory", "/ca.pem"), "expected to use the file /ca.pem, got No such"),
        (certificate_of_another_ca(), "expected a certificate of a CA that is trusted here, got one of another; name "),
        (RuntimeError("a bug"), UNEXPLAINED),
        (asyncpg.OutdatedSchemaCacheError("x"), errors.OUTDATED),
        (asyncpg.TargetServerAttributeNotMatched("expected a primary"), "expected a primary"),
        (asyncpg.DeadlockDetectedError("row of a person"), "two transactions wait for each other (40P01)"),
        (KeyError("port"), errors.WRONG_ADDRESS),
    ],
)
def test_error_before_the_server_answers_is_in_words(exc: BaseException, words: str) -> None:
    assert errors.error_words(exc).startswith(words)


@pytest.mark.parametrize(
    ("found", "named"), [(None, "leads to no identity;"), ("s2", "leads to the database of shard s2;")]
)
def test_wrong_shard_message_names_both_shards(found: str | None, named: str) -> None:
    text = errors.wrong_shard_message("s1", found)
    assert text.startswith("shard s1: ")
    assert named in text


def test_notes_are_appended() -> None:
    error = ConnectionRefusedError()
    error.add_note("expected the passfile")
    assert errors.error_words(error) == f"{NO_SERVER}; expected the passfile"


def test_ca_of_a_shard_is_named_in_its_address() -> None:
    chained = RuntimeError("a library's")
    chained.__cause__ = certificate_of_another_ca()
    for error in (certificate_of_another_ca(), chained):
        assert "name the CA in sslrootcert" in errors.error_words(error)


@pytest.mark.parametrize(
    ("is_timeout", "limit", "fewer"),
    [(True, 5000, 500), (True, 11, 1), (True, 9, 1), (True, 2, 1), (True, 1, None), (False, 5000, None)],
)
def test_fewer_rows_are_tried_after_a_timeout_alone(*, is_timeout: bool, limit: int, fewer: int | None) -> None:
    error = errors.StatementFailedError("took too long", error="57014", is_timeout=is_timeout)
    if fewer is not None:
        assert errors.fewer_after(error, limit) == fewer
        return
    with pytest.raises(errors.StatementFailedError, match="took too long") as caught:
        errors.fewer_after(error, limit)
    assert caught.value is error


def test_duplicate_key_has_its_table() -> None:
    error = errors.DuplicateKeyError("a key exists", error="23505", table="resources")
    assert (str(error), error.error, error.table, error.is_timeout) == ("a key exists", "23505", "resources", False)
