"""Run a benchmark by its name: `python -m benchmarks NAME [OPTION ...]`."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    names = sorted(path.stem for path in Path(__file__).parent.iterdir() if path.stem[0] not in "_.")
    if not set(sys.argv[1:2]) & set(names):
        sys.exit(f"Expected one of {', '.join(names)}")
    os.execv(sys.executable, [sys.executable, "-m", f"benchmarks.{sys.argv[1]}", *sys.argv[2:]])
