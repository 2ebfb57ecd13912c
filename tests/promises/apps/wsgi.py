"""WSGI: for gunicorn, fcgimgr's own servers, and plain flup as `python wsgi.py`."""

import time

from posted import asked, halves, log


def app(environ, start_response):
    name, before, between = asked(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    log("begun", name)
    time.sleep(before)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return answer(name, between)


def answer(name, between):
    first, second = halves(name)
    yield first
    time.sleep(between)
    log("done", name)
    yield second


if __name__ == "__main__":
    from flup.server.fcgi import WSGIServer

    # A connection that is kept holds a thread, and flup counts a thread as idle until it has woken: with one to spare,
    # the second of two connections that come together waits until nginx lets go of another.
    WSGIServer(app, minSpare=8, maxSpare=8).run()
