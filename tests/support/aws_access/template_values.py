"""The resources of a template of CloudFormation with their values, for what moto creates from no template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CREATES_IAM = re.compile(r"Type: AWS::IAM::")


# Reads a template: `!Ref A` as `{"Ref": "A"}`, and `!Sub` and `!GetAtt` in the same form.
_LOADER: Any = type("_Loader", (yaml.SafeLoader,), {})


def _read_function(loader: Any, name: str, node: Any) -> dict[str, Any]:
    is_text = isinstance(node, yaml.ScalarNode)
    return {name: loader.construct_scalar(node) if is_text else loader.construct_sequence(node, deep=True)}


_LOADER.add_multi_constructor("!", _read_function)


class Template:
    """A template. *values* are those of its parameters and of what its resources refer to, by name."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._content = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        defaults = {name: one["Default"] for name, one in self._content["Parameters"].items() if "Default" in one}
        self._values = {**defaults, **values, "AWS::NoValue": None}

    def parameters(self, *, required: bool = False) -> set[str]:
        """Return the names of the parameters; of those without a default if *required*."""
        parameters = self._content["Parameters"]
        return {name for name, one in parameters.items() if not (required and "Default" in one)}

    def resources(self, kind: str) -> dict[str, Any]:
        """Return the properties of the resources of *kind* by logical id. Raises KeyError for an unknown name."""
        return {
            name: self._resolved(one["Properties"])
            for name, one in self._content["Resources"].items()
            if one["Type"] == kind
        }

    def _resolved(self, value: Any) -> Any:
        match value:
            case {"Ref": name}:
                return self._values[name]
            case {"GetAtt": name}:
                return self._values[name]
            case {"Equals": [one, other]}:
                return self._resolved(one) == self._resolved(other)
            case {"If": [condition, one, other]}:
                return self._resolved(one if self._resolved(self._content["Conditions"][condition]) else other)
            case {"Sub": text}:
                return re.sub(r"\$\{([\w.:]+)\}", lambda match: str(self._values[match[1]]), text)
            case dict():
                resolved = {name: self._resolved(one) for name, one in value.items()}
                return {name: one for name, one in resolved.items() if one is not None}
            case list():
                return [self._resolved(one) for one in value]
            case _:
                return value
