"""The demo's application behind a real worker, and the development front before it and before servers that fail."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fcgimgr.demo.front import MAX_REQUEST_BODY, serve
from fcgimgr.fastcgi.records import FastCGIError, RecordReader, RecordType, encode_record, encode_stream, end_request
from fcgimgr.worker import MAIN
from tests.integration.ports import free_port
from tests.integration.running import MARK, end_strays, strays
from tests.waiting import eventually


@contextlib.contextmanager
def front(address: str, document_root: str | None = None) -> Iterator[int]:
    """A running front; its port."""
    server = serve(address, "127.0.0.1", 0, document_root=document_root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def worker(directory: Path, application: str) -> Iterator[str]:
    """A real worker; its address. Requests wait in the listener's queue until it is up."""
    with socket.socket(socket.AF_UNIX) as listener, (directory / "stderr").open("wb") as stderr:
        listener.bind(str(directory / "pool.sock"))
        listener.listen(32)
        running = subprocess.Popen(
            [sys.executable, MAIN, "--threads", "4", application],
            stdin=listener.fileno(),
            stderr=stderr,
            cwd=directory,
            env={"FCGIMGR_PROCESS": "demo:demo_00", "FCGIMGR_POOL": "demo", "PATH": os.environ["PATH"]},
        )
        try:
            yield f"unix:{directory}/pool.sock"
        finally:
            running.terminate()
            assert running.wait(20) == 0


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()
        self.text = self.body.decode("utf-8", "replace")
        self.closing = response.will_close


def ask(port: int, path: str = "/", method: str = "GET", body: object = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=given)  # type: ignore[arg-type]
        return Answer(connection.getresponse())


# --- the application


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with worker(tmp_path_factory.mktemp("demo"), "fcgimgr.demo.app:app") as address, front(address) as port:
        yield port


def test_curl_gets_plain_text_that_names_the_process_and_counts(demo: int) -> None:
    first, second = ask(demo), ask(demo)
    assert first.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert first.text.startswith("demo:demo_00\n")

    def served(answer: Answer) -> int:
        return int(answer.text.split("requests")[1].split()[0])

    assert served(second) == served(first) + 1


def test_a_browser_gets_a_page(demo: int) -> None:
    answer = ask(demo, Accept="text/html,*/*;q=0.8")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.text.startswith("<!DOCTYPE html>")
    assert "<th>pid<td>" in answer.text


def test_all_that_comes_from_outside_is_escaped(demo: int) -> None:
    evil = "<script>alert(1)</script>\"'&"
    page = ask(demo, "/environ?a=%3Cb%3E&<i>", Accept="text/html", X_Evil=evil).text
    assert "<script" not in page
    assert "<i>" not in page
    assert "<th>HTTP_X_EVIL<td>&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;\n" in page
    assert "<b>" not in ask(demo, "/<b>", Accept="text/html").text
    assert "\x1b" not in ask(demo, "/%1b[2J%0aX").text
    assert "Grüße" in ask(demo, "/Gr%C3%BC%C3%9Fe").text


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/environ", "GET", 200),
        ("/nowhere", "GET", 404),
        ("/", "POST", 405),
        ("/", "HEAD", 200),
        ("/?sleep=0.01", "GET", 200),
        ("/?sleep=nan", "GET", 200),
        ("/?sleep=x", "GET", 200),
        ("/?sleep=-1", "GET", 200),
    ],
)
def test_every_path_and_method_has_its_answer(demo: int, path: str, method: str, status: int) -> None:
    answer = ask(demo, path, method)
    assert answer.status == status
    assert (answer.body == b"") == (method == "HEAD")


# --- the front


