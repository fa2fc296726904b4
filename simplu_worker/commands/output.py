"""Print the results of commands, and on stderr how far they are."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias, assert_never

import msgspec
from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from simplu_worker.commands import EXIT_DONE, EXIT_FAILED

STATES: Final = frozenset({"state", "status", "outcome"})  # columns with words that have a colour
STYLES: Final = (
    dict.fromkeys(("ok", "healthy", "succeeded", "sent", "created", "upgraded", "applied"), "green")
    | dict.fromkeys(("warning", "degraded", "behind", "different", "held", "unknown"), "yellow")
    | dict.fromkeys(("failed", "lost", "refused", "rejected", "left", "not sent"), "bold red")
    | {"off": "dim"}
)
NOT_A_TERMINAL_WIDTH: Final = 1000


class Table(NamedTuple):
    """A table on stdout."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]


class Line(NamedTuple):
    """A line on stdout."""

    text: str
    style: str = ""


class Facts(NamedTuple):
    """Names with their values on stdout, one a line."""

    members: Mapping[str, object]


Part: TypeAlias = Table | Line | Facts | Group | str | None
"""What a person sees; a text is a remark on stderr, and None nothing."""


class Answer(msgspec.Struct, frozen=True):
    """What a command has found, planned or done: *members* of JSON, or *parts* for a person; remarks are for both.

    *silent* are the shards without an answer, with their causes where they are known; none where shards are not asked.
    """

    members: Any
    parts: Iterable[Part] = ()
    silent: Sequence[str] | Mapping[str, str] | None = None
    is_failed: bool = False

    def print(self, *, as_json: bool) -> int:
        """Print the answer; return the exit status, 1 also where a shard is silent."""
        if as_json:
            silent = {} if self.silent is None else {"shardsWithoutAnswer": list(self.silent)}
            print_json(self.members | silent if silent else self.members)
        for part in self.parts:
            if isinstance(part, str) or not as_json:
                _print_part(part)
        if self.silent:
            print_note(describe_silent(self.silent))
        return EXIT_FAILED if self.is_failed or self.silent else EXIT_DONE


def _print_part(part: Part) -> None:
    match part:
        case Table():
            print_table(*part)
        case Line():
            print_line(*part)
        case Facts():
            print_members(part.members)
        case Group():
            _print(stdout_console(), part)
        case str():
            print_note(part)
        case None:
            pass
        case _:
            assert_never(part)


async def show(command: Awaitable[Answer | int], *, as_json: bool) -> int:
    """Print the answer of *command*, unless it does so itself; return the exit status."""
    answer = await command
    return answer if isinstance(answer, int) else answer.print(as_json=as_json)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print one table on stdout."""
    table = Grid(*columns, header_style="bold")
    for row in rows:
        table.add_row(*map(_cell_of, columns, row))
    _print(stdout_console(), table)


def _cell_of(column: str, cell: object) -> Text:
    match cell:
        case datetime():
            return Text(cell.isoformat(timespec="seconds"))
        case float():
            return Text(f"{cell:.6g}")
        case msgspec.Raw():
            return Text(escape_unprintable(bytes(cell).decode()))
        case dict():
            return Text(escape_unprintable(", ".join(f"{name} {value}" for name, value in cell.items())))
        case list() | tuple():
            return Text(escape_unprintable(", ".join(map(str, cell))))
        case _:
            return Text(escape_unprintable(cell), STYLES.get(str(cell), "") if column in STATES else "")


def table_of(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return a table of members of JSON, of those in *columns*, each with its title."""
    return Table([*columns.values()], [[row.get(name) for name in columns] for row in rows])


def print_members(members: Mapping[str, object]) -> None:
    """Print *members* on stdout, one a line."""
    table = Grid.grid(padding=(0, 2))
    for name, value in members.items():
        table.add_row(Text(name, "bold"), _cell_of(name, value))
    _print(stdout_console(), table)


def print_line(text: str, style: str = "") -> None:
    """Print one line on stdout."""
    _print(stdout_console(), Text(escape_unprintable(text), style), soft_wrap=True)


def print_note(text: str) -> None:
    """Print a remark on stderr."""
    _print(Console(stderr=True, highlight=False), Text(escape_unprintable(text)), soft_wrap=True)


