"""The wrong designs override what exists: after a rename in the worker none of them may be right without notice."""

from __future__ import annotations

import inspect

import msgspec
from simulation import queue_histories, wrong_designs, wrong_fan_out, wrong_holding, wrong_positions, wrong_whole

DESIGNS = [
    one
    for module in (queue_histories, wrong_designs, wrong_fan_out, wrong_holding, wrong_positions, wrong_whole)
    for one in vars(module).values()
    if inspect.isclass(one) and one.__module__ == module.__name__ and one.__base__ not in {object, msgspec.Struct}
]


def test_wrong_designs_override_methods_of_their_base_only() -> None:
    for design in DESIGNS:
        own = {name for name, one in vars(design).items() if inspect.isfunction(one) or isinstance(one, property)}
        assert own, design
        assert own <= {name for base in design.__mro__[1:-1] for name in vars(base)}, design
