"""A worker that sends a descriptor with each answer: of a connection whose close(2) waits for an hour, because it is to
linger until all is sent (SO_LINGER), and nobody takes it. Whoever drops the last one of it waits.
"""

import array
import os
import socket
import struct

accepting = socket.socket(fileno=0)
listener = socket.create_server(("127.0.0.1", 0))
while True:
    if os.fork() == 0:  # who exits does not wait, and has it no more before anybody has read the answer
        sender = socket.create_connection(listener.getsockname())
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        sender.setblocking(False)
        try:
            while True:
                sender.send(bytes(65536))
        except BlockingIOError:
            pass
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sender.fileno()]))]
        connection, _ = accepting.accept()
        connection.sendmsg([b"\1"], rights)
        os._exit(0)
    os.wait()
    print("a descriptor went with it", flush=True)
