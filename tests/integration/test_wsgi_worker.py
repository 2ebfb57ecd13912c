"""The WSGI worker, with every engine: a real process on a real listener, asked over the wire."""

import ast
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import flup  # type: ignore[import-untyped,unused-ignore]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcgimgr.fastcgi.client import Request, fetch
from fcgimgr.fastcgi.records import (
    PairStream,
    ProtocolError,
    RecordReader,
    RecordType,
    begin_request,
    encode_pairs,
    encode_record,
)
from fcgimgr.worker import FLUP_VARIABLE, MAIN
from tests.integration.benches import (
    ENGINES,
    FLUP_HOME,
    Bench,
    ask,
    ask_rest,
    in_background,
    parameters,
    tcp_bench,
    unix_bench,
)
from tests.integration.pythons import other_pythons
from tests.waiting import eventually


@pytest.fixture(params=ENGINES)
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    with contextlib.closing(unix_bench(tmp_path)) as made:
        made.engine = ENGINES[request.param]
        yield made


@pytest.fixture
def flup_bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(unix_bench(tmp_path)) as made:
        yield made


# --- serving


@pytest.mark.parametrize(
    "make", [unix_bench, tcp_bench, lambda directory: tcp_bench(directory, socket.AF_INET6)], ids=["unix", "v4", "v6"]
)
def test_requests_are_served_on_every_kind_of_socket(tmp_path: Path, make: Callable[[Path], Bench]) -> None:
    with contextlib.closing(make(tmp_path)) as bench:
        worker = bench.start()
        response = bench.fetch()
        assert (response.status, response.body) == (200, str(worker.pid).encode())
        assert response.header("content-length") == str(len(response.body))
        assert bench.fetch("/empty").status == 204


def test_a_body_of_megabytes_goes_in_and_comes_out_as_it_was(bench: Bench) -> None:
    bench.start()
    body = os.urandom(3_000_001)
    assert bench.fetch("/echo", body).body == body


def test_it_needs_no_fcgimgr_and_no_flup_in_the_interpreter_and_hides_nothing_of_the_applications(bench: Bench) -> None:
    bare = bench.directory / "venv"
    venv.create(bare, with_pip=False)
    for ours in ("main", "notify", "loading", "accepting", "app"):
        (bench.directory / f"{ours}.py").write_text("WHOSE = 'the application'\n")
    (bench.directory / "app.py").write_text(
        "import main, notify, loading, accepting\n"
        "assert {main.WHOSE, notify.WHOSE, loading.WHOSE, accepting.WHOSE} == {'the application'}\n"
        "from worker_app import application\n"
        "class site: run = staticmethod(application)\n"
    )
    bench.start("app:site.run", python=str(bare / "bin" / "python"))
    report = json.loads(bench.fetch("/report").body)
    assert report["path"][0] == str(bench.directory)
    assert FLUP_HOME not in report["path"]
    assert os.path.dirname(MAIN) not in report["path"]
    assert not {"msgspec", "click", "fcgimgr.config", "fcgimgr.core"} & set(report["modules"])


def test_the_applications_own_flup_comes_first(bench: Bench) -> None:
    own = bench.directory / "flup"
    shutil.copytree(Path(flup.__file__).parent, own)
    bench.start()
    (bench.directory / "which.py").write_text(
        "import flup, sys\nsys.exit(flup.__file__)\n",
    )
    failed = bench.start("which:app", ready=False)
    assert failed.wait(20) == 1
    assert str(own / "__init__.py") in bench.stderr()


