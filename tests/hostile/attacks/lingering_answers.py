"""A worker that sends a descriptor with each answer, of a connection that lingers (lingering.py)."""

import os
import socket

from lingering import lingering

accepting = socket.socket(fileno=0)
listener = socket.create_server(("127.0.0.1", 0))
while True:
    if os.fork() == 0:  # who exits does not wait, and has it no more before anybody has read the answer
        sender, rights = lingering(listener)
        connection, _ = accepting.accept()
        connection.sendmsg([b"\1"], rights)
        os._exit(0)
    os.wait()
    print("a descriptor went with it", flush=True)
