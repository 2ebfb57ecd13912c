"""What a WSGI application sees and says behind each front is what docs/fronts.md shows in its table.

"yes" there is what PEP 3333, RFC 3875 and RFC 9110 promise; any other word is what the front itself makes of it. Each
row of the table is a function here, which asks and answers with the word. Both servers give the same.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.fronts import DOCUMENT, FRONTS, Front, offers, open_directory, pool_of
from tests.integration.ports import free_address

WITHIN = 20.0
"""Seconds that an answer may take: a bound on a broken program."""


@dataclass
class Site:
    """A front before an application, and a client."""

    front: Front
    directory: Path

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> "Answer":
        """On a connection of its own."""
        with self.kept() as ask:
            return ask(path, method, body, **headers)

    @contextmanager
    def kept(self) -> Iterator[Callable[..., "Answer"]]:
        """Several on one connection, as long as the front keeps it."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.front.port, timeout=WITHIN)) as connection:

            def ask(path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
                connection.request(
                    method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
                )
                response = connection.getresponse()
                return Answer(response.status, response.getheaders(), response.read())

            yield ask

    def environ(self, path: str, **headers: str) -> dict[str, str]:
        return self.ask(path, **headers).environ()

    def wire(self, text: str, body: bytes = b"") -> "Answer":
        """Bytes as they are, to the end of the connection; a peer that answers before it has all of them may do so."""
        with socket.create_connection(("127.0.0.1", self.front.port), WITHIN) as connection:

            def send() -> None:
                with suppress(OSError):
                    connection.sendall(text.replace("\n", "\r\n").encode() + body)

            sender = threading.Thread(target=send)
            sender.start()
            received = bytearray()
            with suppress(ConnectionResetError):
                while more := connection.recv(65536):
                    received += more
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()
        head, _, content = bytes(received).partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.[01] (\d+)", head)
        return Answer(int(status[1]) if status else 0, [], content)


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each.lower() == name.lower()]

    def environ(self) -> dict[str, str]:
        if self.status != 200:
            return {"": str(self.status)}
        # Behind a front that sends what it has as chunks.
        found = json.loads(self.body[self.body.index(b"{") : self.body.rindex(b"}") + 1])
        assert isinstance(found, dict)
        return found


# -- the rows ---------------------------------------------------------------------------------------------------------

Row = Callable[[Site], object]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    def named(function: Row) -> Row:
        ROWS[name] = function
        return function

    return named


