"""Print the results of commands: tables and lines for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.file_proxy import FileProxy
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

NO_CAUSES: Final[Mapping[str, str]] = {}
NOT_COUNTED: Final = "not counted"  # as that takes long
NOT_A_TERMINAL_WIDTH = 1000  # so that no table is folded for a file or a pipe


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print one table on stdout."""
    table = Table(*columns, header_style="bold")
    for row in rows:
        table.add_row(*map(_cell_of, row))
    _print(_console(), table)


def _cell_of(cell: object) -> Text | _Word:
    if isinstance(cell, Text):
        return cell
    text = escape_unprintable(cell)
    return Text(text) if " " in text else _Word(text)


class _Word:
    """A cell of one word, such as an id: where it has no room, its middle is left out, as ids differ at their end."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the widths of the whole word."""
        return Measurement.get(console, options, Text(self._text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the word, or its ends."""
        yield Text(shorten_middle(self._text, options.max_width))


def print_members(members: Mapping[str, object]) -> None:
    """Print *members* on stdout, one a line."""
    table = Table.grid(padding=(0, 2))
    for name, value in members.items():
        table.add_row(Text(name, "bold"), Text(escape_unprintable(value)))
    _print(_console(), table)


def print_line(text: str, style: str = "") -> None:
    """Print one line on stdout."""
    _print(_console(), Text(escape_unprintable(text), style), soft_wrap=True)


def print_note(text: str) -> None:
    """Print one line on stderr: a remark that is no part of the result."""
    _print(Console(stderr=True, highlight=False), Text(escape_unprintable(text)), soft_wrap=True)


def print_silent(shard_ids: Sequence[str], causes: Mapping[str, str] = NO_CAUSES) -> None:
    """Print on stderr which shards did not answer, if any, each with its cause where it is known."""
    if shard_ids:
        print_note(describe_silent(shard_ids, causes))


def describe_silent(shard_ids: Sequence[str], causes: Mapping[str, str]) -> str:
    """Return which shards did not answer."""
    named = (f"{one} ({causes[one]})" if causes.get(one) else one for one in shard_ids)
    return f"no answer from: {', '.join(named)}"


def print_json(value: Any) -> None:
    """Print *value*, of structs, dicts, lists and texts, as JSON on stdout; a `msgspec.Raw` in it is not changed."""
    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.buffer.flush()


def print_json_line(value: Any) -> None:
    """Print *value*, as of `print_json`, as one line of JSON on stdout, whose texts have no control characters."""
    text = msgspec.json.encode(value).decode()
    print_line("".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text))


def escape_unprintable(value: object) -> str:
    """Return *value* as text without control characters for the terminal: ids come from outside."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shorten(text: str, length: int) -> str:
    """Return *text* with at most *length* characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def shorten_middle(text: str, length: int) -> str:
    """Return *text* with at most *length* characters: its begin, and more of its end."""
    head = max(0, length - 1) // 3
    return text if len(text) <= length else f"{text[:head]}…{text[len(text) - max(0, length - 1 - head) :]}"


def show_count(count: float | None, *, decimals: int = 0, unit: int = 1) -> str:
    """Return *count* in *unit* as text, with so many *decimals*."""
    return NOT_COUNTED if count is None else f"{count / unit:.{decimals}f}"


def _print(console: Console, shown: RenderableType, *, soft_wrap: bool = False) -> None:
    """Print, and while progress bars are on the same terminal print above them: a console knows its own bars alone."""
    stream = sys.stderr if console.stderr else sys.stdout
    if not isinstance(stream, FileProxy):
        console.print(shown, soft_wrap=soft_wrap)
        return
    with console.capture() as captured:
        console.print(shown, soft_wrap=soft_wrap)
    stream.write(captured.get())


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else NOT_A_TERMINAL_WIDTH)
