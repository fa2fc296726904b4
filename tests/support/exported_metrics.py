"""The series that the worker can export."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prometheus_client import REGISTRY

import simplu_worker.instruments  # noqa: F401 - registers the metrics

METRIC = re.compile(r"\b(?:simplu|process)_[a-z_]+")


def metric_names() -> set[str]:
    names = set()
    for family in REGISTRY.collect():
        suffixes: Sequence[str] = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
            family.type, ("",)
        )
        names |= {family.name + suffix for suffix in suffixes}
    return names
