"""The programs that people run behind nginx: how each is started by a pool, and asked on connections that are kept.

All carry out the same POST: its body is "ID BEFORE BETWEEN"; they log "begun ID", wait, send half of the answer, wait,
log "done ID", and send the rest: two times in milliseconds. (What a program logs is what was carried out, whatever the
client has seen of it.) Each is configured as its own documents have it behind a proxy that keeps connections: it keeps
them longer than nginx does, so that it is never the one to close.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tests.integration.backends import built
from tests.integration.servers import need

Socket = Literal["tcp", "unix"]
SOCKETS: Final[tuple[Socket, ...]] = ("tcp", "unix")

APPS: Final = Path(__file__).with_name("apps")
LOG: Final = "posted.log"
POOL: Final = "app"


@dataclass(frozen=True)
class Program:
    """`keys`: of its pool, by the kind of socket; a kind that it cannot serve is missing. `files`: of apps/.

    `clients`: how many requests there are at a time; no more than it serves at once where a connection that is kept
    holds one of its processes.
    """

    name: str
    keys: Mapping[Socket, str]
    files: tuple[str, ...]
    protocol: Literal["http", "fastcgi"]
    needs: tuple[str, ...] = ()
    numprocs: int = 3
    clients: int = 6
    prepare: Callable[[Path], None] = field(default=lambda directory: None)

    def pool(self, directory: Path, socket: Socket, address: str, *more: str, numprocs: int | None = None) -> str:
        """Its table in pool.toml, with all that it needs put into `directory`. `more`: lines of the table."""
        need(*self.needs)
        for name in self.files:
            shutil.copy(APPS / name, directory)
        self.prepare(directory)
        lines = [
            f"[pool.{POOL}]",
            f'socket = "{address}"',
            'directory = "%(here)s"',
            f"numprocs = {numprocs or self.numprocs}",
            f'environment.POSTED_LOG = "%(here)s/{LOG}"',
            self.keys[socket].format(address=address),
            *more,
        ]
        return "\n".join([*lines, ""])


def _both(keys: str) -> dict[Socket, str]:
    return dict.fromkeys(SOCKETS, keys)


def _command(words: str, *more: str) -> dict[Socket, str]:
    return _both("\n".join([f'command = "{words}"', *more]))


def _go(directory: Path) -> None:
    need("go")
    shutil.copy2(built("go", (APPS / "post.go").read_text()), directory / "post")


_WSGI: Final = ("wsgi.py", "posted.py")
_ASGI: Final = ("asgi.py", "posted.py")


def _gunicorn(*words: str) -> dict[Socket, str]:
    """A Unix socket that it is told of as fd://0 it removes when it ends, and so takes it from its siblings; one of
    systemd's it leaves alone."""
    command = f"python -m gunicorn --workers 2 --keep-alive 75 --log-level warning {' '.join(words)}"
    return {
        "tcp": f'command = "{command} --bind fd://0"',
        "unix": f'command = "{command}"\nsocket_pass = "systemd"',
    }


PROGRAMS: Final[dict[str, Program]] = {
    program.name: program
    for program in (
        Program("gunicorn-sync", _gunicorn("wsgi:app"), _WSGI, "http", numprocs=2),
        Program(
            "gunicorn-gthread",
            _gunicorn("--worker-class gthread --threads 4 wsgi:app"),
            _WSGI,
            "http",
            numprocs=2,
        ),
        Program(
            "gunicorn-uvicorn",
            _gunicorn("--worker-class uvicorn_worker.UvicornWorker asgi:app"),
            _ASGI,
            "http",
            numprocs=2,
        ),
        Program(
            "uvicorn",
            _command("python -m uvicorn --fd 0 --timeout-keep-alive 75 --log-level warning asgi:app"),
            _ASGI,
            "http",
        ),
        Program(
            "hypercorn",
            _command("python -m hypercorn --bind fd://0 --keep-alive 75 --log-level warning asgi:app"),
            _ASGI,
            "http",
        ),
        Program(
            "daphne",
            # TCP only: Twisted removes the path of a Unix socket when it ends, also of one that it was given.
            {"tcp": 'command = "python -m daphne --fd 0 --verbosity 0 asgi:app"'},
            _ASGI,
            "http",
        ),
        Program("node", _command("node server.js"), ("server.js",), "http", ("node",)),
        Program("node-close", _command("node server.js close"), ("server.js",), "http", ("node",)),
        Program("go", _command("%(here)s/post"), (), "http", prepare=_go),
        Program("go-shutdown", _command("%(here)s/post shutdown"), (), "http", prepare=_go),
        Program("go-fastcgi", _command("%(here)s/post fcgi"), (), "fastcgi", prepare=_go),
        Program(
            "starman",
            # What it is given by SERVER_STARTER_PORT it takes for TCP. A worker serves one connection, kept or not.
            {
                "tcp": 'command = "starman --workers 6 --keepalive-timeout 75 app.psgi"\nsocket_pass = "env"\n'
                'environment.SERVER_STARTER_PORT = "{address}=3"'
            },
            ("app.psgi",),
            "http",
            ("starman",),
            numprocs=2,
        ),
        Program(
            "php-cgi",
            # Each process serves one connection as long as it is kept.
            _command("php-cgi -d cgi.fix_pathinfo=0", 'environment.PHP_FCGI_MAX_REQUESTS = "0"'),
            ("index.php",),
            "fastcgi",
            ("php-cgi",),
            numprocs=8,
            clients=5,
        ),
        Program("native", _both('wsgi = "wsgi:app"\nserver = "native"\npythonpath = ["%(here)s"]'), _WSGI, "fastcgi"),
        Program(
            "native-threads",
            _both('wsgi = "wsgi:app"\nserver = "native"\nthreads = 4\npythonpath = ["%(here)s"]'),
            _WSGI,
            "fastcgi",
        ),
        Program(
            "flup",
            _both('wsgi = "wsgi:app"\nserver = "flup"\nthreads = 8\npythonpath = ["%(here)s"]'),
            _WSGI,
            "fastcgi",
        ),
        Program("flup-plain", _command("python wsgi.py", "socket_blocking = false"), _WSGI, "fastcgi"),
    )
}
