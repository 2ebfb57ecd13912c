"""One request through a WSGI application: what a FastCGI client reads is what the application said, and ends once."""

import gzip
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcgimgr.fastcgi.records import FULL_CONTENT, Record, RecordReader, RecordType
from fcgimgr.fastcgi.response import Body, End, Head, ResponseReader
from fcgimgr.worker import exchange as exchange_module
from fcgimgr.worker.exchange import FILE_BLOCK, Exchange, FileWrapper

PLAIN = [("Content-Type", "text/plain")]

Application = Callable[..., Iterable[bytes]]


class Peer:
    """A connection that takes all, and what has come at its other end."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.lasts: list[bool] = []

    def send(self, message: bytes, last: bool, over: bool) -> None:
        self.sent.append(message)
        self.lasts.append(last)

    def send_parts(self, parts: list[bytes | memoryview], last: bool, over: bool) -> None:
        assert len(parts) < 1000, "more than IOV_MAX allows, with a little room"
        self.send(b"".join(parts), last, over)

    def check(self) -> None:
        pass

    def records(self) -> list[Record]:
        reader = RecordReader()
        found = reader.feed(b"".join(self.sent))
        assert reader.between_records
        return found

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; asserts that the answer ended as it should, and once."""
        ends = [record for record in self.records() if record.type == RecordType.STDOUT and not record.content]
        assert len(ends) == 1, "STDOUT has one end"
        assert [record.type for record in self.records()].count(RecordType.END_REQUEST) == 1
        assert self.records()[-1].type == RecordType.END_REQUEST
        assert self.lasts == [False] * (len(self.lasts) - 1) + [True], "the last piece, and no other, is said to be it"
        assert b"" not in self.sent
        reader = ResponseReader(self.records()[0].request_id, max_head=FULL_CONTENT)
        events = reader.receive(b"".join(self.sent))
        head = events[0]
        assert isinstance(head, Head)
        assert isinstance(events[-1], End)
        body = b"".join(event.content for event in events if isinstance(event, Body))
        return head.status, dict(head.headers), body


def run(application: Application, *, method: str = "GET", request_id: int = 1) -> tuple[Exchange, Peer]:
    peer = Peer()
    exchange = Exchange(peer, request_id, method == "HEAD")
    exchange.run(application, {"REQUEST_METHOD": method, "PATH_INFO": "/there"})
    return exchange, peer


# --- records


#: Limits: of what is copied, of a record as we write it, of what a record's header can say.
EDGES = [0, 16384, FULL_CONTENT, 65536, 2 * FULL_CONTENT]
near_an_edge = st.builds(lambda edge, by: max(0, edge + by), st.sampled_from(EDGES), st.integers(-130, 130))
#: Records that go with one sendmsg.
AT_ONCE = 64
sizes = st.one_of(st.integers(0, 70_000), near_an_edge)
#: The longest header value with which the head fits into one record.
LONGEST = FULL_CONTENT - len(b"Status: 200 OK\r\nX: \r\nContent-Length: 10000000\r\n\r\n")


