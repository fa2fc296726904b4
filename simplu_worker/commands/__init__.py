"""The exit statuses of the commands. Pure."""

from __future__ import annotations

from typing import Final

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_CONFIGURATION = 0, 1, 2, 78  # 78: EX_CONFIG of sysexits.h
EXIT_BY_SIGNAL: Final = 128  # and its number: as a shell reports an end by a signal
EXIT_INTERRUPTED: Final = EXIT_BY_SIGNAL + 2  # SIGINT
