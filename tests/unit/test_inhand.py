"""What a manager had read of a process's output when it was killed is in the log after all, once and whole."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fcgimgr.manager.logs import inhand
from fcgimgr.manager.logs.file import LogFile
from fcgimgr.manager.logs.pump import Pump


class KilledError(BaseException):
    """In the place of SIGKILL: nothing after it is done."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[ExitStack]:
    before = inhand.hand
    with ExitStack() as stack:
        yield stack
    inhand.hand = before


@pytest.fixture
def manager(tmp_path: Path, loop: asyncio.AbstractEventLoop, stack: ExitStack) -> Callable[..., Pump]:
    """One more manager, which reads on from this pipe, as the one before has left it."""

    def manager(reader: int, **more: str) -> Pump:
        left = inhand.left_in(str(tmp_path))
        inhand.hand = inhand.Hand(bytearray(inhand._SIZE))
        inhand.keep_in(str(tmp_path))
        log = LogFile(str(tmp_path / "log"), report=lambda message: None)
        stack.callback(log.close)
        pump = Pump(loop, os.dup(reader), log, process="app", stream="stdout", clock=lambda: 0, **more)  # type: ignore[arg-type]
        stack.callback(loop.remove_reader, pump._fd)
        if pump.inode in left:
            pump.recover(left[pump.inode])
        return pump

    return manager


