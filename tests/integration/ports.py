"""Free addresses for the servers of a test, so that tests run side by side."""

import itertools
import random
import socket
from pathlib import Path

_PORTS = range(20000, 30000)
"""Below the range that the kernel gives to outgoing connections (ip_local_port_range), so that none of them takes one
between our look and the bind of the server that it is for."""

_reserved: list[socket.socket] = []


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free and that no other test process is given while this one lives.

    The reservation is an abstract Unix socket named for the port: bind(2) lets only one process have it, and the kernel
    drops it when that process ends, in whatever way.
    """
    first = random.SystemRandom().randrange(len(_PORTS))
    for port in itertools.chain(_PORTS[first:], _PORTS[:first]):
        reservation = socket.socket(socket.AF_UNIX)
        with socket.socket() as trial:
            try:
                reservation.bind(f"\0fcgimgr-test-port-{port}")
                trial.bind(("127.0.0.1", port))
            except OSError:
                reservation.close()
                continue
        _reserved.append(reservation)
        return port
    raise AssertionError(f"no free port in {_PORTS}")


def free_address(transport: str, directory: Path) -> str:
    """A socket address as pool.toml and nginx write it: "127.0.0.1:20001" for `tcp`, "unix:/…/pool.sock" for `unix`."""
    return f"127.0.0.1:{free_port()}" if transport == "tcp" else f"unix:{directory}/pool.sock"


def connect(address: str, timeout: float = 10.0) -> socket.socket:
    """A connection to an address of `free_address`."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(address.removeprefix("unix:"))
        except OSError:
            connection.close()
            raise
        return connection
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout)
