"""The options of the commands that move tenants."""

from __future__ import annotations

import pytest

from simplu_worker.cli import app
from simplu_worker.commands.command_line import MoveBounds, MoveTerms
from simplu_worker.commands.shards import rebalance_shards
from simplu_worker.errors import UsageError


@pytest.mark.parametrize(
    ("words", "name", "options"),
    [
        ("tenants rollback b l --max-pause 2 --max-rows-per-second 50", "bounds", MoveBounds(50, 2)),
        ("tenants move b l --to s --max-pause 2 --parallel 3", "terms", MoveTerms(None, 2, 3)),
        ("shards drain s --max-rows-per-second 50", "terms", MoveTerms(50)),
        ("shards rebalance --to s --to t", "to", ("s", "t")),
        ("shards drain s --undo --partial", "undo", True),
    ],
)
def test_options_of_moves(words: str, name: str, options: object) -> None:
    _, bound, _ = app.parse_args(words.split(), print_error=False, exit_on_error=False)
    assert bound.arguments[name] == options


def test_measure_and_pins_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="expected --by or --keep-pins, got both"):
        rebalance_shards(by="rows", keep_pins=True)
