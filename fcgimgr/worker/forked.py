"""The end of a child that the application has forked, and that comes back to the engine instead of ending itself.

`sys.exit()`, an exception or a return in such a child are meant to end it. An engine that took them for the end of the
request would answer the client a second time and go on as a worker that nobody knows, on its parent's connections.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import NoReturn


def end_child(raised: BaseException | None) -> NoReturn:
    """End as the interpreter would have, but for what its parent is to do at its own end (atexit, threads)."""
    code = 0 if raised is None else 1
    if isinstance(raised, SystemExit):
        if raised.code is None or isinstance(raised.code, int):
            code = (raised.code or 0) & 0xFF
        else:
            sys.stderr.write(f"{raised.code}\n")
    elif raised is not None:
        text = "".join(traceback.format_exception(type(raised), raised, raised.__traceback__))
        sys.stderr.write(f"fcgimgr worker: a child that the application has forked failed:\n{text}")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
