"""The native server behind an nginx that keeps its connections (`fastcgi_keep_conn on`), as docs/wsgi.md shows it."""

import contextlib
import http.client
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fcgimgr.control.messages import NamesParams
from tests.integration.ports import free_address
from tests.integration.running import RunningManager
from tests.integration.servers import Nginx

CONF = """\
client_max_body_size 0;
upstream shop {{
    server {address};
    keepalive 64;
}}
server {{
    listen 127.0.0.1:{port};
    location / {{
        include fcgimgr/application_params;
        fastcgi_pass shop;
        fastcgi_keep_conn on;
    }}
    location = /count {{
        include fcgimgr/application_params;
        fastcgi_pass shop;
        fastcgi_keep_conn on;
        fastcgi_request_buffering off;
    }}
}}
"""

POOL = """\
[manager]
control = "{directory}/fcgimgr.sock"

[pool.shop]
socket = "{address}"
wsgi = "site_app:application"
server = "native"
numprocs = 3
directory = "{directory}"
"""

APP = """
import native_app, worker_app

def application(environ, start_response):
    name = "answer_" + environ["PATH_INFO"].strip("/")
    found = getattr(worker_app, name, None) or getattr(native_app, name)
    return found(environ, start_response)
"""


@pytest.fixture(params=["tcp", "unix"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[RunningManager, Nginx]]:
    address = free_address(request.param, tmp_path)
    for app in ("worker_app.py", "native_app.py"):
        shutil.copy(Path(__file__).with_name(app), tmp_path)
    (tmp_path / "site_app.py").write_text(APP)
    config = tmp_path / "pool.toml"
    config.write_text(POOL.format(directory=tmp_path, address=address))
    front = Nginx.below(tmp_path, CONF, address=address)
    with RunningManager(config, tmp_path / "fcgimgr.sock") as manager, front as nginx:
        yield manager, nginx


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> bytes:
    connection.request(method, path, body)  # type: ignore[arg-type]
    response = connection.getresponse()
    content = response.read()
    assert response.status in (200, 204), (response.status, content)
    return content


def test_requests_of_every_kind_follow_each_other_on_kept_connections(site: tuple[RunningManager, Nginx]) -> None:
    manager, nginx = site
    pids = {str(pid).encode() for pid in manager.pids("shop")}
    large = os.urandom(300_000)

    def visit(number: int) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=60)) as connection:
            for turn in range(10):
                assert ask(connection, "GET", "/pid") in pids
                assert ask(connection, "POST", "/echo", b"%d" % (number * turn)) == b"%d" % (number * turn)
                assert ask(connection, "HEAD", "/pid") == b""
                assert ask(connection, "GET", "/empty") == b""
                assert ask(connection, "POST", "/echo", large) == large
                assert ask(connection, "POST", "/ignore", large) == b"not read"
                assert ask(connection, "GET", "/write") == b"one two three four"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(8)))


def test_a_chunked_upload_reaches_the_application_while_it_comes(site: tuple[RunningManager, Nginx]) -> None:
    _, nginx = site
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=60)) as connection:
        pieces = (bytes(100_000) for _ in range(500))
        length, announced, taken = ask(connection, "POST", "/count", pieces).split()
    assert (length, announced) == (b"50000000", b"True")  # nginx says CONTENT_LENGTH = "" for what it does not know
    assert int(taken) < 4_000_000


def test_a_reload_under_load_loses_nothing_not_even_a_post(site: tuple[RunningManager, Nginx]) -> None:
    manager, nginx = site
    large = os.urandom(300_000)
    done = threading.Event()

    def load() -> int:
        asked = 0
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=60)) as connection:
            while not done.is_set():
                ask(connection, "GET", "/pid")
                # nginx tries nowhere else for one that changes something.
                assert ask(connection, "POST", "/echo", b"%d" % asked) == b"%d" % asked
                assert ask(connection, "POST", "/echo", large) == large
                asked += 3
        return asked

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load) for _ in range(4)]
        try:
            for _ in range(3):
                assert manager.command("reload", NamesParams(names=("shop",))).ok
        finally:
            done.set()
        assert sum(each.result(60) for each in loads) > 0
