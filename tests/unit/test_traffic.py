"""What waits to be accepted is seen at every socket, also at one that only the processes of a pool have."""

import asyncio
import os
import socket
from types import SimpleNamespace
from typing import Any, cast

from fcgimgr.config.address import TcpAddress
from fcgimgr.linux.listeners import LostListener, open_tcp
from fcgimgr.manager.looking.traffic import Load, Traffic
from fcgimgr.manager.sockets.listening import Listening, LostPlace
from tests.integration.ports import free_port


def test_a_socket_that_could_not_be_taken_back_is_looked_at_too() -> None:
    port = free_port()
    with open_tcp("127.0.0.1", port, backlog=5) as theirs:
        inode = os.fstat(theirs.fileno()).st_ino
        place = LostPlace(TcpAddress("127.0.0.1", port), LostListener("lost", inode), ("127.0.0.1", port))
        generation = SimpleNamespace(listening=Listening([place]))
        pool = SimpleNamespace(name="app", generations={1: generation})
        traffic = Traffic(cast(Any, SimpleNamespace(pools={"app": pool})))
        assert asyncio.run(traffic.look()) == {}
        with socket.create_connection(("127.0.0.1", port)):
            assert asyncio.run(traffic.look()) == {"app": Load(in_use=0, queued=1)}
