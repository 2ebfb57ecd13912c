"""How many requests a worker serves before it asks to be replaced (max_requests).

It asks, and serves on: the manager replaces one worker at a time, by a new one that is ready before, and then tells
this one to end. So it may serve some requests more than it was told to, and a worker whose manager was killed serves on
instead of leaving nobody behind. Without a manager it ends.
"""

from __future__ import annotations

import itertools
import os
import socket
from typing import Final

from fcgimgr.worker.notify import send
from fcgimgr.worker.saying import say

#: Seconds after which it asks again: the answer may have been that a new worker would not start.
ASK_AGAIN: Final = 30.0


class Retirement:
    """After `most` requests, and up to `jitter` more by chance; `address` is $NOTIFY_SOCKET. One for all threads."""

    def __init__(self, most: int, jitter: int, address: str | None) -> None:
        # No seed of the application's, and none that was forked, may let all workers draw the same number.
        self.after = most + int.from_bytes(os.urandom(8), "little") % (jitter + 1)
        self._address = address
        self._served = itertools.count(1)
        self._ask_at = 0.0
        self._unheard = False

    def one_more(self, now: float) -> bool:
        """A request was served; whether to go on. `now`: monotonic seconds."""
        served = next(self._served)
        if served < self.after or now < self._ask_at:
            return True
        if not self._address:
            return False
        self._ask_at = now + ASK_AGAIN
        try:
            send(self._address, f"X_RECYCLE={served} requests served (max_requests)", socket.MSG_DONTWAIT)
        except BlockingIOError:  # its queue is full (unix(7); net.unix.max_dgram_qlen): so it is there
            self._ask_at = now
        except OSError as error:
            if not self._unheard:
                self._unheard = True
                say(f"{served} requests served (max_requests), and nobody to replace it, so it serves on: {error}")
        return True
