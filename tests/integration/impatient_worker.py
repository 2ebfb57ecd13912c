"""A native worker with short patience, so that a test need not have more. Run as a program, on fd 0.

Its arguments: the number of threads, and settings as NAME=NUMBER.
"""

import os
import sys

import native_app  # type: ignore[import-not-found]

from fcgimgr.worker import accepting, native_engine, solo
from fcgimgr.worker.listening import inherited_listeners
from fcgimgr.worker.notify import notify

if __name__ == "__main__":
    for name in ("FIRST_BYTE_PATIENCE", "HEAD_PATIENCE", "BODY_PATIENCE", "SEND_PATIENCE", "KEPT_PATIENCE"):
        assert hasattr(native_engine, name)
        setattr(native_engine, name, 0.3)
    for setting in sys.argv[2:]:
        name, number = setting.split("=")
        found = [module for module in (accepting, solo, native_engine) if hasattr(module, name)]
        assert found
        for module in found:
            setattr(module, name, float(number))
    listeners = inherited_listeners(os.environ)
    native_engine.serve(
        native_app.application, listeners, int(sys.argv[1]), lambda peer: True, lambda: notify("READY=1")
    )
