"""The terminal that controls this process, and the moment when it hangs up.

When a terminal is closed the kernel sends SIGHUP to the processes in its foreground, and a shell passes that on to its
jobs (tty_ioctl(4), credentials(7)). The signal alone does not tell that from somebody's `kill -HUP`; the terminal's own
descriptor does: it polls as hung up from then on. One that was told to go on (`disown`) gets no signal, and must not
take the next one for that: so the moment is noted when it comes.
"""

import os
import select
from typing import Final, Self

#: Seconds after the terminal's end in which its SIGHUP comes, if one comes; a shell may have something to do before.
SOON: Final = 5.0


class Terminal:
    """The controlling terminal. Its `fileno()` becomes readable when it has hung up, and for nothing else."""

    def __init__(self, fd: int) -> None:
        """fd: of a terminal, which is closed with this."""
        self._fd = fd
        # Within another epoll, because whoever watches the descriptor itself would hear of each key that is pressed.
        self._epoll = select.epoll()
        self._epoll.register(fd, 0)  # EPOLLHUP comes unasked
        self._ended: float | None = None
        self.closed = False

    @classmethod
    def controlling(cls) -> Self | None:
        """The one of this process; None: it has none."""
        try:
            return cls(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return None

    def fileno(self) -> int:
        return self._epoll.fileno()

    def look(self, now: float) -> None:
        """Note if it has hung up by `now` (seconds, monotonic)."""
        if self._ended is None and self._epoll.poll(0):
            self._ended = now

    def ended_lately(self, now: float) -> bool:
        """Whether it has hung up, so lately that a SIGHUP is about that."""
        self.look(now)
        return self._ended is not None and now - self._ended < SOON

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._epoll.close()
            os.close(self._fd)
