"""A small HTTP server in front of a FastCGI pool, for development: loopback only, no caching, no TLS, no tuning.

    python -m fcgimgr.demo.front 127.0.0.1:9001 --port 8080
    python -m fcgimgr.demo.front /run/app.sock --document-root /srv/php

It says to a FastCGI server what nginx would say, passes the body on as it comes, and the response as it comes back.
When the pool fails the answer is 502 (504: too slow) with the reason in words. In production this is nginx's place.

Listening on loopback keeps other machines out, but not a page in the developer's own browser whose name was led to
127.0.0.1 (DNS rebinding): that would read tracebacks, and what is in them. So the Host has to be a name of this machine
that no name server gives to others.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import http
import http.server
import ipaddress
import os
import posixpath
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from fcgimgr.fastcgi.records import FastCGIError, RecordType, begin_request, encode_pairs, encode_record, encode_stream
from fcgimgr.fastcgi.response import Body, End, Event, Head, ResponseReader, Stderr
from fcgimgr.fastcgi.transport import NoReplyError, UnreachableError, connect, converse, parse_endpoint

#: Seconds: to connect, then without any progress of the pool, and without any of the HTTP client.
CONNECT_TIMEOUT: Final = 5.0
POOL_TIMEOUT: Final = 60.0
CLIENT_TIMEOUT: Final = 60.0
MAX_REQUEST_BODY: Final = 1 << 30
MAX_CLIENTS: Final = 200
_CHUNK: Final = 32 * 1024
#: The name in a Host field, without its port.
_HOST: Final = re.compile(r"\[[0-9A-Fa-f:.]+\]|[^:]+")

_PAGE: Final = """\
<!DOCTYPE html>
<meta charset="utf-8">
<title>{title}</title>
<h1>{title}</h1>
<pre>{reason}</pre>
"""

#: Fields that are about one connection (RFC 9110 section 7.6.1), not about the message.
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def serve(address: str, host: str, port: int, *, document_root: str | None = None) -> Front:
    """An HTTP server on `host`:`port` (0: any free port) in front of the FastCGI server at `address`; the caller
    calls `serve_forever`.

    With `document_root` a path names a script below it (PHP); without, the whole path is PATH_INFO (WSGI). Raises
    ValueError when `host` is not a loopback address, FastCGIError when `address` is none, OSError when the port is
    taken.
    """
    return Front(address, host, port, document_root)


class Front(http.server.ThreadingHTTPServer):
    """`pool` may be led to another address at any time: each request goes to the one of its moment.

    pool_timeout: seconds without any progress of the pool, None: without end. patience: seconds in which a pool that is
    not there is tried again, unless there is `trouble`: why it does not come, in words, line by line.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, host: str, port: int, document_root: str | None) -> None:
        loopback = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if not loopback.is_loopback:
            raise ValueError(f"{host}: this front is for development and listens on loopback only; use nginx")
        parse_endpoint(address)
        self.pool = address
        self.pool_timeout: float | None = POOL_TIMEOUT
        self.patience = 0.0
        self.trouble: tuple[str, ...] = ()
        self.document_root = os.path.abspath(document_root) if document_root is not None else None
        self._clients = threading.BoundedSemaphore(MAX_CLIENTS)
        if loopback.version == 6:
            self.address_family = socket.AF_INET6
        super().__init__((str(loopback), port), _Exchange)

    def server_bind(self) -> None:
        """Without the base class's look-up of our name, which may ask a name server and wait for it."""
        super(http.server.HTTPServer, self).server_bind()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._clients.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            with contextlib.suppress(OSError):
                request.send(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._clients.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):  # a browser that goes away is no error
            super().handle_error(request, client_address)


