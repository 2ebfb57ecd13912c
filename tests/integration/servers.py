"""The real servers around fcgimgr: nginx with the shipped snippets, the requests of a client, and tools to build with.

Each server is a context manager that ends what it started, by pid, however the test goes. Ports and paths are free
ones, so that tests run side by side. Nothing here waits on a clock.
"""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.integration.ports import free_port
from tests.waiting import eventually

CHECKOUT = Path(__file__).resolve().parents[2]


def need(*commands: str) -> None:
    """Skip the test where a server it needs is not installed; in CI (CI=true) that is a failure, never a skip."""
    if missing := [command for command in commands if which(command) is None]:
        message = f"not installed: {', '.join(missing)}; scripts/test installs all that the tests need"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


def which(command: str) -> str | None:
    """The path of a command, also of those in sbin, which an ordinary user's PATH leaves out."""
    return shutil.which(command, path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin")


# -- nginx ------------------------------------------------------------------------------------------------------------

_SHIPPED = """\
default_type text/plain;
server {{
    listen 127.0.0.1:{port};
    {server}
    include fcgimgr/{snippet};
}}
"""


def nginx_conf(http: str) -> str:
    """A configuration of nginx with this in its http {}; whatever it writes is below its prefix."""
    return f"""\
daemon off;
pid nginx.pid;
error_log stderr;
worker_processes 1;
{as_user()}
events {{ worker_connections 512; }}
http {{
access_log off;
client_body_temp_path temp;
proxy_temp_path temp;
fastcgi_temp_path temp;
uwsgi_temp_path temp;
scgi_temp_path temp;
{http}}}
"""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    text: str

    def says(self, word: str) -> str:
        """The rest of the line that begins with `word`: the examples answer in such lines."""
        for line in self.text.splitlines():
            if line.startswith(f"{word} "):
                return line.removeprefix(f"{word} ")
        raise AssertionError(f"no line {word!r} in {self.text!r}")


class Nginx:
    """The real nginx on a configuration file whose first port is `port`; it answers there on entry."""

    def __init__(self, prefix: Path, conf: Path, port: int) -> None:
        need("nginx")
        self.port = port
        self._command = [which("nginx") or "nginx", "-p", str(prefix), "-c", str(conf)]
        self._log = conf.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def before(cls, address: str, directory: Path, *, snippet: str = "", server: str = "") -> Self:
        """nginx with a shipped snippet, by default the one for FastCGI, that passes to the pool at `address`.

        `directory`: an empty place of the test's own. `server`: more text for the server {}.
        """
        snippet = snippet or ("fastcgi-unix.conf" if address.startswith("unix:") else "fastcgi-tcp.conf")
        nginx = cls.below(directory, _SHIPPED, server=server, snippet=snippet)
        _point_at(directory / "nginx" / "fcgimgr" / snippet, address)
        return nginx

    @classmethod
    def below(cls, directory: Path, http: str, **values: object) -> Self:
        """nginx with `http` in its http {}, formatted with these values and `port`, a free one.

        Its files, the shipped ones too, are in `directory`/nginx, which must not be there.
        """
        prefix = directory / "nginx"
        shutil.copytree(CHECKOUT / "nginx" / "fcgimgr", prefix / "fcgimgr")
        port = free_port()
        conf = prefix / "nginx.conf"
        conf.write_text(nginx_conf(http.format(port=port, **values)))
        return cls(prefix, conf, port)

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            eventually(self._answers)
        except BaseException:
            self._end()
            print(self._log.read_text())
            raise
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._end()
        if error is not None:
            print(f"-- nginx\n{self._log.read_text()}--")

    def get(self, path: str) -> Answer:
        return request(self.port, path)

    def post(self, path: str, body: str) -> Answer:
        return request(self.port, path, body)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"nginx ended with {self._process.returncode}")
        socket.create_connection(("127.0.0.1", self.port), 1.0).close()
        return True

    def _end(self) -> None:
        assert self._process is not None
        self._process.terminate()  # At once; its worker goes with it.
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()


def request(
    port: int, path: str, body: str | None = None, timeout: float = 30.0, headers: Mapping[str, str] | None = None
) -> Answer:
    """GET a path from 127.0.0.1:`port`, or POST a body to it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read().decode())


def as_user() -> str:
    """A line for nginx.conf: as root it would serve as "nobody", who cannot enter the directories of the tests."""
    return "user root;" if os.geteuid() == 0 else ""


def _point_at(snippet: Path, address: str) -> None:
    """Replace the address of a shipped snippet: all that a user changes in it."""
    lines = snippet.read_text().splitlines(keepends=True)
    pointed = 0
    for number, line in enumerate(lines):
        words = line.split()
        if words[:1] == ["fastcgi_pass"]:
            lines[number] = f"fastcgi_pass {address};\n"
            pointed += 1
        elif words[:1] == ["proxy_pass"]:
            lines[number] = f"proxy_pass http://{address};\n"
            pointed += 1
    assert pointed == 1, f"{snippet} passes to {pointed} addresses"
    snippet.write_text("".join(lines))


def run(command: Sequence[str], directory: Path, *, within: float = 120.0) -> str:
    """Run a command to its end; its output. It must exit with 0."""
    done = subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=within,
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{' '.join(command)} exited with {done.returncode}:\n{output}"
    return output
