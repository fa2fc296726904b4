"""Compile the lock files with uv: `python3 run.py lock`, with --upgrade for the newest versions."""

import shutil
import subprocess
import sys
from pathlib import Path

WORKER = "pyproject.toml --extra cache --extra tracing"
# simplu-local is on no index: its dependencies come from its own pyproject.toml.
LOCAL = f"{WORKER} simplu_local/pyproject.toml --group build"
LOCKS = {
    "worker": WORKER,
    "local": LOCAL,
    "dev": f"{LOCAL} --group test --group lint --group measure",
    "image": "--group image",
    "uv": "requirements/uv.in",
    "tools": "requirements/tools.in",
}
# pip 23.0 refuses a pin without the extras that another package wants of it, hence --no-strip-extras.
OPTIONS = "--universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --no-header -q"

if __name__ == "__main__":
    uv = shutil.which("uv", path=Path(sys.executable).parent) or "uv"
    for name, sources in LOCKS.items():
        out = f"requirements/{name}.txt"
        print("Compiling", out, flush=True)
        subprocess.run([uv, "pip", "compile", *sources.split(), *OPTIONS.split(), *sys.argv[1:], "-o", out], check=True)
