"""The servers whose reload is compared: each with four workers of an app that takes 20 ms and then answers.

Each is configured as it comes: what a row of the table changes is in its name. Supervisor and fcgimgr run the same Go
program, which knows nothing of reloads and dies at once on SIGTERM; it serves many requests at a time. So do fcgimgr's
own WSGI workers, by threads; those of PHP-FPM, gunicorn and uWSGI serve one at a time unless told otherwise.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.peers import Process, own_program
from bench.proc import wait_until

WORKERS: Final = 4
ASK_WITHIN: Final = 60.0  # seconds for a command to end

GO: Final = """
package main

import (
	"io"
	"net/http"
	"net/http/fcgi"
	"time"
)

func main() {
	panic(fcgi.Serve(nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(20 * time.Millisecond)
		io.WriteString(w, "Hello\\n")
	})))
}
"""

PHP: Final = """<?php
usleep(20000);
echo "Hello\\n";
"""

WSGI: Final = """
import time

def app(environ, start_response):
    time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"Hello\\n"]

application = app
"""

Transport = Literal["TCP", "Unix"]
TRANSPORTS: Final[tuple[Transport, ...]] = ("TCP", "Unix")


@dataclass(frozen=True)
class Place:
    """Where a server runs: its directory, which holds the apps, and the address at which it listens."""

    directory: Path
    transport: Transport
    port: int

    def address(self, prefix: str) -> str:
        """`prefix` goes before the path of a Unix socket; TCP is written alike by all."""
        return f"127.0.0.1:{self.port}" if self.transport == "TCP" else f"{prefix}{self.directory}/app.sock"


@dataclass(frozen=True)
class Server:
    """`manager` is its name in --only; `title` what the table calls it. `protocol` is that of nginx's `…_pass`.

    configure: writes its configuration, returns the words that start it in the foreground. reload: asks for it.
    column: where its failures stand in the table of all figures; None for a variant that has no place there.
    """

    manager: str
    title: str
    protocol: Literal["fastcgi", "http", "uwsgi"]
    configure: Callable[[Place], list[str]]
    reload: Callable[[Process], None]
    column: str | None = None


def find_servers(go: Callable[[], str]) -> tuple[list[Server], list[str]]:
    """Those that are installed, and a line for each one that is not. `go`: builds the program if need be; its path."""
    servers: list[Server] = []
    missing: list[str] = []

    def add(manager: str, found: object, *rows: Server) -> None:
        if found:
            servers.extend(rows)
        else:
            missing.append(f"{manager} is left out of reload: it is not installed (scripts/bench installs it)")

    supervisord, gunicorn, uwsgi = own_program("supervisord"), own_program("gunicorn"), own_program("uwsgi")
    php_fpm = sorted(Path("/usr/sbin").glob("php-fpm*"))
    has_go = shutil.which("go") is not None
    add("Go", has_go)
    if has_go:
        add(
            "supervisor",
            supervisord.exists(),
            Server(
                "supervisor",
                "supervisord, Go, `restart`",
                "fastcgi",
                _supervisor(supervisord, go),
                _supervisorctl,
                "supervisor",
            ),
        )
    add(
        "php-fpm",
        php_fpm,
        Server("php-fpm", "php-fpm, USR2", "fastcgi", _php_fpm(php_fpm, ""), _signal(signal.SIGUSR2), "php-fpm"),
        Server(
            "php-fpm",
            "php-fpm, USR2, process_control_timeout=10",
            "fastcgi",
            _php_fpm(php_fpm, "process_control_timeout = 10"),
            _signal(signal.SIGUSR2),
        ),
    )
    add(
        "gunicorn",
        gunicorn.exists(),
        Server("gunicorn", "gunicorn, HUP", "http", _gunicorn(gunicorn), _signal(signal.SIGHUP)),
    )
    add(
        "uwsgi",
        uwsgi.exists(),
        Server("uwsgi", "uWSGI, HUP", "uwsgi", _uwsgi(uwsgi), _signal(signal.SIGHUP)),
        Server("uwsgi", "uWSGI, chain reload (lazy-apps)", "uwsgi", _uwsgi(uwsgi, "--lazy-apps"), _chain),
    )
    if has_go:
        of_go = fcgimgr(lambda: f'command = "{go()}"')
        servers.append(Server("fcgimgr", "fcgimgr, Go, `reload`", "fastcgi", of_go, _fcgimgr_reload, "fcgimgr"))
    of_wsgi = fcgimgr(lambda: 'wsgi = "app:app"')
    servers.append(Server("fcgimgr", "fcgimgr, WSGI, `reload`", "fastcgi", of_wsgi, _fcgimgr_reload))
    return servers, missing


# -- how each is configured and asked ----------------------------------------------------------------------------------


def fcgimgr(serve: Callable[[], str]) -> Callable[[Place], list[str]]:
    """With a pool whose keys for what it runs `serve` says."""

    def configure(place: Place) -> list[str]:
        here = place.directory
        (here / "fcgimgr.toml").write_text(f"""
