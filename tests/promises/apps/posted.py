"""What the Python applications have in common: the log of what was begun and done, and what a POST asks for."""

import os

_LOG = os.open(os.environ["POSTED_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def log(what, name):
    """One write to a file opened to append: a whole line, whoever else writes."""
    os.write(_LOG, f"{what} {name}\n".encode())


def asked(body):
    """The id of the POST, and for how many seconds to wait before the answer and in its middle."""
    name, before, between = body.decode().split()
    return name, int(before) / 1000, int(between) / 1000


def halves(name):
    """The two pieces of the answer."""
    middle = len(name) // 2
    return name[:middle].encode(), f"{name[middle:]}\n".encode()
