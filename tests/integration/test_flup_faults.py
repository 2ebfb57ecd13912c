"""What flup 1.0.3 gets wrong, each fault twice: plain flup has it, our engine on flup has it not.

Every check runs over both. That it fails over plain flup is asserted too (a strict xfail): a check that plain flup
passes would not find the fault. Plain flup is started as its own documentation says, as a script on fd 0.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fcgimgr.fastcgi.client import Request, Response
from fcgimgr.fastcgi.records import (
    FastCGIError,
    PairStream,
    RecordReader,
    RecordType,
    begin_request,
    encode_pairs,
    encode_record,
    end_request,
)
from tests.integration.benches import (
    Bench,
    announce_exactly,
    ask,
    ask_rest,
    in_background,
    parameters,
    tcp_bench,
    unix_bench,
)
from tests.integration.servers import need
from tests.waiting import eventually

PLAIN = """\
import sys
from flup.server.fcgi import WSGIServer
import importlib
application = importlib.import_module(sys.argv[2]).application
threads = int(sys.argv[1])
WSGIServer(application, maxSpare=min(threads, 5), maxThreads=threads).run()
"""

OURS = "ours"
FLUP = "plain flup"
#: A broken program is not waited for as long as a slow one.
PATIENCE = {OURS: 20.0, FLUP: 4.0}

plain_fails = pytest.mark.parametrize(
    "engine",
    [
        OURS,
        pytest.param(
            FLUP,
            marks=pytest.mark.xfail(
                strict=True,
                raises=(AssertionError, FastCGIError, OSError, subprocess.TimeoutExpired),
                reason="a fault of flup",
            ),
        ),
    ],
)


class Trial:
    """One engine on one listener."""

    def __init__(self, engine: str, bench: Bench) -> None:
        self.bench = bench
        self.patience = PATIENCE[engine]
        self._engine = engine
        (bench.directory / "plain.py").write_text(PLAIN)
        shutil.copy(Path(__file__).with_name("native_app.py"), bench.directory)

    def start(
        self, threads: int = 16, *, before: tuple[str, ...] = (), app: str = "worker_app", **environment: str
    ) -> subprocess.Popen[bytes]:
        """A process that serves, with so many threads at most. `before`: words of a program that executes the rest."""
        if self._engine == OURS:
            return self.bench.start(f"{app}:application", "--threads", str(threads), before=before, env=environment)
        worker = self.bench.launch([*before, sys.executable, "plain.py", str(threads), app], env=environment)
        # It says nothing, but once it sleeps in select it has its signal handlers.
        eventually(lambda: system_call(worker) == "select" or worker.poll() is not None, within=20)
        return worker

    @contextlib.contextmanager
    def asking(self, path: str = "/pid") -> Iterator[socket.socket]:
        """A connection with a request on it, which may wait."""
        with self.bench.connect() as connection:
            connection.settimeout(self.patience)
            connection.sendall(Request(parameters(path)).to_send())
            yield connection

    def has_accepted(self, worker: subprocess.Popen[bytes], number: int) -> bool:
        """Whether so many connections are in the worker's hands. One of its sockets is the listener."""
        links = [os.readlink(fd) for fd in Path(f"/proc/{worker.pid}/fd").iterdir()]
        listener = f"socket:[{os.stat(self.bench.listener.fileno()).st_ino}]"
        return sum(link.startswith("socket:") and link != listener for link in links) >= number


def system_call(worker: subprocess.Popen[bytes]) -> str:
    """In which call the main thread waits, of those that matter here (the numbers of x86-64 and arm64)."""
    words = Path(f"/proc/{worker.pid}/syscall").read_text().split()
    return {"23": "select", "270": "select", "72": "select", "202": "futex", "98": "futex"}.get(words[0], words[0])


def is_stopped(worker: subprocess.Popen[bytes]) -> bool:
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"


@pytest.fixture
def trial(engine: str, tmp_path: Path) -> Iterator[Trial]:
    with contextlib.closing(unix_bench(tmp_path)) as bench:
        yield Trial(engine, bench)


def answers_at_once(connection: socket.socket) -> bool:
    """Whether there is an answer already: of a process that has ended no more will come."""
    return bool(select.select([connection], [], [], 0)[0]) and ask_rest(connection).status == 200


def assert_broken_off(connection: socket.socket) -> None:
    """pytest.raises would fail with what is no AssertionError, and a strict xfail must name what it expects."""
    try:
        response = ask_rest(connection)
    except FastCGIError:
        return
    raise AssertionError(f"it ended as if it were whole: {response.body!r}")


# --- accepting


