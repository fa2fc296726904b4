from __future__ import annotations

import os

from simplu_worker.telemetry.log import LINES_MAX, BackgroundStream

PATIENCE_S = 60.0


def test_stream_writes_in_order_and_drops_what_finds_no_room() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    dropped: list[int] = []
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        stream = BackgroundStream(file, on_drop=dropped.append)
        lines = [f"{number:5} {'ü' * 500}\n" for number in range(2 * LINES_MAX)]
        for line in lines:
            stream.write(line)
        assert sum(dropped) > 0
        kept, written = len(lines) - sum(dropped), b""
        while written.count(b"\n") < kept:
            written += os.read(reading, 65536)
        shown = written.decode().splitlines(keepends=True)
        assert (len(shown), shown) == (kept, [line for line in lines if line in set(shown)])
        assert stream.drain(within_s=PATIENCE_S)
    os.close(reading)


def test_stream_drops_lines_when_its_pipe_is_closed() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    dropped: list[int] = []
    with os.fdopen(writing, "w", encoding="utf-8") as file:
        stream = BackgroundStream(file, on_drop=dropped.append)
        stream.write("two\nlines\n")
        assert stream.drain(within_s=PATIENCE_S)
    assert dropped == [2]
