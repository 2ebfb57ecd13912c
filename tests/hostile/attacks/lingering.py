"""For attacks: a connection whose close(2) waits for an hour, because it is to linger until all is sent (SO_LINGER),
and nobody takes it. Whoever drops the last descriptor of it waits.
"""

import array
import socket
import struct


def lingering(listener: socket.socket) -> tuple[socket.socket, list[tuple[int, int, array.array]]]:
    """One to a listener that accepts nobody, and the ancillary data to send it with (SCM_RIGHTS)."""
    sender = socket.create_connection(listener.getsockname())
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(65536))
    except BlockingIOError:
        pass
    return sender, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sender.fileno()]))]
