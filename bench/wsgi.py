"""WSGI servers behind nginx: answers a second, how long the slowest take, memory; the same app, the same four workers.

Each in the nginx configuration that suits it best: connections to it are kept where it can do that. All are started
once and then asked in turn, for a few seconds each, again and again, so that what else goes on in the machine hits all
alike; the ratios are between neighbours of one round. Whoever is not asked is stopped (SIGSTOP), so that what is left
of its turn costs no other one. The app answers six bytes, or 100 kB, or reads 1 MB.
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import mean
from time import sleep
from typing import Final, Literal

from bench.figure import OURS, Figure, Setting, say
from bench.front import Counted, Front, Load, free_port, front
from bench.peers import SETTLED, Process, own_module, own_program, start
from bench.proc import children, descendants, kill_quietly, memory
from bench.servers import TRANSPORTS, WORKERS, Place, Transport, fcgimgr

SECONDS: Final = 4
QUICK_SECONDS: Final = 1

APP: Final = """
LARGE = b"x" * 100_000

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/large":
        body = LARGE
    elif path == "/upload":
        left = int(environ["CONTENT_LENGTH"])
        read = environ["wsgi.input"].read
        while left:
            piece = read(min(left, 65536))
            if not piece:
                raise EOFError("the client has gone")  # as wrk does at the end of its time
            left -= len(piece)
        body = b"Thanks\\n"
    else:
        body = b"Hello\\n"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

application = app
"""

# bjoern is one process; its documentation has several of them by fork, on one listener.
BJOERN: Final = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
import bjoern
from app import app

if sys.argv[1].startswith("unix:"):
    bjoern.listen(app, sys.argv[1])
else:
    host, port = sys.argv[1].split(":")
    bjoern.listen(app, host, int(port))
workers = []
for _ in range(int(sys.argv[2])):
    pid = os.fork()
    if not pid:
        bjoern.run()
        os._exit(0)
    workers.append(pid)
signal.sigwait({signal.SIGTERM})
for pid in workers:
    os.kill(pid, signal.SIGKILL)
"""

PLAIN_FLUP: Final = """
from flup.server.fcgi import WSGIServer
from app import app
WSGIServer(app).run()
"""


@dataclass(frozen=True)
class Task:
    """`request`: Lua for wrk."""

    name: str
    path: str
    connections: int
    request: str = ""


TASKS: Final = (
    Task("hello", "", 64),
    Task("100 kB", "large", 64),
    Task("1 MB upload", "upload", 16, 'wrk.method = "POST"\nwrk.body = string.rep("x", 1048576)\n'),
)


@dataclass(frozen=True)
class Server:
    """`manager`: its name in --only. `keep`: nginx keeps connections to it. configure: as in bench/servers.py."""

    manager: str
    title: str
    protocol: Literal["fastcgi", "http", "uwsgi"]
    configure: Callable[[Place], list[str]]
    keep: bool = False


#: With whom fcgimgr's native server is compared, and in how many answers a second it shall be ahead of them: hello
#: world on TCP and on Unix sockets; in all else it shall not be behind.
PEERS: Final = {
    "uWSGI": (1.4, 1.1),
    "Granian": (1.25, 1.25),
    "bjoern": (1.0, 1.0),
    "gunicorn": (3.0, 3.0),
    "gunicorn, gthread": (3.0, 3.0),
    "plain flup": (4.0, 4.0),
}
#: Whose slowest answers its own shall not outlast.
PROMPT: Final = ("uWSGI", "Granian")
NATIVE: Final = "fcgimgr, native"


def measure(setting: Setting) -> list[Figure]:
    for program, package in {"nginx": "nginx-light", "wrk": "wrk"}.items():
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is not installed: apt-get install {package}")
    servers = [server for server in find() if setting.wants(server.manager)]
    figures: dict[str, Figure] = {}

    def add(table: str, name: str, unit: str, row: str, sample: float, better: Literal["less", "more"]) -> None:
        figure = figures.setdefault(f"{table} {name}", Figure(name, unit, better=better, table=f"wsgi {table}"))
        figure.add(row, sample)

    with ExitStack() as stack:
        running = {
            (server.title, transport): stack.enter_context(Running(setting, server, transport))
            for server in servers
            for transport in TRANSPORTS
        }
        for run in range(setting.times(5, 1)):
            for task in TASKS:
                for transport in TRANSPORTS:
                    name = f"{task.name}, {transport}"
                    counts: dict[str, Counted] = {}
                    for server in servers:
                        counted = running[server.title, transport].ask(task, setting.quick)
                        say(
                            f"wsgi: run {run + 1}, {name}, {server.title}: {counted.rate:,.0f}/s, "
                            f"p99 {counted.p99 * 1000:.1f} ms" + f", {counted.failed} failed" * bool(counted.failed)
                        )
                        if not counted.rate:
                            setting.failures.append(f"wsgi: run {run + 1}, {name}: {server.title} gave no answer")
                            continue
                        counts[server.title] = counted
                        add(task.name, name, "1/s", server.title, counted.rate, "more")
                        add(task.name, f"{name}, p99", "ms", server.title, counted.p99 * 1000, "less")
                    native = counts.get(NATIVE)
                    for peer, ahead in PEERS.items():
                        if native and peer in counts and counts[peer].rate:
                            must = ahead[TRANSPORTS.index(transport)] if task.name == "hello" else 1.0
                            row = f"{NATIVE} ÷ {peer}"
                            add("ratios", name, "×", row, native.rate / counts[peer].rate, "more")
                            add("ratios", f"{name}, at least", "×", row, must, "more")
                    for peer in PROMPT:
                        if native and peer in counts and counts[peer].p99:
                            row = f"{NATIVE} ÷ {peer}, p99"
                            add("ratios of p99", name, "×", row, native.p99 / counts[peer].p99, "less")
                            add("ratios of p99", f"{name}, at most", "×", row, 1.0, "less")
        for (title, transport), server_running in running.items():
            if transport == "TCP":
                add("memory", "a worker, PSS", "MB", title, server_running.memory() / 1e6, "less")
    return list(figures.values())


