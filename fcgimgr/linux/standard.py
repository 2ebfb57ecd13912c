"""Standard input, output and error that are always there.

A process may be started with them closed (`>&-`, some init scripts and cron jobs). Then the first files and sockets
that it opens get the numbers 0 to 2, and whatever is printed goes into them; and Python's sys.stdout is None.
"""

import os
import sys


def open_standard_fds() -> None:
    """Give whichever of fd 0, 1 and 2 is closed /dev/null. To be called before anything is opened."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    # Annotated by typeshed as never None; https://docs.python.org/3/library/sys.html#sys.__stdin__ says when they are.
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
