"""The application that test_promises.py and others run in real workers: what WSGI allows, and what it does not."""

import asyncio
import io
import os
import signal
import sys
import threading
import time
from pathlib import Path
from wsgiref.validate import validator

HERE = Path(__file__).parent
PLAIN = [("Content-Type", "text/plain")]


def application(environ, start_response):
    path = environ["PATH_INFO"].strip("/")
    if environ["QUERY_STRING"].startswith("to="):  # where the path itself is what is tried
        path = environ["QUERY_STRING"][3:]
    return globals()[f"answer_{path}"](environ, start_response)


def note(what):
    """For the test to find, also when nobody can be told any more."""
    with (HERE / "notes").open("a") as notes:
        notes.write(f"{what}\n")


class Closing:
    """An iterable that notes its close()."""

    def __init__(self, blocks):
        self.blocks = blocks

    def __iter__(self):
        return iter(self.blocks)

    def close(self):
        note("closed")


def answer_pid(environ, start_response):
    start_response("200 OK", PLAIN)
    return [str(os.getpid()).encode()]


def answer_nap(environ, start_response):
    """Long enough for others to come meanwhile."""
    time.sleep(0.02)
    return answer_pid(environ, start_response)


def answer_called(environ, start_response):
    note("called")
    start_response("200 OK", PLAIN)
    return [b"called"]


def answer_hold(environ, start_response):
    """Say that a request is in hand by a FIFO of its own, and answer when the test has opened and closed that."""
    held = HERE / f"held-{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
    os.mkfifo(held)
    held.read_bytes()
    held.unlink()
    return answer_pid(environ, start_response)


def answer_fail(environ, start_response):
    raise LookupError("the cupboard is bare")


def answer_environ(environ, start_response):
    start_response("200 OK", PLAIN)
    return [repr({name: repr(value) for name, value in environ.items()}).encode()]


@validator
def answer_valid(environ, start_response):
    """Whatever the server does against PEP 3333 raises AssertionError here, and is a 500."""
    environ["wsgi.errors"].write("")
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", PLAIN)
    return [str(len(body)).encode()]


def answer_lines(environ, start_response):
    source = environ["wsgi.input"]
    found = [source.readline(), source.readline(3), source.readline(), *source.readlines(1), *source, source.read()]
    start_response("200 OK", PLAIN)
    return [repr(found).encode()]


def answer_file_like(environ, start_response):
    """The body, read in one of the ways in which Python reads files."""
    source, way = environ["wsgi.input"], environ["QUERY_STRING"]
    if way == "none":
        body = source.read(None)
    elif way == "text":
        body = io.TextIOWrapper(source, "ascii", newline="").read().encode()
    elif way == "lines":
        body = b"".join(source.readlines(None))
    elif way == "into":
        body = bytearray(int(environ["CONTENT_LENGTH"]))
        got = 0
        while got < len(body):
            got += source.readinto(memoryview(body)[got:])
        body = bytes(body)
    else:
        body = b"".join(iter(lambda: source.read(1), b""))
    start_response("200 OK", PLAIN)
    return [body]


def answer_upload(environ, start_response):
    """Reads all, and notes why it could not."""
    note("reading")
    try:
        environ["wsgi.input"].read()
    except Exception as error:
        note(f"{type(error).__name__}: {error}")
        raise
    return answer_pid(environ, start_response)


def answer_large(environ, start_response):
    """More than any socket's buffer takes at once."""
    start_response("200 OK", PLAIN)
    return [b"x" * 1_000_000]


def answer_count(environ, start_response):
    """The length of a body that is read to its end, however long, and the memory that this took."""
    length = 0
    before = resident()
    while piece := environ["wsgi.input"].read(65536):
        length += len(piece)
    start_response("200 OK", PLAIN)
    return [f"{length} {'CONTENT_LENGTH' in environ} {resident() - before}".encode()]


def resident():
    return int((Path("/proc/self/statm").read_text().split())[1]) * 4096


def answer_ignore(environ, start_response):
    start_response("200 OK", PLAIN)
    return [b"not read"]


