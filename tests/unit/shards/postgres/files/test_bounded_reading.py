"""A file is regular, small, in an allowed folder, and read within its time, or refused with the reason."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from simplu_worker.shards.postgres.files import bounded_reading
from simplu_worker.shards.postgres.files.bounded_reading import FILE_MAX_BYTES, FileRefusedError, require_readable
from simplu_worker.shards.postgres.files.connection_files import NamedFile


def file_at(path: Path | str, *folders: Path, is_required: bool = True) -> NamedFile:
    """Return a file that an address names."""
    return NamedFile("option sslrootcert", str(path), is_required, tuple(map(str, folders)) or None)


def made(path: Path, content: bytes = b"paper") -> Path:
    """Make a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


async def refusal(file: NamedFile) -> str:
    """Return why a file is refused."""
    with pytest.raises(FileRefusedError) as caught:
        await require_readable([file])
    return str(caught.value)


async def test_file_is_fine_when_it_is_regular_and_small(tmp_path: Path) -> None:
    large = made(tmp_path / "certs" / "large.pem", bytes(FILE_MAX_BYTES))
    given = made(tmp_path / "given" / "root.crt")
    link = tmp_path / "certs" / "root.pem"
    link.symlink_to(given)
    await require_readable([file_at(large), file_at(large, tmp_path / "certs")])
    await require_readable([file_at(link, tmp_path / "certs", tmp_path / "given"), file_at(link)])


async def test_file_is_refused_when_it_is_outside_of_the_folders(tmp_path: Path) -> None:
    outside = made(tmp_path / "outside.pem")
    folder = tmp_path / "certs"
    folder.mkdir()
    link = folder / "link.pem"
    link.symlink_to(outside)
    for path in (outside, link, folder / ".." / "outside.pem", tmp_path / "missing", f"{folder}-2/x", "/dev/null"):
        assert await refusal(file_at(path, folder)) == (
            f"option sslrootcert: expected a file below {folder}, got {path}; see DATABASE_FILE_FOLDERS"
        )


async def test_file_that_does_not_answer_refuses_no_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung, other, answered = made(tmp_path / "hung.pem"), made(tmp_path / "other.pem"), threading.Event()
    size_of = bounded_reading._size_of

    def wait(path: str) -> int | None:
        if path == str(hung):
            answered.wait()
        return size_of(path)

    monkeypatch.setattr(bounded_reading, "_size_of", wait)
    try:
        for _ in range(3):
            with pytest.raises(FileRefusedError, match=r"got no end of it|earlier reads of them do not end"):
                await require_readable([file_at(hung)], within_s=0.05)
        assert [one.name for one in threading.enumerate()].count("files") == 2
        await require_readable([file_at(other)])
    finally:
        answered.set()
        for one in threading.enumerate():
            if one.name == "files":
                one.join()


async def test_folder_may_be_a_symlink(tmp_path: Path) -> None:
    made(tmp_path / "real" / "root.crt")
    (tmp_path / "certs").symlink_to(tmp_path / "real")
    await require_readable([file_at(tmp_path / "certs" / "root.crt", tmp_path / "certs")])


@pytest.mark.parametrize("kind", ["fifo", "folder", "/dev/zero", "/dev/tty"])
async def test_file_is_refused_when_it_is_not_regular(tmp_path: Path, kind: str) -> None:
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    for is_required in (True, False):
        assert await refusal(file_at(path, is_required=is_required)) == (
            f"option sslrootcert: expected a regular file, got another kind at {path}"
        )


async def test_file_is_refused_when_it_has_more_than_a_mebibyte(tmp_path: Path) -> None:
    paths = [made(tmp_path / "large.pem", bytes(FILE_MAX_BYTES + 1)), Path("/proc/self/pagemap")]
    for path in filter(Path.exists, paths):
        problem = await refusal(file_at(path))
        assert problem == f"option sslrootcert: expected at most 1048576 bytes, got more in {path}"


async def test_file_is_refused_when_it_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    assert await refusal(file_at(missing)) == (
        f"option sslrootcert: expected to read {missing}, got No such file or directory; "
        "give it to the user of this process"
    )
    await require_readable([file_at(missing, is_required=False), file_at(os.devnull)])


async def test_file_is_refused_when_its_time_is_over(tmp_path: Path) -> None:
    path = made(tmp_path / "slow.pem")
    with pytest.raises(FileRefusedError, match=f"expected to read {path} within 0 s"):
        await require_readable([file_at(path)], within_s=0)
