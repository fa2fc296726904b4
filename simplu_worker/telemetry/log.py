"""One line for each event on stdout, ours and those of libraries, scrubbed of secrets and folded.

A secret is a registered value, or a text that looks like one (a password in a URL, a bearer token).

A thread of its own writes lines, so that a full disk or an unread pipe stops nothing else: a line without room, or that
the system refuses, is dropped and counted. Its queue is a `SimpleQueue`: the garbage collector may run a `__del__` that
logs at any instruction.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from math import isfinite
from queue import SimpleQueue
from typing import Any, Final, Literal, TextIO
from urllib.parse import quote, quote_plus, unquote

import structlog
from structlog.typing import EventDict, WrappedLogger

from simplu_worker.errors import place_of
from simplu_worker.telemetry.log_folding import EVENT_NAME, HEAD, Facts, LogDeduplicator, RecentEvents

MASK = "***"
SECRET_MIN_LENGTH = 6  # masking a shorter one would mask ordinary words
TEXT_MAX_LENGTH = 16_384
SCRUBBED_TEXT_MAX_LENGTH = 32_768  # cut before scrubbing, which would take seconds for a huge text
DEPTH_MAX = 6
GROUP_MAX_LENGTH = 20
# At debug these libraries log bodies and signatures; our own doors log each call without them.
LIBRARIES_NEVER_AT_DEBUG = ("aiobotocore", "boto3", "botocore", "urllib3")
# What these tell has bytes of requests and answers; where it matters there is an event of ours.
LIBRARIES_NEVER_HEARD = ("aiobotocore.credentials", "aiobotocore.tokens", "aiohttp.server")

# Every repetition is bounded: texts from outside are matched here, and none may block the event loop.
_SECRET_NAME = (
    r"(?:password|passwd|pwd|secret|api_?-?key|api_?token|access_?key|session_?token|security-token)[\w-]{0,40}"  # noqa: S105 - a pattern
)
_SECRET_VALUE = r"""(?:'(?:[^'\\]|\\.){0,4096}'|"(?:[^"\\]|\\.){0,4096}"|\S+)"""  # noqa: S105 - a pattern
_END_OF_WORD = re.compile(r"[\s'\"]")
_SECRET_KEY = re.compile(rf"[\w-]*{_SECRET_NAME}|authorization", re.IGNORECASE)
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # Up to the last @ of the word: a password that was not percent-encoded may itself hold any of @ / : ? #.
        r"(?P<kept>\b[a-z][a-z0-9+.-]{0,20}://[^\s:/?#@]{0,256}:)\S{0,2048}(?=@)",
        r"""(?P<kept>\bauthorization\\{0,4}["']?\s{0,4}[:=]\s{0,4})[^\r\n]+""",
        r"(?P<kept>\bbearer\s{1,4})\S{6,}",
        rf"(?P<kept>{_SECRET_NAME}\s{{0,4}}=\s{{0,4}}){_SECRET_VALUE}",  # key=value of libpq, shells and queries
        rf"""(?P<kept>{_SECRET_NAME}\\{{0,4}}["']\s{{0,4}}:\s{{0,4}}\\{{0,4}}){_SECRET_VALUE}""",  # JSON, a dict
    )
)


