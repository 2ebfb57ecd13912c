"""The end of a worker that has nothing in hand any more: what keeps the process from ending with it.

Python waits at its end for every thread that is no daemon. One that the application has started while it was imported,
and that nobody tells to end, makes each stop and each reload wait for stopwaitsecs and end in SIGKILL: so it is named.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from typing import Final

from fcgimgr.worker.saying import say

#: Seconds that threads have to end by themselves, as those of concurrent.futures do when they hear of the end.
PATIENCE: Final = 0.5


def name_what_stays() -> None:
    """Have them named that are still there in a while, if there are any now. To be called last by the main thread."""
    if _others():
        with contextlib.suppress(RuntimeError):  # a limit of the system; it is a word of advice
            threading.Thread(target=_name_them, name="leaving", daemon=True).start()


def let_go_of_streams() -> None:
    """Python flushes its standard streams at its end, and where that fails the exit status is 120, not 0."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except BaseException:  # noqa: BLE001  # it is what the application has made of it
            setattr(sys, name, None)


def _name_them() -> None:
    time.sleep(PATIENCE)
    if others := _others():
        say(
            f"the end waits for threads of the application that are no daemons: {', '.join(map(_place, others))}; "
            "start them with daemon=True, or end them by atexit or a signal's handler"
        )


def _others() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]


def _place(thread: threading.Thread) -> str:
    """Its name, and where its own function is just then."""
    place = ""
    for frame, line in traceback.walk_stack(sys._current_frames().get(thread.ident or 0)):
        if frame.f_code.co_filename != threading.__file__:
            place = f" ({frame.f_code.co_filename}, line {line})"
    return f"{thread.name}{place}"
