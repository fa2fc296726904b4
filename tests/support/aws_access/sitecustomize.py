"""Write each call of AWS that a Python process makes beside this file. Python imports it, from PYTHONPATH.

`recording.py` copies it to a folder of its own. A line has the arguments of the program, the service, the operation,
and the members of the request that name a resource.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from botocore.handlers import BUILTIN_HANDLERS, REGISTER_LAST

CALLS = Path(__file__).with_name("calls.jsonl")
NAMES = ("StreamName", "StreamARN", "ConsumerARN", "ConsumerName", "TableName", "RequestItems", "QueueUrl", "QueueName")


class RecordingClient:
    """The first class of every client: each call of the client comes here, of whatever kind it is."""

    def _make_api_call(self, operation_name: str, api_params: dict[str, Any]) -> Any:
        service = self.meta.service_model.service_name  # type: ignore[attr-defined]  # of the classes after this one
        write_call(service, operation_name, api_params)
        return super()._make_api_call(operation_name, api_params)  # type: ignore[misc]  # as above


def write_call(service: str, operation: str, params: dict[str, Any]) -> None:
    """Append one line; of the keys of RequestItems, which are tables, their names alone."""
    names = {name: params[name] for name in NAMES if name in params}
    if "RequestItems" in names:
        names["TableName"] = next(iter(names.pop("RequestItems")))
    names.setdefault("KINESIS_STREAM_NAME", os.environ.get("KINESIS_STREAM_NAME"))
    line = {"arguments": sys.argv[1:], "service": service, "operation": operation, "names": names}
    with CALLS.open("a", encoding="utf-8") as file:  # one write, so that lines of several processes do not mix
        file.write(json.dumps(line) + "\n")


def record(base_classes: list[type], **_: object) -> None:
    base_classes.insert(0, RecordingClient)


# In each session that is made from now on, after the session's own hooks.
BUILTIN_HANDLERS.append(("creating-client-class", record, REGISTER_LAST))
