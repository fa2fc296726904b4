"""Options of a local AWS service, changed by a command of its control path."""

from __future__ import annotations

import msgspec
import pytest

from simplu_local.aws_server.faults import change_options
from simplu_local.kinesis.model import KinesisOptions


def test_options_change_in_place_when_the_names_and_types_are_known() -> None:
    options = KinesisOptions(page_size=7)
    change_options(options, {"read_throttling": False, "update_delay_ms": 0})
    assert options == KinesisOptions(page_size=7, read_throttling=False, update_delay_ms=0)


@pytest.mark.parametrize("changes", [{"unknown": 1}, {"page_size": 1, "update_delay_ms": "soon"}])
def test_options_stay_when_a_change_is_invalid(changes: dict[str, object]) -> None:
    options = KinesisOptions()
    with pytest.raises(msgspec.ValidationError):
        change_options(options, changes)
    assert options == KinesisOptions()
