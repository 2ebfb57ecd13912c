"""How a worker parts from web servers that keep their connections: each is told in the way that it heeds.

What they heed, and where that is from, stands in fcgimgr/worker/parting.py; here a client does as each of them does.
"""

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
    ProtocolStatus,
    Record,
    RecordReader,
    RecordType,
    begin_request,
    encode_pairs,
    encode_record,
    encode_stream,
)
from tests.integration.benches import ENGINES, FLUP_HOME, Bench, parameters, tcp_bench, unix_bench
from tests.integration.servers import need
from tests.waiting import eventually

NGINX = "nginx/1.22.1"
HAPROXY = "HAProxy 2.6.12"
HTTPD = "Apache/2.4.71 (Debian)"
OTHER = "Somebody/1.0"
GOODBYE = RecordType.STDERR


@pytest.fixture(params=["solo", "native", "flup"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield from made(tcp_bench(tmp_path), request.param)


@pytest.fixture(params=["solo", "native", "flup"])
def local_bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield from made(unix_bench(tmp_path), request.param)


def made(bench: Bench, engine: str) -> Iterator[Bench]:
    with contextlib.closing(bench):
        for name in ("native_app.py", "impatient_worker.py"):
            shutil.copy(Path(__file__).with_name(name), bench.directory)
        bench.engine = ENGINES[engine]
        yield bench


def request(path: str, software: str) -> bytes:
    return bytes(Request(parameters(path, SERVER_SOFTWARE=software), keep_connection=True).to_send())


def start_with_grace(bench: Bench, *, before: tuple[str, ...] = (), **others: float) -> subprocess.Popen[bytes]:
    """A worker that gives a busy machine the time to send what crosses with its end."""
    engine = "flup" if bench.engine == ENGINES["flup"] else "native"
    threads = "1" if bench.engine == ENGINES["solo"] else "16"
    settings = {"FIRST_BYTE_GRACE": 60.0, "HEAD_PATIENCE": 60, "LINGER": 60, "KEPT_PATIENCE": 60, **others}
    worker = bench.launch(
        [
            *(*before, sys.executable, "impatient_worker.py", engine, threads, "native_app"),
            *(f"{name}={seconds}" for name, seconds in settings.items()),
        ],
        env={"PYTHONPATH": os.pathsep.join((str(Path(fcgimgr.__file__).parents[1]), FLUP_HOME))},
    )
    bench.wait_until_ready()
    return worker


class Answer:
    """What comes to the end of an answer, and what is there with it."""

    def __init__(self, connection: socket.socket) -> None:
        reader = RecordReader()
        self.records: list[Record] = []
        self.ended = False
        while not any(record.type == RecordType.END_REQUEST for record in self.records):
            incoming = connection.recv(65536)
            assert incoming, f"the connection ended before its answer did, after {self.records}"
            self.records += reader.feed(incoming)
        while select.select([connection], [], [], 0)[0]:
            incoming = connection.recv(65536)
            if not incoming:
                self.ended = True
                break
            self.records += reader.feed(incoming)

    @property
    def body(self) -> bytes:
        joined = b"".join(record.content for record in self.records if record.type == RecordType.STDOUT)
        return joined.partition(b"\r\n\r\n")[2]

    @property
    def protocol_status(self) -> int:
        (end,) = (record.content for record in self.records if record.type == RecordType.END_REQUEST)
        return end[4]


def ask(connection: socket.socket, software: str, path: str = "/pid") -> Answer:
    connection.sendall(request(path, software))
    return Answer(connection)


def told_to_stop_with_one_in_hand(bench: Bench, connection: socket.socket, software: str) -> Answer:
    """The answer to a request during which the worker was told to stop."""
    (worker,) = bench.workers
    connection.sendall(request("/hold", software))
    (held,) = eventually(bench.held)
    tell_to_stop(bench)
    bench.release(held)
    answer = Answer(connection)
    assert answer.body == str(worker.pid).encode()
    return answer


def tell_to_stop(bench: Bench) -> None:
    """With a request in hand. Where that is in a thread of its own, come back when the worker has heard of it."""
    (worker,) = bench.workers
    worker.terminate()
    if bench.engine != ENGINES["solo"]:
        eventually(lambda: is_stopping(worker, bench), within=30)


def assert_ends(worker: subprocess.Popen[bytes]) -> None:
    assert worker.wait(20) == 0


# --- the last answer


def test_nginx_is_told_by_a_record_behind_the_end(bench: Bench) -> None:
    worker = start_with_grace(bench)
    with bench.connect() as connection:
        last = told_to_stop_with_one_in_hand(bench, connection, NGINX)
        assert [record.type for record in last.records[-2:]] == [RecordType.END_REQUEST, GOODBYE]
        assert not last.ended
        crossed = ask(connection, NGINX)
        assert crossed.body == str(worker.pid).encode()
    assert_ends(worker)


def test_haproxy_is_told_by_the_status_of_the_end(bench: Bench) -> None:
    """It closes the connection itself; until it has done so it is served."""
    worker = start_with_grace(bench)
    with bench.connect() as connection:
        assert ask(connection, HAPROXY).protocol_status == ProtocolStatus.REQUEST_COMPLETE
        last = told_to_stop_with_one_in_hand(bench, connection, HAPROXY)
        assert last.records[-1].type == RecordType.END_REQUEST
        assert last.protocol_status == ProtocolStatus.OVERLOADED
        assert not last.ended
        crossed = ask(connection, HAPROXY)
        assert crossed.body == str(worker.pid).encode()
        assert crossed.protocol_status == ProtocolStatus.OVERLOADED
    assert_ends(worker)


@pytest.mark.parametrize("software", [HTTPD, OTHER])
def test_all_others_have_the_end_of_the_connection_with_the_end_of_the_answer(bench: Bench, software: str) -> None:
    """In one piece, however late the worker comes to its next system call, and with nothing else to read."""
    need("strace")
    late = "shutdown,close:delay_enter=50000"
    worker = bench.start(
        before=("strace", "-D", "-f", "-o", "/dev/null", "-e", f"inject={late}", "-e", "shutdown,close")
    )
    with bench.connect() as connection:
        assert not ask(connection, software).ended
        last = told_to_stop_with_one_in_hand(bench, connection, software)
        assert last.records[-1].type == RecordType.END_REQUEST
        assert last.protocol_status == ProtocolStatus.REQUEST_COMPLETE
        assert last.ended
    assert_ends(worker)


def test_a_unix_connection_ends_right_behind_its_last_answer(local_bench: Bench) -> None:
    worker = local_bench.start()
    with local_bench.connect() as connection:
        answer = told_to_stop_with_one_in_hand(local_bench, connection, HTTPD)
        while not answer.ended and not ended_soon(connection):
            answer = ask(connection, HTTPD)  # it was off the processor when it came to the end
            assert answer.body == str(worker.pid).encode()
    assert_ends(worker)


def ended_soon(connection: socket.socket) -> bool:
    """Whether the connection has ended when the worker has had the time for it."""
    return bool(select.select([connection], [], [], 0.5)[0]) and connection.recv(1) == b""


def test_a_unix_connection_goes_on_when_its_peer_may_have_been_faster_than_its_end(local_bench: Bench) -> None:
    """The worker comes back late from sending its answer. It cannot know whether the next request is on its way."""
    need("strace")
    late = "sendto:delay_exit=20000"
    worker = local_bench.start(before=("strace", "-D", "-f", "-o", "/dev/null", "-e", f"inject={late}", "-e", "sendto"))
    with local_bench.connect() as connection:
        assert not told_to_stop_with_one_in_hand(local_bench, connection, HTTPD).ended
        for _ in range(5):
            assert not ask(connection, HTTPD).ended
        for _ in range(200):
            if ended_soon(connection):
                break
            ask(connection, HTTPD)
        else:
            raise AssertionError("it goes on for ever")
    assert_ends(worker)


# --- a connection that is idle


@pytest.mark.parametrize("software", [HAPROXY, HTTPD, OTHER])
def test_an_idle_connection_is_served_once_more_before_it_ends(bench: Bench, software: str) -> None:
    worker = start_with_grace(bench)
    with bench.connect() as connection:
        ask(connection, software)
        worker.terminate()
        eventually(lambda: is_stopping(worker, bench))
        last = ask(connection, software)
        assert last.body == str(worker.pid).encode()
        assert last.ended or last.protocol_status == ProtocolStatus.OVERLOADED
    assert_ends(worker)


@pytest.mark.parametrize("software", [HAPROXY, HTTPD, OTHER])
def test_an_idle_connection_that_is_not_used_again_ends_without_a_word(bench: Bench, software: str) -> None:
    """A record would hide the end from httpd, which looks whether there is anything to read."""
    worker = bench.start()
    with bench.connect() as connection:
        ask(connection, software)
        worker.terminate()
        assert connection.recv(100) == b""
    assert_ends(worker)


def test_nginx_is_told_of_the_end_of_an_idle_connection_at_once(bench: Bench) -> None:
    worker = bench.start()
    with bench.connect() as connection:
        ask(connection, NGINX)
        worker.terminate()
        assert connection.recv(100) == encode_record(GOODBYE, 1)
    assert_ends(worker)


def is_stopping(worker: subprocess.Popen[bytes], bench: Bench) -> bool:
    """Whether it has let go of its listener."""
    inode = f"socket:[{Path(f'/proc/self/fd/{bench.listener.fileno()}').stat().st_ino}]"
    return not any(str(fd.readlink()) == inode for fd in Path(f"/proc/{worker.pid}/fd").iterdir())


def test_nginx_is_told_of_a_connection_that_nobody_uses_before_it_ends(bench: Bench) -> None:
    """And what it sends at that moment is served."""
    worker = start_with_grace(bench, KEPT_PATIENCE=0.3)
    with bench.connect() as connection, bench.connect() as other:
        assert [ask(each, NGINX).body for each in (connection, other)] == [str(worker.pid).encode()] * 2
        assert connection.recv(100) == other.recv(100) == encode_record(GOODBYE, 1)
        assert ask(connection, NGINX).body == str(worker.pid).encode()


@pytest.mark.parametrize("software", [NGINX, HAPROXY, HTTPD])
def test_a_connection_that_nobody_uses_ends_all_the_same(bench: Bench, software: str) -> None:
    start_with_grace(bench, KEPT_PATIENCE=0.2, FIRST_BYTE_GRACE=0.2)
    with bench.connect() as connection:
        ask(connection, software)
        while connection.recv(100):
            continue


# --- more connections than can wait


def test_in_a_crowd_nginx_is_told_with_the_answer(bench: Bench) -> None:
    if bench.engine != ENGINES["flup"]:
        pytest.skip("the native server says so long before (keeping.py)")
    worker = start_with_grace(bench, MOST_WAITING=5)
    with contextlib.ExitStack() as stack:
        told: list[bool] = []
        while not any(told):
            connection = stack.enter_context(bench.connect())
            told.append(ask(connection, NGINX).records[-1].type == GOODBYE)
        assert 5 < len(told) < 40
        assert ask(connection, NGINX).body == str(worker.pid).encode()


def test_in_a_crowd_a_unix_connection_ends_right_behind_its_answer_or_goes_on(local_bench: Bench) -> None:
    """The worker comes back late from sending: it cannot know whether the next request is on its way."""
    need("strace")
    late = ("strace", "-D", "-f", "-o", "/dev/null", "-e", "inject=sendto:delay_exit=20000", "-e", "sendto")
    start_with_grace(local_bench, before=late, MOST_WAITING=5, FIRST_BYTE_AT_ONCE=60.0)
    with contextlib.ExitStack() as stack:
        for _ in range(26):  # more than a process keeps
            connection = stack.enter_context(local_bench.connect())
            assert not ask(connection, HTTPD).ended
        assert not ask(connection, HTTPD).ended


# --- the end of a body that comes late


def announced(path: str, software: str = HTTPD, **more: str) -> bytes:
    """A request without a length, up to the end of its parameters."""
    named = parameters(path, SERVER_SOFTWARE=software, **more)
    if not more:
        del named["CONTENT_LENGTH"]
    pairs = encode_pairs((name.encode(), value.encode()) for name, value in named.items())
    opening = begin_request(1, keep_connection=True) + encode_record(RecordType.PARAMS, 1, pairs)
    return opening + encode_record(RecordType.PARAMS, 1)


def test_a_connection_goes_on_when_the_end_of_the_body_comes_after_the_answer(bench: Bench) -> None:
    """httpd writes it for itself, and may be off the processor before that."""
    worker = bench.start()
    with bench.connect() as connection:
        for _ in range(3):
            connection.sendall(announced("/pid"))
            answer = Answer(connection)
            assert (answer.body, answer.ended) == (str(worker.pid).encode(), False)
            connection.sendall(encode_record(RecordType.STDIN, 1))
        assert ask(connection, HTTPD).body == str(worker.pid).encode()


def test_a_connection_goes_on_when_the_end_of_the_body_never_comes(bench: Bench) -> None:
    """Its request is over, and the web server may as well begin the next."""
    worker = bench.start()
    with bench.connect() as connection:
        for _ in range(3):
            connection.sendall(announced("/pid"))
            assert Answer(connection).body == str(worker.pid).encode()


def test_a_connection_goes_on_when_much_of_the_body_comes_after_the_answer(bench: Bench) -> None:
    worker = bench.start("native_app:application")
    half = encode_stream(RecordType.STDIN, 1, bytes(100_000))
    with bench.connect() as connection:
        for _ in range(3):
            connection.sendall(announced("/ignore", CONTENT_LENGTH="200000") + half)
            assert Answer(connection).body == b"not read"
            connection.sendall(half + encode_record(RecordType.STDIN, 1))
        assert ask(connection, HTTPD).body == str(worker.pid).encode()


def test_a_request_behind_a_large_body_that_nobody_reads_is_served(bench: Bench) -> None:
    """nginx has sent all of both before it reads the first answer, if the buffers take it."""
    worker = bench.start("native_app:application")
    with bench.connect() as connection:
        connection.sendall(announced("/ignore", NGINX, CONTENT_LENGTH="3000000"))
        assert Answer(connection).body == b"not read"
        connection.sendall(encode_stream(RecordType.STDIN, 1, bytes(3_000_000)) + encode_record(RecordType.STDIN, 1))
        assert ask(connection, NGINX).body == str(worker.pid).encode()


def test_a_last_answer_waits_for_the_end_of_the_body(bench: Bench) -> None:
    """Who still has something to write must not find the connection broken: httpd answers 503 for that."""
    worker = bench.start()
    with bench.connect() as connection:
        connection.sendall(announced("/hold"))
        (held,) = eventually(bench.held)
        tell_to_stop(bench)
        bench.release(held)
        assert Answer(connection).body == str(worker.pid).encode()
        connection.sendall(encode_record(RecordType.STDIN, 1))
        assert connection.recv(1) == b""  # and not ECONNRESET
    assert_ends(worker)


def test_what_is_left_of_a_body_is_not_taken_without_end(bench: Bench) -> None:
    if bench.engine == ENGINES["flup"]:
        pytest.skip("it reads on in a thread of its own")
    bench.start("native_app:application")
    piece = encode_stream(RecordType.STDIN, 1, bytes(65_000))
    with bench.connect() as connection:
        connection.sendall(announced("/ignore", CONTENT_LENGTH="100000000"))
        assert Answer(connection).body == b"not read"
        for _ in range(1000):
            connection.sendall(piece)
            if select.select([connection], [], [], 0)[0]:
                break
        assert connection.recv(1) == b""


@pytest.mark.parametrize("software", [NGINX, HAPROXY, HTTPD])
def test_a_connection_that_is_kept_no_longer_ends_with_its_answer(bench: Bench, software: str) -> None:
    worker = bench.start()
    with bench.connect() as connection:
        ask(connection, software)
        connection.sendall(bytes(Request(parameters("/pid", SERVER_SOFTWARE=software)).to_send()))
        assert Answer(connection).body == str(worker.pid).encode()
        assert connection.recv(1) == b""
