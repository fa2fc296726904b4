"""Draw the tables on a terminal, in its size; elsewhere without colours, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from simplu_worker.commands.fleet.top_views import ScreenCell, ScreenTable, fit_tables, status_line, tables_of
from simplu_worker.commands.output.display import escape_unprintable

STYLES: Final = {"good": "green", "warn": "yellow", "bad": "bold red", "": ""}
HEAD_LINES: Final = 3  # the status, the notice, and an empty line
FLEXIBLE: Final = frozenset({"Advice", "Detail", "Problems", "Owner", "Error"})  # columns that a narrow terminal cuts
ALL_LINES: Final = 1_000_000  # of an output that is no terminal


def draw(
    console: Console,
    status: dict[str, Any],
    fleet: dict[str, Any],
    queues: Sequence[dict[str, Any]],
    notice: str = "",
) -> RenderableType:
    """Return the screen for *console* as large as it is now; *notice* is a remark below the first line."""
    lines = console.size.height - HEAD_LINES if console.is_terminal else ALL_LINES
    parts: list[RenderableType] = [_line(status_line(status, fleet)), Text(escape_unprintable(notice), STYLES["bad"])]
    for table in fit_tables(tables_of(status, fleet, queues), lines):
        parts += [_draw_table(table, expand=console.is_terminal), Text("")]
    return Group(*parts)


def _line(cells: Sequence[ScreenCell]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for number, cell in enumerate(cells):
        line.append("  " if number else "").append(_text(cell))
    return line


def _draw_table(table: ScreenTable, *, expand: bool) -> RenderableType:
    more = f", {table.hidden_count} more" if table.hidden_count else ""
    drawn = Table(
        title=f"{table.title}{more}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        expand=expand,
    )
    for column in table.columns:
        drawn.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if column in FLEXIBLE else None)
    for row in table.rows:
        drawn.add_row(*map(_text, row))
    return drawn


def _text(cell: ScreenCell) -> Text:
    return Text(escape_unprintable(cell.text), STYLES[cell.tone])
