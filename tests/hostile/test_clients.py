"""What a client, or whoever reaches the socket of a pool, cannot make of it, with either of our servers."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fcgimgr.fastcgi.client import Request, fetch
from fcgimgr.fastcgi.transport import connect
from tests.integration import impatient_worker
from tests.integration.scenes import managing, scene

APPLICATION = """
import json
SPLIT = {
    "/value": ("200 OK", [("X-A", "a\\r\\nSet-Cookie: evil=1")]),
    "/name": ("200 OK", [("X-A: b\\nSet-Cookie", "v")]),
    "/status": ("200 OK\\r\\nSet-Cookie: evil=1", []),
}
def application(environ, start_response):
    if environ["PATH_INFO"] in SPLIT:
        start_response(*SPLIT[environ["PATH_INFO"]])
        return [b"split"]
    body = environ["wsgi.input"].read() if environ["PATH_INFO"] == "/read" else b""
    said = {name: str(value) for name, value in environ.items() if name.startswith("wsgi.")}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(said).encode()]
"""
KINDS = ("flup", "native")


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pool of each server, at its name: one request at a time, and 0.3 s for what may take 30."""
    directory = tmp_path_factory.mktemp("pools")
    (directory / "hostile_app.py").write_text(APPLICATION)
    shutil.copy(impatient_worker.__file__, directory)
    tables = "".join(
        f"""
        [pool.{kind}]
        socket = "{directory}/{kind}"
        command = "{sys.executable} {directory}/impatient_worker.py {kind} 1 hostile_app"
        directory = "{directory}"
        socket_blocking = false
        ready = "notify"
        """
        for kind in KINDS
    )
    with managing(scene(directory, tables)):
        yield directory


def params(path: str, **more: str) -> dict[str, str]:
    return {"REQUEST_METHOD": "POST", "PATH_INFO": path, "SCRIPT_NAME": "", "SERVER_PROTOCOL": "HTTP/1.1", **more}


def wsgi(address: str, **more: str) -> Any:
    return json.loads(fetch(address, params("/", **more)).body)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/value", "/name", "/status"])
def test_no_response_is_split(path: str, kind: str, pools: Path) -> None:
    response = fetch(f"unix:{pools}/{kind}", params(path))
    assert response.status == 500
    assert response.header("Set-Cookie") is None
    assert b"split" not in response.body


@pytest.mark.parametrize("kind", KINDS)
def test_no_parameter_says_what_the_server_says_of_itself(kind: str, pools: Path) -> None:
    address = f"unix:{pools}/{kind}"
    names = ("url_scheme", "version", "multithread", "multiprocess", "run_once", "input_terminated", "file_wrapper")
    forged = {f"wsgi.{name}": "forged" for name in (*names, "input", "errors")}
    said = wsgi(address, **forged)
    assert "forged" not in said.values()
    plain = wsgi(address)
    assert {f"wsgi.{name}": plain[f"wsgi.{name}"] for name in names}.items() <= said.items()


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_never_comes_holds_nobody_for_ever(kind: str, pools: Path) -> None:
    """One request at a time is served: the next is answered when the first is given up."""
    address = f"unix:{pools}/{kind}"
    with ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(connect(address, timeout=10))
            request = Request(params("/read", CONTENT_LENGTH="100000"), b"ten bytes.")
            connection.sendall(request.to_send().removesuffix(b"\x01\x05\x00\x01\x00\x00\x00\x00"))
        assert fetch(address, params("/"), timeout=20).status == 200
