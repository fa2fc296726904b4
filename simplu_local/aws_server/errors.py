"""An error as a service of AWS answers with it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

MAX_MESSAGE_LENGTH = 500  # long enough for botocore's reader, short enough for a log line


class AwsError(Exception):
    """An error answer: *code* as clients read it, a message, and the HTTP status."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(message[:MAX_MESSAGE_LENGTH])
        self.code = code
        self.message = message[:MAX_MESSAGE_LENGTH]
        self.status = status

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code}: {self.message})"

    @property
    def type_name(self) -> str:
        """The `__type` of the answer."""
        return self.code

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the answer has because it is an error."""
        return {}