def test_what_the_application_sees_of_its_process_is_sane(bench: Bench) -> None:
    worker = bench.start("worker_app:application", "--threads", "3", stdout=subprocess.PIPE)
    report = json.loads(bench.fetch("/report", X_VARIABLE="é").body)
    assert report["argv"] == []
    assert report["stdin"] == "/dev/null"
    assert report["inheritable"] == []
    assert FLUP_VARIABLE not in report["environment"]
    assert report["environment"]["NOTIFY_SOCKET"] == str(bench.directory / "notify")
    assert report["params"]["X_VARIABLE"] == "é".encode().decode("latin-1")
    assert report["wsgi"] == {"wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False}
    assert not report["main_thread"]
    assert worker.stdout is not None
    with worker.stdout:
        assert worker.stdout.readline() == b"a line on stdout\n"
    assert "a line on wsgi.errors\n" in bench.stderr()


def test_ready_is_said_only_when_the_application_is_loaded(bench: Bench) -> None:
    gate = bench.directory / "gate"
    os.mkfifo(gate)
    (bench.directory / "slow.py").write_text(
        "import pathlib\n"
        "with open('gate') as gate: gate.read()\n"
        "pathlib.Path('loaded').touch()\n"
        "from worker_app import application\n"
    )
    worker = bench.start("slow:application", ready=False)
    assert not select.select([bench._notified], [], [], 0)[0]
    bench.release(gate)
    assert bench._notified.recv(100) == b"READY=1"
    assert (bench.directory / "loaded").exists()
    assert bench.fetch().body == str(worker.pid).encode()


def test_several_listeners_come_by_number(bench: Bench) -> None:
    with socket.socket(socket.AF_UNIX) as second:
        second.bind(str(bench.directory / "second"))
        second.listen()
        fds = f"{bench.listener.fileno()},{second.fileno()}"
        bench.start(env={"FCGI_LISTEN_FD": fds}, pass_fds=(bench.listener.fileno(), second.fileno()))
        assert bench.fetch().status == 200
        assert fetch(str(bench.directory / "second"), parameters("/report")).status == 200


# --- a worker that cannot serve


@pytest.mark.parametrize(
    ("application", "complaint"),
    [
        ("absent:app", "there is no module 'absent'; set directory or pythonpath"),
        ("worker_app:absent", "has no 'absent'; did you mean worker_app:application?"),
        ("worker_app:HERE", "it is not callable but of type PosixPath"),
        ("worker_app", "write module:callable"),
        ("broken:app", 'broken.py", line 3, in <module>\n'),
        ("broken:app", "ZeroDivisionError: division by zero"),
        ("needy:app", "ModuleNotFoundError: No module named 'absent_library'"),
        ("typo:app", "SyntaxError"),
        ("quits:app", "the module called sys.exit(0) while it was imported"),
    ],
)
def test_an_application_that_cannot_be_loaded_is_exit_1_with_the_reason(
    bench: Bench, application: str, complaint: str
) -> None:
    # The thread would keep an interpreter alive that ends in the ordinary way.
    (bench.directory / "broken.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n1 / 0\n"
    )
    (bench.directory / "needy.py").write_text("import absent_library\n")
    (bench.directory / "typo.py").write_text("def app(:\n")
    (bench.directory / "quits.py").write_text("import sys\nsys.exit(0)\n")
    assert bench.start(application, ready=False).wait(20) == 1
    assert complaint in bench.stderr()
    assert "importlib" not in bench.stderr()
    assert "loading.py" not in bench.stderr()


def test_without_a_listener_it_says_what_it_is_for(bench: Bench) -> None:
    assert bench.start(ready=False, stdin=subprocess.DEVNULL).wait(20) == 1
    assert "file descriptor 0 is not a listening socket" in bench.stderr()


def test_without_flup_anywhere_it_says_so(flup_bench: Bench) -> None:
    bench = flup_bench
    bare = bench.directory / "venv"
    venv.create(bare, with_pip=False)
    absent = {FLUP_VARIABLE: str(bench.directory)}
    assert bench.start(ready=False, python=str(bare / "bin" / "python"), env=absent).wait(20) == 1
    assert "cannot import flup" in bench.stderr()


def test_a_wrong_command_line_is_exit_2(bench: Bench) -> None:
    assert bench.start("a:b", "--threads", "0", ready=False).wait(20) == 2
    assert "'0' is not a number from 1 to 10000" in bench.stderr()


# --- threads


def test_no_connection_is_accepted_without_a_free_thread(bench: Bench) -> None:
    """flup itself accepts all and closes what it has no thread for."""
    bench.start("worker_app:application", "--threads", "2")

    def gone(requests: set[Path]) -> bool:
        return not requests & set(bench.held())

    with in_background(bench, *["/hold"] * 6) as answers:
        served = 0
        most = 0
        while served < 6:
            eventually(lambda: len(bench.held()) == 2)
            most = max(most, len(bench.held()))
            before = set(bench.held())
            bench.release(*before)
            eventually(partial(gone, before))
            served += 2
        assert [answer.status for answer in answers()] == [200] * 6
    assert most == 2


def test_a_connection_goes_to_the_worker_that_has_a_thread_free(bench: Bench) -> None:
    busy, free = bench.start("worker_app:application", "--threads", "1"), None
    with in_background(bench, "/hold") as answers:
        eventually(bench.held)
        free = bench.start("worker_app:application", "--threads", "1")
        assert {bench.fetch().body for _ in range(5)} == {str(free.pid).encode()}
        bench.release(*bench.held())
        assert answers()[0].body == str(busy.pid).encode()


def test_idle_workers_take_turns(bench: Bench) -> None:
    workers = [bench.start() for _ in range(4)]
    counts = Counter(bench.fetch().body for _ in range(200))
    assert counts.keys() == {str(worker.pid).encode() for worker in workers}
    assert min(counts.values()) >= 5


def test_a_lost_race_for_a_connection_leaves_no_worker_deaf(bench: Bench) -> None:
    """On a blocking listener the losers of a race hang in accept(), where a stop signal does not reach them."""
    bench.listener.setblocking(True)
    workers = [bench.start() for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status for answer in pool.map(lambda _: bench.fetch(), range(60))} == {200}
    for worker in workers:
        worker.terminate()
    assert [worker.wait(20) for worker in workers] == [0, 0, 0]


# --- kept connections


def test_a_kept_connection_serves_one_request_after_the_other(bench: Bench) -> None:
    worker = bench.start()
    with bench.connect() as connection:
        assert [ask(connection).body for _ in range(3)] == [str(worker.pid).encode()] * 3
        ask(connection, keep=False)
        assert connection.recv(1) == b""


def test_requests_sent_ahead_on_a_kept_connection_are_all_served(bench: Bench) -> None:
    bench.start()
    with bench.connect() as connection:
        connection.sendall(Request(parameters("/pid"), keep_connection=True).to_send() * 3)
        reader = RecordReader()
        ends = 0
        while ends < 3:
            ends += sum(r.type == RecordType.END_REQUEST for r in reader.feed(connection.recv(65536)))


def test_idle_kept_connections_hold_no_thread(bench: Bench) -> None:
    bench.start("worker_app:application", "--threads", "1")
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(bench.connect()) for _ in range(5)]
        for _ in range(2):
            for connection in kept:
                assert ask(connection).status == 200
        assert bench.fetch().status == 200


