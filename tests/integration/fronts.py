"""The web servers that a FastCGI pool may stand behind, each on the very configuration that docs/fronts.md shows.

A front is a context manager: it writes its configuration below a directory of the test's, runs in the foreground as a
child, answers on entry, is ended by pid however the test goes, and shows what it said when that went badly. No service
of the machine is touched. What the document leaves to the machine (modules, directories, the user) is added here;
of the document's own lines only the addresses are exchanged, a Unix socket's as the document says.

    with open_directory() as directory:
        address = free_address("unix", directory)
        with pool_of(directory, address, 'wsgi = "app:app"'), FRONTS["apache"](directory, address) as front:
            request(front.port, "/path")     # the application is the whole site, and the same below front.mount
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

from tests.integration.ports import connect, free_port
from tests.integration.running import RunningManager
from tests.integration.servers import CHECKOUT, need, nginx_conf, which
from tests.waiting import eventually

DOCUMENT = CHECKOUT / "docs" / "fronts.md"

MOUNT = "/shop"
"""Where the document has its second application, to which the tests give the same pool."""


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A directory for a pool's Unix socket and a front's files, which the user that a front runs as may pass through.

    pytest's own are closed to other users, and Apache serves as no root. Short, for a Unix socket's path is.
    """
    with tempfile.TemporaryDirectory(prefix="fcgimgr-front-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def pool_of(directory: Path, address: str, *lines: str) -> RunningManager:
    """A manager with a pool "app" in `directory`, on a socket that every front may write to; `lines` of pool.toml."""
    config = directory / "pool.toml"
    mode = ['socket_mode = "0666"'] if address.startswith("unix:") else []
    text = [
        *("[manager]", 'control = "%(here)s/fcgimgr.sock"'),
        *("[pool.app]", f'socket = "{address}"', *mode, 'directory = "%(here)s"', *lines),
    ]
    config.write_text("\n".join(text) + "\n")
    return RunningManager(config, directory / "fcgimgr.sock")


class Front:
    """A web server that passes everything to the pool at `address` ("127.0.0.1:9001" or "unix:/…").

    `variants`: of those that the document gives beside its block, by their names ("Not kept"). `files`: where the
    files are that it sends in the application's place.
    """

    name: ClassVar[str]
    """In tests and tables; the heading of the document, but for its capitals."""
    command: ClassVar[str]
    package: ClassVar[str]
    """Debian's."""
    variants: ClassVar[tuple[str, ...]] = ()
    """Those it always has."""
    frame: ClassVar[str] = "{block}"
    """The file around the document's lines."""
    mount = MOUNT

    def __init__(
        self, directory: Path, address: str, *, variants: Sequence[str] = (), files: Path | None = None
    ) -> None:
        need(self.command)
        self.port = free_port()
        self.directory = directory / self.name
        self.directory.mkdir()
        self.directory.chmod(0o755)
        self.conf = self.directory / f"{self.name}.conf"
        block = documented(self.name)
        for each in (*self.variants, *variants):
            block = _exchanged(block, *_variant(self.name, each))
        block = self._placed(_addressed(block, self.name, address).replace("/srv/files", str(files)))
        self.conf.write_text(self._framed(block))
        self._log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._prepare()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._words(),
                cwd=self.directory,
                env=os.environ | self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            eventually(self._answers, within=30)
        except BaseException:
            self._end()
            self._show()
            raise
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._end()
        if error is not None:
            self._show()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    # -- what a front may have otherwise --

    def _words(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return {}

    def _framed(self, block: str) -> str:
        return self.frame.format(block=block, directory=self.directory, port=self.port, user=self._user())

    def _user(self) -> str:
        """A line about the user to serve as, where root's own default is one who cannot enter the directory."""
        return ""

    def _placed(self, block: str) -> str:
        """The document's lines with the port of this test."""
        return block

    def _prepare(self) -> None:
        pass

    # --

    @property
    def _program(self) -> str:
        return which(self.command) or self.command

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}")
        connect(f"127.0.0.1:{self.port}", 1.0).close()
        return True

    def _end(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()

    def _show(self) -> None:
        print(f"-- {self.name}: {self.conf}\n{self.conf.read_text()}-- {self.name} said\n{self.log()}--")


class Nginx(Front):
    name, command, package = "nginx", "nginx", "nginx-light"

    def _prepare(self) -> None:
        shutil.copytree(CHECKOUT / "nginx" / "fcgimgr", self.directory / "fcgimgr")

    def _framed(self, block: str) -> str:
        return nginx_conf(block)

    def _placed(self, block: str) -> str:
        return _exchanged(block, "listen 80;", f"listen 127.0.0.1:{self.port};")

    def _words(self) -> list[str]:
        return [self._program, "-p", str(self.directory), "-c", str(self.conf)]


class Apache(Front):
    """With the event MPM, in one child of as many threads as Debian gives it."""

    name, command, package = "apache", "apache2", "apache2"
    frame = """\
ServerRoot {directory}
PidFile {directory}/pid
DefaultRuntimeDir {directory}
ErrorLog {directory}/log
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_fcgi_module /usr/lib/apache2/modules/mod_proxy_fcgi.so
{user}
StartServers 1
ServerLimit 1
ThreadsPerChild 25
MaxRequestWorkers 25
{block}"""

    def _user(self) -> str:
        return "User www-data\nGroup www-data" if os.geteuid() == 0 else ""

    def _placed(self, block: str) -> str:
        return _exchanged(block, "*:80>", f"127.0.0.1:{self.port}>")

    def _words(self) -> list[str]:
        return [self._program, "-f", str(self.conf), "-DFOREGROUND"]


class HAProxy(Front):
    name, command, package = "haproxy", "haproxy", "haproxy"
    frame = """\
global
    maxconn 200
    log stderr format raw local0 notice
{block}"""

    def _placed(self, block: str) -> str:
        return _exchanged(block, "bind :80", f"bind 127.0.0.1:{self.port}")

    def _words(self) -> list[str]:
        return [self._program, "-db", "-f", str(self.conf)]


class HAProxyReuse(HAProxy):
    """HAProxy that takes a kept connection for the first request of a client too."""

    name = "haproxy-reuse"
    variants = ("Reused at once",)


class Lighttpd(Front):
    """It connects anew for each request."""

    name, command, package = "lighttpd", "lighttpd", "lighttpd"
    frame = """\
server.bind          = "127.0.0.1"
server.document-root = "{directory}"
server.upload-dirs   = ( "{directory}" )
server.errorlog      = "/dev/stderr"
{block}"""

    def _placed(self, block: str) -> str:
        return _exchanged(block, "server.port     = 80", f"server.port = {self.port}")

    def _words(self) -> list[str]:
        return [self._program, "-D", "-f", str(self.conf)]


class Caddy(Front):
    """It connects anew for each request."""

    name, command, package = "caddy", "caddy", "caddy"
    frame = """\
{{
    admin off
    auto_https off
    default_bind 127.0.0.1
    grace_period 1s
}}
{block}"""

    def _placed(self, block: str) -> str:
        return _exchanged(block, ":80 {", f"http://:{self.port} {{")

    def _environment(self) -> dict[str, str]:
        place = str(self.directory)
        return {"HOME": place, "XDG_DATA_HOME": place, "XDG_CONFIG_HOME": place}

    def _words(self) -> list[str]:
        return [self._program, "run", "--adapter", "caddyfile", "--config", str(self.conf)]


class H2o(Front):
    name, command, package = "h2o", "h2o", "h2o"
    frame = """\
{user}
num-threads: 2
error-log: /dev/stderr
temp-buffer-path: {directory}
{block}"""

    def _user(self) -> str:
        return "user: root" if os.geteuid() == 0 else ""

    def _placed(self, block: str) -> str:
        return _exchanged(block, "port: 80\n", f"host: 127.0.0.1\n      port: {self.port}\n")

    def _words(self) -> list[str]:
        return [self._program, "-m", "worker", "-c", str(self.conf)]


FRONTS: dict[str, type[Front]] = {
    front.name: front for front in (Nginx, Apache, HAProxy, HAProxyReuse, Lighttpd, Caddy, H2o)
}
"""HAProxy twice: it keeps connections in two ways."""


def documented(name: str) -> str:
    """The configuration that the document shows for a front: the first block below its heading."""
    section = _section(name)
    found = re.search(r"^```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found, f"{DOCUMENT}: no block for {name}"
    return found[1]


def _section(name: str) -> str:
    for section in DOCUMENT.read_text().split("\n## ")[1:]:
        if section.partition("\n")[0].lower() == name.partition("-")[0]:
            return section
    raise AssertionError(f"{DOCUMENT}: no section for {name}")


def offers(name: str, variant: str) -> str:
    """Whether the document has that variant for a front: "", or what is named "by `…`" in it."""
    found = re.search(rf"^\*\*{variant}\*\*(?:, by `([\w-]+)`)?", _section(name), re.MULTILINE)
    return (found[1] or variant) if found else ""


def _variant(name: str, variant: str) -> tuple[str, str]:
    """What stands in the document's block, and what is to: `NEW` in place of `OLD`, `NEW` below `OLD`, or a block."""
    start = rf"^\*\*{variant}\*\*[^:\n]*: "
    section = _section(name)
    if found := re.search(rf"{start}`([^`]+)` (in place of|below) `([^`]+)`", section, re.MULTILINE):
        new, where, old = found.groups()
    elif found := re.search(rf"{start}below `([^`]+)`\n\n```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        old, new = found.groups()
        where = "below"
    else:
        raise AssertionError(f"{DOCUMENT}: {name} has no variant {variant!r}")
    return old, new if where == "in place of" else f"{old}\n{new}"


def _addressed(block: str, name: str, address: str) -> str:
    """The document's lines with the pool's address in place of both of theirs; a Unix socket's where it says to."""
    if not address.startswith("unix:"):
        port = address.rpartition(":")[2]
        return re.sub(r"\b900[12]\b", port, block)
    old, new = _variant(name, "Unix socket")
    path = address.removeprefix("unix:")
    for app, port in (("app", "9001"), ("shop", "9002")):
        # Names after the application, but not the socket's file: both are the one pool of the test.
        here = re.sub(r"\bapp\b(?!\.sock)", app, new).replace("/run/fcgimgr/app.sock", path)
        block = _exchanged(block, re.sub(r"\bapp\b", app, old.replace("9001", port)), here)
    return block


def _exchanged(text: str, old: str, new: str) -> str:
    assert old in text, f"{old!r} is not in\n{text}"
    return text.replace(old, new)
