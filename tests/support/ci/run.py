"""`python -m support.ci.run`: what `.ci/run` and `.ci/nightly` ask about the stages, and run of them.

due                         print the stages that are due, and to stderr why the others are not
left-out NAME...            print the options of pytest that leave out all tests of stages but those of NAME
run [OPTION ...] NAME...    run stages, one after the other; OPTION goes to pytest
record NAME...              run them as `.ci/nightly` does, and write those that pass into .ci/results.json
note SECONDS NAME...        write those that have all of their tests in `.ci/run`, which has passed in SECONDS
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from support.ci.covered import Repository
from support.ci.results import Result, describe, digest_of, due_stages, figures_of
from support.ci.stages import STAGES, Stage, matches
from support.requires import ROOT

RESULTS = ROOT / ".ci" / "results.json"
BY_NAME = {stage.name: stage for stage in STAGES}


def committed_blobs() -> dict[str, str]:
    """Return Git's blobs of the files of the commit, by path."""
    listed = git("ls-tree", "-r", "-z", "HEAD").split("\0")
    return {entry.partition("\t")[2]: entry.partition("\t")[0].split()[2] for entry in listed if entry}


def git(*arguments: str) -> str:
    """Return what Git prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def open_repository(files: Sequence[str]) -> Repository:
    """Return the files as they are here."""
    return Repository(files, lambda path: (ROOT / path).read_text(encoding="utf-8"))


def files_of(stage: Stage, files: Sequence[str]) -> list[str]:
    """Return the files of a stage's tests."""
    return sorted(path for path in files if matches(path, stage.tests))


def covered_by(stage: Stage, repository: Repository) -> set[str]:
    """Return the files that a stage covers."""
    also = {path for path in repository.files if matches(path, stage.also)}
    followed = [path for path in also if path.startswith("tests/")]
    return repository.closure([*files_of(stage, [*repository.files]), *followed]) | also


def digests() -> dict[str, tuple[str, int]]:
    """Return the digest of each stage at the commit, and the number of its files."""
    blobs = committed_blobs()
    repository = open_repository([*blobs])
    found: dict[str, tuple[str, int]] = {}
    for stage in STAGES:
        covered = covered_by(stage, repository)
        found[stage.name] = digest_of(repr(stage), {path: blobs[path] for path in covered}), len(covered)
    return found


def read_results() -> dict[str, Result]:
    """Return the recorded results; none where nothing is recorded."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Result]) if RESULTS.exists() else {}


def print_due() -> None:
    """Print the stages that are due."""
    now = {name: digest for name, (digest, _) in digests().items()}
    results = read_results()
    for name, digest in now.items():
        print(describe(name, digest, results.get(name)), file=sys.stderr)
    print(*due_stages(now, results))


def print_left_out(names: Sequence[str]) -> None:
    """Print the options that leave out the tests of stages, but those of *names* that have no run of their own."""
    files = [*committed_blobs()]
    left_out = [stage for stage in STAGES if stage.is_apart or stage.name not in names]
    print(*(f"--ignore={path}" for stage in left_out for path in files_of(stage, files)))


def run(stage: Stage, options: Sequence[str], *, is_nightly: bool) -> tuple[bool, str]:
    """Run the programs of a stage; return whether all passed, and the figures of their outputs."""
    lines = [command.split() for command in (*stage.commands, *(stage.nightly if is_nightly else ()))]
    if stage.tests:
        lines.append(["test", "-n", str(stage.processes), *options, *files_of(stage, [*committed_blobs()])])
    outputs: list[str] = []
    for line in lines:
        command = [sys.executable, "run.py", *line]
        # What a registry does not answer is asked for once more; `run.py peers` keeps what it has.
        for _ in range(2 if line == ["peers"] else 1):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert process.stdout is not None
            output = ""
            for text in process.stdout:
                output += text
                print(text, end="", flush=True)
            if process.wait() == 0:
                break
        outputs.append(output)
        if process.returncode != 0:
            return False, ""
    return True, figures_of(outputs)


def run_all(names: Sequence[str], options: Sequence[str], *, is_recorded: bool) -> int:
    """Run the stages of *names*; return the exit status."""
    if is_recorded and (changed := git("status", "--porcelain", "--", ".", ":!.ci/results.json")):
        print(f"expected the files of the commit, got changes that no result may name:\n{changed}", file=sys.stderr)
        return 2
    now = digests() if is_recorded else {}
    failed: list[str] = []
    for name in names:
        started = time.monotonic()
        is_good, figures = run(BY_NAME[name], options, is_nightly=is_recorded)
        seconds = round(time.monotonic() - started)
        print(f"== stage {name}: {seconds} s, {figures if is_good else 'FAILED'}", flush=True)
        if not is_good:
            failed.append(name)
        elif is_recorded:
            write_result(name, *now[name], seconds, figures)
    return 1 if failed else 0


def note(seconds: int, names: Sequence[str]) -> None:
    """Record the stages of *names* that do no more in `.ci/nightly` than in a `.ci/run`."""
    now = digests()
    for name in names:
        if not BY_NAME[name].nightly:
            write_result(name, *now[name], seconds, "within .ci/run")


def write_result(name: str, digest: str, file_count: int, seconds: int, figures: str) -> None:
    """Record that a stage has passed."""
    date = datetime.now(UTC).date().isoformat()
    result = Result(digest, file_count, date, git("rev-parse", "HEAD").strip(), seconds, figures)
    results = msgspec.json.encode({**read_results(), name: result}, order="sorted")
    RESULTS.write_bytes(msgspec.json.format(results) + b"\n")


def main(arguments: Sequence[str]) -> int:
    """Do what the first word says."""
    options = [word for word in arguments[1:] if word.startswith("-")]
    seconds = [word for word in arguments[1:] if word.isdecimal()]
    names = [word for word in arguments[1:] if word not in {*options, *seconds}]
    if unknown := [name for name in names if name not in BY_NAME]:
        print(f"expected stages of {', '.join(BY_NAME)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    match arguments[:1]:
        case ["due"]:
            print_due()
        case ["left-out"]:
            print_left_out(names)
        case ["run"]:
            return run_all(names, options, is_recorded=False)
        case ["record"]:
            return run_all(names or [*BY_NAME], options, is_recorded=True)
        case ["note"]:
            note(int(seconds[0]), names)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
