"""The errors that doors raise, and the places that the log names of others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from simplu_worker.config.loading import load_env_file
from simplu_worker.errors import ConfigurationError, RetryableError, place_of, places_of, short_path


class _StatusError(RetryableError):
    def __init__(self, status: int) -> None:
        super().__init__(f"expected status 200, got {status}", retry_after_s=2.0)


def test_retryable_error_has_its_message_as_text_whatever_its_arguments_are() -> None:
    error = _StatusError(503)
    assert (str(error), error.retry_after_s) == ("expected status 200, got 503", 2.0)


def fail(*, explicit: bool) -> None:
    try:
        load_env_file(Path("/none"))
    except ConfigurationError as exc:
        raise LookupError from exc if explicit else None


def test_place_of_an_error_is_its_last_line_in_the_package() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_env_file(Path("/none"))
    assert re.fullmatch(r"ConfigurationError at simplu_worker/config/loading.py:\d+", place_of(caught.value))
    before = caught.value.__context__
    assert isinstance(before, OSError)
    assert place_of(before).startswith("FileNotFoundError at simplu_worker/config/")
    assert place_of(KeyError("secret")) == "KeyError"
    assert short_path("/a/b/c/d.py") == "b/c/d.py"


@pytest.mark.parametrize("explicit", [True, False])
def test_places_of_an_error_begin_with_those_of_its_cause(*, explicit: bool) -> None:
    with pytest.raises(LookupError) as caught:
        fail(explicit=explicit)
    own = caught.value
    places = [one.rpartition("/")[2] for one in places_of(own) if "pathlib" not in one]
    names = [re.sub(r"\.py:\d+", "", one) for one in places]
    at, of_test = "loading load_env_file", "test_errors fail"
    before = ["FileNotFoundError", at, "ConfigurationError", of_test, at]
    assert names == [
        *before,
        "LookupError",
        "test_errors test_places_of_an_error_begin_with_those_of_its_cause",
        of_test,
    ]
    own.__cause__ = own
    assert places_of(own)[0] == "LookupError"
