"""Descriptors that come along with what is said on a Unix socket (SCM_RIGHTS), for which there is no use.

Where there is no room for them the kernel drops them, in the midst of our recvmsg(2) or recv(2); and those that nobody
has read yet, with the connection or its listener. Whoever drops the last descriptor of a TCP connection that is to
linger (SO_LINGER) waits until its other end has taken all there is to send, and it may be set to linger for a year. So
the wait is cut short, which any signal does. And where nobody has a reason to send any they are refused, if that can
be, from Linux 6.16 on: it is an error of who sends them.
"""

import contextlib
import signal
import socket
from collections.abc import Iterator
from typing import Final

_SO_PASSRIGHTS: Final = 83  # asm-generic/socket.h
#: Seconds after which a wait is cut short.
SHORT: Final = 0.003


def refuse_rights(ours: socket.socket) -> None:
    """Let no descriptor be sent to this socket, nor to those accepted from it, where the kernel can do that."""
    with contextlib.suppress(OSError):
        ours.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def can_refuse() -> bool:
    """Whether this kernel can."""
    with socket.socket(socket.AF_UNIX) as trial:
        try:
            trial.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def cut_short() -> Iterator[None]:
    """No wait for a connection that is closed within is longer than SHORT. For the main thread only."""
    if signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN, None):
        signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, SHORT, SHORT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


#: To be around whatever receives on a socket of `refuse_rights`, or closes it.
dropping_rights: Final = contextlib.nullcontext if can_refuse() else cut_short
