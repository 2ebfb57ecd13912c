"""Programs of all kinds that serve a pool and say who they are, and an nginx before them: for the tests of reloads.

Each answers "pid", "generation", "asked" (the URI) and "end", a line each, after ?pause= milliseconds. None of them
knows anything of a reload, and but for the worker of the wsgi pool and uvicorn each dies at once on SIGTERM.
"""

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.integration.servers import Nginx, need, run

GO = """\
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/fcgi"
	"os"
	"strconv"
	"strings"
	"time"
)

func answer(w http.ResponseWriter, r *http.Request) {
	pause, _ := strconv.Atoi(r.URL.Query().Get("pause"))
	time.Sleep(time.Duration(pause) * time.Millisecond)
	fmt.Fprintf(w, "pid %d\\ngeneration %s\\nasked %s\\nend\\n", os.Getpid(), os.Getenv("FCGIMGR_GENERATION"),
		r.URL.RequestURI())
}

func main() {
	handler := http.HandlerFunc(answer)
	fds := os.Getenv("FCGI_LISTEN_FD")
	if fds == "" {
		log.Fatal(fcgi.Serve(nil, handler))
	}
	for _, word := range strings.Split(fds, ",") {
		fd, _ := strconv.Atoi(word)
		listener, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
		if err != nil {
			log.Fatal(err)
		}
		go fcgi.Serve(listener, handler)
	}
	select {}
}
"""

C = """\
#include <fcgiapp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Dies at once; if it was not its manager who wanted that, it says who. */
static void end(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (info->si_pid != getppid())
        dprintf(2, "signal %d from process %d\\n", number, (int)info->si_pid);
    signal(number, SIG_DFL);
    raise(number);
}

int main(void)
{
    struct sigaction on_term = {.sa_sigaction = end, .sa_flags = SA_SIGINFO};
    FCGX_Request request;
    const char *generation = getenv("FCGIMGR_GENERATION");

    FCGX_Init();
    sigaction(SIGTERM, &on_term, NULL); /* libfcgi's own handler would let it finish */
    FCGX_InitRequest(&request, 0, 0);
    while (FCGX_Accept_r(&request) == 0) {
        const char *query = FCGX_GetParam("QUERY_STRING", request.envp);
        const char *uri = FCGX_GetParam("REQUEST_URI", request.envp);
        const char *pause = query ? strstr(query, "pause=") : NULL;
        if (pause)
            usleep(1000 * atoi(pause + 6));
        FCGX_FPrintF(request.out, "Content-Type: text/plain\\r\\n\\r\\npid %d\\ngeneration %s\\nasked %s\\nend\\n",
                     (int)getpid(), generation, uri ? uri : "");
        FCGX_Finish_r(&request);
    }
    return 0;
}
"""

PHP = """\
<?php
header('Content-Type: text/plain');
usleep(1000 * (int)($_GET['pause'] ?? 0));
echo 'pid ', getmypid(), "\\ngeneration ", getenv('FCGIMGR_GENERATION'), "\\n";
echo 'asked ', $_SERVER['REQUEST_URI'], "\\nend\\n";
"""

WSGI = """\
import os, sys, time
from urllib.parse import parse_qs

def app(environ, start_response):
    time.sleep(int(parse_qs(environ["QUERY_STRING"]).get("pause", ["0"])[0]) / 1000)
    start_response("200 OK", [("Content-Type", "text/plain")])
    uri = environ.get("REQUEST_URI", "")
    return [f"pid {os.getpid()}\\ngeneration {os.environ['FCGIMGR_GENERATION']}\\nasked {uri}\\nend\\n".encode()]

if __name__ == "__main__":
    from flup.server.fcgi import WSGIServer
    WSGIServer(app).run()
"""

ASGI = """\
import asyncio, os
from urllib.parse import parse_qs

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    query = scope["query_string"].decode()
    await asyncio.sleep(int(parse_qs(query).get("pause", ["0"])[0]) / 1000)
    uri = f"{scope['path']}?{query}"
    text = f"pid {os.getpid()}\\ngeneration {os.environ['FCGIMGR_GENERATION']}\\nasked {uri}\\nend\\n"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})
"""


@dataclass(frozen=True)
class Backend:
    """A kind of program: `keys` for its table in pool.toml, after `prepare(directory)`; how nginx passes to it."""

    name: str
    keys: str
    prepare: Callable[[Path], None]
    proxy: bool = False
    script: bool = False  # nginx names index.php as the script


def write(name: str, text: str) -> Callable[[Path], None]:
    """Put a file into the directory."""

    def prepare(directory: Path) -> None:
        (directory / name).write_text(text)

    return prepare


