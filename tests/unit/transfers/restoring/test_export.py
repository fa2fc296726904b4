"""The file with the rows that a restore overwrites, where it cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simplu_worker.errors import PermanentError
from simplu_worker.transfers.restoring import ExportFile

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_full_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, open_file = tmp_path / "export.jsonl", os.open

    def open_full(made: Path, flags: int, mode: int) -> int:
        os.close(open_file(made, flags, mode))
        return open_file(FULL, os.O_WRONLY)

    monkeypatch.setattr(os, "open", open_full)
    with pytest.raises(PermanentError, match="expected room for the tenant's rows at"), ExportFile(path, {}) as file:
        file.finish()
    assert not path.exists()


def test_part_of_a_chunk_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "export.jsonl"
    with ExportFile(path, {"tenant": "clinic-main"}) as file:
        end = file.byte_count
        file._write(b"a part")
        file.cut(end)
        file.finish()
    assert path.read_text() == '{"tenant":"clinic-main"}\n{"end":{"resources":0,"operations":0}}\n'
