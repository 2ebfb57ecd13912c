"""The one exception of this room: the kernel refused, said in words an operator can act on."""

from typing import NoReturn


class LinuxError(Exception):
    """Something the kernel refused. `str()` names the thing, what was wrong, and what to do."""


def refuse(subject: str, error: OSError, advice: str = "") -> NoReturn:
    """Raise LinuxError `SUBJECT: REASON[; ADVICE]` for an OSError nobody has better words for."""
    reason = error.strerror or str(error)
    raise LinuxError(f"{subject}: {reason[:1].lower()}{reason[1:]}" + (f"; {advice}" if advice else "")) from error
