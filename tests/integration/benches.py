"""Real workers on a real listener, asked over the wire: what the tests of every FastCGI engine stand on."""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flup  # type: ignore[import-untyped,unused-ignore]

from fcgimgr.fastcgi.client import Request, Response, fetch
from fcgimgr.fastcgi.records import Record, RecordReader, RecordType, begin_request, encode_pairs, encode_record
from fcgimgr.worker import FLUP_VARIABLE, MAIN
from tests.waiting import eventually

FLUP_HOME = str(Path(flup.__file__).parents[1])

#: What a worker is started with: the options of each engine, by the name of a test's parameter. "solo" is the native
#: server as it comes, with one request at a time.
ENGINES = {
    "flup": ("--server", "flup"),
    "native": ("--server", "native", "--threads", "16"),
    "solo": ("--server", "native"),
}


class Bench:
    """A directory with the test application, one listener, and the workers started on it."""

    def __init__(self, directory: Path, listener: socket.socket, address: str) -> None:
        self.directory = directory
        self.listener = listener
        self.address = address
        self.engine: tuple[str, ...] = ()
        self.workers: list[subprocess.Popen[bytes]] = []
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(directory / "notify"))
        self._notified.settimeout(20)
        self._stderr = (directory / "stderr").open("ab")
        shutil.copy(Path(__file__).with_name("worker_app.py"), directory)

    def start(
        self, application: str = "worker_app:application", *options: str, ready: bool = True, **popen: object
    ) -> subprocess.Popen[bytes]:
        """Start a worker; with `ready`, come back when it says that it accepts. `before`: words before its own."""
        before: tuple[str, ...] = popen.pop("before", ())  # type: ignore[assignment]
        python: str = popen.pop("python", sys.executable)  # type: ignore[assignment]
        worker = self.launch([*before, python, MAIN, *self.engine, *options, application], **popen)
        if ready:
            self.wait_until_ready()
        return worker

    def wait_until_ready(self) -> None:
        assert self.told() == b"READY=1"

    def told(self) -> bytes:
        """What a worker tells its manager next."""
        return self._notified.recv(100)

    def launch(self, words: list[str], **popen: object) -> subprocess.Popen[bytes]:
        """Start any program on the listener."""
        environment = {
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            FLUP_VARIABLE: FLUP_HOME,
            **popen.pop("env", {}),  # type: ignore[dict-item]
        }
        worker: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            words,
            cwd=popen.pop("cwd", self.directory),
            env=environment,
            **{"stdin": self.listener, "stderr": self._stderr, **popen},
        )
        self.workers.append(worker)
        return worker

    def stderr(self) -> str:
        return (self.directory / "stderr").read_text()

    def fetch(self, path: str = "/pid", body: bytes = b"", **params: str) -> Response:
        return fetch(self.address, parameters(path, body, **params), body, timeout=20)

    def connect(self) -> socket.socket:
        connection = socket.socket(self.listener.family)
        connection.settimeout(20)
        connection.connect(self.listener.getsockname())
        return connection

    def held(self) -> list[Path]:
        """Requests to /hold that are in hand now."""
        return list(self.directory.glob("held-*"))

    def release(self, *fifos: Path) -> None:
        """Let requests go; one that has gone already is as well."""

        def is_open(fifo: Path) -> bool:
            try:
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))  # ENXIO while the other side has it not open
            except FileNotFoundError:
                pass
            return True

        for fifo in fifos:
            eventually(functools.partial(is_open, fifo))

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        self.listener.close()
        self._notified.close()
        self._stderr.close()


def parameters(path: str, body: bytes = b"", **more: str) -> dict[str, str]:
    return {
        "REQUEST_METHOD": "POST" if body else "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "test",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(body)),
        **more,
    }


def unix_bench(directory: Path) -> Bench:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "socket"))
    listener.listen(64)
    return Bench(directory, listener, f"unix:{directory}/socket")


def tcp_bench(directory: Path, family: socket.AddressFamily = socket.AF_INET) -> Bench:
    listener = socket.socket(family)
    listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    listener.listen(64)
    host, port = listener.getsockname()[:2]
    return Bench(directory, listener, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


@contextlib.contextmanager
def in_background(bench: Bench, *paths: str) -> Iterator[Callable[[], list[Response]]]:
    """Send a request for each path at once; the answers when called."""
    with ThreadPoolExecutor(max_workers=len(paths)) as pool:
        answers = [pool.submit(bench.fetch, path) for path in paths]
        yield lambda: [answer.result(20) for answer in answers]


def ask(connection: socket.socket, path: str = "/pid", *, keep: bool = True) -> Response:
    request = Request(parameters(path), keep_connection=keep)
    connection.sendall(request.to_send())
    while (response := request.receive(incoming := connection.recv(65536))) is None:
        if not incoming:
            request.eof()
    return response


def ask_rest(connection: socket.socket) -> Response:
    request = Request({})
    while (response := request.receive(incoming := connection.recv(65536))) is None:
        if not incoming:
            request.eof()
    return response


def announce(path: str, **more: str) -> bytes:
    """A request up to the end of its parameters, on a connection that is to be kept."""
    return announce_exactly(parameters(path, **more))


def announce_exactly(params: dict[str, str]) -> bytes:
    pairs = encode_pairs((name.encode(), value.encode()) for name, value in params.items())
    opening = begin_request(1, keep_connection=True) + encode_record(RecordType.PARAMS, 1, pairs)
    return opening + encode_record(RecordType.PARAMS, 1)


def records(connection: socket.socket) -> Iterator[Record]:
    reader = RecordReader()
    while incoming := connection.recv(65536):
        yield from reader.feed(incoming)


def notes(bench: Bench) -> list[str]:
    """What native_app.py has noted."""
    with contextlib.suppress(FileNotFoundError):
        return (bench.directory / "notes").read_text().splitlines()
    return []