@given(
    padding=st.one_of(st.integers(0, LONGEST), st.integers(LONGEST - 200, LONGEST), st.integers(48_000, 50_000)),
    blocks=st.lists(sizes, max_size=4),
    way=st.sampled_from(["list", "tuple", "iterator", "write", "write and iterator"]),
    declared=st.booleans(),
    request_id=st.sampled_from([1, 2, 65535]),
)
@example(padding=60_000, blocks=[5487], way="list", declared=False, request_id=1)
@example(padding=60_000, blocks=[6000], way="iterator", declared=True, request_id=1)
@example(padding=0, blocks=[3, 0], way="write", declared=True, request_id=1)
@example(padding=0, blocks=[AT_ONCE * FULL_CONTENT], way="list", declared=False, request_id=1)
@example(
    padding=0, blocks=[5, AT_ONCE * FULL_CONTENT, AT_ONCE * FULL_CONTENT + 1], way="write", declared=True, request_id=1
)
@settings(deadline=None)
def test_a_client_reads_the_head_and_exactly_the_body_however_it_is_sent(
    padding: int, blocks: list[int], way: str, declared: bool, request_id: int
) -> None:
    made = [bytes([65 + number]) * size for number, size in enumerate(blocks)]
    length = sum(blocks)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        headers = [("X", "h" * padding)]
        if declared:
            headers.append(("Content-Length", str(length)))
        write = start_response("200 OK", headers)
        written = {"write": len(made), "write and iterator": len(made) // 2}.get(way, 0)
        for block in made[:written]:
            write(block)
        if way == "tuple":
            return tuple(made)
        return made if way == "list" else iter(made[written:])

    exchange, peer = run(application, request_id=request_id)
    status, headers, body = peer.response()
    assert status == 200
    assert headers["X"] == "h" * padding
    assert body == b"".join(made)
    assert headers.get("Content-Length", str(length)) == str(length)
    assert {record.request_id for record in peer.records()} == {request_id}
    assert (exchange.sent, exchange.ended) == (length, True)


def test_an_answer_that_could_not_be_sent_has_not_ended() -> None:
    class Gone(Peer):
        def send(self, message: bytes, last: bool, over: bool) -> None:
            raise ConnectionResetError

    exchange = Exchange(Gone(), 1, False)

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [b"x"]

    with pytest.raises(ConnectionResetError):
        exchange.run(application, {})
    assert (exchange.head_sent, exchange.ended) == (True, False)


def test_a_head_longer_than_a_record_is_refused_and_an_error_page_can_follow() -> None:
    peer = Peer()
    exchange = Exchange(peer, 1, False)

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X", "h" * 70_000)])
        return [b"x"]

    with pytest.raises(ValueError, match="header is longer than 65528 bytes"):
        exchange.run(application, {})
    exchange.fail(b"sorry")
    assert peer.response()[::2] == (500, b"sorry")


def test_nothing_is_sent_behind_the_end_of_the_response() -> None:
    """write() may be called by close(), or by a thread that has kept it."""
    write: Callable[[bytes], None]

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        nonlocal write
        write = start_response("200 OK", PLAIN)
        return [b"all"]

    _, peer = run(application)
    with pytest.raises(ValueError, match="after the end of its response"):
        write(b"more")
    write(b"")
    assert peer.response()[2] == b"all"


# --- answers without a body


def test_a_status_without_a_body_that_is_taken_back_takes_no_body_from_its_successor() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("204 No Content", [])
        try:
            raise LookupError
        except LookupError:
            start_response("503 Service Unavailable", PLAIN, sys.exc_info())
        return [b"an explanation"]

    assert run(application)[1].response()[::2] == (503, b"an explanation")
    assert run(application, method="HEAD")[1].response()[::2] == (503, b"")


@pytest.mark.parametrize(("method", "page"), [("GET", b"sorry"), ("HEAD", b"")])
def test_the_error_page_of_an_answer_that_would_have_had_no_body_has_one(method: str, page: bytes) -> None:
    peer = Peer()
    exchange = Exchange(peer, 1, method == "HEAD")

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("304 Not Modified", [("ETag", "x")])
        raise LookupError

    with pytest.raises(LookupError):
        exchange.run(application, {})
    exchange.fail(b"sorry")
    status, headers, body = peer.response()
    assert (status, "ETag" in headers, body) == (500, False, page)


# --- files


def test_a_regular_file_is_read_in_large_blocks(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(FILE_BLOCK + 1))
    with (tmp_path / "large").open("rb") as file:
        assert [len(block) for block in FileWrapper(file, 10)] == [FILE_BLOCK, 1]


@pytest.mark.parametrize("buffering", [-1, 0])
def test_what_comes_by_a_pipe_is_passed_on_as_it_comes(buffering: int) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering) as source, open(writer, "wb", 0) as feeding:
        blocks = iter(FileWrapper(source, 100))
        for said in (b"one", b"two"):
            feeding.write(said)
            assert next(blocks) == said
        feeding.close()
        assert list(blocks) == []


def test_what_has_only_a_read_is_asked_for_as_much_as_the_application_says() -> None:
    class Only:
        left = 25
        asked: ClassVar[list[int]] = []

        def fileno(self) -> int:
            raise NotImplementedError

        def read(self, size: int) -> bytes:
            self.asked.append(size)
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

    assert [len(block) for block in FileWrapper(Only(), 10)] == [10, 10, 5]  # type: ignore[arg-type]
    assert set(Only.asked) == {10}


def test_what_is_no_file_of_the_system_is_read_whole() -> None:
    content = bytes(range(256)) * 1000
    assert b"".join(FileWrapper(io.BytesIO(content))) == content
    assert b"".join(FileWrapper(gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(content))))) == content  # type: ignore[arg-type]


