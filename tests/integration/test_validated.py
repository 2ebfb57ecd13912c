"""An application under wsgiref.validate, on each server behind real web servers: what they send makes a right environ.

nginx with the shipped files and with its own fastcgi_params, which name no PATH_INFO; HAProxy, which takes a body in
answer to HEAD for a fault.
"""

import contextlib
import http.client
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.benches import ENGINES, Bench, tcp_bench
from tests.integration.ports import free_port
from tests.integration.servers import Nginx, need, which
from tests.waiting import eventually

NGINX = """\
client_max_body_size 0;
server {{
    listen 127.0.0.1:{port};
    server_name localhost;
    location / {{
        include {params};
        fastcgi_pass {address};
    }}
    location /streamed {{
        include {params};
        fastcgi_pass {address};
        fastcgi_request_buffering off;
    }}
    location /old/ {{
        rewrite ^ /new last;
    }}
}}
"""

HAPROXY = """\
global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend web
    bind 127.0.0.1:{port}
    default_backend app
backend app
    use-fcgi-app app
    server app {address} proto fcgi
fcgi-app app
    docroot /
    path-info ^()(/.*)$
    option keep-conn
"""

APP = """\
from wsgiref.validate import validator

@validator
def application(environ, start_response):
    source = environ["wsgi.input"]
    body = source.read(int(environ["CONTENT_LENGTH"])) if environ.get("CONTENT_LENGTH") else b""
    if environ.get("HTTP_TRANSFER_ENCODING") == "chunked" and environ["wsgi.input_terminated"]:
        body = b"".join(iter(lambda: source.read(65536), b""))
    answer = ascii((environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"], len(body))).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
"""

STOCK = "/etc/nginx/fastcgi_params"


@pytest.fixture(params=ENGINES)
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    with contextlib.closing(tcp_bench(tmp_path)) as made:
        made.engine = ENGINES[request.param]
        (tmp_path / "app.py").write_text(APP)
        made.start("app:application")
        yield made


@pytest.fixture(params=["shipped", "stock"])
def nginx(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Nginx]:
    params = "fcgimgr/application_params" if request.param == "shipped" else STOCK
    with Nginx.below(bench.directory, NGINX, params=params, address=bench.address) as started:
        yield started


@contextlib.contextmanager
def haproxy(conf: Path, port: int) -> Iterator[None]:
    need("haproxy")
    with conf.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen([which("haproxy") or "haproxy", "-db", "-f", str(conf)], stdout=log, stderr=log)
    try:
        eventually(lambda: socket.create_connection(("127.0.0.1", port), 1.0).close() is None)
        yield
    finally:
        process.terminate()
        process.wait(20)


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body)  # type: ignore[arg-type]
        response = connection.getresponse()
        return response.status, response.read().decode()


ASKED = {
    "/": ("", "/", ""),
    "/plain?a=b%20c": ("", "/plain", "a=b%20c"),
    "/a%20b": ("", "/a b", ""),
    "/caf%C3%A9": ("", "/caf\xc3\xa9", ""),
    "/a%2Fb": ("", "/a/b", ""),
    "/x//y": ("", "/x/y", ""),
    "/old/long/uri?q": ("", "/new", "q"),
}


def test_every_request_through_nginx_is_valid(bench: Bench, nginx: Nginx) -> None:
    for path, expected in ASKED.items():
        assert ask(nginx.port, "GET", path) == (200, ascii((*expected, 0)))
        assert ask(nginx.port, "HEAD", path) == (200, "")
        for length in (0, 3, 100_000):
            assert ask(nginx.port, "POST", path, b"x" * length) == (200, ascii((*expected, length)))
    chunked = ask(nginx.port, "POST", "/streamed", iter([b"x" * 100_000] * 30))
    assert chunked == (200, ascii(("", "/streamed", "", 3_000_000)))
    assert bench.stderr() == ""


def test_every_request_through_haproxy_is_valid(bench: Bench) -> None:
    port = free_port()
    conf = bench.directory / "haproxy.cfg"
    conf.write_text(HAPROXY.format(port=port, address=bench.address))
    with haproxy(conf, port):
        for _ in range(3):
            assert ask(port, "GET", "/a%20b?c") == (200, ascii(("", "/a b", "c", 0)))
            assert ask(port, "HEAD", "/a%20b?c") == (200, "")
            assert ask(port, "POST", "/", b"abc") == (200, ascii(("", "/", "", 3)))
    assert bench.stderr() == ""
