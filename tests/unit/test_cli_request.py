"""`request`: what is sent, and what is shown of the answer."""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fcgimgr.cli.main import main
from fcgimgr.fastcgi.client import Response
from fcgimgr.fastcgi.records import FastCGIError

ANSWER = Response(200, (("Content-Type", "text/plain"),), b"hello\xff\n", b"warned\n", 0, 0)


class Server:
    """In place of `fetch`: remembers the request and gives `answer`."""

    def __init__(self) -> None:
        self.answer: Response | Exception = ANSWER
        self.sent: dict[str, Any] = {}

    def __call__(self, address: str, params: Mapping[str, str], stdin: bytes, timeout: float) -> Response:
        self.sent = {"address": address, "params": params, "stdin": stdin, "timeout": timeout}
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr("fcgimgr.fastcgi.client.fetch", server)
    return server


def test_the_body_is_shown_byte_for_byte(server: Server, capfdbinary: pytest.CaptureFixture[bytes]):
    assert main(["request", "127.0.0.1:9001", "/srv/app.php?x=1&y=2"]) == 0
    assert capfdbinary.readouterr() == (b"hello\xff\n", b"warned\n")
    params = server.sent["params"]
    assert params["SCRIPT_FILENAME"] == params["SCRIPT_NAME"] == "/srv/app.php"
    assert (params["QUERY_STRING"], params["REQUEST_METHOD"]) == ("x=1&y=2", "GET")
    assert (server.sent["address"], server.sent["stdin"], server.sent["timeout"]) == ("127.0.0.1:9001", b"", 30.0)


def test_status_and_headers_on_demand(server: Server, capfdbinary: pytest.CaptureFixture[bytes]):
    assert main(["request", "-i", "/run/app.sock", "/"]) == 0
    assert capfdbinary.readouterr().out == b"Status: 200\nContent-Type: text/plain\n\nhello\xff\n"


def test_a_body_is_posted(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "body").write_bytes(b"from a file")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from stdin")))
    for data, sent in (("a=1", b"a=1"), (f"@{tmp_path}/body", b"from a file"), ("-", b"from stdin")):
        assert main(["request", "/run/app.sock", "/x", "-d", data]) == 0
        assert server.sent["stdin"] == sent
        assert server.sent["params"]["REQUEST_METHOD"] == "POST"
        assert server.sent["params"]["CONTENT_LENGTH"] == str(len(sent))


def test_a_parameter_and_the_method_can_be_given(server: Server):
    assert main(["request", "/s", "/x", "-X", "PUT", "-p", "SCRIPT_NAME=", "-p", "HTTP_HOST=a=b"]) == 0
    params = server.sent["params"]
    assert (params["REQUEST_METHOD"], params["SCRIPT_NAME"], params["HTTP_HOST"]) == ("PUT", "", "a=b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["-p", "NAME"], "NAME=VALUE"), (["-d", "@/nowhere"], "No such file"), (["--timeout", "0"], "timeout")],
)
def test_a_wrong_command_line_is_2(
    server: Server, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
):
    assert main(["request", "/s", "/x", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert server.sent == {}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (FastCGIError("/s: nobody listens there"), "nobody listens"),
        (Response(None, (), b"", b"", 0, 2), "overloaded"),
        (Response(None, (), b"", b"", 255, 0), "without any output (exit status 255)"),
    ],
)
def test_no_answer_is_1_and_says_why(server: Server, capsys: pytest.CaptureFixture[str], answer: Any, words: str):
    server.answer = answer
    assert main(["request", "/s", "/x"]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mount", "path", "expected"),
    [
        ("", "/cart?id=7", "/cart"),
        ("", "/a%20b/caf%C3%A9", "/a b/caf\u00e9"),
        ("/shop", "/shop/cart", "/cart"),
        ("/shop", "/shop", ""),
        ("/shop", "/shopping", None),
    ],
)
def test_the_path_below_a_mount_that_is_given_is_sent(
    server: Server, mount: str, path: str, expected: str | None
) -> None:
    assert main(["request", "/s", path, "-p", f"SCRIPT_NAME={mount}"]) == 0
    params = server.sent["params"]
    assert (params["SCRIPT_NAME"], params.get("PATH_INFO")) == (mount, expected)
    assert main(["request", "/s", path, "-p", f"SCRIPT_NAME={mount}", "-p", "PATH_INFO=/own"]) == 0
    assert server.sent["params"]["PATH_INFO"] == "/own"
    assert main(["request", "/s", path]) == 0
    assert "PATH_INFO" not in server.sent["params"]


def test_the_path_is_said_decoded_as_nginx_does_it(server: Server) -> None:
    assert main(["request", "/s", "/a%20b/caf%C3%A9%2F%FF?x=%20"]) == 0
    params = server.sent["params"]
    assert params["SCRIPT_NAME"] == params["DOCUMENT_URI"] == "/a b/caf\xe9/\udcff"
    assert params["REQUEST_URI"] == "/a%20b/caf%C3%A9%2F%FF?x=%20"
    assert params["QUERY_STRING"] == "x=%20"
