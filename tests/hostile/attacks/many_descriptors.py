"""A worker with as many descriptors as it may have, and a connection in its hands, so that it is looked at again."""

import os
import resource
import signal
import socket

signal.signal(signal.SIGTERM, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
listener = socket.socket(fileno=0)
client = socket.create_connection(listener.getsockname())
connection, _ = listener.accept()
connection.sendall(b"hello")
for _ in range(min(most, 200_000) - 20):
    os.dup(connection.fileno())
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"X_RECYCLE=please", os.environ["NOTIFY_SOCKET"])
while True:
    signal.pause()
