"""A long piece of work in the loop, in turns with all else that is to be done there."""

import asyncio
import time
from typing import Final

#: Seconds of a turn.
TURN: Final = 0.004


class Turns:
    """The turns of one piece of work, which begins now."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    async def give_way(self) -> None:
        """Let the others have their turn, if this one has taken long enough."""
        if time.monotonic() - self._begun > TURN:
            await asyncio.sleep(0)
            self._begun = time.monotonic()
