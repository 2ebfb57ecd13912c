"""The application behind the fronts that says what it was asked, and answers in every way that a front must pass on.

Standard library only, and a module of its own directory: it is copied to where a pool is started.
"""

import hashlib
import json
import os
from pathlib import Path

HERE = Path(__file__).parent
TEXT = [("Content-Type", "text/plain")]


def application(environ, start_response):
    head, _, name = environ["PATH_INFO"].rpartition("/")
    answer = globals().get(f"answer_{name}") if head.endswith("/do") else answer_environ
    return answer(environ, start_response)


def answer_environ(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    asked = {name: value for name, value in environ.items() if isinstance(value, str)}
    return [json.dumps(asked).encode()]


def answer_digest(environ, start_response):
    """What came of a body, read to the end that the server says it has."""
    body = b""
    if environ.get("wsgi.input_terminated"):
        body = environ["wsgi.input"].read()
    elif environ.get("CONTENT_LENGTH"):
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", TEXT)
    return [f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()]


def answer_page(environ, start_response):
    """As Django and others answer: the page, whatever the method; dropping the body of a HEAD is the server's part."""
    start_response("200 OK", [*TEXT, ("Content-Length", "5")])
    return [b"page\n"]


def answer_unsized(environ, start_response):
    start_response("200 OK", TEXT)
    return [b"page\n"]


def answer_nothing(environ, start_response):
    start_response("204 No Content", [])
    return []


def answer_unmodified(environ, start_response):
    start_response("304 Not Modified", [("ETag", '"1"')])
    return []


def answer_denied(environ, start_response):
    """Without a look at the body."""
    start_response("401 Unauthorized", [*TEXT, ("WWW-Authenticate", 'Basic realm="x"'), ("Content-Length", "3")])
    return [b"no\n"]


def answer_part(environ, start_response):
    """A range, by the application's own doing."""
    if environ.get("HTTP_RANGE") != "bytes=2-4":
        start_response("200 OK", TEXT)
        return [b"0123456789"]
    start_response("206 Partial Content", [*TEXT, ("Content-Range", "bytes 2-4/10"), ("Content-Length", "3")])
    return [b"234"]


def answer_headers(environ, start_response):
    """As many bytes of headers as asked for."""
    length = int(environ["QUERY_STRING"])
    start_response("200 OK", [*TEXT, *((f"X-Much-{number}", "x" * 1000) for number in range(length // 1000))])
    return [b"ok\n"]


def answer_cookies(environ, start_response):
    start_response("200 OK", [*TEXT, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    return [b"ok\n"]


def answer_file(environ, start_response):
    """A file for the front to send, with its length, as Flask's USE_X_SENDFILE and django-sendfile2 have it."""
    path = HERE / "files" / "file.txt"
    place = {"X-Sendfile": str(path), "X-Accel-Redirect": "/protected/file.txt"}
    name = environ["QUERY_STRING"]
    start_response("200 OK", [*TEXT, ("Content-Length", str(os.path.getsize(path))), (name, place[name])])
    return []


def answer_streamed(environ, start_response):
    """A block, and another one when the test says so."""
    start_response("200 OK", TEXT)
    yield b"first"
    with (HERE / "gate").open("rb", buffering=0) as gate:
        gate.read(1)
    yield b"second"
