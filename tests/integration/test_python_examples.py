"""The Python examples, each behind the real nginx with the nginx file that stands beside it."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.ports import free_address
from tests.integration.running import RunningManager, copy_example, example_manager, running_example
from tests.integration.servers import CHECKOUT, Nginx, run
from tests.integration.test_nginx_files import demo_with_free_ports
from tests.waiting import eventually


@pytest.fixture(params=["flup", "native"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def site(example: str, address: int, port: int, directory: Path, server: str) -> Iterator[tuple[RunningManager, Nginx]]:
    """The example of that FastCGI port, and nginx with demo.conf, which includes its site: asked on that HTTP port."""
    conf, port_for = demo_with_free_ports(directory)
    config = copy_example(example, directory, f"127.0.0.1:{port_for[address]}")
    text = re.sub(r"^server = .*\n", "", config.read_text(), flags=re.MULTILINE)
    config.write_text(text.replace("\nwsgi =", f'\nserver = "{server}"\nwsgi ='))
    with example_manager(config) as manager, Nginx(directory, conf, port_for[port]) as nginx:
        yield manager, nginx


def test_flask_answers_serves_its_files_and_takes_an_upload(tmp_path: Path, server: str) -> None:
    pytest.importorskip("flask")
    with site("flask", 9008, 8083, tmp_path, server) as (manager, nginx):
        answer = nginx.get("/?a=%20b")
        assert answer.says("Hello") == "from Flask"
        assert answer.says("asked") == "GET /?a=%20b"
        assert answer.says("from") == f"127.0.0.1 by http, to http://127.0.0.1:{nginx.port}/upload"
        assert int(answer.says("pid")) in manager.pids("flask")
        assert "font-family" in nginx.get("/static/style.css").text
        assert nginx.get("/nothing").status == 404
        content = os.urandom(3_000_000)
        assert json.loads(upload(nginx.port, content)) == {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def test_flask_below_a_path_makes_its_links_right(tmp_path: Path) -> None:
    """With the location that docs/deploying.md gives."""
    pytest.importorskip("flask")
    guide = (CHECKOUT / "docs" / "deploying.md").read_text()
    location = guide[guide.index("location /shop/ {") :].split("```")[0]
    address = free_address("tcp", tmp_path)
    location = location.replace("fastcgi_pass shop;", f"fastcgi_pass {address};")
    with running_example("flask", tmp_path, address), Nginx.before(address, tmp_path, server=location) as nginx:
        assert nginx.get("/shop/").says("from").endswith(f"to http://127.0.0.1:{nginx.port}/shop/upload")


def upload(port: int, content: bytes) -> bytes:
    """What is answered to a form with one file in it."""
    head = '--edge\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/upload", head.encode() + content + b"\r\n--edge--\r\n", headers)
        return connection.getresponse().read()


def test_django_migrates_collects_its_files_and_answers(tmp_path: Path, server: str) -> None:
    pytest.importorskip("django")
    project = copy_example("django", tmp_path).parent
    run([sys.executable, "manage.py", "migrate"], project)
    run([sys.executable, "manage.py", "collectstatic", "--noinput"], project)
    with site("django", 9009, 8084, tmp_path, server) as (manager, nginx):
        assert nginx.get("/").says("orders") == "0"
        answer = nginx.post("/?a=1", "a chair")
        assert (answer.says("asked"), answer.says("orders")) == ("POST /?a=1", "1")
        assert int(answer.says("pid")) in manager.pids("django")
        assert "font-family" in nginx.get(answer.says("style")).text
        assert nginx.get("/broken").status == 500
        eventually(lambda: "LookupError: no such order" in manager.output())
        assert manager.restart("django").ok
        assert nginx.get("/").says("orders") == "1"


def test_events_arrive_as_they_are_sent_and_end_with_the_browser(tmp_path: Path, server: str) -> None:
    with site("streaming", 9010, 8085, tmp_path, server) as (manager, nginx):
        connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/events")
            response = connection.getresponse()
            assert response.getheader("Content-Type") == "text/event-stream"
            lines = [response.readline() for _ in range(6)]
            assert [line for line in lines if line.startswith(b"id")] == [b"id: 0\n", b"id: 1\n"]
        eventually(lambda: "events the browser was gone" in manager.output())


def test_a_file_of_any_length_is_streamed(tmp_path: Path, server: str) -> None:
    with site("streaming", 9010, 8085, tmp_path, server) as (_, nginx):
        answer = nginx.get("/numbers.csv?rows=200000")
        assert answer.status == 200
        rows = answer.text.splitlines()
        assert (rows[0], rows[-1], len(rows)) == ("number,square", "199999,39999600001", 200_001)