# --- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_an_idle_worker_ends_with_0_on_every_stop_signal(bench: Bench, number: int) -> None:
    worker = bench.start()
    worker.send_signal(number)
    assert worker.wait(20) == 0
    assert bench.stderr() == ""


def test_term_finishes_the_request_in_hand(bench: Bench) -> None:
    solo = bench.engine == ENGINES["solo"]  # while it runs a request it does nothing else
    at_once = 1 if solo else 2
    worker = bench.start()
    with in_background(bench, *["/hold"] * at_once) as answers:
        eventually(lambda: len(bench.held()) == at_once)
        worker.terminate()
        worker.terminate()  # systemd sends one to every process, and so does the manager
        if not solo:
            eventually(lambda: is_refused(bench))
        bench.release(*bench.held())
        assert [answer.body for answer in answers()] == [str(worker.pid).encode()] * at_once
    assert worker.wait(20) == 0


def is_refused(bench: Bench) -> bool:
    """Whether the worker has let go of the listener: it is in nobody's hands but ours."""
    inode = os.stat(bench.listener.fileno()).st_ino
    return not any(
        f"socket:[{inode}]" == os.readlink(fd)
        for worker in bench.workers
        for fd in Path(f"/proc/{worker.pid}/fd").iterdir()
    )


def test_term_serves_what_waits_in_the_queue(bench: Bench) -> None:
    worker = bench.start("worker_app:application", "--threads", "1")
    with in_background(bench, "/hold") as answer:
        eventually(bench.held)
        with bench.connect() as waiting:
            waiting.sendall(Request(parameters("/pid")).to_send())
            worker.terminate()
            bench.release(*bench.held())
            assert answer()[0].status == 200
            assert ask_rest(waiting).body == str(worker.pid).encode()
    assert worker.wait(20) == 0


def assert_closed(connection: socket.socket) -> None:
    """Nothing more is said on it, but perhaps that it is over."""
    with connection.makefile("rb") as rest:
        assert rest.read() in (b"", encode_record(RecordType.STDERR, 1))


def test_term_closes_an_idle_kept_connection_and_ends(bench: Bench) -> None:
    worker = bench.start()
    with bench.connect() as kept:
        ask(kept)
        worker.terminate()
        assert_closed(kept)
        assert worker.wait(20) == 0