class _Secrets:
    def __init__(self) -> None:
        self._values: set[str] = set()
        self._spellings: set[str] = set()
        self._phrases: set[str] = set()

    def add(self, value: str) -> None:
        if value in self._values:
            return
        self._values.add(value)
        for text in {value, unquote(value)}:
            if len(text) < SECRET_MIN_LENGTH:
                continue
            spellings = {text, *(encode(text, errors="backslashreplace") for encode in (quote, quote_plus))}
            spellings.add(quote(text, safe="", errors="backslashreplace"))
            spellings |= {repr(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
            self._spellings |= spellings
            self._phrases |= set(filter(_END_OF_WORD.search, spellings))

    def mask_phrases(self, text: str) -> str:
        """Return *text* without the secrets of which a pattern would mask no more than the first word."""
        return self._mask(text, self._phrases)

    def mask(self, text: str) -> str:
        return self._mask(text, self._spellings)

    @staticmethod
    def _mask(text: str, spellings: set[str]) -> str:
        # A pattern of those in the text alone: one of all would take seconds to compile where each shard has another.
        found = [spelling for spelling in spellings if spelling in text]
        found.sort(key=len, reverse=True)  # the longest first: one secret may begin with another
        return re.sub("|".join(map(re.escape, found)), MASK, text) if found else text


_secrets = _Secrets()


def register_secret(value: str) -> None:
    """Mask *value* from now on, unless it is shorter than SECRET_MIN_LENGTH."""
    _secrets.add(value)


def scrub_text(text: str) -> str:
    """Return *text* with every secret masked, truncated if very long."""
    text = _secrets.mask_phrases(text[:SCRUBBED_TEXT_MAX_LENGTH])
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<kept>{MASK}", text)
    text = _secrets.mask(text)
    return text if len(text) <= TEXT_MAX_LENGTH else f"{text[:TEXT_MAX_LENGTH]}… ({len(text)} characters)"


def scrub(value: Any, *, depth: int = DEPTH_MAX) -> Any:
    """Return *value* as JSON types, every text scrubbed; members named as secrets are masked."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return scrub_text(value)
        case Mapping() if depth:
            return {scrub_text(str(key)): _scrub_member(key, member, depth - 1) for key, member in value.items()}
        case list() | tuple() | set() | frozenset() if depth:
            return [scrub(member, depth=depth - 1) for member in value]
        case Mapping() | list() | tuple() | set() | frozenset():
            return "…"
        case _:
            return _scrub_single(value)


def _scrub_single(value: object) -> Any:
    match value:
        case float():
            return value if isfinite(value) else str(value)
        case date():
            return value.isoformat()
        case BaseException():
            return scrub_text(f"{type(value).__name__}: {value}")
        case _:
            return scrub_text(repr(value))


def _scrub_member(key: object, member: Any, depth: int) -> Any:
    if member is not None and _SECRET_KEY.fullmatch(str(key)):
        return MASK
    return scrub(member, depth=depth)


def describe_exception(exc: BaseException, *, with_traceback: bool) -> Facts:
    """Return type, message, exceptions of a group and *with_traceback* the traceback, scrubbed."""
    facts: Facts = {"type": type(exc).__name__, "message": scrub_text(str(exc))}
    if isinstance(exc, BaseExceptionGroup):
        facts["exceptions"] = [
            describe_exception(inner, with_traceback=False) for inner in exc.exceptions[:GROUP_MAX_LENGTH]
        ]
    if with_traceback:
        facts["traceback"] = scrub_text("".join(traceback.format_exception(exc)))
    return facts


Render = Callable[[Facts], str]


def _console_renderer(stream: TextIO) -> Render:
    renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=32)

    def render(facts: Facts) -> str:
        if exception := facts.get("exception"):
            facts = facts | {"exception": exception.get("traceback") or "\n".join(_exception_lines(exception))}
        return str(renderer(None, "", dict(facts)))

    return render


def _exception_lines(exception: Facts) -> Iterator[str]:
    yield f"{exception['type']}: {exception['message']}"
    for inner in exception.get("exceptions", ()):
        yield from (f"  {line}" for line in _exception_lines(inner))


class _Output:
    def __init__(self, stream: TextIO, render: Render, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._render = render
        self._clock = clock
        self._fold = LogDeduplicator()
        self.recent = RecentEvents()
        self._lock = threading.RLock()  # re-entrant: the garbage collector may run a __del__ that logs

    def write(self, event: Facts) -> None:
        try:
            # Scrub before folding: a folded event must not keep an exception's frames and their variables alive.
            facts = _scrub_event(event)
            with self._lock:
                self.recent.note(facts)
                self._write_lines(self._fold.admit(facts, self._clock()))
        except MemoryError:
            raise
        except Exception as exc:  # noqa: BLE001  # a text that cannot be made, a defect here
            self._write_name(event, exc)

    def flush(self) -> None:
        with self._lock:
            self._write_lines(self._fold.flush())

    def _write_name(self, event: Facts, exc: Exception) -> None:
        name = event.get("event")
        head = {key: event[key] for key in ("timestamp", "level", "logger") if isinstance(event.get(key), str)}
        shown = name if isinstance(name, str) and EVENT_NAME.fullmatch(name) else "log.failed"
        with suppress(Exception), self._lock:
            self._stream.write(f"{json.dumps(head | {'event': shown, 'log_error': place_of(exc)})}\n")
            self._stream.flush()

    def _write_lines(self, events: Iterable[Facts]) -> None:
        lines = ""
        for event in events:
            lines += f"{self._render(event)}\n"
        if lines:
            with suppress(OSError):  # a full disk, a closed pipe: whoever logs goes on
                self._stream.write(lines)
                self._stream.flush()


def _scrub_event(event: Facts) -> Facts:
    head = {name: scrub(event[name]) for name in HEAD if name in event}
    rest = {name: value for name, value in event.items() if name not in head and name != "exc_info"}
    facts: Facts = head | scrub(rest)
    if isinstance(exc := event.get("exc_info"), BaseException):
        facts["exception"] = describe_exception(exc, with_traceback=event["level"] in {"error", "critical"})
    return facts


_output: _Output | None = None


def _resolve_exc_info(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    exc_info = event.pop("exc_info", None)
    if exc_info and not isinstance(exc_info, BaseException):
        exc_info = exc_info[1] if isinstance(exc_info, tuple) else sys.exc_info()[1]
    if exc_info:
        event["exc_info"] = exc_info
    return event


class _NamedLogger:
    def __init__(self, *names: str) -> None:
        self._name = names[0] if names else "simplu_worker"

    def _emit(self, /, **event: Any) -> None:
        if _output is not None:
            _output.write({"logger": self._name, **event})

    debug = info = warning = error = critical = _emit


class _LibraryHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        facts: EventDict = {
            "logger": record.name,
            "level": record.levelname.lower(),
            "event": _record_message(record),
            "exc_info": record.exc_info,
        }
        for processor in _PROCESSORS:
            facts = processor(None, "", facts)
        if _output is not None:
            _output.write(dict(facts))


def _record_message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # the library's arguments do not fit its format
        return str(record.msg)


_PROCESSORS: tuple[Callable[[WrappedLogger, str, EventDict], EventDict], ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
    _resolve_exc_info,
)


def configure_logging(
    level: str,
    fmt: Literal["json", "console"],
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Write events at *level* or above to *stream* (stdout if None), libraries' from `warning` on.

    At `debug` libraries' too, except LIBRARIES_NEVER_AT_DEBUG. Loggers used before keep their level, which structlog
    caches.
    """
    global _output  # noqa: PLW0603 - loggers are global, and so is their output
    stream = stream or sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a character the terminal lacks must not end the process
    _output = _Output(stream, json.dumps if fmt == "json" else _console_renderer(stream), clock)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[structlog.processors.add_log_level, *_PROCESSORS],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_NamedLogger,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    root.setLevel(logging.DEBUG if threshold == logging.DEBUG else max(threshold, logging.WARNING))
    for library in LIBRARIES_NEVER_AT_DEBUG:
        logging.getLogger(library).setLevel(logging.INFO if threshold == logging.DEBUG else logging.NOTSET)
    for library in LIBRARIES_NEVER_HEARD:
        logging.getLogger(library).setLevel(logging.CRITICAL)


def recent_errors() -> list[Facts]:
    """Return the warnings and errors of the last day, newest first."""
    return [] if _output is None else _output.recent.view(datetime.now(UTC))


def flush_logging() -> None:
    """Write the events that are still folded. Call this last."""
    if _output is not None:
        _output.flush()


LINES_MAX: Final = 2000

CountLines = Callable[[int], None]


class BackgroundStream(io.TextIOBase):
    """A text stream whose `write` never blocks and never fails.

    *on_drop* is called with the number of dropped lines, in whichever thread.
    """

    def __init__(self, stream: TextIO, *, on_drop: CountLines) -> None:
        self._stream = stream  # keeps the descriptor open
        self._on_drop = on_drop
        self._waiting: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Have *text* written, or drop it where too much is waiting."""
        if self._waiting.qsize() >= LINES_MAX:
            self._on_drop(text.count("\n"))
        else:
            self._waiting.put(text)
        return len(text)

    def drain(self, *, within_s: float) -> bool:
        """Write what waits and end the thread; return whether that is done *within_s*."""
        self._waiting.put(None)
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        descriptor = self._stream.fileno()
        while (text := self._waiting.get()) is not None:
            rest = text.encode("utf-8", "backslashreplace")
            try:
                while rest:
                    try:
                        rest = rest[os.write(descriptor, rest) :]
                    except BlockingIOError:  # another process has made the shared descriptor non-blocking
                        select.select([], [descriptor], [])
            except OSError:
                self._on_drop(text.count("\n"))
