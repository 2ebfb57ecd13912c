"""From a child's pipe to its log: every byte, in order, whole lines, nobody held up."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcgimgr.manager.logs.file import LogFile, Logs
from fcgimgr.manager.logs.inhand import LINE_LIMIT
from fcgimgr.manager.logs.pump import RECENT, Pump
from fcgimgr.manager.logs.stream import Stream
from tests.unit.logs_bench import Memory, all_lines, child_pipe, run_once, run_until

Start = Callable[..., tuple[Pump, int]]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def start(loop: asyncio.AbstractEventLoop, memory: Memory) -> Iterator[Start]:
    """A pump on a new pipe, and the pipe's writing end."""
    pumps: list[Pump] = []

    def start(target: object = memory, **options: object) -> tuple[Pump, int]:
        reader, writer = child_pipe()
        pump = Pump(loop, reader, target, process="app:app_00", stream="stdout", **options)
        pumps.append(pump)
        return pump, writer

    yield start
    for pump in pumps:
        pump.close()


def write_numbered_lines(writer: int, name: str, count: int, width: int) -> subprocess.Popen[bytes]:
    """A child that writes `count` lines as fast as it can; the writing end is its own from now on."""
    program = (
        "import sys\n"
        f"for n in range({count}): sys.stdout.write('{name} %07d ' % n + 'x' * (n * 7919 % {width}) + '\\n')\n"
    )
    child = subprocess.Popen([sys.executable, "-S", "-c", program], stdout=writer)
    os.close(writer)
    return child


def is_numbered_line(name: str, number: int, width: int) -> bytes:
    return f"{name} {number:07d} ".encode() + b"x" * (number * 7919 % width)


def test_lines_pass_as_they_came(start: Start, memory: Memory, loop: asyncio.AbstractEventLoop) -> None:
    _, writer = start()
    os.write(writer, b"one\ntwo\r\n\n\xff\x00three\n")
    run_until(loop, lambda: memory.chunks)
    assert memory.text == b"one\ntwo\r\n\n\xff\x00three\n"


def test_an_unfinished_line_waits_for_its_end(start: Start, memory: Memory, loop: asyncio.AbstractEventLoop) -> None:
    _, writer = start()
    os.write(writer, b"one\ntw")
    run_until(loop, lambda: memory.chunks)
    assert memory.chunks == [b"one\n"]
    os.write(writer, b"o an")
    run_once(loop)
    os.write(writer, b"d a half\nthr")
    run_until(loop, lambda: len(memory.chunks) == 2)
    assert memory.chunks[1] == b"two and a half\n"


def test_at_the_end_of_the_stream_the_last_line_gets_its_newline_and_all_is_let_go(
    start: Start, memory: Memory, loop: asyncio.AbstractEventLoop
) -> None:
    ended: list[bool] = []
    released: list[object] = []
    pump, writer = start(on_eof=lambda: ended.append(pump.closed), release=released.append)
    os.write(writer, b"one\nno end")
    os.close(writer)
    run_until(loop, lambda: ended)
    assert memory.text == b"one\nno end\n"
    assert ended == [True]
    pump.close()
    assert released == [memory]
    assert pump.tail(2) == [b"one", b"no end"]
    assert pump.drain() is False


def test_close_hands_on_the_unfinished_line_and_is_not_an_end_of_stream(
    start: Start, memory: Memory, loop: asyncio.AbstractEventLoop
) -> None:
    ended: list[bool] = []
    pump, writer = start(on_eof=lambda: ended.append(True))
    os.write(writer, b"begun")
    run_until(loop, lambda: pump.tail(1))
    pump.close()
    pump.close()
    assert memory.text == b"begun\n"
    assert ended == []
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"nobody reads this")
    os.close(writer)


