"""The manager's own output: never waited for, whoever reads it or not."""

import asyncio
import fcntl
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgimgr.manager.logs import stream as stream_module
from fcgimgr.manager.logs.stream import Stream, write_if_writable
from tests.unit.logs_bench import Clock, run_once, run_until

LINE = b"x" * 99 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(reader, writer) of a pipe of one page, both blocking, as a shell makes them."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    for fd in (reader, writer):
        if is_open(fd):
            os.close(fd)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def read_all(reader: int) -> bytes:
    """What is in the pipe now."""
    got = b""
    while select.select([reader], [], [], 0)[0] and (piece := os.read(reader, 1 << 20)):
        got += piece
    return got


def test_a_pipe_that_nobody_reads_does_not_stop_the_manager(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    said: list[str] = []
    output = Stream(writer, report=said.append)
    for _ in range(30_000):
        output.write(LINE)
    assert len(said) == 1
    assert "not read as fast as lines come" in said[0]
    assert os.get_blocking(writer), "the shell's end of the pipe must stay as it was"
    got = b""
    for _ in range(10_000):
        got += read_all(reader)
        output.write(LINE)
        if len(said) > 1:
            break
    got += read_all(reader)
    lines = got.splitlines(keepends=True)
    assert set(lines) == {LINE}
    lost = int(said[1].split("; ")[1].split()[0])
    assert lost > 15_000
    assert "is read again" in said[1]


def test_what_waits_is_written_when_the_reader_makes_room(
    pipe: tuple[int, int], loop: asyncio.AbstractEventLoop
) -> None:
    reader, writer = pipe
    said: list[str] = []
    output = Stream(writer, report=said.append, loop=loop)
    lines = [b"%06d\n" % number for number in range(5000)]
    output.write(b"".join(lines))
    assert output.blocked
    freed: list[bool] = []
    output.when_free(lambda: freed.append(True))
    got = bytearray()
    loop.add_reader(reader, lambda: got.extend(os.read(reader, 1000)))
    run_until(loop, lambda: len(got) == 35_000)
    loop.remove_reader(reader)
    assert bytes(got) == b"".join(lines)
    assert freed == [True]
    assert not output.blocked
    assert said == []


def test_a_reader_that_takes_nothing_is_given_up_and_counted(
    pipe: tuple[int, int], loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "PATIENCE", 0.05)
    reader, writer = pipe
    said: list[str] = []
    output = Stream(writer, report=said.append, loop=loop)
    output.write(LINE * 100)
    freed: list[bool] = []
    output.when_free(lambda: freed.append(True))
    run_until(loop, lambda: freed)
    assert not output.blocked, "writers must not wait for a reader that does not come"
    assert said == [f"output {writer}: has not been read for 0.05 seconds; lines are dropped until it is"]
    for _ in range(10):
        output.write(LINE)
    got = bytearray()
    loop.add_reader(reader, lambda: got.extend(os.read(reader, 1000)))
    run_until(loop, lambda: len(said) == 2)
    output.write(b"again\n")
    run_until(loop, lambda: got.endswith(b"again\n"))
    loop.remove_reader(reader)
    assert bytes(got) == LINE * 100 + b"again\n"
    assert said[1] == f"output {writer}: is read again; 10 lines were lost"


def test_nothing_happens_while_a_given_up_reader_does_not_read(
    pipe: tuple[int, int], loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "PATIENCE", 0.01)
    output = Stream(pipe[1], report=[].append, loop=loop)
    output.write(LINE * 100)
    run_until(loop, lambda: not output.blocked)
    assert output._timer is None


def test_a_reader_that_has_gone_is_said_once_and_lines_are_dropped(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    said: list[str] = []
    clock = Clock()
    output = Stream(writer, report=said.append, clock=clock)
    output.write(b"one\n")
    os.close(reader)
    for _ in range(100):
        output.write(b"two\n")
        clock.passes(0.1)
    assert said == [f"output {writer}: cannot be written: Broken pipe; lines are dropped until it can"]
    output.close()
    assert said[1:] == [f"output {writer}: closed; 100 lines were lost"]


def test_the_reader_goes_while_something_waits(pipe: tuple[int, int], loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe
    said: list[str] = []
    output = Stream(writer, report=said.append, loop=loop)
    output.write(LINE * 100)
    freed: list[bool] = []
    output.when_free(lambda: freed.append(True))
    os.close(reader)
    run_until(loop, lambda: said)
    assert "Broken pipe" in said[0]
    assert freed == [True]
    assert not output.blocked


def test_a_socket_is_written_without_waiting() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        said: list[str] = []
        output = Stream(ours.fileno(), report=said.append)
        for _ in range(40_000):
            output.write(LINE)
        assert len(said) == 1
        assert os.get_blocking(ours.fileno())
        output.close(patience=0)
        assert theirs.recv(100) == LINE
        assert is_open(ours.fileno()), "the descriptor is the caller's"


def test_a_stopped_terminal_does_not_stop_the_manager() -> None:
    master, terminal = os.openpty()
    said: list[str] = []
    output = Stream(terminal, report=said.append)
    for _ in range(30_000):
        output.write(LINE)
    assert len(said) == 1
    output.close(patience=0)
    os.close(master)
    os.close(terminal)


def test_a_shared_file_is_written_at_its_own_offset(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb", buffering=0) as file:  # as `fcgimgr … > out` gives it: no O_APPEND
        file.write(b"from the shell\n")
        Stream(file.fileno(), report=[].append).write(b"from the manager\n")
        file.write(b"from the shell again\n")
    assert (tmp_path / "out").read_bytes() == b"from the shell\nfrom the manager\nfrom the shell again\n"


def test_asking_first_writes_no_more_than_a_pipe_takes_at_once(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert write_if_writable(writer, b"x" * 100_000) == select.PIPE_BUF
    with pytest.raises(BlockingIOError):
        write_if_writable(writer, b"x")
    assert os.read(reader, 100_000) == b"x" * select.PIPE_BUF


def test_an_output_closed_before_the_manager_started_is_an_error_told_once() -> None:
    fd = os.dup(0)
    os.close(fd)
    said: list[str] = []
    output = Stream(fd, report=said.append)
    output.write(b"one\n")
    output.write(b"two\n")
    assert len(said) == 1
    assert "Bad file descriptor" in said[0]


def test_close_writes_what_waits_but_not_for_ever(pipe: tuple[int, int], loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe
    said: list[str] = []
    output = Stream(writer, report=said.append, loop=loop)
    output.write(LINE * 60)
    assert len(os.read(reader, 4096)) == 4096
    output.close()
    assert len(read_all(reader)) == 6000 - 4096
    assert said == []
    late = Stream(writer, report=said.append, loop=loop)
    late.write(LINE * 60)
    late.close(patience=0.01)
    late.close()
    assert said[-1].startswith(f"output {writer}: closed; ")
    run_once(loop)


def test_a_loop_attached_later_writes_what_waits(pipe: tuple[int, int], loop: asyncio.AbstractEventLoop) -> None:
    reader, writer = pipe
    output = Stream(writer, report=[].append)
    output.write(LINE * 60)
    assert not output.blocked
    output.attach(loop)
    assert output.blocked
    got = bytearray()
    loop.add_reader(reader, lambda: got.extend(os.read(reader, 1000)))
    run_until(loop, lambda: len(got) == 6000)
    loop.remove_reader(reader)
