"""Sends with the client in Python, as client_producer.mjs does with that in TypeScript: client_producer.py PLAN."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from simplu_client import Client, Limits, Operation, Sent


class RetryCount(logging.Handler):
    """Counts the records that are sent again."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING and isinstance(record.args, tuple) and isinstance(record.args[0], int):
            self.count += record.args[0]


def operation_of(plan: dict[str, Any], key: int, step: int) -> Operation:
    business, location = plan["tenant"]["businessId"], plan["tenant"]["locationId"]
    name, n = f"{plan['run']}-{key}", step // 2
    operation: Operation
    if step == 0:
        operation = {
            "operation": "create",
            "businessId": business,
            "locationId": location,
            "resourceType": name,
            "resourceId": "1",
            "data": {"n": n},
        }
    elif step % 2 == 0:
        operation = {
            "operation": "patch",
            "businessId": business,
            "locationId": location,
            "resourceType": name,
            "resourceId": "1",
            "data": {"n": n},
        }
    else:
        operation = {
            "operation": "read",
            "businessId": business,
            "locationId": location,
            "resourceType": name,
            "resourceId": "1",
        }
    return operation


def main(path: str) -> None:
    plan = json.loads(Path(path).read_text(encoding="utf-8"))
    retries = RetryCount()
    log = logging.getLogger("simplu_client")
    log.addHandler(retries)
    log.propagate = False
    limits = Limits(max_count=plan["maxCount"])
    client = Client(stream=plan["stream"], url=plan["url"], token=plan["token"], limits=limits)
    last: dict[int, Sent] = {}
    with Path(plan["queued"]).open("w", encoding="utf-8", buffering=1) as queued:
        for number in range(plan["operations"]):
            step, key = divmod(number, plan["keys"])
            last[key] = client.send(operation_of(plan, key, step))
            queued.write(f"{json.dumps([key, step, last[key].request_id])}\n")
    results = []
    for sent in last.values():
        result = client.wait(sent, plan["waitS"]).result
        results.append(result["data"]["n"] if result else None)
    left = client.close()
    print(json.dumps({"retries": retries.count, "left": len(left), "results": results}))  # noqa: T201 - its output


if __name__ == "__main__":
    main(sys.argv[1])