def answer_read_late(environ, start_response):
    """Reads on when all of its answer is given, and notes what came of it."""
    note("begun")
    if environ["QUERY_STRING"] == "held":
        (HERE / "gate").read_bytes()
    start_response("200 OK", [*PLAIN, ("Content-Length", "4")])
    length = len(environ["wsgi.input"].read(10)) if environ["QUERY_STRING"] == "begins" else 0
    yield b"done"
    try:
        while piece := environ["wsgi.input"].read(10_000):
            length += len(piece)
        note(f"all of {length}")
    except Exception as error:
        note(f"{type(error).__name__}: {error}")
        raise


def answer_undeterred(environ, start_response):
    """Answers although its upload has ended early."""
    note("reading")
    try:
        environ["wsgi.input"].read()
        said = b"all of it"
    except ConnectionError:
        said = b"a part of it"
    start_response("200 OK", PLAIN)
    return [said]


def answer_write(environ, start_response):
    write = start_response("200 OK", PLAIN)
    write(b"one ")
    write(b"two ")
    return Closing([b"three", b"", b" four"])


def answer_stream(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing(iter(lambda: b"x" * 1000, None))


def answer_slowly(environ, start_response):
    """A block, then one each time that the test says so."""
    start_response("200 OK", PLAIN)

    def blocks():
        yield b"first"
        while True:
            (HERE / "gate").read_bytes()
            yield b"more"

    return Closing(blocks())


def answer_file(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return environ["wsgi.file_wrapper"](Noted(HERE / "large"), 10)


def answer_range(environ, start_response):
    begin, length = environ["QUERY_STRING"].split(",")
    file = (HERE / "large").open("rb")
    file.seek(int(begin))
    start_response("206 Partial Content", [*PLAIN, ("Content-Length", length)])
    return environ["wsgi.file_wrapper"](file, 8192)


def answer_grown(environ, start_response):
    """A log to which a line is written while it is sent."""
    file = (HERE / "large").open("r+b")
    start_response("200 OK", [*PLAIN, ("Content-Length", str(file.seek(0, io.SEEK_END)))])
    file.write(b"one more line\n")
    file.seek(0)
    return environ["wsgi.file_wrapper"](file)


class Noted(io.FileIO):
    def close(self):
        if not self.closed:
            note("closed")
        super().close()


def answer_second_thought(environ, start_response):
    start_response("200 OK", PLAIN)
    try:
        raise LookupError("too late?")
    except LookupError:
        start_response("503 Service Unavailable", PLAIN, sys.exc_info())
    return [b"sorry"]


def answer_late_thought(environ, start_response):
    start_response("200 OK", PLAIN)
    yield b"so far so good"
    try:
        raise LookupError("too late")
    except LookupError:
        start_response("500 No", PLAIN, sys.exc_info())


def answer_bodiless(environ, start_response):
    start_response(environ["QUERY_STRING"], [*PLAIN, ("X-Name", "\xe9t\xe9")])
    return Closing([b"no", b"body"])


def answer_bodiless_written(environ, start_response):
    write = start_response(environ["QUERY_STRING"], [*PLAIN, ("X-Name", "\xe9t\xe9")])
    write(b"no")
    return Closing([b"body"])


def answer_iterable(environ, start_response):
    start_response("200 OK", PLAIN)
    blocks = [b"123", b"", b"45"]
    return {
        "list": blocks,
        "tuple": tuple(blocks),
        "iter": iter(blocks),
        "generator": (block for block in blocks),
        "one": [b"123"],
        "none": [],
    }[environ["QUERY_STRING"]]


def answer_lengths(environ, start_response):
    start_response("200 OK", [*PLAIN, ("Content-Length", "5"), ("content-length", "6")])
    return [b"12345"]


def answer_header(environ, start_response):
    name, value = environ["QUERY_STRING"].encode("latin-1").decode("unicode_escape").split("=")
    start_response("200 OK", [*PLAIN, (name, value)])
    return [b"not refused"]


def answer_status(environ, start_response):
    start_response(environ["QUERY_STRING"].encode("latin-1").decode("unicode_escape"), PLAIN)
    return [b"not refused"]


def answer_length(environ, start_response):
    """A body of five bytes, and another Content-Length; in one block or in two."""
    length, blocks = environ["QUERY_STRING"].split(",")
    start_response("200 OK", [*PLAIN, ("Content-Length", length)])
    return [b"12345"] if blocks == "1" else iter([b"123", b"45"])


def answer_silence(environ, start_response):
    return [b"start_response was not called"]


def answer_number(environ, start_response):
    start_response("200 OK", PLAIN)
    return [5]


def answer_text(environ, start_response):
    start_response("200 OK", PLAIN)
    return ["caf", b"\xe9"]


def answer_text_blocks(environ, start_response):
    start_response("200 OK", PLAIN)
    return Closing(["caf", b"\xe9"])


def answer_text_written(environ, start_response):
    start_response("200 OK", PLAIN)("caf")
    return [b"\xe9"]


def answer_bytes(environ, start_response):
    start_response(b"200 OK", [(b"Content-Type", b"text/plain")])
    return [b"caf\xe9"]


def answer_paths(environ, start_response):
    start_response("200 OK", PLAIN)
    return [f"{environ['SCRIPT_NAME']}|{environ['PATH_INFO']}|{environ['wsgi.url_scheme']}".encode()]


answer_ = answer_paths


def answer_fork(environ, start_response):
    """A child that ends in the way that is asked for, and its exit status."""
    start_response("200 OK", PLAIN)
    way, _, code = environ["QUERY_STRING"].partition(",")
    child = os.fork()
    if child == 0:
        if way == "exit":
            sys.exit(int(code))
        if way == "raise":
            raise LookupError("the child's own")
        return [b"the child's answer"]
    _, status = os.waitpid(child, 0)
    return [str(status >> 8).encode()]


def answer_fork_halfway(environ, start_response):
    """A child that goes on with an answer of which the first part is sent."""
    start_response("200 OK", PLAIN)
    yield b"first"
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    yield b" parent" if child else b" child"


def answer_fork_on(environ, start_response):
    """A child that outlives the request."""
    if os.fork() == 0:
        note(os.getpid())
        (HERE / "gate").read_bytes()
        os._exit(0)
    return answer_pid(environ, start_response)


def answer_asyncio(environ, start_response):
    """What asyncio does for whoever handles a signal in a loop of his own."""

    async def handle():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: None)

    asyncio.run(handle())
    return answer_pid(environ, start_response)


def answer_close_late(environ, start_response):
    """The whole body is sent before close() is called, and that takes as long as the test wants."""
    start_response("200 OK", [*PLAIN, ("Content-Length", "4")])

    class Late(Closing):
        def close(self):
            (HERE / "gate").read_bytes()

    return Late([b"done"])


def answer_sendfile(environ, start_response):
    """The web server sends the file, whose length is known, in place of a body."""
    start_response("200 OK", [*PLAIN, ("Content-Length", "7"), ("X-Accel-Redirect", "/protected/file")])
    return [] if environ["QUERY_STRING"] == "list" else iter([b""])


class ReadOnly:
    """All that PEP 3333 asks of a file. `Inherited`: with a read1 that raises."""

    def __init__(self, content):
        self.content = io.BytesIO(content)

    def read(self, size=-1):
        return self.content.read(size)


class Inherited(ReadOnly, io.BufferedIOBase):
    pass


def answer_wrapped(environ, start_response):
    start_response("200 OK", PLAIN)
    kind = Inherited if environ["QUERY_STRING"] == "inherited" else ReadOnly
    return environ["wsgi.file_wrapper"](kind(bytes(100_000)))


def answer_moved(environ, start_response):
    """A range of a file that would take for ever from its beginning, as Werkzeug finds it."""
    file = (HERE / "huge").open("r+b")
    file.truncate(1 << 40)
    file.seek((1 << 40) - 4)
    file.write(b"last")
    wrapped = iter(environ["wsgi.file_wrapper"](file))
    assert wrapped.seekable()
    wrapped.seek((1 << 40) - 4)
    start_response("206 Partial Content", [*PLAIN, ("X-At", str(wrapped.tell()))])
    return Closing(wrapped)


def answer_nothing_yet(environ, start_response):
    """A stream that has nothing to say for a long time."""
    start_response("200 OK", PLAIN)

    def blocks():
        yield b"first"
        while True:
            yield b""
            time.sleep(0.01)

    return Closing(blocks())
