"""What waits at a generation that has died of it is accepted until its listener is closed, and no longer."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

from fcgimgr.manager.passing import Passing


class Dead:
    """A generation."""


def test_its_end_at_the_moment_of_an_event_is_no_fault_and_loses_no_connection() -> None:
    faults: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def run() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: faults.append(context))
            passing: Any = Passing(SimpleNamespace(loop=loop))  # type: ignore[arg-type]
            place = SimpleNamespace(address="here", listener=SimpleNamespace(sock=listener), connect_to=lambda: "")
            generation: Any = Dead()
            generation.listening = SimpleNamespace(places=[place])
            passing.pass_on(generation, generation.listening)
            await asyncio.sleep(0)
            loop.call_soon(passing.end, generation)  # in the turn in which the connection is seen
            with socket.create_connection(listener.getsockname()):
                for _ in range(3):
                    await asyncio.sleep(0)
                listener.setblocking(False)
                listener.accept()[0].close()  # it is still there for others

        asyncio.run(run())
    assert faults == []
