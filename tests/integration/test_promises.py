"""What PEP 3333 and the FastCGI specification promise, over every server of ours, threads and kind of socket.

A client of FastCGI that is no web server's asks a real worker (what is behind it in a real one, other files test). A
new server is one line in SERVERS. One worker serves all tests of its parameters, which keeps them quick: each leaves it
idle, and begins with an empty stderr and no notes.
"""

import ast
import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fcgimgr
from fcgimgr.fastcgi.client import Request
from fcgimgr.fastcgi.records import (
    FastCGIError,
    PairStream,
    ProtocolStatus,
    Record,
    RecordReader,
    RecordType,
    begin_request,
    encode_pairs,
    encode_record,
    encode_stream,
    end_request,
)
from tests.integration.benches import (
    Bench,
    announce,
    announce_exactly,
    ask,
    ask_rest,
    in_background,
    notes,
    parameters,
    records,
    tcp_bench,
    unix_bench,
)
from tests.waiting import eventually

#: Server and threads of a process.
SERVERS = {"flup": ("flup", 16), "flup-1": ("flup", 1), "native": ("native", 16), "native-1": ("native", 1)}
SOCKETS = {"unix": unix_bench, "tcp": tcp_bench}
BOTH = [(server, kind) for server in SERVERS for kind in SOCKETS]

CLOSING = encode_record(RecordType.STDIN, 1)


class Served(Bench):
    """A bench with one worker. `served`: the server's name and its threads."""

    served: tuple[str, int]
    worker: subprocess.Popen[bytes]

    def is_idle(self) -> bool:
        """Whether the listener is all that is in its hands."""
        links = [os.readlink(fd) for fd in Path(f"/proc/{self.worker.pid}/fd").iterdir()]
        return sum(link.startswith("socket:") for link in links) == 1


def put_up(directory: Path, server: str, kind: str, application: str = "", *settings: str) -> Served:
    """`settings`, also an empty one: it is impatient (impatient_worker.py)."""
    bench = SOCKETS[kind](directory)
    bench.__class__ = Served
    assert isinstance(bench, Served)
    for name in ("native_app.py", "impatient_worker.py"):
        shutil.copy(Path(__file__).with_name(name), directory)
    os.mkfifo(directory / "gate")
    bench.served = engine, threads = SERVERS[server]
    if settings:
        words = [sys.executable, "impatient_worker.py", engine, str(threads), "native_app", *filter(None, settings)]
        bench.worker = bench.launch(words, env={"PYTHONPATH": str(Path(fcgimgr.__file__).parents[1])})
        bench.wait_until_ready()
    else:
        bench.engine = ("--server", engine, "--threads", str(threads))
        bench.worker = bench.start(application or "native_app:application")
    return bench


def lent(bench: Served) -> Iterator[Served]:
    """For one test."""
    (bench.directory / "notes").unlink(missing_ok=True)
    os.truncate(bench.directory / "stderr", 0)
    yield bench
    assert bench.worker.poll() is None, bench.stderr()
    eventually(bench.is_idle)


@pytest.fixture(scope="module", params=BOTH, ids="-".join)
def shared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Served]:
    with contextlib.closing(put_up(tmp_path_factory.mktemp("bench"), *request.param)) as made:
        yield made


@pytest.fixture
def bench(shared: Served) -> Iterator[Served]:
    yield from lent(shared)