@plain_fails
def test_no_connection_is_accepted_without_a_free_thread(trial: Trial) -> None:
    """flup accepts it and closes it: nginx answers 502."""
    trial.start(threads=2)
    with in_background(trial.bench, "/hold", "/hold") as answers:
        eventually(lambda: len(trial.bench.held()) == 2)
        try:
            with trial.asking() as third:
                assert not select.select([third], [], [], 0.2)[0], "it was answered, or closed, without a thread"
                trial.bench.release(*trial.bench.held())
                assert ask_rest(third).status == 200
        finally:
            trial.bench.release(*trial.bench.held())
            answers()


@plain_fails
def test_requests_within_the_number_of_threads_do_not_wait_for_each_other(trial: Trial) -> None:
    """flup does not count a thread as busy before it runs: in a burst, requests queue behind each other."""
    worker = trial.start(threads=20)
    worker.send_signal(signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(trial.asking("/hold"))
        worker.send_signal(signal.SIGCONT)
        eventually(lambda: trial.has_accepted(worker, 20), within=20)
        eventually(lambda: len(trial.bench.held()) == 20, within=trial.patience)
        trial.bench.release(*trial.bench.held())


@plain_fails
def test_a_lost_race_for_a_connection_leaves_no_worker_deaf(trial: Trial) -> None:
    """Several processes wake for one connection. flup's losers hang in accept(), where no signal reaches them.

    The test is the faster one of two here: a slow return from select is what strace makes, and SIGSTOP holds the worker
    there while the test looks whether the connection is still to be had.
    """
    need("strace")
    trace = trial.bench.directory / "trace"
    waits = "?select,?epoll_wait,pselect6,epoll_pwait"
    worker = trial.start(
        threads=1, before=("strace", "-D", "-o", str(trace), "-e", f"inject={waits}:delay_exit=500000", "-e", waits)
    )

    def returns() -> int:
        return trace.read_text().count(" = 1 ")

    won = False
    while not won:
        before = returns()
        with trial.bench.connect():
            eventually(lambda seen=before: returns() > seen, within=20)
            worker.send_signal(signal.SIGSTOP)
            eventually(lambda: is_stopped(worker), within=20)
            if select.select([trial.bench.listener], [], [], 0)[0]:
                trial.bench.listener.accept()[0].close()
                won = True
            worker.send_signal(signal.SIGCONT)
    worker.terminate()
    assert worker.wait(trial.patience) == 0


@pytest.mark.parametrize(
    ("family", "peer"), [(socket.AF_UNIX, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["unix", "v6"]
)
@plain_fails
def test_a_peer_by_unix_or_ipv6_is_let_in(engine: str, tmp_path: Path, family: socket.AddressFamily, peer: str) -> None:
    """Where FCGI_WEB_SERVER_ADDRS is set flup wants two words of an address: of Unix and IPv6 it lets nobody in."""
    made = unix_bench(tmp_path) if family == socket.AF_UNIX else tcp_bench(tmp_path, family)
    with contextlib.closing(made) as bench:
        trial = Trial(engine, bench)
        trial.start(FCGI_WEB_SERVER_ADDRS=peer)
        with trial.asking() as connection:
            assert ask_rest(connection).status == 200


# --- stopping


@plain_fails
def test_term_serves_all_that_waits_in_the_queue(trial: Trial) -> None:
    worker = trial.start(threads=2)
    worker.send_signal(signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(trial.asking()) for _ in range(4)]
        worker.terminate()
        worker.send_signal(signal.SIGCONT)
        assert worker.wait(trial.patience) == 0
        assert [answers_at_once(connection) for connection in waiting] == [True] * 4


@plain_fails
def test_term_finishes_all_that_was_accepted(trial: Trial) -> None:
    """flup drops what it has accepted and not begun."""
    worker = trial.start(threads=20)
    worker.send_signal(signal.SIGSTOP)
    with in_background(trial.bench, *["/hold"] * 20) as answers:
        worker.send_signal(signal.SIGCONT)
        eventually(lambda: trial.has_accepted(worker, 20) and len(trial.bench.held()) >= 5, within=20)
        worker.terminate()
        eventually(lambda: system_call(worker) == "futex", within=20)  # it waits for its threads

        def release_until_it_ends() -> bool:
            trial.bench.release(*trial.bench.held())
            return worker.poll() is not None

        eventually(release_until_it_ends, within=20)
        assert [answer.status for answer in answers()] == [200] * 20


@plain_fails
def test_term_lets_go_of_an_idle_kept_connection(trial: Trial) -> None:
    worker = trial.start()
    with trial.bench.connect() as kept:
        kept.settimeout(trial.patience)
        assert ask(kept).status == 200
        worker.terminate()
        assert kept.recv(100) == encode_record(RecordType.STDERR, 1)  # at which nginx closes it
        kept.shutdown(socket.SHUT_WR)
        assert kept.recv(1) == b""
        assert worker.wait(20) == 0


# --- connections


@plain_fails
def test_an_idle_kept_connection_holds_no_thread(trial: Trial) -> None:
    trial.start(threads=1)
    with trial.bench.connect() as kept:
        assert ask(kept).status == 200
        with trial.asking() as next_one:
            assert ask_rest(next_one).status == 200


@plain_fails
def test_a_client_that_does_not_close_its_side_holds_no_thread(trial: Trial) -> None:
    trial.start(threads=1)
    with trial.asking() as answered:
        assert ask_rest(answered).status == 200
        with trial.asking() as next_one:
            assert ask_rest(next_one).status == 200


@plain_fails
def test_parameters_may_lie_across_two_records(trial: Trial) -> None:
    trial.start()
    pairs = encode_pairs((name.encode(), value.encode()) for name, value in parameters("/report", X="y" * 300).items())
    with trial.bench.connect() as connection:
        connection.settimeout(trial.patience)
        pieces = b"".join(encode_record(RecordType.PARAMS, 1, pairs[at : at + 7]) for at in range(0, len(pairs), 7))
        connection.sendall(begin_request(1) + pieces + Request({}).closing())
        assert f'"X": "{"y" * 300}"'.encode() in ask_rest(connection).body


@plain_fails
def test_the_server_tells_its_limits(trial: Trial) -> None:
    """flup looks for bytes among names that are text, and answers with nothing."""
    trial.start(threads=3)
    asked = encode_pairs([(b"FCGI_MAX_CONNS", b""), (b"FCGI_MPXS_CONNS", b"")])
    with trial.bench.connect() as connection:
        connection.sendall(encode_record(RecordType.GET_VALUES, 0, asked))
        (record,) = RecordReader().feed(connection.recv(65536))
        assert record.type == RecordType.GET_VALUES_RESULT
        answer = PairStream()
        answer.add(record.content)
        assert answer.pairs() == [(b"FCGI_MAX_CONNS", b"3"), (b"FCGI_MPXS_CONNS", b"0")]


# --- faults of the application and of the peer


@plain_fails
def test_an_exception_is_logged_with_the_request_that_raised_it(trial: Trial) -> None:
    """flup sends it to the web server, which logs it without saying so of the pool, and mixes it with the answer."""
    trial.start()
    assert trial.bench.fetch("/fail", REQUEST_METHOD="POST", QUERY_STRING="a=%20").status == 500
    assert "at POST /fail?a=%20\nTraceback (most" in trial.bench.stderr()
    assert "LookupError: the cupboard is bare" in trial.bench.stderr()


@plain_fails
def test_a_response_that_fails_halfway_does_not_look_whole(trial: Trial) -> None:
    trial.start()
    with trial.asking("/halfway") as connection:
        assert_broken_off(connection)


@pytest.mark.parametrize("where", ["call", "iteration", "close"])
@plain_fails
def test_a_broken_pipe_of_the_applications_own_is_a_failure_like_any_other(trial: Trial, where: str) -> None:
    """flup takes it for the client's, and says nothing: an empty answer, or half a page that looks whole."""
    trial.start()
    with trial.asking(f"/pipe_{where}") as connection:
        if where == "call":
            assert ask_rest(connection).status == 500
        elif where == "iteration":
            assert_broken_off(connection)
        else:  # all of the answer was there
            assert ask_rest(connection).body == b"all of it"
            assert not connection.recv(1)  # it is closed when all is over
    said = trial.bench.stderr()
    assert f"the application failed at GET /pipe_{where}\nTraceback (most" in said
    assert said.endswith("\nBrokenPipeError: [Errno 32] the database has gone\n")


@plain_fails
def test_what_is_not_fastcgi_is_said_in_the_log(trial: Trial) -> None:
    """flup reads any version as 1: it takes an HTTP request for a record of 20 kB, and waits for the rest of it."""
    trial.start()
    with trial.bench.connect() as connection:
        connection.settimeout(trial.patience)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1) == b""
    assert "connection closed: not FastCGI" in trial.bench.stderr()


# --- PEP 3333 (test_promises.py has all of it, for every server)


def answer(trial: Trial, wire: bytes) -> Response:
    with trial.bench.connect() as connection:
        connection.settimeout(trial.patience)
        connection.sendall(wire)
        return ask_rest(connection)


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Same")])
@plain_fails
def test_what_has_no_body_gets_none(trial: Trial, method: str, status: str) -> None:
    """HAProxy makes 502 of every HEAD; h2o passes the body on, into the client's next answer."""
    trial.start(app="native_app")
    response = trial.bench.fetch("/bodiless", REQUEST_METHOD=method, QUERY_STRING=status)
    assert (response.status, response.body) == (int(status[:3]), b"")


@pytest.mark.parametrize(("path", "uri"), [("/a b", "/a%20b"), ("/x/y", "/x//y"), ("/app", "/old/uri"), ("/", "/")])
@plain_fails
def test_the_path_is_right_behind_nginxs_own_parameters(trial: Trial, path: str, uri: str) -> None:
    """flup cuts PATH_INFO out of the undecoded REQUEST_URI, by the length of the decoded SCRIPT_NAME."""
    trial.start(app="native_app")
    params = parameters("", SCRIPT_NAME=path, DOCUMENT_URI=path, REQUEST_URI=uri, QUERY_STRING="to=paths")
    del params["PATH_INFO"]
    assert answer(trial, announce_exactly(params) + encode_record(RecordType.STDIN, 1)).body == f"|{path}|http".encode()
    assert trial.bench.stderr() == ""


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/header", r"X-A=b\r\nX-Evil: c"),
        ("/header", r"X-A\nX-Evil=c"),
        ("/status", r"200 OK\r\nX-Evil: c"),
        ("/status", "103 Early Hints"),
        ("/lengths", ""),
        ("/length", "6,1"),
    ],
)
@plain_fails
def test_what_would_break_the_response_is_refused(trial: Trial, path: str, query: str) -> None:
    """flup sends a second response, or half of one, if the application says so, or if its client does by it."""
    trial.start(app="native_app")
    response = trial.bench.fetch(path, QUERY_STRING=query)
    assert (response.status, response.header("x-evil")) == (500, None)