class Promised(io.BufferedIOBase):
    """A file of which somebody has written `read`, and has inherited a `read1` that raises."""

    def __init__(self, content: bytes) -> None:
        self.content = io.BytesIO(content)
        self.asked: list[int | None] = []

    def read(self, size: int | None = -1) -> bytes:
        self.asked.append(size)
        return self.content.read(size)


def test_a_read1_that_is_none_is_no_reason_not_to_read() -> None:
    file = Promised(bytes(25))
    assert [len(block) for block in FileWrapper(file, 10)] == [10, 10, 5]  # type: ignore[arg-type]
    assert set(file.asked) == {10}


def test_a_wrapped_file_can_be_moved_as_far_as_the_file_can(tmp_path: Path) -> None:
    """Werkzeug asks the iterator of what it was given, and else reads all that comes before a range."""
    (tmp_path / "large").write_bytes(bytes(range(200)))
    with (tmp_path / "large").open("rb") as file:
        wrapped: Any = iter(FileWrapper(file))
        assert wrapped.seekable()
        wrapped.seek(190)
        assert wrapped.tell() == 190
        assert next(wrapped) == bytes(range(190, 200))
    unmoved = FileWrapper(Counted())  # type: ignore[arg-type]
    assert not any(hasattr(unmoved, name) for name in ("seekable", "seek", "tell"))
    assert hasattr(unmoved, "close")


# --- what is sent in place of a body


SENT_BY_ANOTHER = ["X-Accel-Redirect", "X-Sendfile", "X-SENDFILE2", "x-lighttpd-send-file", "X-Reproxy-URL"]


@pytest.mark.parametrize("name", SENT_BY_ANOTHER)
@pytest.mark.parametrize("blocks", [[], [b""], (), (b"", b"")], ids=repr)
@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_an_empty_body_has_the_length_of_the_file_that_is_sent_in_its_place(name: str, blocks: Any, kind: Any) -> None:
    headers = [("Content-Length", "7"), (name, "/protected/file")]
    status, sent, body = run(returning(kind(blocks), *headers))[1].response()
    assert (status, sent["Content-Length"], sent[name], body) == (200, "7", "/protected/file", b"")


@pytest.mark.parametrize("blocks", [[b"x"], iter([b"x"])], ids=["list", "iterator"])
def test_a_body_that_is_begun_has_its_own_length_all_the_same(blocks: Any) -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        run(returning(blocks, ("Content-Length", "7"), ("X-Sendfile", "/protected/file")))


@pytest.mark.parametrize("header", [("X-Sendfile-Type", "X-Sendfile"), ("X-Note", "X-Sendfile: /file")])
def test_what_only_speaks_of_such_a_header_is_none(header: tuple[str, str]) -> None:
    for blocks in ([], iter(())):
        with pytest.raises(ValueError, match="Content-Length"):
            run(returning(blocks, ("Content-Length", "7"), header))


# --- an application that has nothing to say


class Left(Peer):
    """Has gone, as is found out by looking."""

    def check(self) -> None:
        raise ConnectionResetError


def test_who_yields_nothing_hears_that_the_client_has_gone() -> None:
    result = Counted(b"first", b"", b"last")
    with pytest.raises(ConnectionResetError):
        Exchange(Left(), 1, False).run(returning(result), {})
    assert (result.given, result.closed) == (2, 1)


def test_who_yields_nothing_behind_a_whole_body_does_not() -> None:
    """The client may go when it has all that was declared."""
    peer = Left()
    Exchange(peer, 1, False).run(returning(iter([b"all", b"", b""]), ("Content-Length", "3")), {})
    assert peer.response()[2] == b"all"


# --- a body and its declared length


class Counted:
    """Blocks, and how many were asked for."""

    def __init__(self, *blocks: Any) -> None:
        self.blocks = blocks
        self.given = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for block in self.blocks:
            self.given += 1
            yield block

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("declared", "blocks", "asked_for"),
    [
        (4, [b"12345"], 1),
        (4, [b"123", b"45", b"67"], 2),
        (3, [b"123", b"", b"45", b"67"], 3),  # that there is more is seen by the next block
        (0, [b"1", b"2"], 1),
    ],
)
def test_a_body_longer_than_declared_is_cut_there_and_the_log_says_so(
    declared: int, blocks: list[bytes], asked_for: int, capfd: pytest.CaptureFixture[str]
) -> None:
    result = Counted(*blocks)

    def application(environ: dict[str, Any], start_response: Any) -> Counted:
        start_response("200 OK", [("Content-Length", str(declared))])
        return result

    for attempt in (application, lambda environ, start_response: list(application(environ, start_response))):
        assert run(attempt)[1].response()[2] == b"".join(blocks)[:declared]
        assert capfd.readouterr().err == (
            "fcgimgr worker: a body was longer than its Content-Length, and was cut"
            f" after {declared} bytes, at GET /there\n"
        )
        if attempt is application:
            assert (result.given, result.closed) == (asked_for, 1)


