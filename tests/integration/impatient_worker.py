"""A worker with short patience, so that a test need not have more. Run as a program, on fd 0.

Its arguments: the engine, the number of threads, the application's module, and settings as NAME=NUMBER.
"""

import importlib
import os
import sys

from fcgimgr.worker import accepting, answering, flup_engine, native_engine, patience, solo
from fcgimgr.worker.listening import inherited_listeners
from fcgimgr.worker.notify import notify

SERVE = {"flup": flup_engine.serve, "native": native_engine.serve}
IMPATIENT = ("FIRST_BYTE_PATIENCE", "HEAD_PATIENCE", "BODY_PATIENCE", "SEND_PATIENCE", "LINGER", "KEPT_PATIENCE")


def main(engine: str, threads: str, module: str, *settings: str) -> None:
    for name in IMPATIENT:
        settle(name, 0.3)
    for setting in settings:
        name, number = setting.split("=")
        settle(name, float(number))
    application = importlib.import_module(module).application
    listeners = inherited_listeners(os.environ)
    SERVE[engine](application, listeners, int(threads), lambda peer: True, lambda: notify("READY=1"))


def settle(name: str, number: float) -> None:
    found = [
        module for module in (accepting, solo, patience, answering, native_engine, flup_engine) if hasattr(module, name)
    ]
    assert found, name
    for module in found:
        setattr(module, name, number)


if __name__ == "__main__":
    main(*sys.argv[1:])
