"""The application that test_wsgi_worker.py runs in real workers: a path for each thing that a test wants to see.

Standard library only, and a module of its own directory: it is copied to where a worker is started.
"""

import errno
import fcntl
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent


def application(environ, start_response):
    path = environ["PATH_INFO"].strip("/") or "pid"
    return globals()[f"answer_{path}"](environ, start_response)


def answer_pid(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


def answer_echo(environ, start_response):
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(body)))])
    return [body[at : at + 70_000] for at in range(0, len(body), 70_000)]


def answer_hold(environ, start_response):
    """Say that a request is in hand by a FIFO of its own, and answer when the test has opened and closed that."""
    held = HERE / f"held-{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
    os.mkfifo(held)
    held.read_bytes()
    held.unlink()
    return answer_pid(environ, start_response)


def answer_report(environ, start_response):
    """What the worker looks like from within."""
    print("a line on stdout")
    print("a line on wsgi.errors", file=environ["wsgi.errors"])
    report = {
        "argv": sys.argv[1:],
        "path": sys.path,
        "modules": sorted(sys.modules),
        "environment": dict(os.environ),
        "stdin": os.readlink("/proc/self/fd/0"),
        "inheritable": [
            fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and is_open(fd) and os.get_inheritable(fd)
        ],
        "params": {name: value for name, value in environ.items() if isinstance(value, str)},
        "wsgi": {name: environ[name] for name in ("wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once")},
        "main_thread": threading.current_thread() is threading.main_thread(),
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(report).encode()]


def is_open(fd):
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def answer_fork(environ, start_response):
    """Fork a child and end it by TERM, as multiprocessing does."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"x")
        while True:
            time.sleep(60)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    os.kill(child, 15)
    _, status = os.waitpid(child, 0)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(status).encode()]


def answer_fail(environ, start_response):
    raise LookupError("the cupboard is bare")


def answer_leave(environ, start_response):
    sys.exit(9)


def answer_halfway(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"the first half"
    raise LookupError("the second half is missing")


def answer_pipe_call(environ, start_response):
    raise BrokenPipeError(errno.EPIPE, "the database has gone")


def answer_pipe_iteration(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"the first half"
    raise BrokenPipeError(errno.EPIPE, "the database has gone")


def answer_pipe_close(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return FailsToClose()


class FailsToClose:
    def __iter__(self):
        yield b"all of it"

    def close(self):
        raise BrokenPipeError(errno.EPIPE, "the database has gone")


def answer_empty(environ, start_response):
    start_response("204 No Content", [])
    return []


def answer_endless(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    while True:
        yield b"x" * 65536


def answer_stuck(environ, start_response):
    """Be busy in C for longer than any test lasts, and let no other thread run meanwhile."""
    re.match("(a+)+$", "a" * 60 + "b")
    return answer_pid(environ, start_response)
