"""Sends messages with the client in Python, as client_messages.mjs does: client_messages.py PLAN."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simplu_client import Client, ControlMessage, Limits, Operation, OrderEvent, Outcome, Sent, SimpluError

ARGUMENTS = {
    "stream": "stream",
    "url": "url",
    "token": "token",
    "orderQueueUrl": "order_queue_url",
    "priorityQueueUrl": "priority_queue_url",
    "controlQueueUrl": "control_queue_url",
}


def told(name: str, ask: Callable[[], object]) -> list[Any]:
    try:
        answer = ask()
    except SimpluError as error:
        return [name, type(error).__name__, getattr(error, "error", None)]
    return [name, answer.result["data"] if isinstance(answer, Outcome) and answer.result else None]


def main(path: str) -> None:
    plan = json.loads(Path(path).read_text(encoding="utf-8"))
    tenant, wait_s = plan["tenant"], plan["waitS"]
    business, location = tenant["businessId"], tenant["locationId"]
    client = Client(**{ours: plan[name] for name, ours in ARGUMENTS.items()})
    creation: ControlMessage = {
        "messageType": "SHARD_CREATION",
        "businessId": business,
        "locationId": location,
        "businessType": "dental",
    }
    client.send_control(creation)
    new: OrderEvent = {
        "type": "CREATE",
        "businessId": business,
        "locationId": location,
        "orderId": "o 1",
        "data": {"state": "new"},
    }
    paid: OrderEvent = {
        "type": "UPDATE",
        "businessId": business,
        "locationId": location,
        "orderId": "o 1",
        "data": {"state": "paid"},
    }
    urgent: OrderEvent = {
        "type": "CREATE",
        "businessId": business,
        "locationId": location,
        "orderId": "o-urgent",
        "data": {"state": "new"},
    }
    events = [client.send_order(new), client.send_order(paid), client.send_order(urgent, is_urgent=True)]
    found = [told(f"event {number}", lambda sent=sent: client.wait(sent, wait_s)) for number, sent in enumerate(events)]  # type: ignore[misc]
    common = {**tenant, "resourceType": "order"}

    def ask(operation: Any) -> Callable[[], Outcome]:
        return lambda: client.wait(client.send(operation), wait_s)

    found += [
        told("read", ask({"operation": "read", **common, "resourceId": "o 1"})),
        told("patch", ask({"operation": "patch", **common, "resourceId": "o 2", "data": {}})),
        told("invalid", ask({"operation": "patch", **common, "resourceId": "", "data": {}})),
        told("wrong token", lambda: Client(url=plan["url"], token="wrong").wait(events[0], 5)),
        told("no time", lambda: client.wait(Sent("never sent", business, location), 0.5)),
    ]
    logging.getLogger("simplu_client").disabled = True
    listing: Operation = {"operation": "list", "businessId": business, "locationId": location, "resourceType": "order"}
    hasty = Client(stream="no such stream", limits=Limits(give_up_s=0.3))
    both = [hasty.send(listing), hasty.send(listing)]
    found += [told("given up", lambda sent=sent: client.wait(sent, wait_s)) for sent in both]  # type: ignore[misc]
    found.append(["left", len(hasty.close())])
    patient = Client(stream="no such stream")
    patient.send(listing)
    patient.send(listing)
    found.append(["left", len(patient.close(0.3))])
    client.close()
    found.append(told("closed", ask({"operation": "list", **common})))
    print(json.dumps(found))  # noqa: T201 - its output


if __name__ == "__main__":
    main(sys.argv[1])
