"""A worker that says as much as it can on $NOTIFY_SOCKET, for as long as it lives."""

import os
import socket

notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
notify.send(b"READY=1")
much = b"\n".join(b"STATUS=%d" % number for number in range(400))[:4000]
while True:
    notify.send(much)