def paths(site: Site, asked: str, script: str, path: str) -> object:
    """Whether the application of `asked` has these; else what it has."""
    environ = site.environ(asked)
    has = (environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", ""))
    if has == (script, path):
        return True
    if has == (script, path.replace("//", "/")):
        return "one /"
    return "not cut" if has == ("", script + path) and script else has


def as_path(text: str) -> str:
    """As PEP 3333 has the bytes of a path."""
    return text.encode().decode("latin-1")


@row("the whole site: `/`, `/a%20b`, `/caf%C3%A9`, `/a/`")
def _(site: Site) -> object:
    asked = {"/": "/", "/a%20b": "/a b", "/caf%C3%A9": "/café", "/a/": "/a/", "/%25": "/%"}
    return every(paths(site, each, "", as_path(path)) for each, path in asked.items())


@row("`/a%2Fb`")
def _(site: Site) -> object:
    return paths(site, "/a%2Fb", "", "/a/b")


@row("`/a//b`")
def _(site: Site) -> object:
    return paths(site, "/a//b", "", "/a//b")


@row("below a path: `/shop/`, `/shop/a%20b`")
def _(site: Site) -> object:
    asked = {"/shop/": "/", "/shop/a%20b": "/a b", "/shop/caf%C3%A9": "/café", "/shop/a%2Fb": "/a/b"}
    return every(paths(site, each, "/shop", as_path(path)) for each, path in asked.items())


@row("exactly that path: `/shop`")
def _(site: Site) -> object:
    return paths(site, "/shop", "/shop", "")


@row("`/shop/a//b`")
def _(site: Site) -> object:
    return paths(site, "/shop/a//b", "/shop", "/a//b")


@row("not below it: `/shopping`")
def _(site: Site) -> object:
    return paths(site, "/shopping", "", "/shopping")


@row("QUERY_STRING, REQUEST_URI")
def _(site: Site) -> object:
    queries = ["", "?a=1%20&b&c=%2F+?", "?%C3%A9"]
    environs = [(query, site.environ(f"/a%20b{query}")) for query in queries]
    return every(
        (environ["QUERY_STRING"], environ["REQUEST_URI"]) == (query[1:], f"/a%20b{query}") or environ["REQUEST_URI"]
        for query, environ in environs
    )


@row("SERVER_NAME and SERVER_PORT, also without Host")
def _(site: Site) -> object:
    def named(environ: dict[str, str], port: str) -> object:
        seen = (environ.get("SERVER_NAME", ""), environ.get("SERVER_PORT", ""))
        return (re.fullmatch(r"[\w.-]+", seen[0]) and re.fullmatch(port, seen[1])) is not None or (*seen, environ)

    without = site.wire("GET / HTTP/1.0\n\n").environ()
    return every((named(site.environ("/"), str(site.front.port)), named(without, r"\d+")))


@row("REMOTE_ADDR, SERVER_PROTOCOL, the scheme")
def _(site: Site) -> object:
    environ = site.environ("/")
    seen = tuple(environ.get(name) for name in ("REMOTE_ADDR", "SERVER_PROTOCOL", "wsgi.url_scheme"))
    return seen == ("127.0.0.1", "HTTP/1.1", "http") or seen


@row("`Authorization` reaches the application")
def _(site: Site) -> object:
    seen = site.environ("/", Authorization="Basic eDp5").get("HTTP_AUTHORIZATION")
    return seen == "Basic eDp5" or seen


@row("CONTENT_TYPE and CONTENT_LENGTH of a POST, and neither as HTTP_*")
def _(site: Site) -> object:
    environ = site.ask("/", "POST", b"12345", Content_Type="text/x").environ()
    seen = {name: value for name, value in environ.items() if "CONTENT_" in name}
    return seen == {"CONTENT_TYPE": "text/x", "CONTENT_LENGTH": "5"} or seen


@row("`Proxy:` does not become HTTP_PROXY")
def _(site: Site) -> object:
    return "passed" if site.environ("/", Proxy="http://evil/").get("HTTP_PROXY") else True


@row("`X_Y:` does not pass for `X-Y:`")
def _(site: Site) -> object:
    return (
        "passed"
        if "HTTP_X_Y" in site.wire("GET / HTTP/1.1\nHost: x\nX_Y: 1\nConnection: close\n\n").environ()
        else True
    )


@row("a header twice, joined")
def _(site: Site) -> object:
    seen = site.wire("GET / HTTP/1.1\nHost: x\nX-Y: 1\nX-Y: 2\nConnection: close\n\n").environ().get("HTTP_X_Y")
    return {"1, 2": True, "2": "the last", "1": "the first"}.get(seen or "", seen)


@row("a Cookie of 7 KB")
def _(site: Site) -> object:
    return site.ask("/", Cookie="a=" + "x" * 7000).environ().get("HTTP_COOKIE") == "a=" + "x" * 7000


@row("headers of an answer: 3 KB")
def _(site: Site) -> object:
    return much(site, 3000)


@row("headers of an answer: 12 KB")
def _(site: Site) -> object:
    return much(site, 12000)


@row("headers of an answer: 30 KB")
def _(site: Site) -> object:
    return much(site, 30000)


def much(site: Site, length: int) -> object:
    answer = site.ask(f"/do/headers?{length}")
    return (answer.status == 200 and len(answer.header("X-Much-1")) == 1) or answer.status


@row("two Set-Cookie")
def _(site: Site) -> object:
    seen = site.ask("/do/cookies").header("Set-Cookie")
    return seen == ["a=1", "b=2"] or seen


@row("HEAD")
def _(site: Site) -> object:
    return every(empty(site, name, "HEAD", 200) for name in ("page", "unsized"))


@row("204, 304")
def _(site: Site) -> object:
    return every((empty(site, "nothing", "GET", 204), empty(site, "unmodified", "GET", 304)))


def empty(site: Site, name: str, method: str, status: int) -> object:
    """No body, and the connection is good for the next ones."""
    with site.kept() as ask:
        first, second, third = ask(f"/do/{name}", method), ask("/do/page"), ask(f"/do/{name}", method)
    seen = (first.status, first.body, second.status, second.body, third.status, third.body)
    return seen == (status, b"", 200, b"page\n", status, b"") or seen


@row("a range that the application makes")
def _(site: Site) -> object:
    answer = site.ask("/do/part", Range="bytes=2-4")
    seen = (answer.status, answer.header("Content-Range"), answer.body)
    return seen == (206, ["bytes 2-4/10"], b"234") or seen


@row("an upload of 3 MB")
def _(site: Site) -> object:
    body = os.urandom(3_000_000)
    return digest(site.ask("/do/digest", "POST", body), body)


@row("a chunked upload of 20 bytes")
def _(site: Site) -> object:
    return chunked(site, os.urandom(20))


@row("a chunked upload of 3 MB")
def _(site: Site) -> object:
    return chunked(site, os.urandom(3_000_000))


def chunked(site: Site, body: bytes) -> object:
    pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
    coded = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = "POST /do/digest HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nConnection: close\n\n"
    return digest(site.wire(head, coded), body)


def digest(answer: Answer, body: bytes) -> object:
    if answer.status != 200:
        return answer.status
    # Behind a front that sends what it has as chunks.
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode() in answer.body or answer.body


@row("401 before a POST of 1 MB is read")
def _(site: Site) -> object:
    if site.front.name == "haproxy":
        return "at times"  # one answer in ten or so stays in it until its time is over, of any FastCGI server
    head = "POST /do/denied HTTP/1.1\nHost: x\nContent-Length: 1000000\nConnection: close\n\n"
    seen = [site.wire(head, bytes(1_000_000)).status for _ in range(3)]
    return seen == [401] * 3 or seen


@row("a file that the front sends")
def _(site: Site) -> object:
    header = offers(site.front.name, "Files")
    if not header:
        return "–"
    answer = site.ask(f"/do/file?{header}")
    return (answer.status, answer.body) == (200, b"a file\n") or (answer.status, answer.body)


@row("a part of an answer as soon as it is made")
def _(site: Site) -> object:
    path = site.directory / "gate"
    os.mkfifo(path)
    with (
        path.open(
            "r+b", buffering=0
        ) as gate,  # both ways, so that neither opening nor writing waits for the application
        socket.create_connection(("127.0.0.1", site.front.port), WITHIN) as client,
    ):
        client.sendall(b"GET /do/streamed HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = bytearray()
        try:
            while b"first" not in received and (more := client.recv(65536)):
                received += more
        finally:
            gate.write(b"x")
        while more := client.recv(65536):
            received += more
    return (b"first" in received and b"second" in received) or bytes(received[:12])


def every(seen: Iterator[object] | tuple[object, ...]) -> object:
    """True if all are; else the one word of those that are not, or all of them."""
    words = {each if isinstance(each, (bool, str, int)) else repr(each) for each in seen} - {True}
    return True if not words else words.pop() if len(words) == 1 else sorted(map(str, words))


# -- the table --------------------------------------------------------------------------------------------------------


def in_the_document() -> dict[str, dict[str, str]]:
    """The table: row, front, word."""
    table = DOCUMENT.read_text().split("\n## What was seen")[1].split("\n## ")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return {name: dict(zip(map(str.lower, head[1:]), words, strict=True)) for name, *words in rows}


def test_the_table_has_every_row_in_this_order() -> None:
    assert list(in_the_document()) == list(ROWS)


@pytest.mark.parametrize("server", ["native", "flup"])
@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("front", [name for name in FRONTS if name != "haproxy-reuse"])
def test_an_application_sees_and_says_what_the_document_shows_behind(front: str, transport: str, server: str) -> None:
    promised = {name: by_front[front] for name, by_front in in_the_document().items()}
    seen = seen_behind(front, transport, server)
    assert {name: word for name, word in seen.items() if promised.get(name) != word} == {}


def seen_behind(front: str, transport: str, server: str) -> dict[str, str]:
    """A column of the table."""
    with open_directory() as directory:
        address = free_address(transport, directory)
        shutil.copy(Path(__file__).with_name("front_app.py"), directory)
        files = directory / "files"
        files.mkdir()
        (files / "file.txt").write_text("a file\n")
        lines = (f'server = "{server}"', 'wsgi = "front_app:application"', "numprocs = 2")
        variants = [variant for variant in ("Files", "Streamed") if offers(front, variant)]
        with (
            pool_of(directory, address, *lines),
            FRONTS[front](directory, address, variants=variants, files=files) as running,
        ):
            site = Site(running, directory)
            return {name: word_of(ask, site) for name, ask in ROWS.items()}


def word_of(ask: Row, site: Site) -> str:
    try:
        word = ask(site)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return repr(error)
    return "yes" if word is True else str(word)
