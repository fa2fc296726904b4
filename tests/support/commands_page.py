"""Write the last table of docs/commands.md from the command line: `python -m support.commands_page`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

from support.requires import ROOT

from simplu_worker.cli import app

PAGE: Final = ROOT / "docs" / "commands.md"
HEADING: Final = "\n## All commands\n"
MORE: Final = {  # by the beginning of a command; the longest one counts
    "check": "operating.md#start-and-stop",
    "dead-letters": "dead-letters.md#looking-and-replaying",
    "demo": "start.md",
    "feed": "feed.md#when-a-destination-is-down",
    "fleet": "operating.md#steering",
    "operations": "outcomes.md",
    "operations send": "sending.md",
    "operations test": "sending.md",
    "replay": "operating.md#reading-the-stream-again",
    "resources": "tenants.md#histories",
    "run": "operating.md#start-and-stop",
    "shards": "shards.md",
    "shards accept-gap": "failover.md#a-gap",
    "shards adopt": "adopting.md",
    "shards drain": "runbook/remove-shard.md",
    "shards query": "reading.md#one-question-to-all-shards",
    "shards raise-numbers": "runbook/shard-restored.md#from-a-dump",
    "shards rebalance": "runbook/add-shard.md",
    "stack": "start.md",
    "tap": "outcomes.md#the-tap",
    "tenants": "tenants.md",
    "tenants cleanup": "moving.md",
    "tenants export": "runbook/export.md",
    "tenants import": "importing.md",
    "tenants limit": "holding.md#limits",
    "tenants move": "moving.md",
    "tenants pause": "holding.md#pausing-a-tenant",
    "tenants restore": "backups.md#one-tenant",
    "tenants resume": "holding.md#pausing-a-tenant",
    "tenants rollback": "moving.md",
    "tenants usage": "tenants.md#usage-for-bills",
    "tenants verify": "moving.md",
    "tenants weight": "holding.md#tenants-over-their-share",
    "top": "operating.md#in-a-terminal",
    "types": "tenants.md#business-types",
}
_ALWAYS_THERE: Final = frozenset({"--help", "-h", "--version"})


class Command(NamedTuple):
    """A command that does something: its words, what `--help` tells, its arguments, and all of its options."""

    words: str
    help: str
    arguments: tuple[str, ...]
    options: tuple[str, ...]


@cache
def program_commands() -> tuple[Command, ...]:
    return tuple(sorted(_commands(app, "")))


def render_page(page: str) -> str:
    """Return *page* with its last table made anew; the text before it is written by hand."""
    page = page.partition(HEADING)[0] + HEADING
    page += "\n| command | what it does |\n|---|---|\n"
    for command in program_commands():
        link = MORE[max((words for words in MORE if f"{command.words} ".startswith(f"{words} ")), key=len)]
        name = " ".join((command.words, *command.arguments))
        page += f"| [`{name}`]({link}) | {_first_sentence(command.help)} |\n"
    return page


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].removesuffix(".") + "."


def _commands(node: Any, words: str) -> Iterator[Command]:
    inner = [word for word in node if word not in _ALWAYS_THERE]
    for word in inner:
        yield from _commands(node[word], f"{words} {word}".strip())
    if not inner:
        parts = list(node.assemble_argument_collection())
        names = [(name, one.required) for one in parts for name in one.names if name != "*"]
        arguments = tuple(name if required else f"[{name}]" for name, required in names if not name.startswith("-"))
        options = tuple(dict.fromkeys(name for name, _ in names if name.startswith("--")))
        yield Command(words, node.help.partition("\n\n")[0], arguments, options)


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
