"""Tell the manager something (sd_notify's protocol: one datagram to the socket that $NOTIFY_SOCKET names)."""

from __future__ import annotations

import os
import socket

from fcgimgr.worker.patched import Socket
from fcgimgr.worker.saying import say


def notify(message: str) -> None:
    """Send `message`, such as "READY=1"; without $NOTIFY_SOCKET do nothing.

    A manager that cannot be told is said on stderr and is no reason not to serve.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        send(address, message)
    except OSError as error:
        say(f"cannot notify the manager ({message}): {error}")


def send(address: str, message: str, flags: int = 0) -> None:
    """Send `message` to the socket of this $NOTIFY_SOCKET; `flags` of send(2). OSError: it cannot be told."""
    if address.startswith("@"):  # an abstract socket (sd_notify(3))
        address = "\0" + address[1:]
    with Socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message.encode(), flags, address)
