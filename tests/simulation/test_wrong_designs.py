"""The wrong designs override what exists: after a rename in the worker none of them may be right without notice."""

from __future__ import annotations

import inspect

import pytest
from simulation import wrong_designs

DESIGNS = [
    one
    for one in vars(wrong_designs).values()
    if inspect.isclass(one) and one.__module__ == wrong_designs.__name__ and one is not wrong_designs.WrongDesign
]


@pytest.mark.parametrize("design", DESIGNS)
def test_wrong_design_overrides_methods_of_its_base_only(design: type) -> None:
    """A method that its base does not have would never be called."""
    own = {name for name, value in vars(design).items() if inspect.isfunction(value) or isinstance(value, property)}
    assert own
    assert own <= {name for base in design.__mro__[1:-1] for name in vars(base)}
