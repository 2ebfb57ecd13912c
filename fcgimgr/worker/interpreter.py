"""What is to be said of the Python that runs the application, where it lacks a module that another one may have."""

from __future__ import annotations

import os
import sys
from typing import Final

#: What people call a virtualenv that lies in their project.
_NAMES: Final = ("venv", ".venv", "env")
#: Set by `fcgimgr dev` (cli/dev_pool.py): in which pool of a configuration the keys are written, or "" where its
#: options stand for them, and there may be no configuration.
_DEV: Final = "FCGIMGR_DEV"


def has_options() -> bool:
    """Whether whoever runs the application has given options, and no keys of a pool."""
    return os.environ.get(_DEV) == ""


def who_lacks(module: str) -> str:
    """To be said below the error: that this Python has no such module, and how another one is named.

    Empty where a package is there and has no such part: that is the application's own.
    """
    top = module.partition(".")[0]
    if not top or top in sys.modules:
        return ""
    lacks = f"{sys.executable} has no module {top!r}"
    found = another_virtualenv()
    if found is not None:
        return f"{lacks}; there is a virtualenv in {found}: {key_for(found)}"
    if sys.prefix != sys.base_prefix:
        return f"{lacks}; install it there, or name the Python that has it: {key_for('/path/to/virtualenv')}"
    return f"{lacks}; name the Python that has it: {key_for('/path/to/virtualenv')}"


def key_for(virtualenv: str) -> str:
    """What is to be said for the application to run in this virtualenv: in the configuration, or to `dev`."""
    python = f"{virtualenv}/bin/python"
    if has_options():
        return f"--python {python}"
    pool = os.environ.get(_DEV) or os.environ.get("FCGIMGR_POOL")
    return f'python = "{python}"' + (f" in [pool.{pool}]" if pool else "")


def another_virtualenv() -> str | None:
    """One that is active, or lies where the application is or above it, and is not the one that we run in."""
    places = [os.environ.get("VIRTUAL_ENV", "")]
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was removed
        pass
    else:
        places += (os.path.join(place, name) for place in (here, os.path.dirname(here)) for name in _NAMES)
    return next(filter(_is_another, places), None)


def _is_another(place: str) -> bool:
    python, marked = os.path.join(place, "bin", "python"), os.path.join(place, "pyvenv.cfg")
    if not (os.path.isabs(place) and os.path.isfile(marked) and os.access(python, os.X_OK)):
        return False
    try:
        return not os.path.samefile(place, sys.prefix)
    except OSError:
        return True
