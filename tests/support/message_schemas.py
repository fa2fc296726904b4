"""Write docs/schemas/ from the types that decode messages: `python -m support.message_schemas`."""

from __future__ import annotations

import json
from typing import Final

from support.requires import ROOT

from simplu_worker.status.message_schemas import SCHEMAS

FOLDER: Final = ROOT / "docs" / "schemas"


def render_files() -> dict[str, str]:
    return {f"{name}.json": json.dumps(schema, indent=2) + "\n" for name, schema in SCHEMAS.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in render_files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