class Running:
    """A server with nginx in front of it."""

    def __init__(self, setting: Setting, server: Server, transport: Transport) -> None:
        title = f"{server.title}, {transport}"
        self._server = server
        self._title = title
        self._place = Place(setting.place("wsgi", "-".join(re.findall(r"\w+", title))), transport, free_port())
        self._stack = ExitStack()

    def __enter__(self) -> Running:
        place, server = self._place, self._server
        place.directory.mkdir(parents=True)
        (place.directory / "app.py").write_text(APP)
        (place.directory / "plain.py").write_text(PLAIN_FLUP)
        with self._stack as stack:
            self._process = Process(self._title, place.directory, *start(server.configure(place), place.directory))
            stack.callback(self._process.end)
            self._process.wait_for_children(WORKERS)
            nginx = front(place.directory / "nginx", server.protocol, place.address("unix:"), keep=server.keep)
            self._front: Front = stack.enter_context(nginx)
            self._front.wait_for_answer(30)
            sleep(SETTLED)  # until all of its workers are ready
            self._signal(signal.SIGSTOP)
            stack.callback(self._signal, signal.SIGCONT)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def ask(self, task: Task, quick: bool) -> Counted:
        seconds = QUICK_SECONDS if quick else SECONDS
        self._signal(signal.SIGCONT)
        load = Load(self._front.url + task.path, task.connections, self._place.directory, seconds, task.request)
        try:
            return load.result(seconds)
        finally:
            load.kill()
            self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        """To all of its processes, its manager first."""
        for pid in (self._process.pid, *descendants(self._process.pid)):
            kill_quietly(pid, number)

    def memory(self) -> float:
        """Of a worker, in the mean, in bytes."""
        return mean(memory(pid).pss for pid in children(self._process.pid))


# -- how each is configured --------------------------------------------------------------------------------------------


def find() -> list[Server]:
    """Those that are installed."""
    servers = [
        Server(OURS, NATIVE, "fastcgi", _fcgimgr('wsgi = "app:app"\nserver = "native"'), keep=True),
        Server(OURS, f"{NATIVE}, no connection kept", "fastcgi", _fcgimgr('wsgi = "app:app"\nserver = "native"')),
        Server(OURS, "fcgimgr, flup", "fastcgi", _fcgimgr('wsgi = "app:app"\nserver = "flup"'), keep=True),
        Server(
            "flup", "plain flup", "fastcgi", _fcgimgr(f'command = "{sys.executable} plain.py"\nsocket_blocking = false')
        ),
    ]
    threads = ("--worker-class", "gthread", "--threads", "1")
    for server, installed in (
        (Server("uwsgi", "uWSGI", "uwsgi", _uwsgi), own_program("uwsgi").exists()),
        (Server("granian", "Granian", "http", _granian, keep=True), own_program("granian").exists()),
        (Server("bjoern", "bjoern", "http", _bjoern, keep=True), own_module("bjoern")),
        (Server("gunicorn", "gunicorn", "http", _gunicorn()), own_program("gunicorn").exists()),
        (
            Server("gunicorn", "gunicorn, gthread", "http", _gunicorn(*threads), keep=True),
            own_program("gunicorn").exists(),
        ),
    ):
        if installed:
            servers.append(server)
        else:
            say(f"{server.title} is left out of wsgi: it is not installed (scripts/bench installs it)")
    return servers


def _fcgimgr(serve: str) -> Callable[[Place], list[str]]:
    return fcgimgr(lambda: serve)


def _uwsgi(place: Place) -> list[str]:
    here = place.directory
    words = ["--master", "--die-on-term", "--need-app", "--disable-logging"]
    words += ["--processes", str(WORKERS), "--socket", place.address(""), "--wsgi-file", str(here / "app.py")]
    return [str(own_program("uwsgi")), *words, "--logto", str(here / "manager.log")]


def _granian(place: Place) -> list[str]:
    if place.transport == "TCP":
        where = ["--host", "127.0.0.1", "--port", str(place.port)]
    else:
        where = ["--uds", place.address("")]
    words = ["--interface", "wsgi", "--workers", str(WORKERS), "--log-level", "warning", *where]
    return [str(own_program("granian")), *words, "app:app"]


def _bjoern(place: Place) -> list[str]:
    (place.directory / "many.py").write_text(BJOERN)
    return [str(own_program("python")), "many.py", place.address("unix:"), str(WORKERS)]


def _gunicorn(*more: str) -> Callable[[Place], list[str]]:
    def configure(place: Place) -> list[str]:
        log = ["--log-level", "warning", "--error-logfile", str(place.directory / "manager.log")]
        log += ["--timeout", "0"]  # else it kills those who were stopped
        bind = ["--bind", place.address("unix:")]
        return [str(own_program("gunicorn")), "--workers", str(WORKERS), *bind, *log, *more, "app:app"]

    return configure
