"""Extend mutmut's mutations: statements that go, conditions that are forced, operands that are dropped; no messages.

mutmut leaves out every decorated function. Properties hold many of the rules here, so they are mutated too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import libcst as cst
from mutmut.mutation import file_mutation, mutators

TRANSPARENT_DECORATORS = frozenset({"property", "override", "contextmanager"})  # they wrap the trampoline as it is
SWAPPED_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
TYPING_CALLS = frozenset({"assert_never", "cast"})  # they do nothing at run time
ASSERTIONS = frozenset(
    {"strict", "usedforsecurity"}
)  # keywords that change nothing but on a defect, or a strict Python


def install() -> None:
    """Change mutmut's operators and its choice of functions in this process and in those it forks."""
    replaced: dict[Callable[[Any], Iterable[cst.CSTNode]], Callable[[Any], Iterable[cst.CSTNode]]] = {
        mutators.operator_string: _marked_string,
        mutators.operator_arg_removal: _lost_arguments,
        mutators.operator_match: _removed_cases,
    }
    operators = [(kind, replaced.get(operator, operator)) for kind, operator in mutators.mutation_operators]
    operators += [
        (cst.SimpleStatementLine, _removed_statement),
        (cst.Return, _lost_value),
        (cst.BooleanOperation, _single_operands),
        (cst.If, _forced_condition),
        (cst.CompIf, _passing_filter),
        (cst.Call, _swapped_call),
    ]
    file_mutation.mutation_operators = operators
    skips: Callable[[Any, cst.CSTNode], bool] = file_mutation.MutationVisitor._skip_node_and_children
    file_mutation.MutationVisitor._skip_node_and_children = lambda visitor, node: _is_skipped(visitor, node, skips)
    arrange: Callable[..., Any] = file_mutation.function_trampoline_arrangement
    file_mutation.function_trampoline_arrangement = lambda function, mutants, class_name: _arrange(
        function, mutants, class_name, arrange
    )


def is_message(node: cst.CSTNode) -> bool:
    match node:
        case cst.ConcatenatedString():
            return True
        case cst.SimpleString(value=value):
            return " " in value
        case cst.FormattedString(parts=parts):
            return any(isinstance(part, cst.FormattedStringText) and " " in part.value for part in parts)
        case _:
            return False


def _is_skipped(visitor: Any, node: cst.CSTNode, skips: Callable[[Any, cst.CSTNode], bool]) -> bool:
    match node:
        case cst.FunctionDef(name=cst.Name(value="__repr__")):
            return True  # a view for debugging
        case cst.FunctionDef() if _has_transparent_decorator(node):
            return False
        case cst.Call(func=cst.Name(value=name)) if name in TYPING_CALLS:
            return True
        case cst.Arg(keyword=cst.Name(value=name)) if name in ASSERTIONS:
            return True
        case _:
            return is_message(node) or skips(visitor, node)


def _has_transparent_decorator(function: cst.FunctionDef) -> bool:
    match function.decorators:
        case [cst.Decorator(decorator=cst.Name(value=name))]:
            return name in TRANSPARENT_DECORATORS
        case _:
            return False


def _arrange(function: cst.FunctionDef, mutants: Any, class_name: str | None, arrange: Callable[..., Any]) -> Any:
    if not _has_transparent_decorator(function):
        return arrange(function, mutants, class_name)
    declarations, (trampoline, *copies), assignments, names = arrange(
        function.with_changes(decorators=[]), mutants, class_name
    )
    decorated = trampoline.with_changes(decorators=[*function.decorators, *trampoline.decorators])
    return declarations, [decorated, *copies], assignments, names


def _marked_string(node: cst.BaseString) -> Iterator[cst.CSTNode]:
    """Yield *node* with a mark in it; another case of the letters would show nothing more."""
    yield from list(mutators.operator_string(node))[:1]


def _lost_arguments(node: cst.Call) -> Iterator[cst.CSTNode]:
    """Yield *node* with None for each argument; without it most calls would fail whatever the tests."""
    for index, argument in enumerate(node.args):
        is_assertion = argument.keyword is not None and argument.keyword.value in ASSERTIONS
        if not (argument.star or is_assertion or is_message(argument.value) or _is_none(argument.value)):
            mutated = argument.with_changes(value=cst.Name("None"))
            yield node.with_changes(args=[*node.args[:index], mutated, *node.args[index + 1 :]])


def _is_none(node: cst.CSTNode) -> bool:
    match node:
        case cst.Name(value="None"):
            return True
        case _:
            return False


def _removed_cases(node: cst.Match) -> Iterator[cst.CSTNode]:
    """Yield *node* without each of its cases; one that cannot be reached stays."""
    for index, case in enumerate(node.cases):
        if len(node.cases) > 1 and "assert_never" not in cst.Module([]).code_for_node(case):
            yield node.with_changes(cases=[*node.cases[:index], *node.cases[index + 1 :]])


def _removed_statement(node: cst.SimpleStatementLine) -> Iterator[cst.CSTNode]:
    match node.body:
        case [cst.Expr(value=cst.Call(func=cst.Name(value=name)))] if name in TYPING_CALLS:
            return
        case [
            cst.Expr(value=cst.Call() | cst.Await() | cst.Yield()) | cst.Raise() | cst.Del() | cst.Return(value=None)
        ]:
            yield node.with_changes(body=[cst.Pass()])


def _lost_value(node: cst.Return) -> Iterator[cst.CSTNode]:
    match node.value:
        case None | cst.Name(value="None" | "True" | "False"):
            return
        case value if value is not None and not is_message(value):
            yield node.with_changes(value=cst.Name("None"), whitespace_after_return=cst.SimpleWhitespace(" "))


def _single_operands(node: cst.BooleanOperation) -> Iterator[cst.CSTNode]:
    for operand in (node.left, node.right):
        yield operand if operand.lpar else operand.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _forced_condition(node: cst.If) -> Iterator[cst.CSTNode]:
    for literal in ("False", "True"):
        yield node.with_changes(test=cst.Name(literal), whitespace_before_test=cst.SimpleWhitespace(" "))


def _passing_filter(node: cst.CompIf) -> Iterator[cst.CSTNode]:
    yield node.with_changes(test=cst.Name("True"), whitespace_before_test=cst.SimpleWhitespace(" "))


def _swapped_call(node: cst.Call) -> Iterator[cst.CSTNode]:
    match node.func:
        case cst.Name(value=name) if name in SWAPPED_CALLS:
            yield node.with_changes(func=cst.Name(SWAPPED_CALLS[name]))