def test_term_does_not_wait_long_for_a_connection_that_never_spoke(bench: Bench) -> None:
    worker = bench.start()
    with bench.connect():
        eventually(lambda: bench_has_accepted(worker, bench))
        begun = time.monotonic()
        worker.terminate()
        assert worker.wait(20) == 0
        assert time.monotonic() - begun < 2.5


def bench_has_accepted(worker: subprocess.Popen[bytes], bench: Bench) -> bool:
    sockets = [os.readlink(fd) for fd in Path(f"/proc/{worker.pid}/fd").iterdir()]
    return sum(target.startswith("socket:") for target in sockets) >= 2


def test_a_child_that_the_application_forked_may_be_ended_without_ending_the_worker(bench: Bench) -> None:
    worker = bench.start()
    assert bench.fetch("/fork").body == b"15"
    assert bench.fetch().body == str(worker.pid).encode()


def test_no_request_is_lost_when_workers_are_replaced_under_load(bench: Bench) -> None:
    workers = [bench.start() for _ in range(2)]
    done = threading.Event()

    def load() -> int:
        served = 0
        while not done.is_set():
            assert bench.fetch().status == 200
            served += 1
        return served

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load) for _ in range(4)]
        try:
            for _ in range(6):
                workers.append(bench.start())
                oldest = workers.pop(0)
                oldest.terminate()
                assert oldest.wait(20) == 0
        finally:
            done.set()
        assert sum(load.result(20) for load in loads) > 50


# --- faults


def test_an_exception_is_a_500_and_its_traceback_is_in_the_processs_stderr(bench: Bench) -> None:
    bench.start()
    response = bench.fetch("/fail")
    assert response.status == 500
    assert response.stderr == b""
    assert b"cupboard" not in response.body
    assert "LookupError: the cupboard is bare" in bench.stderr()
    assert bench.fetch("/leave").status == 500
    assert bench.fetch().status == 200


def test_a_response_that_fails_halfway_does_not_look_whole(bench: Bench) -> None:
    bench.start()
    with pytest.raises(ProtocolError, match="in the middle of its response"):
        bench.fetch("/halfway")
    assert "the second half is missing" in bench.stderr()


def test_a_client_that_goes_away_is_no_fault(bench: Bench) -> None:
    worker = bench.start("worker_app:application", "--threads", "1")
    with bench.connect() as connection:
        connection.sendall(Request(parameters("/endless")).to_send())
        connection.recv(100)
    with bench.connect() as connection:
        connection.sendall(Request(parameters("/echo", b"x" * 10)).opening())
        connection.sendall(encode_record(RecordType.PARAMS, 1))
    assert bench.fetch().body == str(worker.pid).encode()
    assert bench.stderr() == ""


def test_parameters_may_lie_across_two_records(bench: Bench) -> None:
    bench.start()
    pairs = encode_pairs((name.encode(), value.encode()) for name, value in parameters("/report", X="y" * 300).items())
    with bench.connect() as connection:
        pieces = b"".join(encode_record(RecordType.PARAMS, 1, pairs[at : at + 7]) for at in range(0, len(pairs), 7))
        connection.sendall(begin_request(1) + pieces + Request({}).closing())
        assert json.loads(ask_rest(connection).body)["params"]["X"] == "y" * 300


def test_the_worker_tells_its_limits(bench: Bench) -> None:
    bench.start("worker_app:application", "--threads", "5")
    asked = encode_pairs([(b"FCGI_MAX_CONNS", b""), (b"FCGI_MPXS_CONNS", b""), (b"X", b"")])
    with bench.connect() as connection:
        connection.sendall(encode_record(RecordType.GET_VALUES, 0, asked))
        (record,) = RecordReader().feed(connection.recv(65536))
        answer = PairStream()
        answer.add(record.content)
        assert record.type == RecordType.GET_VALUES_RESULT
        assert answer.pairs() == [(b"FCGI_MAX_CONNS", b"5"), (b"FCGI_MPXS_CONNS", b"0")]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        encode_record(RecordType.BEGIN_REQUEST, 1, b"short"),
        begin_request(1)
        + encode_record(RecordType.PARAMS, 1, b"\xff\xff\xff\xff")
        + encode_record(RecordType.PARAMS, 1),
        begin_request(1) + encode_record(RecordType.PARAMS, 1, bytes(60_000)) * 20,
    ],
    ids=["http", "begin", "pairs", "endless"],
)
def test_a_malformed_request_costs_its_connection_one_line_and_nothing_else(bench: Bench, sent: bytes) -> None:
    worker = bench.start("worker_app:application", "--threads", "1")
    with bench.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(sent)
        assert connection.recv(100) == b""
    assert bench.fetch().body == str(worker.pid).encode()
    assert bench.stderr().startswith("fcgimgr worker: connection closed: ")
    assert bench.stderr().count("\n") == 1