class _RefusedError(Exception):
    """The HTTP request is not passed on: `status` and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Exchange(http.server.BaseHTTPRequestHandler):
    """One HTTP connection."""

    server: Front
    protocol_version = "HTTP/1.1"
    server_version = "fcgimgr-demo"
    sys_version = ""
    timeout = CLIENT_TIMEOUT
    # Head and body are written apart: without this Nagle holds the second for the client's delayed ACK.
    disable_nagle_algorithm = True

    def _pass_on(self) -> None:
        self._answering = False
        try:
            _refuse_foreign(self.headers.get_all("Host", []))
            length = _body_length(self.headers.get_all("Content-Length", []), self.headers.get_all("Transfer-Encoding"))
            # What is left of the body when the answer is sent would be read as the next request.
            self._unread = length
            outgoing = self._records(_params(self, length))
            with self._connect() as pool:
                self._answer(converse(pool, outgoing, ResponseReader(), timeout=self.server.pool_timeout))
            self.close_connection = self.close_connection or self._unread > 0
        except _RefusedError as refused:
            self._say(refused.status, str(refused))
        except NoReplyError as error:
            self._say(504, f"The FastCGI server {self.server.pool} is too slow: {error}")
        except UnreachableError as error:
            self._say(502, "\n".join(self.server.trouble) or f"No answer from the FastCGI server. {error}")
        except FastCGIError as error:
            text = str(error)
            place = "" if text.startswith(self.server.pool) else f"{self.server.pool}: "
            self._say(502, f"No answer from the FastCGI server. {place}{text}")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _pass_on  # noqa: N815  # the base class's names

    def _connect(self) -> socket.socket:
        until = time.monotonic() + self.server.patience
        while True:
            address = self.server.pool
            try:
                return connect(address, timeout=CONNECT_TIMEOUT)
            except UnreachableError:
                if address == self.server.pool and (self.server.trouble or time.monotonic() >= until):
                    raise
            time.sleep(0.02)

    def _records(self, params: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
        yield (
            begin_request(1)
            + encode_stream(RecordType.PARAMS, 1, encode_pairs(params))
            + encode_record(RecordType.PARAMS, 1)
        )
        while self._unread:
            piece = self.rfile.read1(min(_CHUNK, self._unread))
            if not piece:
                raise ConnectionResetError("the client went away in the middle of its request")
            self._unread -= len(piece)
            yield encode_record(RecordType.STDIN, 1, piece)
        yield encode_record(RecordType.STDIN, 1)

    def _answer(self, events: Iterator[Event]) -> None:
        chunked = False
        for event in events:
            if isinstance(event, Stderr):
                self.log_error("stderr: %s", event.content.decode("utf-8", "replace").rstrip("\n"))
            elif isinstance(event, Head):
                chunked = self._send_head(event)
            elif isinstance(event, Body) and self._has_body:
                self._send_body(event.content, chunked)
            elif isinstance(event, End):
                if not self._answering:
                    raise FastCGIError(
                        f"the server ended the request without a response (protocol status {event.protocol_status})"
                    )
                if chunked:
                    self.wfile.write(b"0\r\n\r\n")
                elif self._expected:
                    self.close_connection = True  # less than was announced: the client must not wait for the rest

    def _send_head(self, head: Head) -> bool:
        """Whether the body goes out in chunks."""
        if head.status < 200 or head.status > 599:
            raise FastCGIError(f"the response has status {head.status}, which no web server can pass on")
        try:
            reason = http.HTTPStatus(head.status).phrase
        except ValueError:
            reason = "Unknown"
        lengths = [value for name, value in head.headers if name.lower() == "content-length"]
        if len(set(lengths)) > 1 or not all(re.fullmatch("[0-9]{1,18}", value) for value in lengths):
            raise FastCGIError(f"the response has no valid Content-Length: {', '.join(map(ascii, lengths))}")
        self._has_body = self.command != "HEAD" and head.status not in (204, 304)
        self._expected: int | None = int(lengths[0]) if lengths and self._has_body else None
        named = _connection_options(value for name, value in head.headers if name.lower() == "connection")
        self._answering = True
        self.send_response(head.status, reason)  # with Server and Date
        for name, value in head.headers:
            if name.lower() not in HOP_BY_HOP | named | {"server", "date", "content-length"}:
                self.send_header(name, value)
        if lengths and head.status != 204:
            self.send_header("Content-Length", lengths[0])
        chunked = self._has_body and self._expected is None and self.request_version >= "HTTP/1.1"
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif self._has_body and self._expected is None:
            self.close_connection = True
        if self.close_connection or self._unread:
            self.send_header("Connection", "close")
        self.end_headers()
        return chunked

    def _send_body(self, content: bytes, chunked: bool) -> None:
        if chunked:
            content = b"%x\r\n%b\r\n" % (len(content), content)
        elif self._expected is not None:
            content = content[: self._expected]  # more than was announced would be read as the next response
            self._expected -= len(content)
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """On standard error, if anybody still reads that: a client is answered all the same."""
        with contextlib.suppress(BrokenPipeError):
            super().log_message(format, *args)

    def _say(self, status: int, reason: str) -> None:
        """An answer of our own, unless one has begun: then all that is left is to break it off."""
        self.log_error("%s", reason.partition("\n")[0])
        self.close_connection = True
        if self._answering:
            return
        title = f"{status} {http.HTTPStatus(status).phrase}"
        kind, page = "plain", f"{title}\n\n{reason}\n"
        if "text/html" in self.headers.get("Accept", ""):
            kind, page = "html", _PAGE.format(title=title, reason=html.escape(reason))
        text = page.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)


def _refuse_foreign(hosts: list[str]) -> None:
    """RFC 6761 section 6.3: localhost, and all below it, is loopback. Who sends no Host at all is no browser."""
    for host in hosts:
        found = _HOST.match(host)
        name = found[0].lower().rstrip(".") if found else ""
        if name != "localhost" and not name.endswith(".localhost") and not _is_loopback(name.strip("[]")):
            raise _RefusedError(421, f"This server is for this machine alone: ask for localhost, not for {host}.")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _body_length(lengths: list[str], transfer_encoding: list[str] | None) -> int:
    if transfer_encoding:
        raise _RefusedError(411, "This front passes a body on as it comes and needs its length: send Content-Length.")
    if not lengths:
        return 0
    if len(set(lengths)) > 1 or not re.fullmatch("[0-9]{1,18}", lengths[0]):
        raise _RefusedError(400, "The request has no valid Content-Length.")
    if int(lengths[0]) > MAX_REQUEST_BODY:
        raise _RefusedError(413, f"This front takes at most {MAX_REQUEST_BODY} bytes.")
    return int(lengths[0])


def _connection_options(values: Iterator[str]) -> set[str]:
    """The fields that a Connection header declares to be about the connection alone."""
    return {option.strip().lower() for value in values for option in value.split(",")}


def _params(exchange: _Exchange, length: int) -> list[tuple[bytes, bytes]]:
    """The CGI variables of nginx's fastcgi_params for this request (RFC 3875 section 4.1)."""
    raw_path, _, query = exchange.path.partition("?")
    if not raw_path.startswith("/"):  # absolute-form, asterisk-form
        raise _RefusedError(400, "The request's target must be a path.")
    path = unquote_to_bytes(raw_path).decode("latin-1")
    if "\0" in path:
        raise _RefusedError(400, "The request's path holds a NUL.")
    local = exchange.connection.getsockname()
    front = exchange.server
    host = _HOST.match(exchange.headers.get("Host", ""))
    params = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": exchange.server_version,
        "SERVER_PROTOCOL": exchange.request_version,
        "SERVER_NAME": host[0] if host else "localhost",
        "SERVER_ADDR": str(local[0]),
        "SERVER_PORT": str(local[1]),
        "REMOTE_ADDR": exchange.client_address[0],
        "REMOTE_PORT": str(exchange.client_address[1]),
        "REQUEST_SCHEME": "http",
        "REQUEST_METHOD": exchange.command,
        "REQUEST_URI": exchange.path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": exchange.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(length) if length else "",
        "REDIRECT_STATUS": "200",  # php-cgi refuses to run without
        **_script(path, front.document_root),
    }
    named = _connection_options(iter(exchange.headers.get_all("Connection", [])))
    joined: dict[str, str] = {}
    for name, value in exchange.headers.items():
        lower = name.lower()
        # An underscore would make X_Real_IP and X-Real-IP one variable; Proxy would become HTTP_PROXY (httpoxy).
        if lower in HOP_BY_HOP | named | {"content-type", "content-length", "proxy"} or "_" in lower:
            continue
        value = value.replace("\r", "").replace("\n", "")  # a folded line (obsolete, RFC 9112 section 5.2)
        variable = "HTTP_" + lower.upper().replace("-", "_")
        separator = "; " if lower == "cookie" else ", "
        joined[variable] = f"{joined[variable]}{separator}{value}" if variable in joined else value
    return [(n.encode("latin-1", "replace"), v.encode("latin-1", "replace")) for n, v in {**params, **joined}.items()]


