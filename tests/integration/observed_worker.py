"""A worker whose engine (argv[1]) has an observer that writes what it is told to stdout, a line each, and that has
enough after the number of requests in $ENOUGH. Run as a program, on the listener that is fd 0."""

import importlib
import os
import sys

import worker_app  # type: ignore[import-not-found]

from fcgimgr.worker.listening import inherited_listeners
from fcgimgr.worker.notify import notify


class Telling:
    def __init__(self) -> None:
        self.left = int(os.environ.get("ENOUGH", "1000"))

    def begin(self, environ, now):
        print("begin", environ["PATH_INFO"], flush=True)

    def end(self, status, sent, now):
        print("end", status, sent, flush=True)
        self.left -= 1
        return self.left > 0


if __name__ == "__main__":
    engine = importlib.import_module(f"fcgimgr.worker.{sys.argv[1]}_engine")
    listeners = inherited_listeners(os.environ)
    engine.serve(worker_app.application, listeners, 1, lambda peer: True, lambda: notify("READY=1"), Telling())