noise = st.one_of(
    st.binary(max_size=80),
    st.builds(encode_record, st.integers(0, 12), st.integers(0, 2), st.binary(max_size=30)),
    st.sampled_from([begin_request(1), begin_request(2, 9), encode_record(4, 1), encode_record(5, 1)]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(noise, max_size=6))
def test_any_bytes_leave_the_worker_serving(bench: Bench, pieces: list[bytes]) -> None:
    if not bench.workers:
        bench.start()
    with bench.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"".join(pieces))
    assert bench.fetch().body == str(bench.workers[0].pid).encode()
    assert "a connection failed" not in bench.stderr()


# --- who may connect


@pytest.mark.parametrize(
    ("family", "allowed", "served"),
    [
        (socket.AF_UNIX, "10.0.0.1", True),
        (socket.AF_INET, "10.0.0.1, 127.0.0.1", True),
        (socket.AF_INET, "10.0.0.1", False),
        (socket.AF_INET, "nonsense", False),
        (socket.AF_INET, "127.0.0.0/8", True),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET6, "127.0.0.1", False),
    ],
)
def test_only_the_named_peers_are_served(
    tmp_path: Path, family: socket.AddressFamily, allowed: str, served: bool
) -> None:
    """flup refuses every peer on a Unix socket and over IPv6."""
    made = unix_bench(tmp_path) if family == socket.AF_UNIX else tcp_bench(tmp_path, family)
    with contextlib.closing(made) as bench:
        bench.start(env={"FCGI_WEB_SERVER_ADDRS": allowed})
        with bench.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(Request(parameters("/pid")).to_send())
            assert bool(connection.recv(100)) == served


# --- where it runs


@pytest.mark.parametrize("room", ["worker", "fastcgi", "demo"])
def test_what_an_applications_interpreter_loads_is_written_in_python_3_9(room: str) -> None:
    for file in [*(Path(MAIN).parents[1] / room).glob("*.py"), Path(MAIN).parents[1] / "__init__.py"]:
        ast.parse(file.read_text(), str(file), feature_version=(3, 9))


@pytest.mark.parametrize("python", other_pythons())
def test_it_serves_in_every_python_there_is_without_a_warning_of_deprecation(bench: Bench, python: str) -> None:
    worker = bench.start(python=python, env={"PYTHONWARNINGS": "error::DeprecationWarning,error::ImportWarning"})
    body = os.urandom(300_000)
    assert bench.fetch("/echo", body).body == body
    assert bench.fetch("/fail").status == 500
    assert "at GET /fail\nTraceback (most recent call last):" in bench.stderr()
    assert "LookupError: the cupboard is bare\n" in bench.stderr()
    with bench.connect() as kept:
        assert [ask(kept).body for _ in range(3)] == [str(worker.pid).encode()] * 3
        at_once = 1 if bench.engine == ENGINES["solo"] else 8
        with in_background(bench, *["/hold"] * at_once) as answers:
            eventually(lambda: len(bench.held()) == at_once)
            worker.terminate()
            bench.release(*bench.held())
            assert {answer.status for answer in answers()} == {200}
        assert_closed(kept)
    assert worker.wait(20) == 0
    assert "Warning" not in bench.stderr()


@pytest.mark.parametrize("python", other_pythons())
def test_every_python_there_is_says_why_an_application_cannot_be_loaded(bench: Bench, python: str) -> None:
    (bench.directory / "needy.py").write_text("import absent_library\n")
    assert bench.start("needy:app", ready=False, python=python).wait(20) == 1
    assert "cannot load 'needy:app': ModuleNotFoundError: No module named 'absent_library'\n" in bench.stderr()
    assert 'needy.py", line 1, in <module>\n' in bench.stderr()
    assert "loading.py" not in bench.stderr()
