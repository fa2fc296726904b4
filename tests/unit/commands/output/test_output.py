from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from rich.console import Console
from rich.progress import Progress
from unit.commands.stream.test_input_lines import WHOLE, read, text_of

from simplu_worker.commands.check.checking import CheckAnswer, CheckStatus, check_dependency
from simplu_worker.commands.output import (
    TABLE_MAX,
    Table,
    escape_unprintable,
    first_rows,
    print_json,
    print_json_line,
    print_line,
    print_note,
    print_table,
)
from simplu_worker.commands.running import require_settings
from simplu_worker.commands.stream.input_lines import InputLine
from simplu_worker.commands.stream.send import SendStatus, outcome_of
from simplu_worker.config.settings import Settings
from simplu_worker.errors import ConfigurationError, WorkerError
from simplu_worker.operations.operation import Operation

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def row_of(line: InputLine, **changes: object) -> dict[str, Any]:
    assert isinstance(line.decoded, Operation)
    row = {"status": "succeeded", "error": None, "result": None, "digest": line.decoded.digest, "shard_id": "s-1"}
    return row | changes


def test_outcome_is_that_of_the_log() -> None:
    line, bad = read(text_of(WHOLE, b"bad"))
    sent = SendStatus.SENT
    cases: list[tuple[InputLine, dict[str, Any] | None, tuple[str, str | None, str | None]]] = [
        (line, None, ("sent", None, None)),
        (line, row_of(line, result='{"n": 1.0}'), ("succeeded", "s-1", None)),
        (line, row_of(line, status="failed", error="already_exists"), ("failed", "s-1", "already_exists")),
        (line, row_of(line, digest=b"another"), ("failed", "s-1", "request_id_reused")),
    ]
    for one, row, expected in cases:
        outcome = outcome_of(one, sent, row)
        assert (outcome.status, outcome.shard_id, outcome.error) == expected
        assert outcome.result == (msgspec.Raw(b'{"n": 1.0}') if row is not None and row["result"] else None)
    rejected = outcome_of(bad, sent, None)
    assert (rejected.line, rejected.status, (rejected.error or "")[:13]) == (2, "sent", "invalid_json:")


def test_printable_shows_what_would_steer_a_terminal() -> None:
    assert escape_unprintable("a\x1b[2J\nü\udc80") == "a\\x1b[2J\\nü\\udc80"
    assert escape_unprintable(None) == ""


def test_table_has_no_markup_and_is_not_folded_for_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("id",), [["[red]" + "x" * 300]])
    assert "[red]" + "x" * 300 in capsys.readouterr().out


@pytest.mark.parametrize("text", ["12\u00a0€", "\u00ad", "\u0085", "\U000e0067", "\x1b[2J\n", 'ü"\\'])
def test_line_of_json_is_json_whatever_the_text(capsys: pytest.CaptureFixture[str], text: str) -> None:
    print_json_line({"text": text, "n": msgspec.Raw(b"1.10000000000000000000000001")})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["text"] == text
    assert line.isprintable()
    assert "1.10000000000000000000000001" in line


def test_print_json_keeps_the_text_of_results(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"result": msgspec.Raw(b'{"n": 1.10000000000000000000000001}'), "at": NOW})
    out = capsys.readouterr().out
    assert "1.10000000000000000000000001" in out
    assert json.loads(out)["at"] == "2026-03-01T12:00:00Z"


async def test_checked_dependency_has_no_secret() -> None:
    secret = "http://user:hunter22@host/"

    async def fail() -> CheckAnswer:
        raise WorkerError(f"no {secret}")

    checked = await check_dependency("d", secret, fail)
    assert (checked.status, b"hunter22" in msgspec.json.encode(checked)) == (CheckStatus.FAILED, False)


def test_require_names_every_variable_that_a_command_lacks() -> None:
    with pytest.raises(ConfigurationError) as raised:
        require_settings(Settings(), routes=True, stream=True)
    assert [problem.partition(":")[0] for problem in raised.value.problems] == [
        "KINESIS_STREAM_NAME",
        "CITRUS_SERVER_URL",
    ]
    require_settings(Settings(kinesis_stream_name="s", database_host="h"), routes=True, stream=True)
    require_settings(Settings(kinesis_stream_name="s"), stream=True)
    assert str(raised.value) == "\n".join(raised.value.problems)


def test_long_table_has_its_first_rows_and_how_many_more() -> None:
    table, note = first_rows(("n",), [(number,) for number in range(TABLE_MAX + 5)])
    assert isinstance(table, Table)
    assert (len(list(table.rows)), note) == (TABLE_MAX, "and 5 more; --json prints all")
    assert first_rows(("n",), [(1,)])[1] is None
    assert first_rows(("n",), [], count=0) == [None, None]


def test_notes_and_results_appear_above_progress_bars(capsys: pytest.CaptureFixture[str]) -> None:
    written = io.StringIO()
    with Progress(console=Console(file=written, force_terminal=True, width=80)):
        print_note("a note")
        print_line("a result")
    assert re.findall("a note|a result", written.getvalue()) == ["a note", "a result"]
    assert capsys.readouterr() == ("", "")