@pytest.mark.parametrize("size", [LINE_LIMIT - 1, LINE_LIMIT, LINE_LIMIT + 1, 3 * LINE_LIMIT, 1_000_000])
def test_a_long_line_is_complete_however_long(
    size: int, start: Start, memory: Memory, loop: asyncio.AbstractEventLoop
) -> None:
    pump, writer = start()
    text = bytes(number % 251 for number in range(size)).replace(b"\n", b"-") + b"\nnext\n"
    done = 0
    os.set_blocking(writer, False)
    while done < len(text):
        done += os.write(writer, text[done : done + 50_000])
        pump.drain()
    assert memory.text == text
    if size < LINE_LIMIT:
        assert len(memory.chunks) == 1
    os.close(writer)


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=60),
    cuts=st.lists(st.integers(0, 3000), max_size=30),
    maxbytes=st.integers(0, 120),
    unfinished=st.booleans(),
)
def test_wherever_the_reads_cut_and_the_file_rotates_every_line_arrives_once_and_whole(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], cuts: list[int], maxbytes: int, unfinished: bool
) -> None:
    loop = asyncio.new_event_loop()
    path = tmp_path_factory.mktemp("logs") / "app.log"
    log = LogFile(str(path), maxbytes=maxbytes, backups=1000, report=pytest.fail)
    reader, writer = child_pipe()
    pump = Pump(loop, reader, log, process="app:app_00", stream="stdout")
    text = b"".join(line + b"\n" for line in lines)
    if unfinished:
        text = text[:-1]
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    for start, end in pairwise(edges):
        os.write(writer, text[start:end])
        pump.drain()
    os.close(writer)
    pump.drain()
    assert pump.closed
    log.close()
    files = [path, *path.parent.glob("app.log.*")]
    kept = b"".join(f.read_bytes() for f in sorted(files, key=lambda f: -int(f.suffix[1:] if f != path else 0)))
    assert kept == text + (b"\n" if text and not text.endswith(b"\n") else b"")
    assert all(not (body := f.read_bytes()) or body.endswith(b"\n") for f in files)
    if maxbytes:
        assert all(len(body := f.read_bytes()) <= maxbytes or body.count(b"\n") == 1 for f in files)
    loop.close()


def test_one_that_rests_leaves_what_comes_in_the_pipe_for_a_moment(
    loop: asyncio.AbstractEventLoop, memory: Memory, start: Start
) -> None:
    pump, writer = start()
    pump.rest(60.0)
    os.write(writer, b"one\n")
    run_once(loop)
    assert memory.text == b""
    pump.rest(0.0)
    assert memory.text == b"one\n"
    pump.rest(0.01)
    os.write(writer, b"two\n")
    run_until(loop, lambda: memory.text == b"one\ntwo\n")
    os.close(writer)
    run_until(loop, lambda: pump.closed)


def test_one_that_rests_holds_nobody_up_who_says_much(
    loop: asyncio.AbstractEventLoop, memory: Memory, start: Start
) -> None:
    pump, writer = start()
    pump.rest(0.01)
    os.write(writer, b"x" * 40_000 + b"\n")
    run_until(loop, lambda: memory.text != b"")
    assert not pump.rests
    os.close(writer)


@pytest.mark.parametrize("known", [True, False])
def test_what_is_known_is_not_logged_again_but_followed_and_remembered(
    known: bool, memory: Memory, start: Start
) -> None:
    pump, writer = start()
    followed: list[bytes] = []
    pump.follow(followed.extend)
    os.write(writer, b"one\ntwo\nhalf")
    os.close(writer)
    asked: list[bytes] = []
    assert pump.drain_unless(lambda said: asked.append(said) is None and known) is known
    assert asked == [b"one\ntwo\nhalf\n"]
    assert memory.text == (b"" if known else asked[0])
    assert followed == [b"one", b"two", b"half"]
    assert pump.tail(10) == [b"one", b"two", b"half"]


def test_under_load_two_children_share_a_rotating_file_and_every_line_arrives_once(
    tmp_path: Path, loop: asyncio.AbstractEventLoop
) -> None:
    path = tmp_path / "app.log"
    said: list[str] = []
    logs = Logs(Memory(), report=said.append)
    left = ["a", "b", "c"]
    children = []
    for name in tuple(left):
        reader, writer = child_pipe()
        target = logs.open(str(path), 400_000, 200)
        Pump(
            loop, reader, target, process=f"app:{name}", stream="stdout", release=logs.release,
            on_eof=lambda name=name: left.remove(name),
        )  # fmt: skip
        children.append(write_numbered_lines(writer, name, 40_000, 150))
    run_until(loop, lambda: not left, within=60)
    assert [child.wait() for child in children] == [0, 0, 0]
    assert len(logs) == 0
    assert said == []
    lines = all_lines(path)
    for name in ("a", "b", "c"):
        mine = [line for line in lines if line.startswith(name.encode())]
        assert mine == [is_numbered_line(name, number, 150) for number in range(40_000)]
    assert len(lines) == 120_000
    assert len(list(tmp_path.iterdir())) > 20
    assert max(file.stat().st_size for file in tmp_path.iterdir()) <= 400_000