ECHO = """
import json
def app(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if environ["PATH_INFO"] == "/echo":
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return iter([body[:100_000], body[100_000:]])
    start_response("200 OK", [("Content-Type", "application/json"), ("X-A", "1"), ("X-A", "2"),
                              ("Connection", "X-Secret"), ("X-Secret", "s"), ("Keep-Alive", "timeout=1")])
    return [json.dumps({k: v for k, v in environ.items() if isinstance(v, str)}).encode()]
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    directory = tmp_path_factory.mktemp("echo")
    (directory / "echo.py").write_text(ECHO)
    with worker(directory, "echo:app") as address, front(address) as port:
        yield port


def test_a_request_becomes_what_nginx_would_send(echo: int) -> None:
    answer = ask(echo, "/a%20b/%C3%A9?x=%20y", Host="shop.localhost:8080", X_One="1", Proxy="evil", Connection="X-Two",
                 X_Two="2", Content_Type="text/x")  # fmt: skip
    params = json.loads(answer.body)
    assert params["REQUEST_URI"] == "/a%20b/%C3%A9?x=%20y"
    assert params["PATH_INFO"] == "/a b/é".encode().decode("latin-1")
    assert (params["SCRIPT_NAME"], params["QUERY_STRING"], params["REQUEST_METHOD"]) == ("", "x=%20y", "GET")
    assert (params["SERVER_NAME"], params["SERVER_PORT"]) == ("shop.localhost", str(echo))
    assert params["REMOTE_ADDR"] == "127.0.0.1"
    assert params["CONTENT_TYPE"] == "text/x"
    assert params["HTTP_X_ONE"] == "1"
    assert not {"HTTP_PROXY", "HTTP_X_TWO", "HTTP_CONNECTION", "HTTP_CONTENT_TYPE"} & params.keys()


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.:80", "a.b.localhost", "127.0.0.1:80", "127.1.2.3", "[::1]:80"]
)
def test_a_name_of_this_machine_is_served(echo: int, host: str) -> None:
    assert ask(echo, Host=host).status == 200


def test_headers_come_back_without_those_of_the_hop(echo: int) -> None:
    headers = ask(echo).headers
    assert headers.get_all("X-A") == ["1", "2"]
    assert headers["X-Secret"] is None
    assert headers["Keep-Alive"] is None
    assert len(headers.get_all("Date") or []) == 1


def test_fields_that_could_be_taken_for_others_are_dropped_and_repeated_ones_joined(echo: int) -> None:
    with socket.create_connection(("127.0.0.1", echo), 20) as connection:
        connection.sendall(
            b"GET / HTTP/1.0\r\nX_Real_IP: 1\r\nCookie: a=1\r\nCookie: b=2\r\nX-L: 1\r\nX-L: 2\r\nX-F: a\r\n b\r\n\r\n"
        )
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    params = json.loads(body)
    assert b"Connection: close" in head
    assert "HTTP_X_REAL_IP" not in params
    assert (params["HTTP_COOKIE"], params["HTTP_X_L"], params["HTTP_X_F"]) == ("a=1; b=2", "1, 2", "a b")


def test_a_body_of_megabytes_goes_through_whole(echo: int) -> None:
    body = os.urandom(2_500_000)
    answer = ask(echo, "/echo", "POST", body)
    assert answer.body == body
    assert answer.headers["Transfer-Encoding"] == "chunked"


def test_a_connection_is_kept_over_requests(echo: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", echo, timeout=20)
    with contextlib.closing(connection):
        for body in (b"one", b"two"):
            connection.request("POST", "/echo", body=body)
            answer = Answer(connection.getresponse())
            assert (answer.body, answer.closing) == (body, False)


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (MAX_REQUEST_BODY + 1), 413),
        (b"GET http://elsewhere/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: rebound.example\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: localhost.example:8000\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: rebound.example\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: 192.168.0.1\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 421),
    ],
)
def test_a_request_that_cannot_be_passed_on_is_refused_in_words(echo: int, request_text: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", echo), 20) as connection:
        connection.sendall(request_text)
        assert connection.makefile("rb").read().split()[1] == str(status).encode()


@contextlib.contextmanager
def pool_that(path: Path, says: Callable[[], bytes]) -> Iterator[str]:
    """A FastCGI server that reads one whole request and then says that."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            reader = RecordReader()
            with connection:
                while not any(r.type == RecordType.STDIN and not r.content for r in reader.feed(connection.recv(9999))):
                    pass
                with contextlib.suppress(BrokenPipeError):  # the front may have given up by then
                    connection.sendall(says())

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"unix:{path}"
        thread.join()


def stdout(content: bytes) -> bytes:
    return encode_stream(RecordType.STDOUT, 1, content)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "closed the connection without a response"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "not FastCGI"),
        (end_request(1, 0, 2), "ended the request without a response (protocol status 2)"),
        (stdout(b"no header\n\n") + end_request(1), "a line that is no header"),
        (stdout(b"Status: 101 Switching\n\n") + end_request(1), "status 101"),
        (stdout(b"Content-Length: 1x\n\n") + end_request(1), "no valid Content-Length"),
    ],
)
def test_a_pool_that_fails_is_a_502_with_the_reason(tmp_path: Path, said: bytes, reason: str) -> None:
    with pool_that(tmp_path / "p", lambda: said) as address, front(address) as port:
        answer = ask(port)
    assert answer.status == 502
    assert reason in answer.text
    assert "p: " in answer.text


def test_nobody_behind_it_is_a_502_that_says_so(tmp_path: Path) -> None:
    with front(f"{tmp_path}/absent") as port:
        assert "the path does not exist" in ask(port).text
        assert ask(port, method="HEAD").body == b""


def test_a_browser_gets_the_reason_as_a_page_and_all_that_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    with front(f"{tmp_path}/<i>") as port:
        answer = ask(port, Accept="text/html,*/*;q=0.8")
    assert (answer.status, answer.headers["Content-Type"]) == (502, "text/html; charset=utf-8")
    assert "/&lt;i&gt;: no such socket" in answer.text
    assert "<i>" not in answer.text


def test_a_pool_that_is_about_to_come_is_waited_for_and_one_in_trouble_is_not(tmp_path: Path) -> None:
    server = serve(f"{tmp_path}/p", "127.0.0.1", 0)
    server.patience = 20.0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with server, ThreadPoolExecutor(1) as browser:
        try:
            answer = browser.submit(ask, server.server_port)
            with pool_that(tmp_path / "p", lambda: stdout(b"A: b\n\nok") + end_request(1)):
                assert answer.result(20).body == b"ok"
            (tmp_path / "p").unlink()
            server.trouble = ("It does not come up.", "", "SyntaxError")
            assert ask(server.server_port).text == "502 Bad Gateway\n\nIt does not come up.\n\nSyntaxError\n"
        finally:
            server.shutdown()
            thread.join()