@pytest.mark.parametrize("method", ["GET", "POST"])
@plain_fails
def test_the_validator_of_the_standard_library_finds_nothing(trial: Trial, method: str) -> None:
    """flup leaves HTTP_CONTENT_TYPE and HTTP_CONTENT_LENGTH, which nginx sends with the client's headers."""
    trial.start(app="native_app")
    headers = {"HTTP_CONTENT_LENGTH": "3", "HTTP_CONTENT_TYPE": "text/plain"}
    assert trial.bench.fetch("/valid", b"abc", REQUEST_METHOD=method, **headers).status == 200


@pytest.mark.parametrize("way", ["none", "text", "into"])
@plain_fails
def test_the_input_is_a_file_as_python_has_them(trial: Trial, way: str) -> None:
    trial.start(app="native_app")
    assert trial.bench.fetch("/file_like", b"abc", QUERY_STRING=way).body == b"abc"


@plain_fails
def test_the_application_knows_that_its_input_ends(trial: Trial) -> None:
    """Without wsgi.input_terminated a chunked upload is silently empty in Flask and in Django."""
    trial.start(app="native_app")
    assert b"wsgi.input_terminated" in trial.bench.fetch("/environ").body


@pytest.mark.parametrize(("way", "status"), [("exit,7", b"7"), ("raise", b"1"), ("return", b"0")])
@plain_fails
def test_a_child_that_the_application_has_forked_ends_as_it_wants_to(trial: Trial, way: str, status: bytes) -> None:
    """flup logs its SystemExit, answers the client by it too, and goes on in it as a server."""
    trial.start(app="native_app")
    assert trial.bench.fetch("/fork", QUERY_STRING=way).body == status
    assert "SystemExit" not in trial.bench.stderr()


@plain_fails
def test_a_request_that_is_aborted_in_its_parameters_is_ended(trial: Trial) -> None:
    """flup forgets to, and refuses the next request on the connection."""
    trial.start()
    with trial.bench.connect() as connection:
        connection.settimeout(trial.patience)
        connection.sendall(begin_request(1, keep_connection=True) + encode_record(RecordType.ABORT_REQUEST, 1))
        assert connection.recv(16) == end_request(1)
        assert ask(connection).status == 200


# --- Python


@pytest.mark.skipif(sys.version_info < (3, 10), reason="what flup uses was not deprecated before")
@plain_fails
def test_no_warning_of_deprecation_is_given(trial: Trial) -> None:
    worker = trial.start(PYTHONWARNINGS="error::DeprecationWarning,error::PendingDeprecationWarning")
    assert worker.poll() is None, trial.bench.stderr()
    for path in ("/report", "/pid", "/empty"):
        assert trial.bench.fetch(path).status in (200, 204)
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status for answer in pool.map(lambda _: trial.bench.fetch(), range(16))} == {200}
    worker.terminate()
    assert worker.wait(20) == 0
    assert "DeprecationWarning" not in trial.bench.stderr()
