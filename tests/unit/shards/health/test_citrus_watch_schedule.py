"""Which shards to ask Citrus about, and whether there is any use in it."""

from __future__ import annotations

from simplu_worker.shards.health.citrus_watch import ABSENT_S, CapacityQuestions

SHARDS = ["a", "b", "c"]


def test_one_shard_is_asked_about_before_there_was_an_answer() -> None:
    questions = CapacityQuestions()
    assert [questions.choose(SHARDS, now=0.0, draw=draw) for draw in (0.0, 0.4, 0.99)] == [["a"], ["b"], ["c"]]
    assert questions.choose([], now=0.0, draw=0.5) == []


def test_nothing_is_asked_for_an_hour_when_citrus_does_not_know_the_question() -> None:
    questions = CapacityQuestions()
    questions.note_absence("b", now=100.0)
    assert [questions.choose(SHARDS, now=at, draw=0.0) for at in (100.0, 99.0 + ABSENT_S)] == [[], []]
    assert questions.choose(SHARDS, now=101.0 + ABSENT_S, draw=0.0) == ["a"]


def test_all_are_asked_about_when_there_was_an_answer() -> None:
    questions = CapacityQuestions()
    questions.note_answer()
    assert questions.choose(SHARDS, now=0.0, draw=0.0) == SHARDS
    questions.note_absence("b", now=0.0)
    assert questions.choose(SHARDS, now=1.0, draw=0.0) == ["a", "c"]
    assert questions.choose(SHARDS, now=ABSENT_S + 1, draw=0.0) == SHARDS


def test_shard_that_is_gone_is_forgotten() -> None:
    questions = CapacityQuestions()
    questions.note_absence("b", now=0.0)
    questions.choose(["a"], now=1.0, draw=0.0)
    assert repr(questions) == "CapacityQuestions(has_answered=False, absent=0)"