@pytest.fixture
def pipe(stack: ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    return reader, writer


@pytest.mark.parametrize("dress", [{}, {"timestamps": "iso"}, {"format": "json"}], ids=["raw", "iso", "json"])
@pytest.mark.parametrize(
    "killed", ["read", "told", "before the write", "amid a line", "after the write", "kept", "let go", "done"]
)
def test_no_line_is_lost_or_doubled_whenever_the_manager_is_killed(
    killed: str,
    dress: dict[str, str],
    tmp_path: Path,
    manager: Callable[..., Pump],
    pipe: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = pipe
    first = manager(reader, **dress)
    os.write(writer, b"one\ntwo\nthree, beg")
    kill_when(killed, monkeypatch)
    try:
        first.drain()
    except KilledError:
        assert killed != "done"
    monkeypatch.undo()
    second = manager(reader, **dress)
    os.write(writer, b"un\nfour\n")
    second.drain()
    written = (tmp_path / "log").read_text().splitlines()
    whole = [line for line in written if line.endswith(("one", "two", "begun", "four", '"}'))]
    for number, text in enumerate(("one", "two", "three, begun", "four")):
        assert text in whole[number]
    assert len(whole) == 4
    assert len(written) - len(whole) <= (1 if dress and killed == "amid a line" else 0)


@pytest.mark.parametrize("killed", ["told", "before the write", "after the write", "let go", "done"])
def test_a_traceback_that_is_one_record_is_neither_lost_nor_doubled(
    killed: str,
    tmp_path: Path,
    manager: Callable[..., Pump],
    pipe: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = pipe
    first = manager(reader, format="json", gathers=True)
    traceback = b'Traceback (most recent call last):\n  File "a.py", line 1, in b\nKeyError: 17\n'
    os.write(writer, b"one\n\n%btwo\n%b" % (traceback, traceback))
    kill_when(killed, monkeypatch)
    try:
        first.drain()
    except KilledError:
        assert killed != "done"
    monkeypatch.undo()
    second = manager(reader, format="json", gathers=True)
    os.write(writer, b"three\n")
    second.drain()
    second.close()
    told = traceback.decode().removesuffix("\n")
    messages = [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()]
    assert messages == ["one", "", told, f"two\n{told}", "three"]


def kill_when(killed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        raise KilledError

    def die_after(call: Callable[..., int], part: int | None = None) -> Callable[..., int]:
        def call_and_die(fd: int, data: bytes) -> int:
            call(fd, bytes(data)[:part])
            raise KilledError

        return call_and_die

    if killed == "read":
        monkeypatch.setattr(inhand.Hand, "has_read", die)
    elif killed == "told":
        monkeypatch.setattr(inhand.Hand, "newline", die)
    elif killed == "kept":
        monkeypatch.setattr(inhand.Hand, "keep", die)
    elif killed == "let go":
        monkeypatch.setattr(inhand.Hand, "let_go", die)
    elif killed == "before the write":
        monkeypatch.setattr(os, "write", die)
    elif killed == "amid a line":
        monkeypatch.setattr(os, "write", die_after(os.write, 6))
    elif killed == "after the write":
        monkeypatch.setattr(os, "write", die_after(os.write))


def test_a_file_that_was_removed_is_made_again_with_what_it_held(
    tmp_path: Path, manager: Callable[..., Pump], pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    first = manager(reader)
    os.write(writer, b"beg")
    first.drain()
    assert inhand.put_back(str(tmp_path)) == []
    (tmp_path / inhand.NAME).unlink()
    assert inhand.put_back(str(tmp_path)) == [str(tmp_path / inhand.NAME)]
    second = manager(reader)
    os.write(writer, b"un\n")
    second.drain()
    assert (tmp_path / "log").read_text() == "begun\n"


def test_what_is_left_of_another_kind_is_nothing(tmp_path: Path) -> None:
    assert inhand.left_in(str(tmp_path)) == {}
    (tmp_path / inhand.NAME).write_bytes(b"short")
    assert inhand.left_in(str(tmp_path)) == {}
    (tmp_path / inhand.NAME).write_bytes(os.urandom(inhand._SIZE))
    inhand.left_in(str(tmp_path))
    (tmp_path / inhand.NAME).unlink()
    os.mkfifo(tmp_path / inhand.NAME)
    assert inhand.left_in(str(tmp_path)) == {}


def test_more_lines_than_can_be_kept_are_read_all_the_same(tmp_path: Path, stack: ExitStack) -> None:
    inhand.keep_in(str(tmp_path))
    places = [inhand.hand.keep(None, pipe, b"begun") for pipe in range(1, inhand.MOST_SHORT + 3)]
    assert places[-2:] == [None, None]
    assert len(inhand.left_in(str(tmp_path))) == inhand.MOST_SHORT
    for place in places:
        assert inhand.hand.keep(place, 1, b"") is None
    assert inhand.left_in(str(tmp_path)) == {}
    assert inhand.hand.keep(None, 1, b"x" * (inhand.LONGEST_LONG + 1)) is None


def test_a_line_has_a_place_as_long_as_it_is(tmp_path: Path, stack: ExitStack) -> None:
    inhand.keep_in(str(tmp_path))
    place = None
    for length in (1, inhand.LONGEST_SHORT, inhand.LONGEST_SHORT + 1, inhand.LONGEST_LONG, 7) * inhand.MOST_SHORT:
        place = inhand.hand.keep(place, 1, b"x" * length)
        assert place is not None
        inhand.exchange()  # as when a helper that reads is late
        assert inhand.left_in(str(tmp_path)) == {1: inhand.Left(b"x" * length)}
    long = [inhand.hand.keep(None, pipe, b"x" * inhand.LONGEST_LONG) for pipe in range(2, inhand.MOST_LONG + 2)]
    assert None not in long
    assert inhand.hand.keep(None, 99, b"x" * inhand.LONGEST_LONG) is None


@pytest.mark.parametrize("rooms", ["free", "taken"])
def test_of_a_long_traceback_nothing_waits_that_a_kill_would_take_along(
    rooms: str, tmp_path: Path, manager: Callable[..., Pump], pipe: tuple[int, int]
) -> None:
    reader, writer = pipe
    first = manager(reader, format="json", gathers=True)
    if rooms == "taken":
        for other in range(1, inhand.MOST_LONG + 1):
            assert inhand.hand.keep(None, other, b"x" * inhand.LONGEST_LONG) is not None
    frame = b'  File "a.py", line 1, in b\n'
    traceback = b"Traceback (most recent call last):\n%bKeyError: 17\n" % (frame * (inhand.LONGEST_SHORT // len(frame)))
    assert len(traceback) > inhand.LONGEST_SHORT
    os.write(writer, traceback)
    first.drain()
    if rooms == "free":
        assert (tmp_path / "log").read_text() == ""
    second = manager(reader, format="json", gathers=True)  # and of the first no more is heard
    os.write(writer, b"two\n")
    second.drain()
    messages = [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()]
    assert messages == [traceback.decode().removesuffix("\n"), "two"]
