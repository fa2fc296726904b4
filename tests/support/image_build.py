"""What `docker build` does with a Dockerfile, below a folder in place of `/` and with the Python of the tests.

It knows the instructions that ours has; any other one fails. Docker's own rules that matter here are kept: the context
is what .dockerignore leaves, a folder is copied as its contents, and each stage begins empty.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from string import Template
from typing import NamedTuple

from support.checkout import run_lines

WITHOUT_EFFECT = frozenset({"ARG", "LABEL", "EXPOSE", "USER"})
_ABSOLUTE = re.compile(r"(?<![\w./-])/(?=\w)")


class Instruction(NamedTuple):
    """An instruction of a Dockerfile and the rest of its line."""

    name: str
    rest: str


def parse_dockerfile(text: str) -> list[Instruction]:
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def context_of(paths: Iterable[str], dockerignore: str) -> list[str]:
    """Return those of *paths* that the text of a .dockerignore leaves in the context."""
    patterns = [line for line in dockerignore.splitlines() if line and not line.startswith("#")]
    return [path for path in paths if _is_left(PurePosixPath(path), patterns)]


def _is_left(path: PurePosixPath, patterns: Sequence[str]) -> bool:
    is_left = True
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        above = [path, *path.parents]
        # fnmatch's * matches slashes as well, and thus what is below a folder, too.
        names = [one.name for one in above] if plain.startswith("**/") else [str(one) for one in above]
        if any(name != "." and fnmatch(name, plain.removeprefix("**/")) for name in names):
            is_left = pattern.startswith("!")
    return is_left


def missing_sources(instructions: Iterable[Instruction], context: Sequence[str]) -> list[str]:
    """Return what is to be copied from the context and is not there."""
    folders = {str(parent) for path in context for parent in PurePosixPath(path).parents}
    sources = [
        source
        for name, rest in instructions
        if name == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]
    return [source for source in sources if source not in folders and source not in context]


class ImageBuild:
    """The image, as far as it is built. *context* and *folder* are folders, *environment* is that of the base image."""

    def __init__(self, context: Path, folder: Path, environment: dict[str, str]) -> None:
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.health_check: list[str] = []
        self.root = folder / "root"
        self._context = context
        self._folder = folder
        self._base_environment = environment
        self._environment = environment
        self._stage = ""
        self._directory = self.root

    def follow(self, instructions: Iterable[Instruction]) -> None:
        for name, rest in instructions:
            match name:
                case "FROM":
                    self._begin_stage(rest)
                case "WORKDIR":
                    self._directory = Path(self._below_root(rest))
                    self._directory.mkdir(parents=True)
                case "COPY":
                    self._copy(rest.split())
                case "RUN":
                    self.run(rest)
                case "ENV":
                    self._set(rest)
                case "ENTRYPOINT":
                    self.entrypoint = json.loads(rest)
                case "CMD":
                    self.command = json.loads(rest)
                case "HEALTHCHECK":
                    self.health_check = json.loads(rest.partition(" CMD ")[2])
                case _:
                    assert name in WITHOUT_EFFECT, f"expected a known instruction, got {name}"

    def run(self, lines: str, *, status: int = 0) -> tuple[str, str]:
        """Run *lines* in the image, expect their exit *status*, and return what they wrote to stdout and stderr."""
        lines = self._below_root(lines)
        done = run_lines(lines, folder=self._directory, environment=self._environment, status=status)
        return done.stdout, done.stderr

    def start(self, command: Sequence[str], settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start *command* in the image, with *settings* beside the image's own environment."""
        words = ["sh", "-c", 'exec "$@"', "sh", *command]  # the shell looks in the PATH of the image
        return subprocess.Popen(words, cwd=self.root, env=self._environment | dict(settings))

    def size_bytes(self) -> int:
        """Return the size of all files that the image adds to its base."""
        sizes = [path.lstat().st_size for path in self.root.rglob("*") if path.is_symlink() or path.is_file()]
        return sum(sizes)

    def _below_root(self, text: str) -> str:
        return _ABSOLUTE.sub(f"{self.root}/", text)

    def _begin_stage(self, rest: str) -> None:
        if self._stage:
            # Programs have the path of their interpreter in them, so each stage is built in the same folder.
            self.root.rename(self._folder / self._stage)
        self._stage = rest.partition(" AS ")[2] or "last"
        self._environment = dict(self._base_environment)
        self._directory = self.root
        self.root.mkdir()

    def _copy(self, words: list[str]) -> None:
        sources_root = self._context
        if words[0].startswith("--from="):
            sources_root = self._folder / words.pop(0).removeprefix("--from=")
        *sources, last = words
        target = self.root / last.lstrip("/") if last.startswith("/") else self._directory / last
        for source in sources:
            path = sources_root / source.lstrip("/")
            if path.is_dir():
                shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True)
            else:
                assert last.endswith("/"), f"expected a folder that ends with /, got {last}"
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)

    def _set(self, rest: str) -> None:
        for word in shlex.split(self._below_root(rest)):
            name, _, value = word.partition("=")
            self._environment[name] = Template(value).substitute(self._environment)