def _script(path: str, document_root: str | None) -> dict[str, str]:
    if document_root is None:
        return {"SCRIPT_NAME": "", "PATH_INFO": path}
    # normpath leaves no "..": a path below "/" stays below the document root.
    name = posixpath.normpath("/" + path.lstrip("/"))
    if path.endswith("/"):
        name = posixpath.join(name, "index.php")
    root = os.fsencode(document_root).decode("latin-1")
    return {
        "SCRIPT_NAME": name,
        "DOCUMENT_URI": name,
        "DOCUMENT_ROOT": root,
        "SCRIPT_FILENAME": root.rstrip("/") + name,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fcgimgr.demo.front",
        description="An HTTP front for a FastCGI pool, for development only: it listens on this machine's loopback.",
    )
    parser.add_argument("address", metavar="ADDRESS", help="127.0.0.1:9001, /run/app.sock or unix:/run/app.sock")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s; 0 takes any that is free")
    parser.add_argument("--document-root", metavar="DIRECTORY", help="where scripts are, for PHP and the like")
    options = parser.parse_args()
    try:
        front = serve(options.address, options.host, options.port, document_root=options.document_root)
    except (ValueError, OverflowError, FastCGIError) as error:
        parser.error(str(error))
    except OSError as error:
        print(f"front: {options.host}:{options.port}: {error.strerror}; give another --port", file=sys.stderr)
        return 1
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{host}:{front.server_port}/ → {options.address}   (for development only)", flush=True)
    with front, contextlib.suppress(KeyboardInterrupt):
        front.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
