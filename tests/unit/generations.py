"""Listeners of several generations, of whom each client hears which one has answered it."""

import socket


def serve(listener: socket.socket, number: int) -> None:
    """Answer each connection with the number of the generation, until the listener is shut down."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"%d" % number)
