"""Start commands by a fork of a process that has imported them: each import takes most of a second.

`python -m support.processes.forked_commands SOCKET` serves `simplu-worker`, and `aws` as in
`support/aws/command_line.py`. Run as a file with a socket, a command and its arguments, it is that command: it hands
its folder, variables and streams over, and ends with the status of the fork.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys

LENGTH_MAX = 1 << 20
PRELOADED = (
    "support.aws.command_line",
    "simplu_worker.cli",
    "simplu_worker.commands.check.checking",
    "simplu_worker.commands.dead_letters.command",
    "simplu_worker.commands.shards.show",
    "simplu_worker.commands.shards.upgrade",
    "simplu_worker.commands.stream.replaying",
    "simplu_worker.commands.stream.send",
    "simplu_worker.commands.stream.show",
    "simplu_worker.commands.tenants.inventory",
    "simplu_worker.commands.tenants.restore",
    "simplu_worker.commands.tenants.show",
)
STREAMS = (0, 1, 2)


def serve(path: str) -> None:
    """Fork for each connection to the socket *path*, until the process is ended."""
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no fork is waited for here
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen()
        # Once it listens: a caller that finds the socket can connect.
        os.rename(f"{path}.new", path)  # noqa: PTH104  (without pathlib this starts sooner)
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    _run(connection)


def _run(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, streams, _, _ = socket.recv_fds(connection, LENGTH_MAX, len(STREAMS))
    request = json.loads(text)
    command = os.fork()
    if command:
        _, status = os.waitpid(command, 0)
        connection.sendall(bytes([os.waitstatus_to_exitcode(status)]))
        os._exit(0)
    for stream, number in zip(streams, STREAMS, strict=True):
        os.dup2(stream, number)
    # New objects: those of the server believe that they write to its log.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv = request["arguments"]
    from support.aws.command_line import main as aws

    from simplu_worker.__main__ import main as worker

    try:
        {"aws": aws, "simplu-worker": worker}[sys.argv[0]]()
        sys.exit(0)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))


def call(path: str, arguments: list[str]) -> int:
    """Have a command run, with the streams, the folder and the variables of this process; return its exit status."""
    folder = os.getcwd()  # noqa: PTH109  (without pathlib this starts sooner)
    request = {"arguments": arguments, "folder": folder, "environ": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(request).encode()], STREAMS)
        return connection.recv(1)[0]


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    sys.exit(call(sys.argv[1], sys.argv[2:]))