def test_a_pool_that_is_too_slow_is_a_504(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcgimgr.demo.front.POOL_TIMEOUT", 0.1)
    release = threading.Event()
    with pool_that(tmp_path / "p", lambda: bytes(release.wait(20))) as address, front(address) as port:
        answer = ask(port)
        release.set()
    assert answer.status == 504
    assert "no answer within 0.1 s" in answer.text


@pytest.mark.parametrize(
    "said",
    [
        stdout(b"A: b\n\npart"),
        stdout(b"Content-Length: 9\n\npart"),
        stdout(b"Content-Length: 9\n\npart") + end_request(1),
    ],
)
def test_a_response_that_is_cut_off_does_not_look_whole(tmp_path: Path, said: bytes) -> None:
    with (
        pool_that(tmp_path / "p", lambda: said) as address,
        front(address) as port,
        pytest.raises(http.client.IncompleteRead),
    ):
        ask(port)


def test_what_goes_beyond_the_announced_length_is_not_passed_on(tmp_path: Path) -> None:
    said = stdout(b"Content-Length: 4\n\nbodyHTTP/1.1 200 OK") + end_request(1)
    with pool_that(tmp_path / "p", lambda: said) as address, front(address) as port:
        assert ask(port).body == b"body"


def test_what_the_pool_complains_of_is_shown_and_not_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = encode_record(RecordType.STDERR, 1, b"a complaint") + stdout(b"A: b\n\nok") + end_request(1)
    with pool_that(tmp_path / "p", lambda: said) as address, front(address) as port:
        assert ask(port).body == b"ok"
    assert "stderr: a complaint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "script"),
    [
        ("/a.php?x", "/srv/www/a.php"),
        ("/sub/", "/srv/www/sub/index.php"),
        ("/../../etc/passwd", "/srv/www/etc/passwd"),
        ("/%2e%2e/%2e%2e/etc/passwd", "/srv/www/etc/passwd"),
        ("//a.php", "/srv/www/a.php"),
    ],
)
def test_with_a_document_root_a_path_is_a_script_below_it(tmp_path: Path, path: str, script: str) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    with worker(tmp_path, "echo:app") as address, front(address, "/srv/www") as port:
        params = json.loads(ask(port, path).body)
    assert params["SCRIPT_FILENAME"] == script
    assert params["DOCUMENT_URI"] == script.removeprefix("/srv/www")
    # To a WSGI application a script that is also the DOCUMENT_URI is no mount, but the path that is asked for.
    assert (params["SCRIPT_NAME"], params["PATH_INFO"]) == ("", params["DOCUMENT_URI"])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.test"])
def test_it_listens_on_loopback_only(host: str) -> None:
    with pytest.raises(ValueError):
        serve("127.0.0.1:9001", host, 0)


def test_a_bad_address_is_refused_before_anything_listens() -> None:
    with pytest.raises(FastCGIError, match="not an address"):
        serve("nonsense", "127.0.0.1", 0)


def test_it_runs_from_the_command_line_and_says_that_it_is_for_development(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fcgimgr.demo.front", f"{tmp_path}/absent", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert "for development only" in line
        assert ask(int(line.split("/")[2].split(":")[1])).status == 502
        running.terminate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_demo_ends_with_its_terminal_and_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    fcgimgr = Path(sys.executable).with_name("fcgimgr")
    with subprocess.Popen(
        [fcgimgr, "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "PATH": os.defpath},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` ignores it
    ) as running:
        assert running.stdout is not None
        said = "".join(iter(running.stdout.readline, "Ctrl-C ends it.\n"))
        control = next(tmp_path.glob("*/control.sock"))
        assert f"{fcgimgr} -s {control} status" in said
        (reload,) = (line.removeprefix("  reload:") for line in said.splitlines() if line.startswith("  reload:"))
        done = subprocess.run(reload.split(), capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (0, "demo: reloaded: generation 2 serves\n")
        running.send_signal(number)
        assert running.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        [sys.executable, "-m", "fcgimgr", "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), MARK: mark},
    ) as running:
        assert running.stdout is not None
        assert "".join(iter(running.stdout.readline, "Ctrl-C ends it.\n"))
        running.kill()
    try:
        eventually(lambda: strays(mark) == [])
    finally:
        end_strays(mark)


def test_the_demo_answers_also_when_nobody_reads_on_what_it_prints() -> None:
    port = free_port()
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "fcgimgr", "demo", "--port", str(port)], stdout=writer, stderr=writer
    ) as running:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)  # as `| head` does, before the demo is up
        try:
            assert eventually(lambda: ask(port), within=30).status == 200
            assert ask(port).status == 200
        finally:
            running.terminate()
        assert running.wait(20) == 0
