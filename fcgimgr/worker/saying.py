"""What a worker has to say of itself: on its standard error, which the manager logs.

On the descriptor, for `sys.stderr` belongs to the application. That may have closed it, or put an object in its place
that takes no surrogates (which is what os.listdir() makes of a Latin-1 name), or a logger that fails: nothing of it may
cost a thread, an answer or the process. So nothing here raises anything.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import traceback
from collections.abc import Mapping
from typing import Any, Final

from fcgimgr.worker.asking import asked
from fcgimgr.worker.patched import poll

_STANDARD_ERROR: Final = 2
#: Seconds for which a standard error that somebody has made non-blocking may be full.
_PATIENCE: Final = 1.0
#: Where its log is JSON the manager makes one record of what is said (fcgimgr/manager/logs/tracebacks.py).
_LINE_END: Final = "\n  " if os.environ.get("FCGIMGR_LOG_FORMAT") == "json" else "\n"


def say(what: str) -> None:
    """A line, or several."""
    shown = what.replace("\n", _LINE_END)
    say_bare(f"fcgimgr worker: {shown}\n")


def say_bare(text: str) -> None:
    """`text` as it is, in one piece."""
    try:
        sys.stderr.flush()  # what the application has said before comes before
    except BaseException:  # noqa: BLE001, S110  # it is what the application has made of it
        pass
    with contextlib.suppress(OSError):  # it is closed; then nobody is left to tell
        unwritten = text.encode("utf-8", "backslashreplace")
        while unwritten:
            try:
                unwritten = unwritten[os.write(_STANDARD_ERROR, unwritten) :]
            except BlockingIOError:
                polled = poll()
                polled.register(_STANDARD_ERROR, select.POLLOUT)
                if not polled.poll(_PATIENCE * 1000):
                    return


def say_failed(environ: Mapping[str, Any], error: BaseException) -> None:
    """The application has raised this at a request."""
    try:
        request = asked(environ)
    except BaseException:  # noqa: BLE001  # it may have put anything into its environ
        request = "a request that it has changed"
    say(f"the application failed at {request}\n{told(error)}")


def told(error: BaseException) -> str:
    """With its traceback, as Python prints it, but for the last line's end."""
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip("\n")
    except BaseException:  # noqa: BLE001  # the exception is of the application's making, and so are its attributes
        stack = "".join(traceback.format_tb(error.__traceback__))
        return f"{stack}{type(error).__name__}: {text_of(error)}"


def text_of(thing: object) -> str:
    """As str, also of what cannot be told."""
    try:
        return str(thing)
    except BaseException:  # noqa: BLE001  # whatever its __str__ raises, this is about something else
        return f"<str() of this {type(thing).__name__} failed>"


def fault(error: BaseException) -> str:
    """What kind of error it is, and its text as far as it has one, in a line."""
    try:
        shown = traceback.format_exception_only(type(error), error)[-1]
    except BaseException:  # noqa: BLE001  # as above
        shown = f"{type(error).__name__}: {text_of(error)}"
    return " ".join(shown.split())


def error_stream(standard: Any) -> Any:
    """For wsgi.errors: `standard`, which is sys.stderr, if anything can be written to it, else a stream of our own."""
    try:
        standard.write("")
        standard.flush()
    except BaseException:  # noqa: BLE001  # as above
        raw = io.FileIO(_STANDARD_ERROR, "w", closefd=False)
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)
    return standard
