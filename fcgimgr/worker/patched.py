"""An application that has put greenlets in the place of Python's threads and sockets, as gevent does it.

What the engines need is held on to here, before the application is imported: epoll, poll, sockets that do as they are
told. With those, and one request at a time in the main thread, an application of gevent is served as gunicorn's sync
worker serves it: its greenlets run while a request waits for something, and while the process waits for a request
(`Together`). What gevent calls a thread is none, so that there is nothing to serve several requests at once with, and
what a zygote forks would share its hub: that is refused, and so is eventlet, which leaves none of this usable.

Only that is. Others replace single things that go on working as before, and are none of our business: a proxy's sockets
(PySocks), a profiler's locks (ddtrace).
"""

from __future__ import annotations

import _socket
import select
import sys
import threading
from collections.abc import Mapping
from select import epoll, poll
from socket import AF_UNIX
from socket import socket as Socket  # noqa: N812  # a class, by its name
from threading import get_ident
from types import FrameType
from typing import Any

from fcgimgr.worker.interpreter import has_options

__all__ = [
    "PatchedError",
    "Socket",
    "Together",
    "accept",
    "epoll",
    "frame_of",
    "get_ident",
    "is_patched",
    "pair",
    "poll",
    "refuse_patches",
    "wait_together",
]


class PatchedError(Exception):
    """The application cannot be served so; the text says why, and how it can."""


def accept(listener: Socket) -> tuple[Socket, Any]:
    """As listener.accept(), which would make whatever is called socket.socket by now."""
    fd, peer = listener._accept()  # type: ignore[attr-defined]
    return Socket(listener.family, listener.type, listener.proto, fileno=fd), peer


def pair(kind: int) -> tuple[Socket, Socket]:
    """As socket.socketpair(AF_UNIX, kind)."""
    one, other = _socket.socketpair(AF_UNIX, kind)
    return Socket(fileno=one.detach()), Socket(fileno=other.detach())


def is_patched() -> bool:
    return bool(_patched())


def _patched() -> list[str]:
    """The modules of which a library of greenlets has replaced what matters, by its own word or by its marks."""
    own_word = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
    by_eventlet = _by_eventlet()
    marks = {
        "select": not (hasattr(select, "epoll") and hasattr(select, "poll")),
        "socket": False,
        "threading": threading.get_ident is not get_ident,
    }
    return [
        name
        for name, marked in marks.items()
        if marked or name in by_eventlet or (own_word is not None and own_word(name))
    ]


def _by_eventlet() -> set[str]:
    """The modules that eventlet says it has replaced, by the names of Python 3."""
    patched: Mapping[str, bool] = getattr(sys.modules.get("eventlet.patcher"), "already_patched", {})
    return {"threading" if name == "thread" else name for name, is_so in patched.items() if is_so}


def refuse_patches(server: str, threads: int, preload: bool) -> None:
    """To be called when the application is imported. Raises PatchedError."""
    if not (names := _patched()):
        return
    own = "or give it a server of its own, by command, in place of wsgi"
    if _by_eventlet():
        raise PatchedError(
            f"the application has replaced {_listed(names)} by eventlet's (monkey_patch), with which no worker can "
            f"serve it: leave that out, {own}"
        )
    if server == "native" and threads == 1 and not preload:
        return
    these = "set these in a pool.toml, for fcgimgr dev -c pool.toml" if has_options() else "set these"
    by = "gevent's (monkey.patch_all)" if "gevent.monkey" in sys.modules else "its own"
    raise PatchedError(
        f'the application has replaced {_listed(names)} by {by}, and is served so by server = "native" with '
        f"threads = 1 and preload = false alone: {these}, {own}"
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def frame_of(thread: int) -> FrameType | None:
    """Where a thread (get_ident) is now. The present one is so in a greenlet that looks after a request, which is in
    the main one."""
    if thread != get_ident() or (greenlets := sys.modules.get("greenlet")) is None:
        return sys._current_frames().get(thread)
    greenlet = greenlets.getcurrent()
    while greenlet.parent is not None:
        greenlet = greenlet.parent
    frame: FrameType | None = greenlet.gr_frame
    return frame


def wait_together(waited_for: Any, event: int, patience: float | None) -> None:
    """Wait, while the greenlets of the application run, for one of poll's events; or for something else, or nothing."""
    readers = [waited_for] if event & select.POLLIN else []
    writers = [waited_for] if event & select.POLLOUT else []
    select.select(readers, writers, [], patience)  # gevent's, by now


class Together:
    """`epoll.poll` that lets the greenlets of the application run while nothing comes."""

    def __init__(self, polled: epoll) -> None:
        self._poll = polled.poll
        self._fd = polled.fileno()

    def poll(self, timeout: float | None = None, most: int = -1) -> list[tuple[int, int]]:
        events = self._poll(0, most)
        if not events and timeout != 0:
            # An epoll can be waited for like any other descriptor (epoll(7)).
            wait_together(self._fd, select.POLLIN, timeout)
            events = self._poll(0, most)
        return events
