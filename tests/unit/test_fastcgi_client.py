"""A request and its answer: the sans-IO Request, and the blocking fetch with its errors in words."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flup.server.fcgi_base import BaseFCGIServer, Connection  # type: ignore[import-untyped,unused-ignore]
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgimgr.fastcgi.client import MAX_STDERR, Request, Response, fetch
from fcgimgr.fastcgi.records import (
    FastCGIError,
    PairStream,
    ProtocolError,
    RecordReader,
    RecordType,
    decode_begin_request,
    encode_record,
    encode_stream,
    end_request,
)
from fcgimgr.fastcgi.response import Body, End, Head, ResponseReader
from fcgimgr.fastcgi.transport import NoReplyError, UnreachableError, converse, parse_endpoint

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(st.dictionaries(texts, texts, max_size=8), st.binary(max_size=500), st.booleans())
def test_what_a_request_sends_is_the_request(params: dict[str, str], stdin: bytes, keep: bool) -> None:
    received = RecordReader().feed(Request(params, stdin, keep_connection=keep).to_send())
    assert {record.request_id for record in received} == {1}
    begin, *rest = received
    assert decode_begin_request(begin.content) == (1, keep)
    stream = PairStream()
    for record in rest:
        if record.type == RecordType.PARAMS:
            stream.add(record.content)
    assert {name.decode(): value.decode() for name, value in stream.pairs()} == params
    assert b"".join(record.content for record in rest if record.type == RecordType.STDIN) == stdin
    assert rest[-1] == (RecordType.STDIN, 1, b"")


def test_the_opening_leaves_the_parameters_open_and_the_closing_ends_them() -> None:
    request = Request({"REQUEST_METHOD": "GET"}, b"body")
    assert [r.type for r in RecordReader().feed(request.opening())] == [RecordType.BEGIN_REQUEST, RecordType.PARAMS]
    assert RecordReader().feed(request.closing()) == [(4, 1, b""), (5, 1, b"body"), (5, 1, b"")]


def test_the_answer_is_whole_only_at_its_end() -> None:
    request = Request({})
    assert request.receive(encode_record(RecordType.STDOUT, 1, b"Status: 200 OK\nX-Pid: 7\n\nhel")) is None
    assert request.receive(encode_record(RecordType.STDOUT, 1, b"lo")) is None
    response = request.receive(encode_record(RecordType.STDERR, 1, b"note") + end_request(1, 2))
    assert response is not None
    assert response == Response(200, (("X-Pid", "7"),), b"hello", b"note", 2, 0)
    assert response.header("x-pid") == "7"
    assert response.header("x-none") is None
    assert request.eof() is response


def test_an_overloaded_server_gives_a_response_without_a_status() -> None:
    response = Request({}).receive(end_request(1, 0, 2))
    assert response is not None
    assert (response.status, response.protocol_status) == (None, 2)


def test_a_body_above_the_limit_is_an_error_and_too_much_stderr_is_cut() -> None:
    with pytest.raises(ProtocolError, match="longer than 10 bytes"):
        Request({}, max_body=10).receive(encode_record(RecordType.STDOUT, 1, b"A: b\n\n" + bytes(11)))
    request = Request({})
    request.receive(encode_stream(RecordType.STDERR, 1, bytes(3 * MAX_STDERR)))
    response = request.receive(end_request(1))
    assert response is not None
    assert len(response.stderr) == MAX_STDERR


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("127.0.0.1:9001", (socket.AF_INET, ("127.0.0.1", 9001))),
        ("tcp://127.0.0.1:9001", (socket.AF_INET, ("127.0.0.1", 9001))),
        ("*:9001", (socket.AF_INET, ("127.0.0.1", 9001))),
        ("[::1]:9001", (socket.AF_INET6, ("::1", 9001))),
        ("/run/app.sock", (socket.AF_UNIX, "/run/app.sock")),
        ("unix:/run/app.sock", (socket.AF_UNIX, "/run/app.sock")),
        ("unix:///run/app.sock", (socket.AF_UNIX, "/run/app.sock")),
        ("unix:@app", (socket.AF_UNIX, "\0app")),
    ],
)
def test_addresses_are_read_in_all_their_forms(address: str, endpoint: object) -> None:
    assert parse_endpoint(address) == endpoint


@pytest.mark.parametrize("address", ["", "9001", ":9001", "host", "::1:9001", "h:0", "h:65536", "h:٣", "unix:app.sock"])
def test_what_is_no_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(FastCGIError, match=f"^{address}: "):
        parse_endpoint(address)


@contextlib.contextmanager
def peer(path: Path, behaviour: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server on a Unix socket that serves one connection by `behaviour`, in a thread."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                behaviour(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"unix:{path}"
        thread.join()


def hang_up(connection: socket.socket) -> None:
    connection.recv(65536)


def reset(connection: socket.socket) -> None:
    """Closing a Unix socket with bytes unread is a reset for the other side."""
    connection.recv(1)


def talk_http(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def say_nothing(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


@pytest.mark.parametrize(
    ("behaviour", "error", "text"),
    [
        (hang_up, ProtocolError, "without a response"),
        (reset, FastCGIError, "broke the connection"),
        (talk_http, ProtocolError, "not FastCGI"),
        (say_nothing, NoReplyError, "no answer within 0.2 s"),
    ],
)
def test_a_bad_server_is_an_error_in_words(
    tmp_path: Path, behaviour: Callable[[socket.socket], None], error: type[Exception], text: str
) -> None:
    with peer(tmp_path / "s", behaviour) as address, pytest.raises(error, match=text):
        fetch(address, {"REQUEST_METHOD": "GET"}, timeout=0.2)


def test_why_no_connection_was_made_is_said_in_words(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(UnreachableError, match="the path does not exist"):
        fetch(str(absent), {}, timeout=1)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(absent))
        with pytest.raises(UnreachableError, match="nobody listens there"):
            fetch(str(absent), {}, timeout=1)
        bound.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(absent))
            with pytest.raises(UnreachableError, match="listen queue is full"):
                fetch(str(absent), {}, timeout=1)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UnreachableError, match="connection refused"):
            fetch(f"127.0.0.1:{unused.getsockname()[1]}", {}, timeout=1)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write to every socket")
def test_a_socket_without_permission_is_said_in_words(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        (tmp_path / "s").chmod(0)
        with pytest.raises(UnreachableError, match="permission denied"):
            fetch(str(tmp_path / "s"), {}, timeout=1)


def test_an_answer_that_comes_before_the_body_is_taken_ends_the_conversation() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(encode_record(RecordType.STDOUT, 1, b"Status: 413 Too large\n\n") + end_request(1))
        endless = iter(lambda: encode_record(RecordType.STDIN, 1, bytes(65528)), None)
        events = list(converse(ours, endless, ResponseReader(), timeout=5))
    assert events == [Head(413, ()), End(0, 0)]


def test_both_directions_are_served_at_once_so_that_an_echo_larger_than_every_buffer_ends() -> None:
    ours, theirs = socket.socketpair()
    size = 4 << 20

    def echo() -> None:
        """Sends one record back for each it gets, and so blocks when nobody takes them."""
        reader = RecordReader()
        theirs.sendall(encode_record(RecordType.STDOUT, 1, b"A: b\n\n"))
        taken = 0
        while taken < size:
            for record in reader.feed(theirs.recv(65536)):
                taken += len(record.content)
                theirs.sendall(encode_stream(RecordType.STDOUT, 1, record.content))
        theirs.sendall(end_request(1))

    with ours, theirs:
        ours.setblocking(False)
        thread = threading.Thread(target=echo)
        thread.start()
        events = converse(ours, [encode_stream(RecordType.STDIN, 1, bytes(size))], ResponseReader(), timeout=5)
        assert sum(len(event.content) for event in events if isinstance(event, Body)) == size
        thread.join()


def flup_answers(application: Callable[..., object], request: Request, step: int = 65536) -> Response:
    """Give the request to flup's own, unmended connection over a socket pair, and its answer back to the request."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=Connection(theirs, "", BaseFCGIServer(application), None).run)
    with ours:
        thread.start()
        ours.sendall(request.to_send())
        while (incoming := ours.recv(step)) and request.receive(incoming) is None:
            pass
    thread.join()
    theirs.close()
    return request.eof()


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=20_000), st.integers(1, 9000))
def test_flup_itself_understands_the_request_and_is_understood(body: bytes, step: int) -> None:
    def application(environ, start_response):  # type: ignore[no-untyped-def]
        content = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("207 Multi", [("X-Path", environ["PATH_INFO"]), ("Content-Type", "text/plain")])
        return [content, b"!"]

    params = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/p" * 100,
        "SERVER_NAME": "test",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(body)),
    }
    response = flup_answers(application, Request(params, body), step)
    assert response == (207, (("X-Path", "/p" * 100), ("Content-Type", "text/plain")), body + b"!", b"", 0, 0)


def test_flups_complaints_come_back_as_stderr() -> None:
    def application(environ, start_response):  # type: ignore[no-untyped-def]
        raise RuntimeError("no such luck")

    response = flup_answers(application, Request({}))
    assert response.status == 500
    assert b"RuntimeError: no such luck" in response.stderr
