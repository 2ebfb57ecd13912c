"""What a peer of a worker on flup cannot do: hold a thread for ever, or fill its memory."""

import contextlib
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fcgimgr
from fcgimgr.fastcgi.client import Request
from fcgimgr.fastcgi.records import RecordType, begin_request, encode_record
from tests.integration.benches import ENGINES, Bench, ask, ask_rest, parameters, tcp_bench, unix_bench
from tests.waiting import eventually


@pytest.fixture(params=[unix_bench, tcp_bench], ids=["unix", "tcp"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """With one worker of one thread, which is impatient."""
    with contextlib.closing(request.param(tmp_path)) as made:
        shutil.copy(Path(__file__).with_name("impatient_worker.py"), tmp_path)
        made.launch(
            [sys.executable, "impatient_worker.py", "flup", "1", "worker_app"],
            env={"PYTHONPATH": str(Path(fcgimgr.__file__).parents[1])},
        )
        made.wait_until_ready()
        yield made


def send_until_cut_off(connection: socket.socket, noise: bytes) -> None:
    deadline = time.monotonic() + 20
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while True:
            connection.sendall(noise)
            assert time.monotonic() < deadline, "it may send for ever"


@pytest.mark.parametrize("kind", [RecordType.STDIN, RecordType.DATA])
@pytest.mark.parametrize("content", [b"", b"too early"])
def test_a_body_before_the_end_of_the_parameters_is_refused(tmp_path: Path, kind: RecordType, content: bytes) -> None:
    with contextlib.closing(unix_bench(tmp_path)) as bench:
        bench.engine = ENGINES["flup"]
        bench.start()
        with bench.connect() as connection:
            connection.sendall(begin_request(1) + encode_record(kind, 1, content))
            assert connection.recv(1) == b""
        assert bench.stderr() == (
            "fcgimgr worker: connection closed: the body of a request came before the end of its parameters\n"
        )
        assert bench.fetch().status == 200


def test_data_that_nobody_reads_is_not_collected(tmp_path: Path) -> None:
    with contextlib.closing(unix_bench(tmp_path)) as bench:
        bench.engine = ENGINES["flup"]
        worker = bench.start()
        before = most_resident(worker.pid)
        noise = encode_record(RecordType.DATA, 1, bytes(65528)) * 16
        with bench.connect() as connection:
            whole = Request(parameters("/echo", CONTENT_LENGTH="3"), keep_connection=True).to_send()
            connection.sendall(whole.removesuffix(encode_record(RecordType.STDIN, 1)))
            for _ in range(64):
                connection.sendall(noise)
            connection.sendall(encode_record(RecordType.STDIN, 1, b"abc") + encode_record(RecordType.STDIN, 1))
            assert ask_rest(connection).body == b"abc"
        assert most_resident(worker.pid) - before < 20_000


def most_resident(pid: int) -> int:
    """The most memory that it has ever had, in kB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])


def test_whoever_announces_a_request_for_ever_is_cut_off(bench: Bench) -> None:
    with bench.connect() as connection:
        connection.sendall(begin_request(1))
        send_until_cut_off(connection, encode_record(99, 1) * 8192)
    assert "connection closed: a request was begun and not finished in 0.3 s\n" in bench.stderr()
    assert bench.fetch().status == 200


def test_whoever_asks_and_takes_no_replies_is_cut_off(bench: Bench) -> None:
    with bench.connect() as connection:
        send_until_cut_off(connection, encode_record(99, 0) * 8192)
    assert "connection closed: nothing of an answer was taken for 0.3 s\n" in bench.stderr()
    assert bench.fetch().status == 200


def test_an_answer_that_nobody_takes_is_given_up(bench: Bench) -> None:
    with bench.connect() as connection:
        connection.sendall(Request(parameters("/endless")).to_send())
        with bench.connect() as other:
            assert ask(other).status == 200
    eventually(
        lambda: bench.stderr() == "fcgimgr worker: connection closed: nothing of an answer was taken for 0.3 s\n"
    )
