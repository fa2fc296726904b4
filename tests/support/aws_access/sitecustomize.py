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

from botocore.handlers import BUILTIN_HANDLERS

CALLS = Path(__file__).with_name("calls.jsonl")
NAMES = ("StreamName", "StreamARN", "ConsumerARN", "ConsumerName", "TableName", "RequestItems", "QueueUrl", "QueueName")


def write_call(params: dict[str, Any], model: Any, **_: object) -> None:
    """Append one line; of the keys of RequestItems, which are tables, their names alone."""
    names = {name: params[name] for name in NAMES if name in params}
    if "RequestItems" in names:
        names["TableName"] = next(iter(names.pop("RequestItems")))
    names.setdefault("KINESIS_STREAM_NAME", os.environ.get("KINESIS_STREAM_NAME"))
    line = {
        "arguments": sys.argv[1:],
        "service": model.service_model.service_name,
        "operation": model.name,
        "names": names,
    }
    with CALLS.open("a", encoding="utf-8") as file:  # one write, so that lines of several processes do not mix
        file.write(json.dumps(line) + "\n")


# In each session that is made from now on.
BUILTIN_HANDLERS.append(("before-parameter-build", write_call))
