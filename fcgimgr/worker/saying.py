"""What a worker has to say of itself: a line on its standard error, which the manager logs."""

from __future__ import annotations

import sys
import traceback


def say(what: str) -> None:
    """Raises nothing."""
    try:
        sys.stderr.write(f"fcgimgr worker: {what}\n")
        sys.stderr.flush()
    except Exception:  # noqa: BLE001  # it is what the application has made of it; then nobody is left to tell
        return


def fault(error: BaseException) -> str:
    """What kind of error it is, and its text as far as it has one, in a line."""
    return " ".join(traceback.format_exception_only(type(error), error)[-1].split())