@pytest.fixture(params=BOTH, ids="-".join)
def fresh(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """One that has served nobody yet: native keeps no connection when it was busy for long."""
    with contextlib.closing(put_up(tmp_path, *request.param)) as made:
        yield made


@pytest.fixture(scope="module", params=SERVERS)
def hasty(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Served]:
    with contextlib.closing(put_up(tmp_path_factory.mktemp("bench"), request.param, "unix", "", "")) as made:
        yield made


@pytest.fixture
def impatient(hasty: Served) -> Iterator[Served]:
    """It loses its patience after 0.3 s."""
    yield from lent(hasty)


def ask_for(bench: Bench, wire: bytes) -> tuple[int | None, bytes]:
    """The status and the body of the answer to this, on a connection of its own."""
    with bench.connect() as connection:
        connection.sendall(wire)
        response = ask_rest(connection)
        return response.status, response.body


# --- the environ


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("length", [0, 5, 100_000])
def test_the_validator_of_the_standard_library_finds_nothing(bench: Served, method: str, length: int) -> None:
    body = b"x" * length
    response = bench.fetch("/valid", body, REQUEST_METHOD=method, HTTP_CONTENT_LENGTH="7", HTTP_CONTENT_TYPE="x/y")
    assert (response.status, response.body) == (200, b"" if method == "HEAD" else str(length).encode())
    assert bench.stderr() == ""


def environ_of(bench: Bench, params: dict[str, str]) -> dict[str, str]:
    status, body = ask_for(bench, announce_exactly(params) + CLOSING)
    assert status == 200, bench.stderr()
    environ = ast.literal_eval(body.decode())
    assert isinstance(environ, dict)
    return environ


AT = {"QUERY_STRING": "to=environ"}


def test_what_must_be_there_is_there_and_nothing_of_the_process_is(bench: Served) -> None:
    environ = environ_of(bench, {"PATH_INFO": "/environ"})
    multithread = str(bench.served[1] > 1)
    assert {name: value for name, value in environ.items() if name not in ("wsgi.input", "wsgi.errors")} == {
        "PATH_INFO": "'/environ'",
        "REQUEST_METHOD": "'GET'",
        "SCRIPT_NAME": "''",
        "QUERY_STRING": "''",
        "SERVER_NAME": "'localhost'",
        "SERVER_PORT": "'80'",
        "SERVER_PROTOCOL": "'HTTP/1.0'",
        "wsgi.version": "(1, 0)",
        "wsgi.url_scheme": "'http'",
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": "True",
        "wsgi.run_once": "False",
        "wsgi.file_wrapper": environ["wsgi.file_wrapper"],
        "wsgi.input_terminated": "True",
    }
    assert bench.stderr() == ""


def test_what_the_web_server_says_comes_as_latin_1_text_and_is_not_believed_about_the_server(bench: Served) -> None:
    environ = environ_of(
        bench,
        {
            **parameters("/environ"),
            "HTTP_X": "\xe9" * 200,
            "EMPTY": "",
            "HTTPS": "on",
            "wsgi.url_scheme": "javascript",
            "wsgi.multithread": "maybe",
        },
    )
    assert environ["HTTP_X"] == repr(("\xe9" * 200).encode().decode("latin-1"))
    assert environ["EMPTY"] == "''"
    assert environ["wsgi.url_scheme"] == "'https'"
    assert environ["wsgi.multithread"] in ("True", "False")


#: As nginx's own fastcgi_params say it: no PATH_INFO, and all of the path as the script's name, decoded and normalised.
def stock(path: str, uri: str) -> dict[str, str]:
    return {"SCRIPT_NAME": path, "DOCUMENT_URI": path, "REQUEST_URI": uri}


PATHS = {
    "both": ({"SCRIPT_NAME": "/shop", "PATH_INFO": "/cart"}, ("/shop", "/cart")),
    "no mount": ({"SCRIPT_NAME": "", "PATH_INFO": "/cart"}, ("", "/cart")),
    "stock": (stock("/plain", "/plain?to=environ"), ("", "/plain")),
    "stock, root": (stock("/", "/?to=environ"), ("", "/")),
    "stock, space": (stock("/a b", "/a%20b?to=environ"), ("", "/a b")),
    "stock, UTF-8": (stock("/caf\xe9", "/caf%C3%A9"), ("", "/caf\xc3\xa9")),
    "stock, slashes": (stock("/x/y", "/x//y"), ("", "/x/y")),
    "stock, encoded slash": (stock("/a/b", "/a%2Fb"), ("", "/a/b")),
    "stock, rewritten": (stock("/app", "/old/long/uri"), ("", "/app")),
    "mounted, rewritten": (
        {"SCRIPT_NAME": "/app", "PATH_INFO": "", "DOCUMENT_URI": "/app", "REQUEST_URI": "/old/long/uri"},
        ("/app", ""),
    ),
    "mounted, lighttpd": (
        {"SCRIPT_NAME": "/shop", "REQUEST_URI": "/shop", "SERVER_SOFTWARE": "lighttpd/1.4.69"},
        ("/shop", ""),
    ),
    "ProxyPass": (
        {"SCRIPT_NAME": "/a b", "REQUEST_URI": "/a%20b", "SCRIPT_FILENAME": "proxy:fcgi://127.0.0.1:9001/a%20b"},
        ("", "/a b"),
    ),
    "nothing": ({"SCRIPT_NAME": "", "PATH_INFO": "", "REQUEST_URI": "/caf%C3%A9?q"}, ("", "/caf\xc3\xa9")),
    "mounted, space": ({"SCRIPT_NAME": "/shop", "PATH_INFO": "/a b", "REQUEST_URI": "/shop/a%20b"}, ("/shop", "/a b")),
}


@pytest.mark.parametrize(("sent", "expected"), PATHS.values(), ids=PATHS)
def test_the_path_is_found_wherever_the_web_server_puts_it(
    bench: Served, sent: dict[str, str], expected: tuple[str, str]
) -> None:
    bare = {name: value for name, value in parameters("").items() if name not in ("SCRIPT_NAME", "PATH_INFO")}
    environ = environ_of(bench, {**bare, **AT, **sent})
    assert (ast.literal_eval(environ["SCRIPT_NAME"]), ast.literal_eval(environ["PATH_INFO"])) == expected
    assert bench.stderr() == ""


# --- the input


@pytest.mark.parametrize("padding", [0, 100_000])
def test_a_body_is_read_by_lines(bench: Served, padding: int) -> None:
    body = b"one\ntwo three\nfour\nfive\n" + b"x" * padding + b"\nend"
    expected = [b"one\n", b"two", b" three\n", b"four\n", b"five\n", b"x" * padding + b"\n", b"end", b""]
    assert ast.literal_eval(bench.fetch("/lines", body).body.decode()) == expected


@pytest.mark.parametrize("length", [3, 100_000])
@pytest.mark.parametrize("way", ["none", "text", "lines", "into", "one"])
def test_the_input_is_a_file_as_python_has_them(bench: Served, way: str, length: int) -> None:
    """TextIOWrapper of it, read(None) and readinto are more than PEP 3333 asks for, and than flup has."""
    body = b"a\n" * (length // 2) + b"b" * (length % 2)
    response = bench.fetch("/file_like", body, QUERY_STRING=way)
    assert (response.status, response.body) == (200, body), bench.stderr()


def test_a_body_without_a_length_is_read_to_its_end(bench: Served) -> None:
    """As chunked uploads come with fastcgi_request_buffering off: in constant memory, however long."""
    piece = encode_stream(RecordType.STDIN, 1, bytes(32768)) * 32
    params = parameters("/count")
    del params["CONTENT_LENGTH"]
    with bench.connect() as connection:
        connection.sendall(announce_exactly(params))
        for _ in range(64):
            connection.sendall(piece)
        connection.sendall(CLOSING)
        length, announced, taken = ask_rest(connection).body.split()
    assert (length, announced) == (b"67108864", b"False")
    assert int(taken) < 4_000_000


@pytest.mark.parametrize("length", ["", "-1", "many", "\xb2", "9" * 5000, "1", "5"])
def test_a_length_that_is_none_is_the_applications_to_judge(bench: Served, length: str) -> None:
    """Nor is one that is wrong the server's: who unpacks a compressed upload announces the packed one's."""
    with bench.connect() as connection:
        connection.sendall(announce("/count", CONTENT_LENGTH=length) + encode_record(RecordType.STDIN, 1, b"abc"))
        connection.sendall(CLOSING)
        assert ask_rest(connection).body.split()[0] == b"3"
    assert bench.stderr() == ""


def test_a_body_that_is_not_read_is_passed_over(bench: Served) -> None:
    assert bench.fetch("/ignore", b"x" * 3_000_000).body == b"not read"
    with bench.connect() as connection:
        for _ in range(2):
            whole = announce("/ignore", CONTENT_LENGTH="100000") + encode_stream(RecordType.STDIN, 1, bytes(100_000))
            connection.sendall(whole + CLOSING)
            assert ask_rest(connection).body == b"not read"


def test_data_that_nobody_reads_is_not_collected(bench: Served) -> None:
    before = most_resident(bench.worker.pid)
    noise = encode_record(RecordType.DATA, 1, bytes(65528)) * 16
    with bench.connect() as connection:
        connection.sendall(announce("/count", CONTENT_LENGTH="100000"))
        for _ in range(64):
            connection.sendall(noise)
        connection.sendall(encode_record(RecordType.STDIN, 1, b"abc") + CLOSING)
        assert ask_rest(connection).body.split()[0] == b"3"
    assert most_resident(bench.worker.pid) - before < 20_000


def most_resident(pid: int) -> int:
    """The most memory that it has ever had, in kB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])


# --- the response


def test_write_and_blocks_come_in_order_and_close_is_called(bench: Served) -> None:
    assert bench.fetch("/write").body == b"one two three four"
    eventually(lambda: notes(bench) == ["closed"])


@pytest.mark.parametrize("kind", ["list", "tuple", "iter", "generator", "one", "none"])
def test_any_iterable_is_a_body(bench: Served, kind: str) -> None:
    body = b"" if kind == "none" else b"123" if kind == "one" else b"12345"
    for _ in range(2):
        response = bench.fetch("/iterable", QUERY_STRING=kind)
        assert (response.status, response.body) == (200, body)
    assert bench.stderr() == ""


def test_an_answer_of_any_length_is_whole(bench: Served) -> None:
    assert bench.fetch("/large").body == b"x" * 1_000_000


def test_a_file_is_wrapped_and_closed(bench: Served) -> None:
    content = os.urandom(1_500_001)
    (bench.directory / "large").write_bytes(content)
    assert bench.fetch("/file").body == content
    eventually(lambda: notes(bench) == ["closed"])


def test_a_part_of_a_file_and_one_that_grows_are_sent_as_declared(bench: Served) -> None:
    content = os.urandom(400_000)
    (bench.directory / "large").write_bytes(content)
    response = bench.fetch("/range", QUERY_STRING="100,50")
    assert (response.status, response.body) == (206, content[100:150])
    assert bench.fetch("/grown").body == content
    assert bench.stderr() == ""


@pytest.mark.parametrize("way", ["list", "iterator"])
def test_an_empty_body_has_the_length_of_the_file_that_the_web_server_sends(bench: Served, way: str) -> None:
    with bench.connect() as connection:
        connection.sendall(Request(parameters("/sendfile", QUERY_STRING=way)).to_send())
        response = ask_rest(connection)
    assert (response.status, response.header("Content-Length"), response.body) == (200, "7", b"")
    assert response.header("X-Accel-Redirect") == "/protected/file"
    assert bench.stderr() == ""


@pytest.mark.parametrize("kind", ["inherited", "only"])
def test_whatever_has_a_read_is_a_file(bench: Served, kind: str) -> None:
    assert bench.fetch("/wrapped", QUERY_STRING=kind).body == bytes(100_000)


def test_a_range_at_the_end_of_a_terabyte_is_read_from_there(bench: Served) -> None:
    (bench.directory / "huge").touch()
    response = bench.fetch("/moved")
    assert (response.status, response.header("X-At"), response.body) == (206, str((1 << 40) - 4), b"last")


def test_exc_info_replaces_what_is_not_sent_and_raises_what_is(bench: Served) -> None:
    response = bench.fetch("/second_thought")
    assert (response.status, response.body) == (503, b"sorry")
    with pytest.raises(FastCGIError):
        bench.fetch("/late_thought")
    assert "LookupError: too late\n" in bench.stderr()


@pytest.mark.parametrize("way", ["", "written"])
@pytest.mark.parametrize(("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Same")])
def test_what_has_no_body_gets_none(bench: Served, method: str, status: str, way: str) -> None:
    with bench.connect() as connection:
        for _ in range(2):
            path = f"/bodiless{'_' * bool(way)}{way}"
            connection.sendall(announce(path, REQUEST_METHOD=method, QUERY_STRING=status) + CLOSING)
            response = ask_rest(connection)
            assert (response.status, response.body) == (int(status[:3]), b"")
            assert response.header("x-name") == "\xe9t\xe9"
    eventually(lambda: notes(bench) == ["closed"] * 2)


@pytest.mark.parametrize(
    ("path", "query", "said"),
    [
        ("/header", r"X-A=b\r\nSet-Cookie: c", "ValueError: a line break or NUL"),
        ("/header", r"X-A=b\nc", "ValueError: a line break or NUL"),
        ("/header", r"X-A\r\nB=c", "ValueError: a line break or NUL"),
        ("/header", r"X-A=\x00", "ValueError: a line break or NUL"),
        ("/header", r"X A=b", "ValueError: 'X A' is not the name"),
        ("/header", r"Status=200 OK", "ValueError: 'Status' is not the name"),
        ("/header", r"X-A=\u20ac", "ValueError: the response header X-A holds '€', which is not in Latin-1"),
        ("/header", r"Content-Length=many", "ValueError: the Content-Length 'many'"),
        ("/lengths", "", "ValueError: two headers say the Content-Length"),
        ("/status", r"200 OK\r\nX: y", "ValueError: a line break or NUL"),
        ("/status", r"200 OK\x00", "ValueError: a line break or NUL"),
        ("/status", r"OK", "ValueError: 'OK' is not a status"),
        ("/status", r"200", "ValueError: '200' is not a status"),
        ("/status", r"103 Early Hints", "ValueError: '103 Early Hints' is not a status"),
        ("/length", "6,1", "ValueError: the body has 5 bytes, its Content-Length says 6"),
        ("/silence", "", "ValueError: the application gave a body before it called start_response"),
        ("/number", "", "TypeError: a block of the response is bytes, not int"),
    ],
)
def test_what_would_break_the_response_is_refused_where_it_was_done(
    bench: Served, path: str, query: str, said: str
) -> None:
    response = bench.fetch(path, QUERY_STRING=query)
    assert (response.status, response.header("set-cookie")) == (500, None)
    assert said in bench.stderr()
    assert f"the application failed at GET {path}" in bench.stderr()


def test_a_streamed_body_shorter_than_declared_does_not_look_whole(bench: Served) -> None:
    with pytest.raises(FastCGIError):
        bench.fetch("/length", QUERY_STRING="6,2")
    assert "Content-Length" in bench.stderr()


@pytest.mark.parametrize("blocks", ["1", "2"])
def test_a_body_longer_than_declared_is_cut_and_the_connection_goes_on(bench: Served, blocks: str) -> None:
    with bench.connect() as connection:
        for _ in range(2):
            connection.sendall(announce("/length", QUERY_STRING=f"4,{blocks}") + CLOSING)
            response = ask_rest(connection)
            assert (response.status, response.body) == (200, b"1234")
    line = f"a body was longer than its Content-Length, and was cut after 4 bytes, at GET /length?4,{blocks}\n"
    eventually(lambda: bench.stderr() == f"fcgimgr worker: {line}" * 2)


@pytest.mark.parametrize("path", ["/text", "/text_blocks", "/text_written", "/bytes"])
def test_text_in_a_body_and_bytes_in_a_header_are_forgiven_by_flup_alone(bench: Served, path: str) -> None:
    """As by plain flup, for which applications with either were written."""
    if bench.served[0] == "flup":
        response = bench.fetch(path)
        assert (response.status, response.body) == (200, b"caf\xe9")
        assert response.header("content-type") == "text/plain"
    else:
        with contextlib.suppress(FastCGIError):
            assert bench.fetch(path).status == 500
        assert "Error: " in bench.stderr()


# --- the connection


@pytest.mark.parametrize("size", [16, 1])
def test_a_request_in_any_number_of_pieces_is_the_same(bench: Served, size: int) -> None:
    wire = announce("/valid", CONTENT_LENGTH="3", REQUEST_METHOD="POST")
    wire += encode_record(RecordType.STDIN, 1, b"abc") + CLOSING
    with bench.connect() as connection:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(wire), size):
            connection.sendall(wire[at : at + size])
        assert ask_rest(connection).body == b"3"


def test_a_pair_may_lie_across_records_and_a_record_may_be_padded(bench: Served) -> None:
    pairs = encode_pairs([(b"PATH_INFO", b"/environ"), (b"X", b"y" * 300)])

    def padded(kind: int, content: bytes) -> bytes:
        return bytes([1, kind, 0, 1, 0, len(content), 255, 0]) + content + b"\xff" * 255

    pieces = b"".join(padded(RecordType.PARAMS, pairs[at : at + 7]) for at in range(0, len(pairs), 7))
    body = padded(RecordType.STDIN, b"abc") + padded(RecordType.STDIN, b"")
    status, answer = ask_for(bench, begin_request(1) + pieces + padded(RecordType.PARAMS, b"") + body)
    assert status == 200
    assert ast.literal_eval(answer.decode())["X"] == repr("y" * 300)


def test_a_request_with_another_number_is_answered_with_it(bench: Served) -> None:
    with bench.connect() as connection:
        for record in RecordReader().feed(announce("/pid") + CLOSING):
            connection.sendall(encode_record(record.type, 300, record.content))
        kinds = []
        for record in records(connection):
            assert record.request_id == 300
            kinds.append(record.type)
            if record.type == RecordType.END_REQUEST:
                break
        assert kinds == [RecordType.STDOUT, RecordType.STDOUT, RecordType.END_REQUEST]


def test_a_kept_connection_serves_whatever_follows_and_ends_when_it_is_not_to_be_kept(fresh: Served) -> None:
    pid = str(fresh.worker.pid).encode()
    with fresh.connect() as connection:
        for _ in range(3):
            assert ask(connection).body == pid
        connection.sendall(Request(parameters("/pid"), keep_connection=True).to_send() * 3)
        found = []
        while sum(record.type == RecordType.END_REQUEST for record in found) < 3:
            found += RecordReader().feed(connection.recv(65536))
        assert ask(connection, keep=False).body == pid
        assert connection.recv(1) == b""


def test_what_is_no_request_is_answered_on_the_connection_and_the_next_request_served(bench: Served) -> None:
    asked = encode_pairs([(b"FCGI_MPXS_CONNS", b""), (b"FCGI_MAX_CONNS", b""), (b"FCGI_MAX_REQS", b""), (b"X", b"")])
    with bench.connect() as connection:
        connection.sendall(
            encode_record(RecordType.GET_VALUES, 0, asked)
            + encode_record(99, 0)
            + encode_record(99, 5)
            + begin_request(7, 3, keep_connection=True)
            + begin_request(1, keep_connection=True)
            + begin_request(2, keep_connection=True)
            + encode_record(RecordType.ABORT_REQUEST, 1)
        )
        found = records(connection)
        kind, _, content = next(found)
        values = PairStream()
        values.add(content)
        threads = str(bench.served[1]).encode()
        assert kind == RecordType.GET_VALUES_RESULT
        assert values.pairs() == [
            (b"FCGI_MPXS_CONNS", b"0"),
            (b"FCGI_MAX_CONNS", threads),
            (b"FCGI_MAX_REQS", threads),
        ]
        assert next(found) == Record(RecordType.UNKNOWN_TYPE, 0, bytes([99]) + bytes(7))
        refusals = (next(found), next(found), next(found))
        assert b"".join(encode_record(*record) for record in refusals) == (
            end_request(7, protocol_status=ProtocolStatus.UNKNOWN_ROLE)
            + end_request(2, protocol_status=ProtocolStatus.CANT_MPX_CONN)
            + end_request(1)
        )
        assert ask(connection).body == str(bench.worker.pid).encode()


@pytest.mark.parametrize("keep", [True, False])
def test_a_request_that_is_aborted_before_the_end_of_its_parameters_is_ended(bench: Served, keep: bool) -> None:
    begun = begin_request(1, keep_connection=keep) + encode_record(RecordType.PARAMS, 1, b"\x01\x01ab")
    with bench.connect() as connection:
        connection.sendall(begun + encode_record(RecordType.ABORT_REQUEST, 1))
        with connection.makefile("rb") as answer:
            assert answer.read(16) == end_request(1)
        if keep:
            # With the same number, and nothing of what was aborted.
            connection.sendall(announce("/environ") + CLOSING)
            environ = ast.literal_eval(ask_rest(connection).body.decode())
            assert "a" not in environ
        else:
            assert connection.recv(1) == b""
    assert bench.stderr() == ""


def test_an_aborted_request_ends_at_its_next_block_and_its_connection_goes_on(bench: Served) -> None:
    with bench.connect() as connection:
        connection.sendall(announce("/slowly") + CLOSING)
        assert b"first" in connection.recv(65536)
        connection.sendall(encode_record(RecordType.ABORT_REQUEST, 1))
        (bench.directory / "gate").write_bytes(b"")
        assert next(records(connection)).type == RecordType.END_REQUEST
        assert notes(bench) == ["closed"]
        assert ask(connection).body == str(bench.worker.pid).encode()
    assert bench.stderr() == ""


def test_after_an_aborted_upload_the_next_request_is_like_any_other(bench: Served) -> None:
    with bench.connect() as connection:
        connection.sendall(announce("/undeterred", CONTENT_LENGTH="100000"))
        eventually(lambda: notes(bench) == ["reading"])
        connection.sendall(encode_record(RecordType.STDIN, 1, b"abc") + encode_record(RecordType.ABORT_REQUEST, 1))
        assert ask_rest(connection).body == b"a part of it"
        connection.sendall(announce("/fail") + CLOSING)
        assert ask_rest(connection).status == 500
    assert "the application failed at GET /fail" in bench.stderr()


def test_an_upload_that_ends_early_is_a_connection_error_and_no_fault(bench: Served) -> None:
    with bench.connect() as connection:
        connection.sendall(announce("/upload", CONTENT_LENGTH="100000") + encode_record(RecordType.STDIN, 1, b"abc"))
        eventually(lambda: notes(bench) == ["reading"])
    eventually(lambda: notes(bench) == ["reading", "ClientGoneError: the web server has closed the connection"])
    assert bench.fetch("/pid").status == 200
    assert bench.stderr() == ""


def test_a_stream_ends_when_its_client_goes(bench: Served) -> None:
    with bench.connect() as connection:
        connection.sendall(Request(parameters("/stream")).to_send())
        connection.recv(100)
    eventually(lambda: notes(bench) == ["closed"])
    assert bench.stderr() == ""


def test_a_client_that_goes_is_noticed_at_the_next_block(bench: Served) -> None:
    """On TCP a first send to somebody who has gone still succeeds."""
    with bench.connect() as connection:
        connection.sendall(Request(parameters("/slowly")).to_send())
        assert b"first" in connection.recv(65536)
    (bench.directory / "gate").write_bytes(b"")
    eventually(lambda: notes(bench) == ["closed"])
    assert bench.stderr() == ""


def test_a_stream_that_has_nothing_to_say_ends_when_its_client_goes(bench: Served) -> None:
    with bench.connect() as connection:
        connection.sendall(Request(parameters("/nothing_yet")).to_send())
        assert b"first" in connection.recv(65536)
    eventually(lambda: notes(bench) == ["closed"])
    assert bench.stderr() == ""


@pytest.mark.parametrize("shared", [p for p in BOTH if SERVERS[p[0]][1] == 1], indirect=True, ids="-".join)
def test_a_client_that_left_the_queue_is_not_served(bench: Served) -> None:
    """The application is not called for somebody who has gone."""
    with in_background(bench, "/hold") as answer:
        (held,) = eventually(bench.held)
        for _ in range(3):
            with bench.connect() as impatient:
                impatient.sendall(Request(parameters("/called")).to_send())
        with bench.connect() as patient:
            patient.sendall(Request(parameters("/called")).to_send())
            bench.release(held)
            assert answer()[0].status == 200
            assert ask_rest(patient).body == b"called"
    assert notes(bench) == ["called"]


MALFORMED = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "begin": encode_record(RecordType.BEGIN_REQUEST, 1, b"short"),
    "begun twice": begin_request(1) * 2,
    "pairs": begin_request(1)
    + encode_record(RecordType.PARAMS, 1, b"\xff\xff\xff\xff")
    + encode_record(RecordType.PARAMS, 1),
    "endless": begin_request(1) + encode_record(RecordType.PARAMS, 1, bytes(60_000)) * 20,
    "early end": begin_request(1) + CLOSING,
    "early body": begin_request(1) + encode_record(RecordType.STDIN, 1, b"too early"),
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_costs_its_connection_one_line_and_nothing_else(bench: Served, sent: bytes) -> None:
    with bench.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(sent)
        assert connection.recv(100) == b""
    assert bench.fetch().body == str(bench.worker.pid).encode()
    assert bench.stderr().startswith("fcgimgr worker: connection closed: ")
    assert bench.stderr().count("\n") == 1


# --- faults


def test_an_exception_is_a_500_and_its_traceback_is_in_the_processs_stderr(bench: Served) -> None:
    response = bench.fetch("/fail", QUERY_STRING="a=%20")
    assert (response.status, response.stderr) == (500, b"")
    assert b"cupboard" not in response.body
    assert "the application failed at GET /fail?a=%20\nTraceback (most" in bench.stderr()
    assert "LookupError: the cupboard is bare\n" in bench.stderr()


FORKED = {
    "exit,0": (b"0", ""),
    "exit,7": (b"7", ""),
    "raise": (b"1", "LookupError: the child's own"),
    "return": (b"0", ""),
}


@pytest.mark.parametrize("way", FORKED)
def test_a_forked_child_that_comes_back_ends_and_says_nothing_for_its_parent(bench: Served, way: str) -> None:
    status, said = FORKED[way]
    for _ in range(2):
        assert bench.fetch("/fork", QUERY_STRING=way).body == status
    assert bench.fetch("/fork_halfway").body == b"first parent"
    assert bench.fetch("/pid").body == str(bench.worker.pid).encode()
    assert said in bench.stderr()
    assert ("Traceback" in bench.stderr()) == bool(said)
    assert "the application failed" not in bench.stderr()


def test_a_forked_child_that_comes_back_leaves_its_parent_its_connections(fresh: Served) -> None:
    pid = str(fresh.worker.pid).encode()
    with fresh.connect() as kept, fresh.connect() as other:
        assert ask(kept).body == ask(other).body == pid
        for way, (status, _) in FORKED.items():
            other.sendall(announce("/fork", QUERY_STRING=way) + CLOSING)
            assert ask_rest(other).body == status
        assert ask(kept).body == pid
    fresh.worker.terminate()
    assert fresh.worker.wait(20) == 0


def test_a_forked_child_that_lives_on_holds_nothing_of_its_parents(fresh: Served) -> None:
    pid = str(fresh.worker.pid).encode()
    with fresh.connect() as asked, fresh.connect() as kept:
        assert ask(kept).status == 200
        asked.sendall(Request(parameters("/fork_on")).to_send())
        assert ask_rest(asked).body == pid
        assert asked.recv(1) == b""
        (child,) = eventually(lambda: notes(fresh))
        held = [os.readlink(link) for link in Path(f"/proc/{child}/fd").iterdir()]
        assert not [link for link in held if "socket" in link or "eventpoll" in link]
        (fresh.directory / "gate").write_bytes(b"")


# --- peers that are slow


SLOW = {
    "nothing": b"",
    "half a header": begin_request(1)[:5],
    "half a request": announce("/called")[:-20],
    "half a body": announce("/upload", CONTENT_LENGTH="10") + encode_record(RecordType.STDIN, 1, b"abc"),
    "nothing on a kept connection": encode_record(RecordType.GET_VALUES, 0),
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_who_is_slow_is_closed_after_a_time(impatient: Served, sent: bytes) -> None:
    with impatient.connect() as connection:
        connection.sendall(sent)
        while connection.recv(65536):
            continue
    assert impatient.fetch("/called").body == b"called"


def test_who_waits_for_something_holds_no_thread(impatient: Served) -> None:
    with contextlib.ExitStack() as stack:
        for sent in (b"", begin_request(1)[:5], encode_record(RecordType.GET_VALUES, 0)):
            for _ in range(7):
                stack.enter_context(impatient.connect()).sendall(sent)
        assert impatient.fetch("/called").body == b"called"


def test_a_body_that_does_not_come_is_given_up(impatient: Served) -> None:
    with impatient.connect() as connection:
        connection.sendall(announce("/upload", CONTENT_LENGTH="1000000") + encode_record(RecordType.STDIN, 1, b"abc"))
        assert connection.recv(65536) == b""
    assert impatient.fetch("/called").body == b"called"
    (said,) = impatient.stderr().splitlines()
    assert said.startswith("fcgimgr worker: connection closed: 3 bytes of a body came in ")
    assert notes(impatient)[:2] == ["reading", said.replace("fcgimgr worker: connection closed", "ClientGoneError")]


def test_a_body_that_comes_too_slowly_in_all_is_given_up(impatient: Served) -> None:
    """Each piece comes before the worker's patience is over."""
    with impatient.connect() as connection:
        connection.sendall(announce("/upload", CONTENT_LENGTH="1000000"))
        sent = 0
        while not select.select([connection], [], [], 0.05)[0]:
            connection.sendall(encode_record(RecordType.STDIN, 1, b"x"))
            sent += 1
            assert sent < 200, "it may send for ever"
        assert connection.recv(1) == b""
    assert " bytes of a body came in " in impatient.stderr()


def test_an_answer_that_nobody_takes_is_given_up(impatient: Served) -> None:
    with impatient.connect() as connection:
        connection.sendall(Request(parameters("/stream")).to_send())
        eventually(lambda: notes(impatient) == ["closed"])
    assert impatient.fetch("/called").body == b"called"
    (said,) = impatient.stderr().splitlines()
    assert said.startswith("fcgimgr worker: connection closed: an answer was taken too slowly, and nothing of it for")


@pytest.mark.parametrize("server", SERVERS)
def test_an_answer_that_is_taken_too_slowly_in_all_is_given_up(tmp_path: Path, server: str) -> None:
    with contextlib.closing(put_up(tmp_path, server, "unix", "", "SEND_RATE=1e12")) as bench, bench.connect() as peer:
        peer.sendall(Request(parameters("/stream")).to_send())
        # Each time before the worker's patience is over.
        while peer.recv(65536):
            assert not select.select([], [], [], 0.02)[0]
        assert notes(bench) == ["closed"]


def test_who_announces_a_request_for_ever_is_cut_off(impatient: Served) -> None:
    with impatient.connect() as connection:
        connection.sendall(begin_request(1))
        send_until_cut_off(connection, encode_record(99, 1) * 8192)
    assert impatient.fetch("/called").body == b"called"


def test_who_does_not_read_what_he_asks_for_is_cut_off(impatient: Served) -> None:
    with impatient.connect() as connection:
        send_until_cut_off(connection, encode_record(99, 0) * 8192)
    assert "connection closed: the replies to management records are not read\n" in impatient.stderr()
    assert impatient.fetch("/called").body == b"called"


def send_until_cut_off(connection: socket.socket, noise: bytes) -> None:
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while True:
            connection.sendall(noise)
            sent += len(noise)
            assert sent < 10_000_000_000, "it may send for ever"
