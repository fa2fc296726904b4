"""`make count`: how large the project is, by part, beside the bounds it may not pass. Ends with status 1 beyond one."""

# ruff: noqa: T201  # a command

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

from support.requires import ROOT

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LONGEST_MODULE, LONGEST_BODY = 700, 60


@dataclass
class Count:
    """What one part has of each."""

    modules: int = 0
    lines: int = 0
    docstring_words: int = 0
    import_lines: int = 0

    def add(self, other: Count) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def count_module(text: str) -> Count:
    nodes = [*ast.walk(ast.parse(text))]
    documented = [node for node in nodes if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS))]
    words = sum(len((ast.get_docstring(node, clean=False) or "").split()) for node in documented)
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    return Count(1, text.count("\n"), words, sum(map(length_of, imports)))


def length_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def too_long(path: Path, text: str) -> list[str]:
    length = text.count("\n")
    found = [f"{path}: {length} lines"] if length > LONGEST_MODULE else []
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, FUNCTIONS)]
    bodies = {node: (node.end_lineno or 0) - node.body[0].lineno + 1 for node in functions}
    return found + [f"{path}: {node.name}, {size} lines" for node, size in bodies.items() if size > LONGEST_BODY]


def print_parts(top: str) -> tuple[Count, list[str]]:
    """Print a line for each folder of *top*; return the whole, and what is too long in it."""
    parts: defaultdict[str, Count] = defaultdict(Count)
    whole, long = Count(), list[str]()
    for path in sorted((ROOT / top).rglob("*.py")):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        count = count_module(text)
        long += too_long(place, text)
        parts["/".join(place.parts[1:-1][:2]) or "."].add(count)
        whole.add(count)
    print(f"\n{top:36} modules    lines docstrings  imports")
    for name, part in [*sorted(parts.items()), ("all", whole)]:
        values = part.modules, part.lines, part.docstring_words, part.import_lines
        print(f"  {name:32}", *(f"{value:9,}" for value in values))
    return whole, long


def words_of(folder: str) -> int:
    return sum(len(page.read_text(encoding="utf-8").split()) for page in (ROOT / "docs" / folder).glob("*.md"))


def main() -> int:
    product, long = print_parts("simplu_worker")
    tests, _ = print_parts("tests")
    for top in ("simplu_local", "clients", "benchmarks"):
        print_parts(top)
    docs = {folder: words_of(folder) for folder in (".", "adr", "runbook")}
    print("\nwords of docs/:", ", ".join(f"{folder} {words:,}" for folder, words in docs.items()))
    bounds = [
        ("lines of simplu_worker", product.lines, 64_000),
        ("modules of simplu_worker", product.modules, 280),
        ("lines of imports, simplu_worker", product.import_lines, 4_500),
        ("lines of tests", tests.lines, 100_000),
        ("words of docstrings, simplu_worker", product.docstring_words, 65_000),
        ("words of docstrings, tests", tests.docstring_words, 45_000),
        ("words of docs/", sum(docs.values()), 55_000),
        (f"modules over {LONGEST_MODULE} lines, bodies over {LONGEST_BODY}", len(long), 0),
    ]
    print()
    for name, count, bound in bounds:
        print(f"{name:45} {count:9,} of {bound:7,}", "" if count <= bound else "  too much")
    print(*(f"  {one}" for one in long), sep="\n")
    return int(any(count > bound for _, count, bound in bounds))


if __name__ == "__main__":
    sys.exit(main())
