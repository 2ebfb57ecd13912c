"""A worker that sends descriptors with its notifications: of connections whose close(2) waits for an hour, because they
are to linger until all is sent (SO_LINGER), and nobody takes it. Whoever drops the last one of each waits.
"""

import array
import os
import socket
import struct
import time

listener = socket.create_server(("127.0.0.1", 0))
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
notify.send(b"READY=1")
time.sleep(1)
while True:
    if os.fork() == 0:  # who exits does not wait, and has it no more
        sender = socket.create_connection(listener.getsockname())
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        sender.setblocking(False)
        try:
            while True:
                sender.send(bytes(65536))
        except BlockingIOError:
            pass
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sender.fileno()]))]
        try:
            notify.sendmsg([b"STATUS=take this"], rights)
        except OSError as error:
            notify.send(b"STATUS=" + str(error).encode())
        os._exit(0)
    os.wait()
    time.sleep(0.1)