def go(directory: Path) -> None:
    """The Go program, as `serve`."""
    need("go")
    _place(built("go", GO), directory / "serve")


def c(directory: Path) -> None:
    """The C program, as `serve`."""
    need("cc")
    _place(built("c", C), directory / "serve")


def php(directory: Path) -> None:
    need("php-cgi")
    (directory / "index.php").write_text(PHP)


def built_go(source: str) -> Path:
    """This Go program, built."""
    need("go")
    return built("go", source)


def _place(program: Path, path: Path) -> None:
    if not path.exists():  # a program that runs cannot be written
        shutil.copy2(program, path)


@functools.cache
def built(language: str, source: str) -> Path:
    """The program built from this source: once a machine and version, for it takes seconds."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"fcgimgr-tests-{os.getuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    assert kept.stat().st_uid == os.getuid(), f"{kept} is another user's"
    program = kept / f"{language}-{digest}"
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=kept) as name:
            directory = Path(name)
            if language == "go":
                (directory / "go.mod").write_text("module answer\n\ngo 1.19\n")
                (directory / "main.go").write_text(source)
                run(["go", "build", "-o", "answer"], directory)
            else:
                (directory / "answer.c").write_text(source)
                run(["cc", "-O1", "-o", "answer", "answer.c", "-lfcgi"], directory)
            (directory / "answer").rename(program)
    return program


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("go", 'command = "%(here)s/serve"\nready = "ping"', go),
        Backend("c", 'command = "%(here)s/serve"\nready = "ping"', c),
        Backend(
            "php",
            'command = "php-cgi -d cgi.fix_pathinfo=0"\nstartsecs = 0.2\n'
            'environment = { PHP_FCGI_CHILDREN = "0", PHP_FCGI_MAX_REQUESTS = "0" }',
            php,
            script=True,
        ),
        Backend("flup", 'command = "python app.py"\nready = "ping"\nsocket_blocking = false', write("app.py", WSGI)),
        Backend(
            "wsgi", 'wsgi = "app:app"\npythonpath = ["%(here)s"]\nthreads = 4\nready = "notify"', write("app.py", WSGI)
        ),
        Backend(
            "uvicorn",
            'command = "python -m uvicorn --log-level warning asgi:app --fd 0"\nstartsecs = 1',
            write("asgi.py", ASGI),
            proxy=True,
        ),
    )
}


def pool(
    directory: Path, backend: str, address: str | Sequence[str], *keys: str, numprocs: int = 3, name: str = "app"
) -> str:
    """The table of a pool of this kind, its program made in `directory`."""
    kind = BACKENDS[backend]
    kind.prepare(directory)
    addresses = [address] if isinstance(address, str) else list(address)
    sockets = ", ".join(f'"{each}"' for each in addresses)
    lines = [f"[pool.{name}]", f"socket = [{sockets}]", 'directory = "%(here)s"', f"numprocs = {numprocs}", kind.keys]
    return "\n".join([*lines, *keys, ""])


_NGINX_CONF = """\
{upstreams}
server {{
    listen 127.0.0.1:{port};
    {locations}
}}
"""


def front(directory: Path, backend: str, *addresses: str, keep: bool = False) -> Nginx:
    """nginx before a pool of this kind, below `directory`: location /0 passes to the first address, and so on.

    It tries each request once; with `keep` connections to the pool are kept, and nginx does what it does by default:
    it repeats a request that a kept connection has not taken, if that is safe.
    """
    kind = BACKENDS[backend]
    upstreams, locations = [], []
    protocol = "proxy" if kind.proxy else "fastcgi"
    for number, address in enumerate(addresses):
        upstreams.append(f"upstream pool{number} {{ server {address}; {'keepalive 8;' if keep else ''} }}")
        lines = [f"{protocol}_pass {'http://' if kind.proxy else ''}pool{number};"]
        if kind.proxy:
            lines += ["proxy_http_version 1.1;", 'proxy_set_header Connection "";'] if keep else []
        elif kind.script:
            lines.append("include fcgimgr/params;")
            lines.append(f"fastcgi_param SCRIPT_FILENAME {directory}/index.php;")
            lines.append("fastcgi_param REDIRECT_STATUS 200;")
        else:
            lines.append("include fcgimgr/application_params;")
        if not kind.proxy and keep:
            lines.append("fastcgi_keep_conn on;")
        if not keep:
            lines.append(f"{protocol}_next_upstream off;")
        locations.append(f"location /{number} {{ {' '.join(lines)} }}")
    return Nginx.below(directory, _NGINX_CONF, upstreams="\n".join(upstreams), locations="\n    ".join(locations))
