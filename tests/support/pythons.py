"""The Pythons of this machine with which the packages are tried."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from itertools import chain
from pathlib import Path

NAME = re.compile(r"python3\.(\d+)")
OLDEST, NEWEST = 11, 14
# Where pyenv, uv and Debian have others beside the one that runs.
BESIDE = sorted(Path(sys.base_prefix).parent.glob("*/bin"))
ON_PATH = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if folder]
FOLDERS = (Path(sys.base_prefix, "bin"), *BESIDE, Path("/usr/local/bin"), Path("/usr/bin"), *ON_PATH)


@cache
def find_pythons() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in chain.from_iterable(sorted(folder.glob("python3.*")) for folder in FOLDERS):
        version = NAME.fullmatch(path.name)
        if version is not None and OLDEST <= int(version[1]) <= NEWEST and path.name not in found and runs(path):
            found[path.name] = str(path)
    return dict(sorted(found.items()))


def runs(path: Path) -> bool:
    return subprocess.run([path, "-c", "import ssl, venv"], capture_output=True, check=False).returncode == 0
