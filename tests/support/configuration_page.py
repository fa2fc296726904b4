"""Write the tables of docs/configuration.md from the settings: `python -m support.configuration_page`."""

from __future__ import annotations

from typing import Any, Final

from support.requires import ROOT

from simplu_worker.config.settings import SECRETS, VARIABLES, schemas

PAGE: Final = ROOT / "docs" / "configuration.md"
AREAS: Final = {  # by the first variable of each
    "AWS_REGION": "AWS",
    "KINESIS_STREAM_NAME": "Kinesis",
    "SQS_SHARD_CREATION_QUEUE_URL": "SQS",
    "CITRUS_SERVER_URL": "Finding shards",
    "DATABASE_ALLOWED_HOSTS": "Connections",
    "DYNAMODB_BUSINESS_INFO_TABLE": "Tenants and operations",
    "REDIS_URL": "Cache",
    "FEED_FILE": "Feed",
    "HTTP_HOST": "HTTP",
    "BACKUP_URL": "Commands",
    "LOG_LEVEL": "Process",
}


def render_page(page: str) -> str:
    """Return *page* with its sections, which are the tables, made anew; the text before them is written by hand."""
    page = page.partition("\n## ")[0]
    for name, schema in schemas().items():
        if name in AREAS:
            page += f"\n## {AREAS[name]}\n\n| variable | default | meaning |\n|---|---|---|\n"
        mark = " 🔒" if name in SECRETS else ""
        default = _format_default(VARIABLES[name].default)
        meaning = " ".join(schema["description"].split())
        page += f"| `{name}`{mark} | {default} | {meaning} |\n"
    return page


def _format_default(default: Any) -> str:
    match default:
        case None | ():
            return ""
        case bool():
            return f"`{str(default).lower()}`"
        case float():
            return f"`{default:g}`"
        case tuple():
            return f"`{','.join(map(str, default))}`"
        case _:
            return f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
