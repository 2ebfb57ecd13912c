"""The end of an answer is the end of its request, whatever the application or the web server still does for it."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

import fcgimgr
from fcgimgr.fastcgi.client import Request
from fcgimgr.fastcgi.records import RecordType, begin_request, encode_record, encode_stream
from fcgimgr.worker.native_engine import queued
from tests.integration.benches import (
    FLUP_HOME,
    Bench,
    announce,
    announce_exactly,
    ask,
    notes,
    parameters,
    records,
    unix_bench,
)
from tests.waiting import eventually

ENGINES = {"solo": ("native", "1"), "native": ("native", "4"), "flup": ("flup", "4")}
END_OF_BODY = encode_record(RecordType.STDIN, 1)
GOODBYE = encode_record(RecordType.STDERR, 1)
ANSWERED = "AnsweredError: the answer has ended, and its request with it: the rest of the body cannot be read any more"


@pytest.fixture(params=ENGINES)
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    with contextlib.closing(unix_bench(tmp_path)) as made:
        for name in ("native_app.py", "impatient_worker.py"):
            shutil.copy(Path(__file__).with_name(name), tmp_path)
        os.mkfifo(tmp_path / "gate")
        made.engine = ENGINES[request.param]
        yield made


def start(bench: Bench, **patience: float) -> subprocess.Popen[bytes]:
    """With as much patience as a busy machine may need."""
    settings = {"HEAD_PATIENCE": 60.0, "BODY_PATIENCE": 60, "KEPT_PATIENCE": 60, "FIRST_BYTE_GRACE": 20, **patience}
    worker = bench.launch(
        [
            *(sys.executable, "impatient_worker.py", *bench.engine, "native_app"),
            *(f"{name}={seconds}" for name, seconds in settings.items()),
        ],
        env={"PYTHONPATH": os.pathsep.join((str(Path(fcgimgr.__file__).parents[1]), FLUP_HOME))},
    )
    bench.wait_until_ready()
    return worker


def body(length: int) -> bytes:
    return encode_stream(RecordType.STDIN, 1, bytes(length))


def end_of_answer(connection: socket.socket) -> None:
    assert next(record for record in records(connection) if record.type == RecordType.END_REQUEST)


# --- an application that reads on


def test_an_application_that_reads_on_after_its_answer_never_takes_a_part_of_the_body_for_all_of_it(
    bench: Bench,
) -> None:
    start(bench)
    with bench.connect() as connection:
        connection.sendall(announce("/read_late", CONTENT_LENGTH="200000", QUERY_STRING="begins"))
        connection.sendall(body(200_000) + END_OF_BODY)
        end_of_answer(connection)
        eventually(lambda: len(notes(bench)) == 2)
        assert notes(bench)[1] in (ANSWERED, "all of 200000")
        assert ask(connection, "/called").body == b"called"


def test_it_is_told_at_once_where_the_rest_has_not_come_and_the_connection_goes_on(bench: Bench) -> None:
    start(bench)
    with bench.connect() as connection:
        connection.sendall(announce("/read_late", CONTENT_LENGTH="200000") + body(100_000))
        end_of_answer(connection)
        eventually(lambda: len(notes(bench)) == 2)
        assert notes(bench)[1] == ANSWERED
        connection.sendall(body(100_000) + END_OF_BODY)
        assert ask(connection, "/called").body == b"called"
    assert "the application failed at GET /read_late" in bench.stderr()


def test_an_abort_that_comes_with_the_end_of_an_answer_is_not_answered_once_more(bench: Bench) -> None:
    start(bench)
    with bench.connect() as connection:
        connection.sendall(announce("/read_late", CONTENT_LENGTH="200000", QUERY_STRING="held"))
        eventually(lambda: notes(bench) == ["begun"])
        connection.sendall(encode_record(RecordType.ABORT_REQUEST, 1))
        (bench.directory / "gate").write_bytes(b"")
        end_of_answer(connection)
        eventually(lambda: len(notes(bench)) == 2)
        connection.sendall(Request(parameters("/called"), keep_connection=True).to_send())
        assert [record.type for record in islice(records(connection), 3)] == [
            RecordType.STDOUT,
            RecordType.STDOUT,
            RecordType.END_REQUEST,
        ]
    assert notes(bench)[2:] == ["called"]


# --- the rest of a body that comes late


def with_the_rest_of_a_body_late(bench: Bench, connection: socket.socket) -> None:
    """Have the worker read that of a request whose answer is complete."""
    connection.sendall(announce("/ignore", CONTENT_LENGTH="200000") + body(100_000))
    end_of_answer(connection)
    connection.sendall(body(100_000) + END_OF_BODY)
    eventually(lambda: unread(connection) == 0)


def unread(connection: socket.socket) -> int:
    """Bytes that the other end of a Unix socket has not read."""
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0])


def test_a_connection_on_which_the_rest_of_a_body_came_late_is_seen_off_as_any_other(bench: Bench) -> None:
    worker = start(bench)
    with bench.connect() as connection:
        with_the_rest_of_a_body_late(bench, connection)
        worker.terminate()
        assert connection.recv(100) == GOODBYE
        assert ask(connection, "/called").body == b"called"
    assert worker.wait(20) == 0


def test_a_request_behind_it_has_the_time_of_any_other(bench: Bench) -> None:
    start(bench, HEAD_PATIENCE=0.3)
    with bench.connect() as connection:
        with_the_rest_of_a_body_late(bench, connection)
        connection.sendall(begin_request(1, keep_connection=True))
        assert connection.recv(1) == b""
    eventually(lambda: "connection closed before its request had come" in bench.stderr())


# --- the end of no body, for which the worker waits a little


def without_length(path: str, **more: str) -> bytes:
    named = parameters(path, **more)
    del named["CONTENT_LENGTH"]
    return announce_exactly(named)


def test_who_goes_on_saying_something_else_is_served_and_not_listened_to(bench: Bench) -> None:
    start(bench)
    wire = without_length("/read_late", QUERY_STRING="held") + encode_record(RecordType.DATA, 1, bytes(60_000)) * 500
    with bench.connect() as connection:

        def say_on() -> None:
            with contextlib.suppress(OSError):
                connection.sendall(wire)

        saying = threading.Thread(target=say_on)
        saying.start()
        eventually(lambda: notes(bench) == ["begun"])
        assert saying.is_alive()
        (bench.directory / "gate").write_bytes(b"")
        assert bench.fetch("/called").body == b"called"
    saying.join(20)


def test_an_order_of_somebody_who_has_gone_is_not_carried_out(bench: Bench) -> None:
    worker = start(bench)
    worker.send_signal(signal.SIGSTOP)
    with bench.connect() as connection:
        connection.sendall(without_length("/called"))
    worker.send_signal(signal.SIGCONT)
    assert bench.fetch("/pid").body == str(worker.pid).encode()
    assert notes(bench) == []


def test_nobody_waits_in_the_queue_of_a_listener_that_is_closed() -> None:
    """As a thread finds it that gives an answer while the main one ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not queued([listener])
        with socket.create_connection(listener.getsockname()):
            assert queued([listener])
    assert not queued([listener])