def test_logrotate_under_load_loses_nothing(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    path = tmp_path / "app.log"
    logs = Logs(Memory(), report=pytest.fail)
    reader, writer = child_pipe()
    ended: list[bool] = []
    target = logs.open(str(path))
    pump = Pump(loop, reader, target, process="app:a", stream="stdout", on_eof=lambda: ended.append(True))
    child = write_numbered_lines(writer, "a", 60_000, 150)
    renamed = 0
    while not ended:
        run_until(loop, lambda: ended or path.stat().st_size > 200_000, within=60)
        path.rename(tmp_path / f"app.log.{1000 - renamed}")
        renamed += 1
        assert logs.reopen_all() == (1, [])
    assert child.wait() == 0
    assert pump.closed
    assert renamed > 5
    assert all_lines(path) == [is_numbered_line("a", number, 150) for number in range(60_000)]


def test_a_child_that_never_stops_writing_does_not_hold_the_loop(loop: asyncio.AbstractEventLoop, start: Start) -> None:
    """Between two turns of the loop one read is made a pump, however much there is."""
    pump, writer = start()
    child = subprocess.Popen([sys.executable, "-c", "while True: print('x' * 5000)"], stdout=writer)
    os.close(writer)
    turns: list[float] = []

    async def others() -> None:
        while len(turns) < 300:
            turns.append(loop.time())
            await asyncio.sleep(0)

    run_until(loop, lambda: pump.tail(1))
    loop.run_until_complete(others())
    child.kill()
    child.wait()
    assert sorted(after - before for before, after in pairwise(turns))[-10] < 0.1


def test_drain_reads_what_a_dead_child_left_and_says_whether_there_is_more(start: Start, memory: Memory) -> None:
    pump, writer = start()
    os.write(writer, b"last words\n" * 1000)
    assert pump.drain(limit=1) is True
    assert pump.drain() is False
    assert not pump.closed
    assert memory.text == b"last words\n" * 1000
    os.close(writer)
    assert pump.drain() is False
    assert pump.closed


def test_a_pump_rests_while_its_target_is_blocked(
    start: Start, memory: Memory, loop: asyncio.AbstractEventLoop
) -> None:
    _, writer = start()
    memory.is_blocked = True
    os.write(writer, b"one\n")
    run_until(loop, lambda: memory.callbacks)
    assert memory.chunks == []
    memory.free()
    run_until(loop, lambda: memory.chunks)
    assert memory.text == b"one\n"
    os.close(writer)


def test_a_pump_closed_while_it_rests_does_not_come_back(
    start: Start, memory: Memory, loop: asyncio.AbstractEventLoop
) -> None:
    pump, writer = start()
    memory.is_blocked = True
    os.write(writer, b"one\n")
    run_until(loop, lambda: memory.callbacks)
    assert pump.drain() is False
    pump.close()
    memory.free()
    run_once(loop)
    assert memory.text == b"one\n"
    os.close(writer)


def test_a_slow_reader_of_the_managers_output_slows_the_child_and_loses_nothing(
    loop: asyncio.AbstractEventLoop,
) -> None:
    out_reader, out_writer = child_pipe()
    output = Stream(out_writer, report=pytest.fail, loop=loop)
    reader, writer = child_pipe()
    ended: list[bool] = []
    Pump(loop, reader, output, process="app:a", stream="stdout", on_eof=lambda: ended.append(True))
    child = write_numbered_lines(writer, "a", 60_000, 150)
    got = bytearray()
    loop.add_reader(out_reader, lambda: got.extend(os.read(out_reader, 20_000)))
    run_until(loop, lambda: ended and not output.blocked, within=60)
    assert child.wait() == 0
    output.close()
    os.close(out_writer)
    loop.remove_reader(out_reader)
    while piece := os.read(out_reader, 1 << 20):
        got += piece
    os.close(out_reader)
    assert bytes(got).splitlines() == [is_numbered_line("a", number, 150) for number in range(60_000)]


def test_a_stream_that_fails_is_closed_and_the_loop_told(
    start: Start, loop: asyncio.AbstractEventLoop, memory: Memory
) -> None:
    told: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    master, terminal = os.openpty()
    os.set_blocking(master, False)
    pump = Pump(loop, master, memory, process="app:a", stream="stdout")
    os.write(terminal, b"from a terminal\n")
    os.close(terminal)  # reading the other side is EIO now
    run_until(loop, lambda: told)
    assert pump.closed
    assert isinstance(told[0]["exception"], OSError)
    assert memory.text == b"from a terminal\r\n"


# tail and follow


def test_tail_gives_the_last_lines_and_what_is_begun(start: Start) -> None:
    pump, writer = start()
    assert pump.tail(10) == []
    os.write(writer, b"one\n\ntwo\nthree\nfou")
    pump.drain()
    assert pump.tail(2) == [b"three", b"fou"]
    assert pump.tail(0) == []
    assert pump.tail(3, unfinished=False) == [b"", b"two", b"three"]
    os.write(writer, b"r\n")
    pump.drain()
    assert pump.tail(99) == [b"one", b"", b"two", b"three", b"four"]
    os.close(writer)


@pytest.mark.parametrize("width", [7, 100, 4000])
def test_tail_never_shows_a_line_cut_in_front_and_keeps_a_bounded_amount(width: int, start: Start) -> None:
    pump, writer = start()
    lines = [b"%05d " % number + b"x" * (number % width) for number in range(2000)]
    for line in lines:
        os.write(writer, line + b"\n")
        pump.drain()
    tail = pump.tail(2000)
    assert tail == lines[-len(tail) :]
    assert RECENT - width - 7 <= sum(len(line) + 1 for line in tail) <= RECENT
    os.close(writer)


def test_tail_of_a_line_longer_than_is_kept_is_its_end(start: Start) -> None:
    pump, writer = start()
    os.write(writer, b"x" * 20_000 + b"end\n")
    pump.drain()
    assert pump.tail(5) == [b"x" * (RECENT - 4) + b"end"]
    os.close(writer)


def test_follow_goes_on_where_tail_stops_until_cancelled(start: Start, memory: Memory) -> None:
    pump, writer = start()
    os.write(writer, b"one\ntw")
    pump.drain()
    seen = pump.tail(9, unfinished=False)
    also: list[bytes] = []
    cancel = pump.follow(seen.extend)
    cancel_other = pump.follow(also.extend)
    os.write(writer, b"o\nthree\n\nfo")
    pump.drain()
    cancel()
    cancel()
    os.write(writer, b"ur\n")
    pump.drain()
    cancel_other()
    assert seen == [b"one", b"two", b"three", b""]
    assert also == [b"two", b"three", b"", b"four"]
    assert memory.text == b"one\ntwo\nthree\n\nfour\n"
    os.close(writer)


# Formats

NOW = 1_795_190_391_123_456_789  # 2026-11-20T15:59:51.123456789Z


def test_iso_timestamps_stand_before_each_line(start: Start, memory: Memory) -> None:
    pump, writer = start(timestamps="iso", clock=lambda: NOW)
    os.write(writer, b"one\n\ntwo\nunfinished")
    pump.drain()
    os.close(writer)
    pump.drain()
    stamp = b"2026-11-20T15:59:51.123Z "
    assert memory.text == stamp + b"one\n" + stamp + b"\n" + stamp + b"two\n" + stamp + b"unfinished\n"


def test_tai64n_timestamps_are_multilogs(start: Start, memory: Memory) -> None:
    # The label of cr.yp.to/daemontools/tai64nlocal.html. multilog writes, and tai64nlocal takes away, 2**62 + 10.
    pump, writer = start(timestamps="tai64n", clock=lambda: 935_467_445_787_492_500)
    os.write(writer, b"mark\n")
    pump.drain()
    os.close(writer)
    assert memory.text == b"@4000000037c219bf2ef02e94 mark\n"


def test_a_label_stands_between_timestamp_and_line(start: Start, memory: Memory) -> None:
    pump, writer = start(label="app_00 | ")
    os.write(writer, b"one\ntwo\n")
    pump.drain()
    os.close(writer)
    assert memory.text == b"app_00 | one\napp_00 | two\n"


def test_a_line_in_pieces_gets_one_timestamp(start: Start, memory: Memory) -> None:
    pump, writer = start(timestamps="iso", clock=lambda: NOW)
    os.set_blocking(writer, False)
    for _ in range(5):
        assert os.write(writer, b"x" * 50_000) == 50_000
        pump.drain()
    os.write(writer, b"end\nnext\n")
    pump.drain()
    os.close(writer)
    stamp = b"2026-11-20T15:59:51.123Z "
    assert memory.text == stamp + b"x" * 250_000 + b"end\n" + stamp + b"next\n"


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(
        (st.binary(max_size=60) | st.binary(max_size=20).map(lambda inside: b"{%b}" % inside)).map(
            lambda line: line.replace(b"\n", b"")
        ),
        min_size=1,
        max_size=20,
    )
)
def test_json_is_one_valid_object_a_line_whatever_the_child_writes(lines: list[bytes]) -> None:
    loop = asyncio.new_event_loop()
    memory = Memory()
    reader, writer = child_pipe()
    pump = Pump(loop, reader, memory, process='a"b:\n', stream="stderr", format="json", clock=lambda: NOW)
    os.write(writer, b"".join(line + b"\n" for line in lines))
    os.close(writer)
    pump.drain()
    written = memory.text.decode("utf-8", "strict").removesuffix("\n").split("\n")
    assert [json.loads(line) for line in written] == [
        {
            "time": "2026-11-20T15:59:51.123Z",
            "process": 'a"b:\n',
            "stream": "stderr",
            **(
                {"json": {}}
                if re.fullmatch(rb"{[ \t\r]*}", line)
                else {"message": line.decode("utf-8", "backslashreplace")}
            ),
        }
        for line in lines
    ]
    loop.close()


