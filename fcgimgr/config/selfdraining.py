"""Which commands are servers that finish by themselves what they have in hand, when they get a certain signal?

Only those for which that was tried: that accept no more on the signal, answer what they have read whole, and then end.
A command that starts such a server from within a script is not recognised; its pool says `drain = "self"`.
"""

import os
import re
import signal
from collections.abc import Sequence
from typing import Final

_TERM: Final = frozenset({signal.SIGTERM})
_TERM_OR_INT: Final = frozenset({signal.SIGTERM, signal.SIGINT})

#: By the name of the program or of Python's module, the signals on which it does.
SERVERS: Final = {
    "gunicorn": _TERM,  # on INT and QUIT it cuts
    "uvicorn": _TERM_OR_INT,
}
_PYTHON: Final = re.compile(r"python[0-9.]*\Z")
# Options of Python that have a value of their own.
_WITH_VALUE: Final = frozenset({"-W", "-X"})


def drains_itself(command: Sequence[str], number: int) -> bool:
    """Whether this command is known to finish what it has in hand on this signal."""
    return number in SERVERS.get(server(command), frozenset())


def server(command: Sequence[str]) -> str:
    """What is run: the name of the program, or of the module after `python -m`."""
    if not command:
        return ""
    name = os.path.basename(command[0])
    if not _PYTHON.match(name):
        return name
    words = iter(command[1:])
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif word == "-m":
            return next(words, "")
        elif not word.startswith("-"):
            return os.path.basename(word)  # a script, such as the one that pip has made
    return ""