@pytest.mark.parametrize("declared", [0, 1, 50, FILE_BLOCK, FILE_BLOCK + 1])
def test_of_a_file_as_much_is_sent_as_was_declared(
    declared: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = os.urandom(FILE_BLOCK + 200)
    (tmp_path / "large").write_bytes(content)
    with (tmp_path / "large").open("rb") as file:
        file.seek(100)

        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("206 Partial Content", [("Content-Length", str(declared))])
            return FileWrapper(file)

        assert run(application)[1].response()[2] == content[100 : 100 + declared]
        assert file.closed
    assert capfd.readouterr().err == ""


def test_write_refuses_what_is_longer_than_declared() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "3")])
        write(b"abc")
        with pytest.raises(ValueError, match="1 bytes came where 0 were left"):
            write(b"d")
        return []

    assert run(application)[1].response()[2] == b"abc"


# --- PEP 3333


class Pair(tuple[str, str]):
    """One that may change its mind, as the next one may."""

    __slots__ = ()


class Text(str):
    __slots__ = ()


class Blocks(list[bytes]):
    """A list that may have a behaviour of its own."""


def by_write(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    write = start_response("200 OK", PLAIN)
    write(b"one ")
    write(b"")
    write(b"two")
    return [b"", b" three"]


def by_generator(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    yield b"one "
    yield b""
    yield b"two three"


def second_thought(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [*PLAIN, ("Content-Length", "99")])
    try:
        raise LookupError
    except LookupError:
        start_response("200 OK", PLAIN, sys.exc_info())
    return [b"one two three"]


def returning(blocks: Iterable[bytes], *headers: tuple[str, str]) -> Application:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN, *headers])
        return blocks

    return application


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("application", "expected"),
    [
        (by_write, b"one two three"),
        (by_generator, b"one two three"),
        (second_thought, b"one two three"),
        (returning(Blocks([b"one ", b"two three"])), b"one two three"),
        (returning([b"one ", b"", b"two three"]), b"one two three"),
        (returning((b"one two three",)), b"one two three"),
        (returning([b"one two three"], ("Content-Length", "13")), b"one two three"),
        (returning([]), b""),
        (returning([b""]), b""),
        (returning(()), b""),
        (returning([b""], ("Content-Length", "0")), b""),
        (returning(iter([])), b""),
        (returning(iter([b"", b""])), b""),
    ],
)
def test_what_an_application_may_do_is_answered_as_it_should(
    application: Application, expected: bytes, method: str, validated: bool
) -> None:
    if validated:
        application = validator(application)
    peer = Peer()
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "QUERY_STRING": "",
        "wsgi.input": Validated(),
        "wsgi.errors": Validated(),
    }
    setup_testing_defaults(environ)
    Exchange(peer, 1, method == "HEAD").run(application, environ)
    status, headers, body = peer.response()
    assert (status, headers["Content-Type"], body) == (200, "text/plain", b"" if method == "HEAD" else expected)


class Validated:
    """The methods that the validator wants of files it does not use here."""

    read = readline = readlines = __iter__ = flush = write = writelines = None


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_length_of_an_answer_to_head_is_the_applications_own(method: str) -> None:
    peer = run(returning([], ("Content-Length", "1000")), method="HEAD")[1]
    assert peer.response()[1]["Content-Length"] == "1000"
    peer = run(returning([b"one", b"two"]), method="HEAD")[1]
    assert "Content-Length" not in peer.response()[1]


def test_an_exception_before_the_first_block_leaves_room_for_an_error_page() -> None:
    peer = Peer()
    exchange = Exchange(peer, 1, False)

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [*PLAIN, ("Content-Length", "3")])
        raise LookupError
        yield b""

    with pytest.raises(LookupError):
        exchange.run(application, {})
    assert not exchange.head_sent
    exchange.fail(b"sorry")
    assert peer.response()[::2] == (500, b"sorry")


