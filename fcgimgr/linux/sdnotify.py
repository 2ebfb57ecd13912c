"""The manager as a service of systemd: what it tells of its state, the watchdog, and the fds it leaves for safekeeping.

sd_notify(3)'s protocol: datagrams of NAME=VALUE lines to the Unix socket $NOTIFY_SOCKET names, and descriptors along
with them as SCM_RIGHTS. Whoever else understands it (a container's runtime, a test) will do. Without the variable
nothing is sent, and nothing that goes wrong here is worth a service's life: False says that a message did not arrive.
"""

import array
import os
import re
import socket
import time
from collections.abc import MutableMapping, Sequence
from typing import Final

from fcgimgr.linux.errors import LinuxError

# What systemd takes for FDNAME: no control characters, no colon (FileDescriptorName= in systemd.socket(5)).
_FD_NAME: Final = re.compile(r"[ -9;-~]{1,255}")
# SCM_MAX_FD, net/core/scm.h
_FDS_AT_ONCE: Final = 253


class Notifier:
    """Where to send to. Taken from the environment once: the variables are for us and not for our children."""

    def __init__(self, address: str | None, watchdog: float | None = None, room: int = 0) -> None:
        """address: absolute path, or "@name" in the abstract namespace; None: nobody listens.

        watchdog: seconds within which it wants to hear from us each time; None: never. room: how many fds it keeps.
        """
        self.address = address
        self.watchdog = watchdog
        self.room = room
        self.environment: dict[str, str] = {}  # what it was made from: for the same process after an exec

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> "Notifier":
        """Takes NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID and FDSTORE out of `environ`.

        LinuxError: one is malformed, or the socket is of a kind that is not built (vsock:…).
        """
        keys = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
        values = {key: environ.pop(key, "") for key in keys}
        address, microseconds, pid, room = values.values()
        if address and address[0] not in "/@":
            raise LinuxError(
                f"NOTIFY_SOCKET: {address!r} is neither an absolute path nor an abstract socket (@name); unset it, or "
                "let the service manager pass a Unix socket"
            )
        watchdog = None
        if microseconds:
            number = _number(microseconds)
            if not number:
                raise LinuxError(f"WATCHDOG_USEC: {microseconds!r} is not a positive number of microseconds")
            if not pid or pid == str(os.getpid()):
                watchdog = number / 1e6
        if room and _number(room) is None:
            raise LinuxError(f"FDSTORE: {room!r} is not a number; it is that of FileDescriptorStoreMax=")
        notifier = cls(address or None, watchdog if address else None, _number(room) or 0 if address else 0)
        # Whose watchdog it is has been settled, and a daemon has another pid than the one that was told.
        interval = microseconds if watchdog is not None else ""
        ours = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": interval, "FDSTORE": room}
        notifier.environment = {key: value for key, value in ours.items() if value}
        return notifier

    def ready(self, status: str = "") -> bool:
        """Fully started, or the reload is over."""
        return self._say("READY=1", _status(status))

    def reloading(self, status: str = "") -> bool:
        """A reload begins; `ready` ends it. Type=notify-reload wants the moment, to tell this one from others."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._say("RELOADING=1", f"MONOTONIC_USEC={microseconds}", _status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._say(_status(text))

    def stopping(self, status: str = "") -> bool:
        """The stop has begun; it may take until TimeoutStopSec."""
        return self._say("STOPPING=1", _status(status))

    def alive(self) -> bool:
        """Resets the watchdog. Half of `watchdog` is a good interval (sd_watchdog_enabled(3))."""
        return self._say("WATCHDOG=1")

    def main_pid(self, pid: int) -> bool:
        """Which process is the service from now on. Our own exec keeps the pid and needs no word."""
        return self._say(f"MAINPID={pid}")

    def extend_timeout(self, seconds: float) -> bool:
        """More time for the start, reload or stop that is under way: this much from now on."""
        return self._say(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def store_fds(self, name: str, fds: Sequence[int]) -> bool:
        """Leave copies of these with systemd (FileDescriptorStoreMax= above 0), which passes them to our next start.

        They come back as `listeners.inherited_sockets` finds them, under `name`. Told again, the same is kept once, and
        under the name of the first time.
        """
        return self._say("FDSTORE=1", _fd_name(name), "FDPOLL=0", fds=fds)

    def forget_fds(self, name: str) -> bool:
        """Have those left under this name closed."""
        return self._say("FDSTOREREMOVE=1", _fd_name(name))

    def _say(self, *lines: str, fds: Sequence[int] = ()) -> bool:
        """Send it now; False: nobody is there, or it could not be delivered at once."""
        if not self.address:
            return False
        if len(fds) > _FDS_AT_ONCE:
            raise ValueError(f"{len(fds)} fds do not go into one message, {_FDS_AT_ONCE} do")
        address = os.fsencode(self.address)
        if address.startswith(b"@"):
            address = b"\0" + address[1:]
        message = "\n".join(line for line in lines if line).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                # A receiver that does not read must not stop us: MSG_DONTWAIT, and the loss is told. (socket.send_fds
                # forgets the flags and the address it is given.)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                out.sendmsg([message], rights, socket.MSG_DONTWAIT, address)
        except OSError:
            return False
        return True


def _number(text: str) -> int | None:
    """What fits into 64 bits; None: it is no such number."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _status(text: str) -> str:
    """A line break would begin another assignment."""
    return "STATUS=" + " ".join(text.split()) if text else ""


def _fd_name(name: str) -> str:
    if not _FD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for an fd: printable ASCII without a colon, at most 255")
    return f"FDNAME={name}"