def describe_silent(silent: Sequence[str] | Mapping[str, str]) -> str:
    """Return which shards did not answer, with their causes where they are known."""
    causes = silent if isinstance(silent, Mapping) else {}
    named = (f"{one} ({causes[one]})" if causes.get(one) else one for one in silent)
    return f"no answer from: {', '.join(named)}"


def print_json(value: Any) -> None:
    """Print *value* as JSON on stdout; a `msgspec.Raw` in it is not changed."""
    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.buffer.flush()


def print_json_line(value: Any) -> None:
    """Print *value* as one line of JSON without control characters."""
    text = msgspec.json.encode(value).decode()
    print_line("".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text))


def escape_unprintable(value: object) -> str:
    """Return *value* without control characters: ids come from outside."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shorten(text: str, length: int) -> str:
    """Return *text* with at most *length* characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _print(console: Console, shown: RenderableType, *, soft_wrap: bool = False) -> None:
    """Print above progress bars on the same terminal: a console knows its own bars alone."""
    stream = sys.stderr if console.stderr else sys.stdout
    if not isinstance(stream, FileProxy):
        console.print(shown, soft_wrap=soft_wrap)
        return
    with console.capture() as captured:
        console.print(shown, soft_wrap=soft_wrap)
    stream.write(captured.get())


def stdout_console() -> Console:
    """Return a console on stdout that folds nothing for a file or a pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else NOT_A_TERMINAL_WIDTH)


TABLE_MAX: Final = 1000  # rows for a person


def first_rows(columns: Sequence[str], rows: Sequence[Sequence[object]], *, count: int | None = None) -> list[Part]:
    """Return a table of the first *rows*, of *count* of them all, and how many more there are."""
    more = (len(rows) if count is None else count) - min(len(rows), TABLE_MAX)
    table = Table(columns, rows[:TABLE_MAX]) if rows else None
    return [table, f"and {more} more; --json prints all" if more else None]


LINE_INTERVAL_S: Final = 2.0


class ProgressLine:
    """How far a command is, as a line on stderr: kept up to date on a terminal, elsewhere printed every *every_s*.

    At an interruption the last one is printed.
    """

    def __init__(
        self, text: str, *, every_s: float = LINE_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.text = text
        self._every_s = every_s
        self._clock = clock
        self._shown_at = clock()
        console = Console(stderr=True, highlight=False)
        shown = Text(escape_unprintable(text))
        self._live = Live(shown, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
        self.is_live = console.is_terminal

    def __enter__(self) -> Self:
        if self.is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            print_note(f"interrupted: {self.text}")

    def tell(self, text: str) -> None:
        """Show *text* from now on."""
        self.text = text
        if self.is_live:
            self._live.update(Text(escape_unprintable(text), no_wrap=True, overflow="ellipsis"))
        elif self._clock() - self._shown_at >= self._every_s:
            self._shown_at = self._clock()
            print_note(text)


class TransferProgress(ProgressLine):
    """The progress of *total* transfers, and of the one that went on last. The same command goes on with all."""

    def __init__(self, total: int = 1, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._ended = 0
        self._rows: dict[str, int] = {}
        super().__init__(self._describe(), clock=clock)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.text = f"{self._describe()}; the same command continues"
        super().__exit__(kind, error, trace)

    def show(self, name: str, step: str, row_count: int, row_total: int = 0) -> None:
        """Show how far the transfer of *name* is."""
        self._rows[name] = row_count
        total = f" of {row_total:,}" if row_total else ""
        self.tell(f"{self._describe()}; {name}: {step}, {row_count:,}{total} rows")

    def finish(self) -> None:
        """Note that a transfer has ended, well or not."""
        self._ended += 1

    def _describe(self) -> str:
        return f"{self._ended} of {self._total} ended, {sum(self._rows.values()):,} rows"


class CountProgress(ProgressLine):
    """The progress of one count: so many of *total* are *what*."""

    def __init__(self, what: str, total: int) -> None:
        super().__init__(f"{what}: 0 of {total}")
        self._what = what
        self._total = total
        self._done = 0

    def begin(self, total: int) -> None:
        """Set another total."""
        self._total = total

    def add(self, count: int) -> None:
        """Show *count* more."""
        self.show(self._done + count)

    def show(self, done: int) -> None:
        """Show *done* of the total."""
        self._done = done
        self.tell(f"{self._what}: {done} of {self._total}")
