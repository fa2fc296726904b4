"""`tap`: the operations of a replica as they are decided, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec

from simplu_worker.commands.fleet.replica_client import open_replica
from simplu_worker.commands.output.display import print_json_line, print_line, print_note
from simplu_worker.config.settings import Settings


async def tap_operations(settings: Settings, url: str | None, query: Mapping[str, str], *, as_json: bool) -> int:
    """Print the operations of the replica at *url* that *query* matches, one a line, until it ends the stream.

    Content needs the operators' token. Return 1 if the replica left operations out.
    """
    dropped = 0
    async with open_replica(settings, url, acts="content" in query) as replica:
        listening = f"listening to {replica.url}: operations are printed as they are decided; Ctrl-C ends it"
        path = f"/tap?{urlencode(query)}"
        async for name, text, event in replica.listen(path, on_open=lambda: print_note(listening)):
            if name == "dropped":
                dropped = event["dropped"]
                print_note(f"{dropped} operations came faster than they were taken, and are not shown")
            else:
                _print(text, event, as_json=as_json)
    print_note("the replica has ended the tap: it does so after 15 minutes, and when it stops")
    if dropped:
        print_note(f"{dropped} operations are not shown: narrow the tap with --tenant or --outcome")
    return 1 if dropped else 0


def _print(text: str, event: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json_line(msgspec.Raw(text.encode()))
    else:
        print_line(_describe(event))


def _describe(event: Mapping[str, Any]) -> str:
    tenant = f"{event['businessId']} {event['locationId']}"
    subject = " ".join(str(event[name]) for name in ("operation", "resourceType", "resourceId") if event.get(name))
    outcome = f"{event['outcome']} {event['reason']}" if event.get("reason") else event["outcome"]
    line = f"{event['at']}  {outcome}  {tenant}  {subject}  {event['requestId']}"
    return f"{line}  {event['content']}" if "content" in event else line
