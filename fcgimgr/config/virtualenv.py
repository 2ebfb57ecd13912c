"""The virtualenv that is active where the manager is started: the Python of `wsgi` pools that name none.

The application works in the shell of whoever has just written it, and so it is to work here. What counts is the
manager's own environment, which it has from its start and takes along over an upgrade: each update finds the same
Python. A manager that is started without it, or in another one, has another, as it has other variables.

A variable that came along (`su`, `sudo -E`) must not lead root to what is somebody else's to change: as root it is
taken only where nobody else could put another Python there, nor anything else that runs at its start.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Final

from fcgimgr.linux.directories import others_who_may_change

#: What a Python obeys before the application's first line: where its home is, and each `.pth` and module.
_OBEYED: Final = ("bin/pyvenv.cfg", "pyvenv.cfg", "lib*/python*/site-packages", "lib*/python*/site-packages/*")


def python_in(environ: Mapping[str, str]) -> str | None:
    """The Python of $VIRTUAL_ENV, whether it is there or not; None: none is active."""
    home = environ.get("VIRTUAL_ENV", "")
    return os.path.join(home, "bin", "python") if os.path.isabs(home) else None


def activated_python(environ: Mapping[str, str]) -> str | None:
    """The Python of $VIRTUAL_ENV, if we should run it."""
    python = python_in(environ)
    if python is None or os.geteuid() != 0:
        return python
    try:
        return None if any(map(others_who_may_change, _obeyed(python))) else python
    except OSError:
        return None


def _obeyed(python: str) -> Iterator[str]:
    """Where that lies which decides what runs as this Python."""
    import glob  # only a root with a virtualenv pays for it

    yield python
    home = os.path.dirname(os.path.dirname(python))
    for pattern in _OBEYED:
        for found in glob.iglob(pattern, root_dir=home, include_hidden=True):
            yield os.path.join(home, found)
