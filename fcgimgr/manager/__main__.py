"""Where the manager begins: `python -m fcgimgr.manager --config FILE [--daemon]`, as `fcgimgr run` executes it.

With `--die-with PID` it shuts down when that process, its parent, has ended: of a command that it was started for.
With `--no-advice` it leaves it to that command to say what is to be done about what is FATAL.

It is a process of its own so that nothing of the command line stays in its memory.
"""

import os
import sys
from typing import NoReturn

from fcgimgr.linux.standard import open_standard_fds
from fcgimgr.manager.lean import be_lean


def begin() -> NoReturn:
    """Manage until it is over, and end with the exit code."""
    open_standard_fds()
    be_lean()
    from fcgimgr.manager.start import main

    try:
        code = main(sys.argv[1:])
    except Exception as error:
        if os.environ.get("FCGIMGR_DEBUG"):
            raise
        print(f"fcgimgr: internal error: {error!r}; set FCGIMGR_DEBUG=1 to see where", file=sys.stderr)
        code = 1
    sys.stderr.flush()
    # Nothing is left to tidy up, and taking the interpreter down takes longer than the kernel needs for all of it.
    os._exit(code)


if __name__ == "__main__":
    begin()
