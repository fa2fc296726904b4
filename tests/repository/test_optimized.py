"""`python -O` leaves asserts out: the product has none."""

from __future__ import annotations

import ast

from support.requires import ROOT

PRODUCT = [path for folder in ("simplu_worker", "simplu_local", "clients") for path in (ROOT / folder).rglob("*.py")]


def test_product_has_no_assert_for_python_to_leave_out() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert found == []
