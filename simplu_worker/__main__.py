"""The program `simplu-worker`, and `python -m simplu_worker`."""

import gc
import sys
from typing import NoReturn

from simplu_worker.commands.process_end import end_process


def main() -> NoReturn:
    """Run a command and end the process with its exit status.

    `run` alone, as systemd and Kubernetes start a worker, imports no command line: that takes a tenth of the start.
    """
    gc.disable()  # until the command runs: what imports create stays, and looking through it takes a tenth of a start
    if sys.argv[1:] == ["run"]:
        from simplu_worker.commands.run_worker import run

        end_process(run)
    from simplu_worker.cli import run_command_line

    end_process(run_command_line)


if __name__ == "__main__":
    main()
