"""A worker that sends descriptors with its notifications, of connections that linger (lingering.py)."""

import os
import socket
import time

from lingering import lingering

listener = socket.create_server(("127.0.0.1", 0))
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
notify.send(b"READY=1")
time.sleep(1)
while True:
    if os.fork() == 0:  # who exits does not wait, and has it no more
        sender, rights = lingering(listener)
        try:
            notify.sendmsg([b"STATUS=take this"], rights)
        except OSError as error:
            notify.send(b"STATUS=" + str(error).encode())
        os._exit(0)
    os.wait()
    time.sleep(0.1)
