"""The files that tests depend on, read from their source: what they import, start and open. Pure.

More is found than is there, never less: a word of a text may look like a module. What no text names, such as the files
that a folder's listing finds, a stage declares itself (`support.ci.stages`).
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath

# Folders from which modules are imported (`pythonpath` in pyproject.toml).
IMPORT_FOLDERS = ("", "tests/")
ENDS = (".py", "/__init__.py")
MODULE_PROGRAM = "-m simplu_worker"
PROGRAMS = ("simplu-worker", MODULE_PROGRAM)
CONFTEST = "tests/conftest.py"
# Each test runs with these, and with the pins in requirements/.
ALWAYS = ("pyproject.toml", CONFTEST, "tests/support/selection.py")
PINS = "requirements"
_NAMES = re.compile(r"[a-z_]\w*(\.[a-z_]\w*)*")
_MODULE = re.compile(r"[a-z_]\w*(\.[a-z_]\w*)+")


@dataclass(frozen=True)
class Source:
    """What a module names."""

    imports: set[str]
    texts: set[str]
    arguments: set[str]


class Repository:
    """The files of a repository, *files*; *read* returns the text of one."""

    def __init__(self, files: Collection[str], read: Callable[[str], str]) -> None:
        self.files = frozenset(files)
        self._read = read
        self._sources: dict[str, Source] = {}
        self._below: defaultdict[str, set[str]] = defaultdict(set)
        for file in self.files:
            for folder in PurePosixPath(file).parents:
                self._below[str(folder)].add(file)
        for top in (".", "tests"):  # named as places of modules, which are found by their own names
            self._below.pop(top, None)
        self._fixtures = fixtures_of(read(CONFTEST)) if CONFTEST in self.files else frozenset()

    def closure(self, paths: Iterable[str]) -> set[str]:
        """Return those of *paths* that exist, with all that they need, directly or not, and what all tests need."""
        found: set[str] = set()
        waiting = ({*paths, *ALWAYS} & self.files) | self._below[PINS]
        while waiting:
            found |= waiting
            # Those of ALWAYS alone are not followed: what conftest.py imports is needed where its fixtures are.
            waiting = {need for path in waiting - {*ALWAYS} for need in self.needs_of(path)} - found
        return found

    def needs_of(self, path: str) -> set[str]:
        """Return the files that *path* names."""
        if not path.endswith(".py"):
            return set()
        source = self._source(path)
        folder = str(PurePosixPath(path).parent)
        needs = {file for name in source.imports for file in self._module(name)}
        needs |= {file for text in source.texts for file in self._named_by(text, folder, is_product(path))}
        if path.startswith("tests/"):
            needs |= {f"{parent}/conftest.py" for parent in PurePosixPath(path).parents} & self.files
            if source.arguments & self._fixtures:
                needs |= {file for name in self._source(CONFTEST).imports for file in self._module(name)}
        return needs

    def _source(self, path: str) -> Source:
        if path not in self._sources:
            nodes = [*ast.walk(ast.parse(self._read(path)))]
            texts = {*texts_of(nodes)}
            if any(isinstance(node, ast.Name) and node.id == "__package__" for node in nodes):
                texts.add(str(PurePosixPath(path).parent).replace("/", "."))
            self._sources[path] = Source({*imports_of(nodes)}, texts, arguments_of(nodes))
        return self._sources[path]

    def _module(self, name: str) -> set[str]:
        """Return the file of the module *name*, and those of its packages."""
        parts = name.split(".")
        paths = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return {f"{top}{path}{end}" for top in IMPORT_FOLDERS for path in paths for end in ENDS} & self.files

    def _named_by(self, text: str, folder: str, is_product: bool) -> set[str]:  # noqa: FBT001  # of the caller alone
        """Return the files that a text in a module of *folder* may mean."""
        if _MODULE.fullmatch(text):
            # As `python -m` does, or files(package).
            data = {one for one in self._below[text.replace(".", "/")] if not one.endswith(".py")}
            return self._module(text) | self._module(f"{text}.__main__") | data
        if text.endswith(".") and _NAMES.fullmatch(text[:-1]):  # of f"fuzz.targets.{name}"
            return {file for top in IMPORT_FOLDERS for file in self._below[top + text[:-1].replace(".", "/")]}
        if text == MODULE_PROGRAM or (text in PROGRAMS and not is_product):
            return self._below["simplu_worker"]
        if is_product:  # it opens nothing else of ours
            return set()
        beside = {f"{folder}/{text}"} & self.files  # with_name
        path = text.strip("/")
        return beside | ({path} & self.files) | (self._below[path] if "/" in text else set())


def is_product(path: str) -> bool:
    """Return whether *path* is of the worker or of the embedded stack."""
    return path.startswith(("simplu_worker/", "simplu_local/"))


def imports_of(nodes: Collection[ast.AST]) -> Iterator[str]:
    """Yield the dotted names that are imported anywhere in a module; what is taken from one may be a module too."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: expected an import by its whole name, got a relative one")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def texts_of(nodes: Collection[ast.AST]) -> Iterator[str]:
    """Yield the texts of a module but the docstrings, and its paths, as `docs/` or `docs/faq.md`."""
    inner = {node.left for node in nodes if isinstance(node, ast.BinOp)}
    prose = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and node not in inner:
            yield f"{_path_of(node)}/"
        elif isinstance(node, (ast.List, ast.Tuple, ast.Call)):
            words = node.args if isinstance(node, ast.Call) else node.elts
            values = [word.value if isinstance(word, ast.Constant) else None for word in words]
            yield from (f"-m {module!s}" for option, module in pairwise(values) if option == "-m")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node.value


def _path_of(node: ast.BinOp) -> str:
    """Return the constant parts of `ROOT / "docs" / "faq.md"`, up to the first that is made when it runs."""
    parts: list[str] = []
    current: ast.expr = node
    while isinstance(current, ast.BinOp) and isinstance(current.op, ast.Div):
        if isinstance(current.right, ast.Constant) and isinstance(current.right.value, str):
            parts.insert(0, current.right.value)
        else:
            parts.clear()
        current = current.left
    return "/".join(parts)


def arguments_of(nodes: Collection[ast.AST]) -> set[str]:
    """Return the names of the arguments of all functions, among which are the fixtures that tests use."""
    return {argument.arg for node in nodes if isinstance(node, ast.arguments) for argument in node.args}


def fixtures_of(text: str) -> frozenset[str]:
    """Return the names of the public functions of conftest.py that are fixtures."""
    functions = [node for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return frozenset(one.name for one in functions if one.decorator_list and not one.name.startswith("_"))
