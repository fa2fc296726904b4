"""The exit statuses of the commands. Pure."""

from __future__ import annotations

from typing import Final

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_CONFIGURATION = 0, 1, 2, 78  # 78: EX_CONFIG of sysexits.h
EXIT_INTERRUPTED: Final = 128 + 2  # as a shell reports an end by SIGINT
