"""How a command fails: a message for a person and an exit code for a script.

The codes are a promise (docs/commands.md): scripts and health checks look at them.
"""

from typing import Final

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
"""A wrong command line, or a configuration that does not hold."""
NOT_RUNNING: Final = 3
"""`status`: something is not running."""
NO_MANAGER: Final = 4
INTERRUPTED: Final = 130
"""Ctrl-C: 128 + SIGINT, as a shell reports it."""
PIPE_CLOSED: Final = 141
"""The reader of stdout went away: 128 + SIGPIPE."""


class Failure(Exception):  # noqa: N818 - the word for how a command ends
    """Ends the command with `code`, showing the message on stderr. An empty message: all has been said already."""

    def __init__(self, message: str = "", *, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
