"""Read the business types of a folder."""

from __future__ import annotations

from pathlib import Path

from simplu_worker.errors import ConfigurationError
from simplu_worker.shards.schema.type_files import FILE_MAX_BYTES, TypeFile, TypeFileError, problems_between, read_type


def read_folder(folder: Path) -> dict[str, TypeFile]:
    """Return the types of a folder by name. Raises ConfigurationError, with every problem of every file."""
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: expected a folder with a file NAME.json for each business type")
    files: dict[str, TypeFile] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            file = _read(path)
        except TypeFileError as exc:
            problems += [f"{path.name}: {problem}" for problem in exc.problems]
            continue
        files[file.type.name] = file
    problems += problems_between(files)
    if problems:
        raise ConfigurationError(*problems)
    return files


def _read(path: Path) -> TypeFile:
    try:
        with path.open("rb") as opened:
            text = opened.read(FILE_MAX_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise TypeFileError([f"expected a file of UTF-8 that can be read, got {type(exc).__name__}"]) from None
    file = read_type(text)
    if path.stem != file.type.name:
        raise TypeFileError([f"expected the type {path.stem}, after which the file is named, got {file.type.name}"])
    return file
