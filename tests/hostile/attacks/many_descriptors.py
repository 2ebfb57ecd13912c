"""A worker with as many descriptors as it may have, and a connection in its hands, so that it is looked at again."""

import os
import resource
import signal
import socket
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
listener = socket.socket(fileno=0)
client = socket.create_connection(listener.getsockname())
connection, _ = listener.accept()
client.sendall(b"hello")  # which nobody reads: it is in use
for _ in range(min(most, 200_000) - 20):  # one more is needed for the socket below
    os.dup(connection.fileno())
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
while True:
    time.sleep(1)
    notify.sendto(b"X_RECYCLE=please", os.environ["NOTIFY_SOCKET"])
