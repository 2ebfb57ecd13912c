"""A worker on flup with short patience, so that a test need not have more. Run as a program, on fd 0.

Its arguments: the number of threads, and settings as NAME=NUMBER.
"""

import os
import sys

import worker_app  # type: ignore[import-not-found]

from fcgimgr.worker import accepting, flup_engine
from fcgimgr.worker.listening import inherited_listeners
from fcgimgr.worker.notify import notify

if __name__ == "__main__":
    for name in ("HEAD_PATIENCE", "SEND_PATIENCE", "LINGER"):
        assert hasattr(flup_engine, name)
        setattr(flup_engine, name, 0.3)
    for setting in sys.argv[2:]:
        name, number = setting.split("=")
        found = [module for module in (accepting, flup_engine) if hasattr(module, name)]
        assert found
        for module in found:
            setattr(module, name, float(number))
    listeners = inherited_listeners(os.environ)
    flup_engine.serve(worker_app.application, listeners, int(sys.argv[1]), lambda peer: True, lambda: notify("READY=1"))
