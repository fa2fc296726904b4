"""`make fuzz`: made-up inputs for each target, on all processors, until the time is over.

An input that fails is kept in `.fuzz/`, and the one command that repeats it is printed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.engines import repeat, report_count, run
from fuzz.target import NAMES

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".fuzz"
GRACE_S = 900  # of a process beside its time, to start and to make a failing input smaller, however busy the machine
DETAIL_LINES = 40
DETAIL_COLUMNS = 1_000
SHOWN_BYTES = 4_096  # of an input: CI keeps no files
COUNTS = re.compile(r'"inputs": (\d+)')


@dataclass
class Job:
    """One target, in a process of its own."""

    target: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = field(default_factory=time.monotonic)

    @property
    def found(self) -> Path:
        return self.folder / self.target

    @property
    def log(self) -> Path:
        return self.folder / f"{self.target}.log"

    def start(self, seconds: float, number: int) -> None:
        command = [sys.executable, "-m", "fuzz.run", "--target", self.target]
        self.started_at = time.monotonic()
        command += ["--seconds", f"{seconds:.2f}", "--seed", str(number), "--found", str(self.found)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def is_over(self, seconds: float) -> bool:
        """Return whether the process has ended; one that does not end is killed."""
        assert self.process is not None
        if self.process.poll() is None and time.monotonic() > self.started_at + seconds + GRACE_S:
            self.process.kill()
            self.process.wait()
        return self.process.poll() is not None

    def report(self) -> bool:
        """Print the result; return whether no input failed."""
        assert self.process is not None
        text = self.log.read_text(errors="replace")
        count = max(map(int, COUNTS.findall(text)), default=0)
        is_good = self.process.returncode == 0 and not self.found.exists()
        say(f"{self.target:8} {count:9,} inputs, {'none failed' if is_good else 'FAILED'}")
        if is_good:
            return True
        say("\n".join(line[:DETAIL_COLUMNS] for line in text.splitlines()[-DETAIL_LINES:]))
        if self.found.exists():
            data = self.found.read_bytes()
            kept = KEPT / f"{self.target}-{hashlib.sha256(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            path = kept.relative_to(ROOT)
            if len(data) <= SHOWN_BYTES:
                say(f"base64: {base64.b64encode(data).decode()}")
            say(f'{len(data)} bytes failed. Repeat: make fuzz ARGS="--target {self.target} --input {path}"')
        return False


def say(text: str) -> None:
    print(text, flush=True)


def run_jobs(jobs: Sequence[Job], *, total_s: float, places: int, number: int) -> bool:
    """Run all jobs in *total_s*, *places* at a time; return whether no input failed."""
    rounds = -(-len(jobs) // places)
    seconds = total_s / rounds
    waiting, running, is_good = list(jobs), list[Job](), True
    while waiting or running:
        while waiting and len(running) < places:
            job = waiting.pop(0)
            job.start(seconds, number)
            running.append(job)
        for job in [job for job in running if job.is_over(seconds)]:
            running.remove(job)
            is_good = job.report() and is_good
        time.sleep(0.05)
    return is_good


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for the inputs of all targets together (60)")
    parser.add_argument("--target", choices=NAMES, help="one target alone")
    parser.add_argument("--seed", type=int, default=1, help="another one for other inputs (1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time (all processors)")
    parser.add_argument("--input", type=Path, help="repeat this input of a target")
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the fuzz; return the exit status."""
    options = parse_arguments(arguments)
    if options.found is not None:
        # Its time begins when it has started, so that it has inputs.
        report_count(run(options.target, seconds=options.seconds, number=options.seed, found=options.found))
        return 0
    if options.input is not None:
        if options.target is None:
            say("expected --target with --input, got none: the name of the file begins with it")
            return 2
        repeat(options.target, options.input)
        say("no failure")
        return 0
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        names = [options.target] if options.target else NAMES
        jobs = [Job(name, Path(folder)) for name in names]
        is_good = run_jobs(jobs, total_s=options.seconds, places=options.jobs, number=options.seed)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