@pytest.mark.parametrize("blocks", [[b"all"], [b"al", b"l"]])
@pytest.mark.parametrize("closes", [True, False])
def test_close_is_called_behind_the_last_byte_and_may_raise(blocks: list[bytes], closes: bool) -> None:
    peer = Peer()
    exchange = Exchange(peer, 1, False)

    class Closing:
        def __iter__(self) -> Iterator[bytes]:
            yield from blocks
            if not closes:
                raise KeyError

        def close(self) -> None:
            assert exchange.ended == closes
            raise LookupError

    with pytest.raises(LookupError) as raised:
        exchange.run(returning(Closing()), {})
    assert isinstance(raised.value.__context__, KeyError) != closes
    if closes:
        assert peer.response()[2] == b"all"


@pytest.mark.parametrize(
    ("status", "headers", "error", "said"),
    [
        ("200 OK", [("X-A", b"b")], TypeError, "the value of the response header X-A is a str, not b'b'"),
        (
            "200 OK",
            [("Content-Length", 5)],
            TypeError,
            "the value of the response header Content-Length is a str, not 5",
        ),
        ("200 OK", [(b"X-A", "b")], TypeError, "the name of a response header is a str, not b'X-A'"),
        ("200 OK", [None], TypeError, "a response header is a pair of name and value, not None"),
        ("200 OK", [("X-A", None)], TypeError, "the value of the response header X-A is a str, not None"),
        (
            "200 OK",
            [("Content-Length", "5"), ("content-length", "6")],
            ValueError,
            "two headers say the Content-Length",
        ),
        (
            "200 OK",
            [("Content-Length", "5"), ("content-length", "5")],
            ValueError,
            "two headers say the Content-Length",
        ),
        ("100 Continue", [], ValueError, "'100 Continue' is not a status"),
        ("103 Early Hints", [], ValueError, "'103 Early Hints' is not a status"),
        (b"200 OK", [], ValueError, "b'200 OK' is not a status"),
    ],
)
def test_what_is_no_head_is_refused_by_name(status: Any, headers: Any, error: type[Exception], said: str) -> None:
    for _ in range(2):  # nothing of it is remembered as good
        exchange = Exchange(Peer(), 1, False)
        with pytest.raises(error, match=re.escape(said)):
            exchange.start_response(status, headers)
        exchange.start_response("200 OK", PLAIN)  # none has been begun


@pytest.mark.parametrize("blocks", [["text"], [b"x", "text"], ("x", "text"), Counted("text"), Counted(b"x", "text")])
@pytest.mark.parametrize("length", [[], [("Content-Length", "2")]])
def test_text_for_a_body_is_refused(blocks: Any, length: list[tuple[str, str]]) -> None:
    with pytest.raises(TypeError, match="a block of the response is bytes, not str"):
        run(returning(blocks, *length))


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (
            "200 OK",
            [*PLAIN, ("X-A", "\u20ac")],
            "the response header X-A holds '\u20ac', which is not in Latin-1",
        ),
        ("200 \u20ac", PLAIN, "the status holds '\u20ac', which is not in Latin-1"),
    ],
)
def test_a_header_that_is_not_latin_1_is_named(status: str, headers: list[tuple[str, str]], said: str) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, headers)
        return [b""]

    with pytest.raises(ValueError, match=re.escape(said)):
        run(application)


def test_only_a_bounded_number_of_headers_is_kept_in_mind_and_no_cookie() -> None:
    def heads(*headers: tuple[str, str]) -> list[dict[str, str]]:
        return [run(returning([b""], *headers))[1].response()[1] for _ in range(3)]

    for number in range(2 * exchange_module._MOST_KNOWN):
        headers = {"X-A": f"value {number}", f"X-{number}": "a", "Set-Cookie": f"id={number}", "X-Long": "x" * 600}
        assert all(found.items() >= headers.items() for found in heads(*headers.items()))
    known = exchange_module._known_fields
    assert 0 < len(known) <= exchange_module._MOST_KNOWN
    assert not [name for name, value in known if name == "Set-Cookie" or len(value) > 500]


@pytest.mark.parametrize("field", [["X-A", "one"], Pair(("X-A", "one")), ("X-A", Text("one")), (Text("X-A"), "one")])
def test_a_header_of_a_kind_of_its_own_is_looked_at_each_time(field: Any) -> None:
    for _ in range(3):
        assert run(returning([b""], field))[1].response()[1]["X-A"] == "one"
    assert not [known for known in exchange_module._known_fields if type(known) is not tuple]
    for name, value in exchange_module._known_fields:
        assert type(name) is type(value) is str
