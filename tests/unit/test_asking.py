"""What a ping asks of an HTTP server, and what counts as a good answer: hostile ones are given no more than bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.config.address import TcpAddress
from fcgimgr.config.settings import PoolSettings
from fcgimgr.fastcgi.records import ProtocolError
from fcgimgr.manager.looking.asking import LONGEST_ANSWER, LONGEST_HEAD, FastCGIQuestion, HttpQuestion, question

OK = b"HTTP/1.1 200 OK\r\n"


def settings(ready: str) -> PoolSettings:
    return PoolSettings(name="app", sockets=(TcpAddress("127.0.0.1", 1),), command=("x",), ready=ready)


def answered(*pieces: bytes, path: str = "/healthz") -> HttpQuestion:
    asked = HttpQuestion(path)
    for piece in pieces:
        asked.receive(piece)
    return asked


def test_the_pool_says_what_is_asked():
    assert isinstance(question(settings("ping")), FastCGIQuestion)
    asked = question(settings("http:/healthz?deep=1"))
    assert isinstance(asked, HttpQuestion)
    assert asked.opening().startswith(b"GET /healthz?deep=1 HTTP/1.1\r\nHost: localhost\r\n")


def test_the_request_is_whole_only_with_its_closing():
    asked = HttpQuestion("/")
    assert b"\r\n\r\n" not in asked.opening()
    assert (asked.opening() + asked.closing()).endswith(b"\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("status", [b"200 OK", b"204 No Content", b"301 Moved", b"399", b"200 ", b"200 \xc3\xa4"])
def test_a_status_from_200_to_399_is_good(status: bytes):
    asked = answered(b"HTTP/1.0 " + status + b"\r\n\r\n")
    assert asked.decided
    asked.judge()


@pytest.mark.parametrize("status", [b"400 Bad Request", b"404 Not Found", b"503 Busy", b"500", b"101 Switching"])
def test_another_status_is_not(status: bytes):
    asked = answered(b"HTTP/1.1 " + status + b"\r\n\r\n")
    with pytest.raises(ProtocolError, match=f"GET /healthz was answered with status {status[:3].decode()}"):
        asked.judge()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x01\x06\x00\x01FastCGI",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 99 OK\r\n\r\n",
        b"HTTP/1.1 700 OK\r\n\r\n",
        b"HTTP/1.1 -20 OK\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"\r\n\r\n",
        b"<html>\n\n",
    ],
)
def test_what_is_no_http_is_told_as_such(answer: bytes):
    with pytest.raises(ProtocolError, match="answered with no HTTP"):
        answered(answer)


def test_it_is_no_http_with_the_first_bytes():
    with pytest.raises(ProtocolError, match="no HTTP"):
        answered(b"S")


def test_an_end_before_the_answer_is_told():
    with pytest.raises(ProtocolError, match="closed the connection before it had answered GET /healthz"):
        answered(b"HTTP/1.1 200 OK\r\nServer: x\r\n", b"")


def test_an_interim_answer_is_not_the_answer():
    asked = answered(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
    assert not asked.decided
    asked.receive(b"HTTP/1.1 500 No\r\n\r\n")
    with pytest.raises(ProtocolError, match="status 500"):
        asked.judge()


def test_a_head_without_end_has_one():
    line = b"X: " + b"x" * 995 + b"\r\n"
    with pytest.raises(ProtocolError, match="longer than"):
        answered(OK, *[line] * (LONGEST_HEAD // len(line) + 1))


def test_interim_answers_without_end_have_one():
    pieces = [b"HTTP/1.1 100 Continue\r\n\r\nHT", b"TP/1.1 100 Continue\r\n\r\n"]
    with pytest.raises(ProtocolError, match="longer than"):
        answered(*pieces * LONGEST_HEAD)


@pytest.mark.parametrize(
    ("head", "pieces"),
    [
        (b"Content-Length: 5\r\n", [b"he", b"llo"]),
        (b"content-length:0\r\n", []),
        (b"Transfer-Encoding: gzip, chunked\r\nContent-Length: 3\r\n", [b"3\r\nabc\r\n0\r", b"\n\r\n"]),
        (b"", [b"until the end", b""]),
        (b"Content-Length: 99999999999999999999999\r\n", [b"x" * (LONGEST_ANSWER + 1)]),
        (b"", [b"x" * LONGEST_ANSWER, b"x"]),
    ],
)
def test_the_end_of_the_body_is_seen_where_it_can_be(head: bytes, pieces: list[bytes]):
    asked = answered(OK + head + b"\r\n")
    for piece in pieces:
        assert not asked.complete
        asked.receive(piece)
    assert asked.complete
    asked.judge()


def test_no_body_follows_a_204():
    assert answered(b"HTTP/1.1 204 No Content\r\n\r\n").complete


@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([OK, b"\r\n", b"HTTP/1.1 404 x\r\n\r\n", b"HTTP/1.1 100 \n\n"]))
)
def test_whatever_comes_there_is_a_verdict_or_a_wait(pieces: list[bytes]):
    asked = HttpQuestion("/")
    try:
        for piece in pieces:
            if asked.complete:
                break
            asked.receive(piece)
        if asked.decided:
            asked.judge()
    except ProtocolError:
        pass


@given(st.data())
def test_pieces_make_no_difference(data: st.DataObject):
    whole = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 302 Found\r\nContent-Length: 4\r\n\r\nbody"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1))))
    asked = answered(*(whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)))
    assert asked.complete
    asked.judge()
