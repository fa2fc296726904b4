from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Altered:
    def __init__(self, one: Any, members: dict[str, Callable[[Any], Any]]) -> None:
        self._one = one
        self._members = members

    def __getattr__(self, name: str) -> Any:
        return self._members[name](self._one) if name in self._members else getattr(self._one, name)

    @classmethod
    def of(cls, one: Any, **members: Callable[[Any], Any]) -> Any:
        return cls(one._one if isinstance(one, Altered) else one, members)
