"""The end of a child that the application has forked, and that comes back to the engine instead of ending itself.

`sys.exit()`, an exception or a return in such a child are meant to end it. An engine that took them for the end of the
request would answer the client a second time and go on as a worker that nobody knows, on its parent's connections.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

from fcgimgr.worker.saying import say, say_bare, text_of, told


def end_child(raised: BaseException | None) -> NoReturn:
    """End as the interpreter would have, but for what its parent is to do at its own end (atexit, threads)."""
    code = 0 if raised is None else 1
    if isinstance(raised, SystemExit):
        if raised.code is None or isinstance(raised.code, int):
            code = (raised.code or 0) & 0xFF
        else:
            say_bare(f"{text_of(raised.code)}\n")
    elif raised is not None:
        say(f"a child that the application has forked failed:\n{told(raised)}")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # None, closed, or whatever the application has made of it
            stream.flush()
    os._exit(code)