[manager]
control = "{here}/control.sock"
logfile = "{here}/manager.log"

[pool.app]
socket = "{place.address("unix:")}"
{serve()}
directory = "{here}"
numprocs = {WORKERS}
""")
        return [_fcgimgr_program(), "-c", str(here / "fcgimgr.toml")]

    return configure


def _fcgimgr_program() -> str:
    return str(Path(sys.executable).with_name("fcgimgr"))


def _fcgimgr_reload(process: Process) -> None:
    _ask([_fcgimgr_program(), "-s", f"{process.directory}/control.sock", "reload", "app"])


def _supervisor(program: Path, go: Callable[[], str]) -> Callable[[Place], list[str]]:
    def configure(place: Place) -> list[str]:
        here = place.directory
        (here / "supervisord.conf").write_text(f"""
[supervisord]
nodaemon = true
silent = true
logfile = {here}/manager.log
pidfile = {here}/supervisord.pid
childlogdir = {here}

[unix_http_server]
file = {here}/control.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl = unix://{here}/control.sock

[fcgi-program:app]
socket = {place.address("unix://") if place.transport == "Unix" else f"tcp://127.0.0.1:{place.port}"}
command = {go()}
numprocs = {WORKERS}
process_name = %(program_name)s_%(process_num)02d
""")
        return [str(program), "-c", str(here / "supervisord.conf")]

    return configure


def _supervisorctl(process: Process) -> None:
    _ask([str(own_program("supervisorctl")), "-c", str(process.directory / "supervisord.conf"), "restart", "app:*"])


def _php_fpm(programs: list[Path], more: str) -> Callable[[Place], list[str]]:
    def configure(place: Place) -> list[str]:
        here, as_root = place.directory, os.geteuid() == 0
        (here / "php-fpm.conf").write_text(f"""
[global]
daemonize = no
error_log = {here}/manager.log
{more}

[app]
{"user = root" if as_root else ""}
listen = {place.address("")}
pm = static
pm.max_children = {WORKERS}
""")
        return [str(programs[-1]), "-F", "-y", str(here / "php-fpm.conf"), *(["-R"] if as_root else [])]

    return configure


def _gunicorn(program: Path) -> Callable[[Place], list[str]]:
    def configure(place: Place) -> list[str]:
        here = place.directory
        log = ["--log-level", "warning", "--error-logfile", str(here / "manager.log")]
        return [str(program), "--workers", str(WORKERS), "--bind", place.address("unix:"), *log, "app:app"]

    return configure


def _uwsgi(program: Path, *more: str) -> Callable[[Place], list[str]]:
    def configure(place: Place) -> list[str]:
        here = place.directory
        # die-on-term: without it SIGTERM is one more kind of reload.
        words = ["--master", "--die-on-term", "--need-app", "--disable-logging"]
        words += ["--processes", str(WORKERS), "--socket", place.address(""), "--wsgi-file", str(here / "app.py")]
        return [str(program), *words, "--master-fifo", str(here / "fifo"), "--logto", str(here / "manager.log"), *more]

    return configure


def _chain(process: Process) -> None:
    """Until uWSGI says that it is over: the last worker is new before that, and the next "c" would not be heeded."""
    log = process.directory / "manager.log"

    def completed() -> int:
        return log.read_bytes().count(b"chain reloading complete")

    before = completed()
    (process.directory / "fifo").write_text("c")
    wait_until(lambda: completed() > before, ASK_WITHIN, 0.01, "chain reloading complete")


def _signal(number: signal.Signals) -> Callable[[Process], None]:
    def tell(process: Process) -> None:
        os.kill(process.pid, number)

    return tell


def _ask(words: list[str]) -> None:
    answer = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_WITHIN)
    if answer.returncode != 0:
        said = (answer.stdout + answer.stderr).decode(errors="replace")[-500:]
        raise RuntimeError(f"{' '.join(words)} exited with {answer.returncode}: {said}")
