"""Count the histories of a folder, and add them to `campaigns.json`, for docs/correctness.md.

    python -m faults.campaign .faults --commit 0123abcd

Each history is judged again. A folder with a violation ends it with exit status 1; a history without a verdict, as of a
run that was stopped, does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from faults.judge import judge, read_history
from faults.nemeses import WITH_CLOCKS
from support.campaigns import add_campaign

CAMPAIGNS: Final = Path(__file__).with_name("campaigns.json")


def main() -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commit", required=True, help="of the clone that the histories are of")
    arguments = parser.parse_args()
    histories = {int(path.stem): read_history(path.read_text()) for path in arguments.folder.glob("*.jsonl")}
    ended = {seed: lines for seed, lines in sorted(histories.items()) if lines and lines[-1]["what"] == "verdict"}
    status = 0
    for seed, lines in ended.items():
        for violation in [*judge(lines), *lines[-1]["violations"]]:
            print(seed, *violation)  # noqa: T201 - a command
            status = 1
    counted = count(ended.values())
    print(json.dumps(counted, indent=1))  # noqa: T201 - a command
    if status == 0:
        add_campaign(CAMPAIGNS, {"commit": arguments.commit, "seeds": list(ended)} | counted)
    return status


def count(histories: Iterable[list[Any]]) -> dict[str, Any]:
    """Return the figures of all *histories*; of a nemesis how often it came, and how often it hit something."""
    kinds, fired, struck = Counter[str](), Counter[str](), Counter[str]()
    history_count = operation_count = lost_count = 0
    for lines in histories:
        history_count += 1
        operation_count += len({(line["tenant"], line["request"]) for line in lines if line["what"] == "put"})
        kinds.update(line["what"] for line in lines)
        for line in lines:
            match line:
                case {"what": "nemesis", "phase": "begins"}:
                    fired[line["name"]] += 1
                case {"what": "nemesis", "phase": "ended"}:
                    struck[line["name"]] += line["struck"] > 0
                case {"what": "promoted"}:
                    lost_count += len(line["lost"])
    return {
        "histories": history_count,
        "operations": operation_count,
        "moves": kinds["moved"],
        "promotions": kinds["promoted"],
        "operationsLostByPromotions": lost_count,
        "answers": kinds["answer"],
        "events": kinds["event"],
        "nemeses": {name: [fired[name], struck[name]] for name in WITH_CLOCKS},
    }


if __name__ == "__main__":
    sys.exit(main())
