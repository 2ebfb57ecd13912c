"""The native server over the wire: what it promises beyond what every server does (test_promises.py)."""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fcgimgr
from fcgimgr.fastcgi.client import Request
from fcgimgr.fastcgi.records import (
    Record,
    RecordReader,
    RecordType,
    begin_request,
    encode_record,
    encode_stream,
)
from tests.integration.benches import (
    ENGINES,
    Bench,
    announce,
    ask,
    ask_rest,
    notes,
    parameters,
    records,
    tcp_bench,
    unix_bench,
)
from tests.integration.servers import need
from tests.waiting import eventually


@pytest.fixture(params=["solo", "native"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    with contextlib.closing(unix_bench(tmp_path)) as made:
        shutil.copy(Path(__file__).with_name("native_app.py"), tmp_path)
        shutil.copy(Path(__file__).with_name("impatient_worker.py"), tmp_path)
        made.engine = ENGINES[request.param]
        yield made


def start(bench: Bench, *options: str, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    return bench.start("native_app:application", *options, before=before)


# --- memory


def test_a_gigabyte_without_a_length_takes_no_memory(bench: Bench) -> None:
    start(bench)
    piece = encode_stream(RecordType.STDIN, 1, bytes(32768)) * 32
    with bench.connect() as connection:
        connection.sendall(announce("/count", CONTENT_LENGTH="").replace(b"CONTENT_LENGTH", b"CONTENT_XXXXXX"))
        for _ in range(1024):
            connection.sendall(piece)
        connection.sendall(encode_record(RecordType.STDIN, 1))
        length, announced, taken = ask_rest(connection).body.split()
    assert (length, announced) == (str(1 << 30).encode(), b"False")
    assert int(taken) < 4_000_000


def test_a_body_longer_than_announced_takes_no_memory(bench: Bench) -> None:
    """What was announced as short is waited for, but not what comes in its place."""
    worker = start(bench)
    piece = encode_stream(RecordType.STDIN, 1, bytes(32768)) * 32
    before = most_resident(worker)
    with bench.connect() as connection:
        connection.sendall(announce("/count", CONTENT_LENGTH="5"))
        for _ in range(64):
            connection.sendall(piece)
        connection.sendall(encode_record(RecordType.STDIN, 1))
        assert ask_rest(connection).body.split()[0] == str(1 << 26).encode()
    assert most_resident(worker) - before < 8_000


def most_resident(worker: subprocess.Popen[bytes]) -> int:
    """The most memory that it has ever had, in kB."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


# --- the connection


def test_an_answer_does_not_wait_for_what_the_application_does_behind_it(tmp_path: Path) -> None:
    with contextlib.closing(tcp_bench(tmp_path)) as bench:
        shutil.copy(Path(__file__).with_name("native_app.py"), tmp_path)
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        bench.engine = ENGINES["solo"]
        # Where it waits in the kernel a trace shows it, and no clock has to.
        need("strace")
        start(bench, before=("strace", "-D", "-o", str(tmp_path / "trace"), "-e", "trace=sendto"))
        with bench.connect() as connection:
            connection.sendall(Request(parameters("/close_late")).to_send())
            assert ask_rest(connection).body == b"done"
            gate.write_bytes(b"")
            assert connection.recv(1) == b""
        assert "MSG_MORE" not in (tmp_path / "trace").read_text()
        assert bench.fetch("/called").body == b"called"
        eventually(lambda: "MSG_MORE" in (tmp_path / "trace").read_text())


@pytest.mark.parametrize("bench", ["solo"], indirect=True)
def test_an_application_with_a_signal_handler_of_its_own_leaves_the_worker_its_signals(bench: Bench) -> None:
    worker = start(bench)
    assert bench.fetch("/asyncio").status == 200
    eventually(lambda: Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S")
    worker.terminate()
    assert worker.wait(20) == 0


# --- peers that are slow


def impatient(bench: Bench, *settings: str) -> subprocess.Popen[bytes]:
    threads = "1" if bench.engine == ENGINES["solo"] else "4"
    worker = bench.launch(
        [sys.executable, "impatient_worker.py", "native", threads, "native_app", *settings],
        env={"PYTHONPATH": str(Path(fcgimgr.__file__).parents[1])},
    )
    bench.wait_until_ready()
    return worker


SLOW = {
    "nothing": b"",
    "half a header": begin_request(1)[:5],
    "half a request": announce("/called")[:-20],
    "half a short body": announce("/called", CONTENT_LENGTH="10") + encode_record(RecordType.STDIN, 1, b"abc"),
    "nothing on a kept connection": encode_record(RecordType.GET_VALUES, 0),
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_who_is_slow_costs_no_worker_and_is_closed_after_a_time(bench: Bench, sent: bytes) -> None:
    impatient(bench)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(bench.connect()) for _ in range(20)]
        for connection in slow:
            connection.sendall(sent)
        assert bench.fetch("/called").body == b"called"
        for connection in slow:
            while connection.recv(65536):
                continue
        assert bench.fetch("/called").body == b"called"
    assert notes(bench) == ["called"] * 2


def test_who_is_slow_is_closed_also_while_there_is_always_something_to_do(bench: Bench) -> None:
    impatient(bench)
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            assert bench.fetch("/nap").status == 200

    with bench.connect() as silent, bench.connect() as half, ThreadPoolExecutor(8) as pool:
        half.sendall(announce("/called")[:-20])
        loads = [pool.submit(load) for _ in range(8)]
        try:
            assert silent.recv(1) == half.recv(1) == b""
        finally:
            done.set()
        for each in loads:
            each.result(20)


def test_what_is_sent_ahead_without_end_is_no_fault_of_the_application(bench: Bench) -> None:
    start(bench)
    with bench.connect() as connection:
        connection.sendall(announce("/stream") + encode_record(RecordType.STDIN, 1))
        with ThreadPoolExecutor(1) as pool, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            pool.submit(connection.sendall, bytes(100_000_000))
            while connection.recv(65536):
                continue
    eventually(lambda: notes(bench) == ["closed"])
    eventually(lambda: "connection closed: more than 1048576 bytes were sent ahead of an answer" in bench.stderr())
    assert "the application failed" not in bench.stderr()


# --- several workers


def test_idle_workers_take_turns_and_each_serves_what_it_keeps(bench: Bench) -> None:
    pids = {str(bench.start().pid).encode() for _ in range(4)}
    with contextlib.ExitStack() as stack:
        kept: list[socket.socket] = []
        first: list[bytes] = []
        # Each is in the line from its first accept() on, which is some time after its start.
        while set(first[-40:]) != pids:
            assert len(first) < 80, set(first[-40:])
            kept.append(stack.enter_context(bench.connect()))
            first.append(ask(kept[-1]).body)
        assert [ask(connection).body for connection in kept] == first


NGINX = "nginx/1.22.1"
HAPROXY = "HAProxy 2.6.12"
HTTPD = "Apache/2.4.71 (Debian)"


def ask_to_keep(path: str = "/pid", software: str = NGINX) -> bytes:
    return bytes(Request(parameters(path, SERVER_SOFTWARE=software), keep_connection=True).to_send())


def ask_records(connection: socket.socket, path: str = "/pid", software: str = NGINX) -> list[Record]:
    """The answer to a request on a connection that is to be kept, and what was there when the answer had ended."""
    connection.sendall(ask_to_keep(path, software))
    return answer_records(connection)


def answer_records(connection: socket.socket) -> list[Record]:
    reader, found = RecordReader(), []
    while not any(record.type == RecordType.END_REQUEST for record in found):
        incoming = connection.recv(65536)
        assert incoming, "the connection was closed before the end of the answer"
        found += reader.feed(incoming)
    while select.select([connection], [], [], 0)[0] and (incoming := connection.recv(65536)):
        found += reader.feed(incoming)
    return found


def one_too_many(bench: Bench, stack: contextlib.ExitStack) -> tuple[socket.socket, list[Record]]:
    """A connection that the worker does not keep, because it keeps many, and the answer on it."""
    for _ in range(24 * 16 + 1):  # more than one process keeps
        connection = stack.enter_context(bench.connect())
        found = ask_records(connection)
        if found[-1].type == RecordType.STDERR:
            return connection, found
    raise AssertionError("it keeps them all")


def test_a_connection_that_is_not_kept_says_so_behind_its_last_answer(bench: Bench) -> None:
    """nginx uses it no more, and closes it."""
    worker = bench.start()
    with contextlib.ExitStack() as stack:
        connection, found = one_too_many(bench, stack)
        assert found[0].content.endswith(str(worker.pid).encode())
        assert [record.type for record in found[-2:]] == [RecordType.END_REQUEST, RecordType.STDERR]
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_a_request_that_crosses_with_the_end_of_its_connection_is_served(bench: Bench) -> None:
    """nginx may have read the end of the answer, and not yet what was said behind it."""
    worker = bench.start()
    with contextlib.ExitStack() as stack:
        connection, _ = one_too_many(bench, stack)
        connection.sendall(ask_to_keep())
        found = list(records(connection))  # to the end: this one was the last
        assert found[0].content.endswith(str(worker.pid).encode())
        assert [record.type for record in found[-2:]] == [RecordType.END_REQUEST, RecordType.STDERR]


def test_who_ignores_that_a_connection_is_over_is_closed_after_a_time(bench: Bench) -> None:
    bench.start()
    with contextlib.ExitStack() as stack:
        connection, _ = one_too_many(bench, stack)
        assert connection.recv(1) == b""


def test_the_end_of_a_large_answer_is_not_cut_from_what_is_said_behind_it(bench: Bench) -> None:
    """Each piece that is sent for itself is late here: nginx would put the connection by and use it again."""
    need("strace")
    if bench.engine == ENGINES["native"]:
        bench.engine = (*bench.engine[:-1], "2")  # it has to keep so many connections before it keeps no more
    traced = ("strace", "-D", "-f", "-o", "/dev/null", "-e", "inject=sendto:delay_enter=50000", "-e", "sendto")
    start(bench, before=traced)
    with contextlib.ExitStack() as stack:
        one_too_many(bench, stack)
        found = ask_records(stack.enter_context(bench.connect()), "/large")
        assert [record.type for record in found[-2:]] == [RecordType.END_REQUEST, RecordType.STDERR]


def test_kept_connections_spread_over_the_workers_however_they_began(bench: Bench) -> None:
    """Also while no worker is busy all the time: of those that ask at once the last waits for all others."""
    bench.start()
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(bench.connect()) for _ in range(20)]
        for connection in kept:
            ask_records(connection)
        bench.start()

        def is_even() -> bool:
            """After all have asked once more; whoever is told that its connection is over takes a new one."""
            for connection in kept:
                connection.sendall(ask_to_keep())
            pids = []
            for place, connection in enumerate(kept):
                found = answer_records(connection)
                pids.append(found[0].content[-8:])
                if found[-1].type == RecordType.STDERR:
                    connection.close()
                    kept[place] = stack.enter_context(bench.connect())
            return min(pids.count(pid) for pid in set(pids)) >= 6 and len(set(pids)) == 2

        eventually(is_even, within=60, every=0)


def test_a_promise_to_keep_a_connection_is_held_however_many_others_wait(bench: Bench) -> None:
    impatient(bench, "MOST_WAITING=10", "HEAD_PATIENCE=20", "KEPT_PATIENCE=20")
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            half = stack.enter_context(bench.connect())
            half.sendall(begin_request(1)[:5])
        kept = stack.enter_context(bench.connect())
        for _ in range(3):
            found = ask_records(kept, "/called")
            assert found[-1].type == RecordType.END_REQUEST
    assert notes(bench) == ["called"] * 3


def test_a_stopped_worker_answers_on_kept_connections_what_has_come(bench: Bench) -> None:
    """Nothing that was sent before the signal is lost."""
    worker = bench.start()
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(bench.connect()) for _ in range(10)]
        for connection in kept:
            assert ask(connection).status == 200
        worker.send_signal(signal.SIGSTOP)
        for connection in kept:
            connection.sendall(Request(parameters("/pid"), keep_connection=True).to_send())
        worker.terminate()
        worker.send_signal(signal.SIGCONT)
        assert [ask_rest(connection).body for connection in kept] == [str(worker.pid).encode()] * 10
    assert worker.wait(20) == 0


def test_a_stopped_worker_answers_what_has_come_before_however_late_it_looks(bench: Bench) -> None:
    """With a queue that takes long, the time for what is still to come would be over before it is looked at."""
    worker = impatient(bench, "FIRST_BYTE_GRACE=0")
    body = encode_stream(RecordType.STDIN, 1, bytes(65_000)) + encode_record(RecordType.STDIN, 1)
    with bench.connect() as kept, bench.connect() as first, bench.connect() as connection:
        assert ask(kept, "/called").status == 200
        worker.send_signal(signal.SIGSTOP)
        first.sendall(Request(parameters("/called")).to_send())
        # From the queue, after the signal, and more than one read takes.
        connection.sendall(announce("/count", CONTENT_LENGTH="65000", X_FILLER="x" * 2000) + body)
        worker.terminate()
        worker.send_signal(signal.SIGCONT)
        assert ask_rest(connection).body.startswith(b"65000 ")
    assert worker.wait(20) == 0


def test_a_busy_worker_that_is_told_to_stop_leaves_the_queue_alone_when_its_time_is_over(bench: Bench) -> None:
    """However many wait in it. It would be killed in the end, with one of them in hand."""
    at_once = 1 if bench.engine == ENGINES["solo"] else 4
    worker = impatient(bench, "QUEUE_PATIENCE=0")
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(bench.connect()) for _ in range(at_once)]
        for connection in first:
            connection.sendall(Request(parameters("/hold")).to_send())
        held = eventually(lambda: len(found := bench.held()) == at_once and found)
        others = [stack.enter_context(bench.connect()) for _ in range(7)]
        for connection in others:
            connection.sendall(Request(parameters("/called")).to_send())
        worker.terminate()
        bench.release(*held)
        assert worker.wait(20) == 0
        assert [ask_rest(connection).body for connection in first] == [str(worker.pid).encode()] * at_once
        assert notes(bench) == []
        start(bench)
        assert [ask_rest(connection).body for connection in others] == [b"called"] * 7


def test_a_stopping_worker_looks_at_the_clock_after_each_request_of_the_queue(bench: Bench) -> None:
    worker = impatient(bench, "QUEUE_PATIENCE=0.1")
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(bench.connect()) for _ in range(60)]
        worker.send_signal(signal.SIGSTOP)
        for connection in waiting:
            connection.sendall(Request(parameters("/nap")).to_send())
        worker.terminate()
        worker.send_signal(signal.SIGCONT)
        assert worker.wait(20) == 0
        assert len(select.select(waiting, [], [], 0)[0]) < 60


def test_what_a_stopped_worker_drops_is_in_the_log(bench: Bench) -> None:
    worker = impatient(bench, "FIRST_BYTE_GRACE=0.1", "FIRST_BYTE_PATIENCE=20")
    with bench.connect() as connection:
        connection.sendall(announce("/count")[:-20])
        worker.terminate()
        assert connection.recv(1) == b""
    assert worker.wait(20) == 0
    assert "connection closed before its request had come" in bench.stderr()


def test_a_stopped_worker_sees_idle_kept_connections_off_and_answers_what_crosses_with_that(bench: Bench) -> None:
    worker = bench.start()
    with bench.connect() as kept, bench.connect() as closed:
        ask_records(kept)
        ask_records(closed)
        worker.terminate()
        goodbye = encode_record(RecordType.STDERR, 1)
        assert kept.recv(65536) == closed.recv(65536) == goodbye
        closed.close()
        kept.sendall(ask_to_keep())
        found = list(records(kept))
        assert found[0].content.endswith(str(worker.pid).encode())
        assert [record.type for record in found[-2:]] == [RecordType.END_REQUEST, RecordType.STDERR]
    assert worker.wait(20) == 0


def test_a_stopped_worker_says_with_an_answer_that_it_was_the_last(bench: Bench) -> None:
    worker = bench.start()
    with bench.connect() as kept:
        kept.sendall(ask_to_keep("/hold"))
        (held,) = eventually(bench.held)
        worker.terminate()
        bench.release(held)
        found = list(records(kept))
        assert found[0].content.endswith(str(worker.pid).encode())
        assert [record.type for record in found[-2:]] == [RecordType.END_REQUEST, RecordType.STDERR]
    assert worker.wait(20) == 0


def test_no_request_is_lost_when_workers_are_replaced_under_kept_load(bench: Bench) -> None:
    """Each client goes over to a new connection when it is told that its own is over, as nginx does."""
    workers = [bench.start() for _ in range(2)]
    done = threading.Event()

    def load() -> int:
        served = 0
        connection = bench.connect()
        while not done.is_set():
            if select.select([connection], [], [], 0)[0]:
                connection.close()
                connection = bench.connect()
            found = ask_records(connection)
            assert any(record.content.startswith(b"Status: 200 ") for record in found)
            if found[-1].type == RecordType.STDERR:
                connection.close()
                connection = bench.connect()
            served += 1
        connection.close()
        return served

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load) for _ in range(4)]
        try:
            for _ in range(4):
                leaving = workers.pop(0)
                workers.append(bench.start())
                leaving.terminate()
                assert leaving.wait(20) == 0
        finally:
            done.set()
        assert sum(load.result(20) for load in loads) > 0
