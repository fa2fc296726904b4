"""The program `simplu-worker`, and `python -m simplu_worker`."""

import gc
import locale
import os
import sys
from typing import NoReturn

from simplu_worker.commands.command_line import end_process


def main() -> NoReturn:
    """Run a command and end the process with its exit status.

    `run` alone, as systemd and Kubernetes start a worker, imports no command line: that takes a tenth of the start.
    """
    _use_utf8()
    gc.disable()  # until the command runs: what imports create stays, and looking through it takes a tenth of a start
    end_process(_run)


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode if the locale has another encoding: arguments, files and output are UTF-8."""
    if not sys.flags.utf8_mode and locale.getencoding().lower() not in {"utf-8", "utf8"}:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - itself


def _run() -> object:
    if sys.argv[1:] == ["run"]:
        from simplu_worker.commands.run_worker import run

        return run()
    from simplu_worker.cli import run_command_line

    return run_command_line()


if __name__ == "__main__":
    main()
