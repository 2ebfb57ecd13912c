"""The application that test_patched.py runs in real workers: one of gevent."""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402

TICKS = os.path.join(os.path.dirname(__file__), "ticks")


def tick():
    with open(TICKS, "a", buffering=1) as ticks:
        while True:
            ticks.write("x")
            ticks.flush()
            time.sleep(0.005)


threading.Thread(target=tick, daemon=True).start()  # a greenlet, by now


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fail":
        raise LookupError("the cupboard is bare")
    if path == "/echo":
        open(os.path.join(os.path.dirname(__file__), "reading"), "w").close()
        body = environ["wsgi.input"].read()
    elif path == "/joined":
        greenlets = [gevent.spawn(lambda number=number: (gevent.sleep(0.01), number)[1]) for number in range(3)]
        gevent.joinall(greenlets)
        body = repr([greenlet.value for greenlet in greenlets]).encode()
    elif path == "/slow":
        time.sleep(0.3)
        body = b"slow"
    else:
        body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body] if path != "/stream" else iter([b"x" * 100_000] * 10)
