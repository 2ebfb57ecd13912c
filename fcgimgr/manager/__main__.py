"""Where the manager begins: `python -m fcgimgr.manager --config FILE [--daemon]`, as `fcgimgr run` executes it.

It is a process of its own so that nothing of the command line stays in its memory.
"""

import os
import sys
from typing import NoReturn


def begin() -> NoReturn:
    """Manage until it is over, and end with the exit code."""
    # asyncio imports ssl if it can: 6 MB for which the manager has no use.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    from fcgimgr.manager.start import main

    code = main(sys.argv[1:])
    sys.stderr.flush()
    # Nothing is left to tidy up, and taking the interpreter down takes longer than the kernel needs for all of it.
    os._exit(code)


if __name__ == "__main__":
    begin()