def said_as_json(start: Start, memory: Memory, line: bytes) -> dict[str, object]:
    pump, writer = start(format="json", clock=lambda: NOW)
    os.write(writer, line + b"\n")
    pump.drain()
    os.close(writer)
    (written,) = memory.text.splitlines()
    said: dict[str, object] = json.loads(written)
    assert (said.pop("time"), said.pop("process"), said.pop("stream")) == (
        "2026-11-20T15:59:51.123Z",
        "app:app_00",
        "stdout",
    )
    return said


@pytest.mark.parametrize(
    "line",
    [
        b'{"event":"paid","order":17}',
        b"{}",
        b'{ "a" : [1, {"b": null}], "caf\xc3\xa9" : "\\u0000\\n" }',
        b'{"time":"never","process":"other:other_00","stream":"stderr","message":"forged","json":1}',
        b'{"n":123456789012345678901234567890,"x":1.0e3}',
        b'{"a":\r1}\r',
    ],
)
def test_a_line_that_is_a_json_object_is_one_in_json(line: bytes, start: Start, memory: Memory) -> None:
    """A part of ours, of which it can change nothing."""
    assert said_as_json(start, memory, line) == {"json": json.loads(line)}
    assert b"\r" not in memory.text


@pytest.mark.parametrize(
    "line",
    [
        b'{"a":1',
        b'{"a":1},"process":"other:other_00"}',
        b'{"a":1} {"b":2}',
        b'{"a":NaN}',
        b'{"a":"\xff"}',
        b'{"a":"\x1b[2J"}',
        b'{"a":"\\ud800"}',
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"n":' + b"1" * 5000 + b"}",
        b"[1]",
        b'"text"',
        b"{not json}",
    ],
    ids=lambda line: line[:12].decode("latin-1"),
)
def test_what_is_no_json_object_is_a_message(line: bytes, start: Start, memory: Memory) -> None:
    assert said_as_json(start, memory, line) == {"message": line.decode("utf-8", "backslashreplace")}


def test_a_line_in_pieces_is_several_json_objects(start: Start, memory: Memory) -> None:
    pump, writer = start(format="json", clock=lambda: NOW)
    os.set_blocking(writer, False)
    for piece in (b"x" * 50_000, b"x" * 50_000, b"\nnext\n"):
        os.write(writer, piece)
        pump.drain()
    os.close(writer)
    assert [json.loads(line)["message"] for line in memory.text.splitlines()] == ["x" * 100_000, "next"]
