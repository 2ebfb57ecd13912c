"""The scoreboard: what a worker writes is what the manager reads, and nothing that it writes can mislead it further."""

import itertools
import math
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.fastcgi import scoreboard
from fcgimgr.fastcgi.scoreboard import (
    COUNT,
    HALVES,
    HEAD_SIZE,
    IDLE,
    LANE_SIZE,
    MAGIC,
    THREAD,
    THREAD_AT,
    URI_LONGEST,
    VARIABLE,
    WORK,
    WORKING,
    Reading,
    size,
)
from fcgimgr.linux.sharedmem import open_shared, shared_memory
from fcgimgr.worker.board import Board, inherited_board
from fcgimgr.worker.watching import Watch


@pytest.fixture
def fd():
    memory = shared_memory("test", size(3))
    yield memory
    os.close(memory)


def read(fd: int) -> Reading | None:
    return scoreboard.read(lambda: os.pread(fd, 100_000, 0), time.monotonic())


def test_a_lane_has_room_for_both_halves():
    even, odd = HALVES
    assert THREAD_AT + THREAD.size <= even
    assert even + WORK.size <= odd
    assert odd + WORK.size <= LANE_SIZE


def test_a_request_is_seen_while_it_is_in_hand_and_counted_when_it_is_over(fd: int):
    watch = Watch(Board(fd))
    assert read(fd) == Reading(0, None, ())
    began = time.monotonic()
    watch.begin({"REQUEST_METHOD": "POST", "REQUEST_URI": "/a%20b?x=1"}, time.monotonic())
    (request,) = read(fd).in_hand
    assert (request.method, request.uri, request.thread) == ("POST", "/a%20b?x=1", threading.get_ident())
    assert began <= request.since <= time.monotonic()
    assert watch.end(200, 5, time.monotonic())
    after = read(fd)
    assert (after.requests, after.in_hand) == (1, ())
    assert 0 <= after.last <= time.monotonic() - began


def test_without_a_request_uri_it_is_put_together(fd: int):
    watch = Watch(Board(fd))
    watch.begin(
        {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/app", "PATH_INFO": "/x", "QUERY_STRING": "q"}, time.monotonic()
    )
    assert read(fd).in_hand[0].uri == "/app/x?q"


def test_a_long_uri_is_cut_and_a_long_method_too(fd: int):
    watch = Watch(Board(fd))
    watch.begin({"REQUEST_METHOD": "M" * 1000, "REQUEST_URI": "/" + "u" * 100_000}, time.monotonic())
    (request,) = read(fd).in_hand
    assert request.uri == "/" + "u" * (URI_LONGEST - 1)
    assert request.method == "M" * 16


def test_each_thread_has_a_lane_and_one_too_many_is_served_unseen(fd: int):
    watch = Watch(Board(fd))
    inside, leave = threading.Barrier(6), threading.Event()

    def serve(number: int) -> None:
        watch.begin({"REQUEST_METHOD": "GET", "REQUEST_URI": f"/{number}"}, time.monotonic())
        inside.wait(10)
        leave.wait(10)
        watch.end(200, 0, time.monotonic())

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    assert len(read(fd).in_hand) == 3
    assert [request.since for request in read(fd).in_hand] == sorted(request.since for request in read(fd).in_hand)
    leave.set()
    for thread in threads:
        thread.join()
    assert (read(fd).requests, read(fd).in_hand) == (3, ())


def test_a_worker_without_a_board_serves_all_the_same():
    watch = Watch(None)
    watch.begin({"REQUEST_METHOD": "GET"}, time.monotonic())
    assert watch.end(200, 0, time.monotonic())


def lane(count: int = 1, **changed: object) -> bytes:
    fields = {
        "state": WORKING, "requests": 5, "since": 1.0, "last": 0.5, "method": b"GET", "length": 2, "uri": b"/x",
    } | changed  # fmt: skip
    shown = bytearray(LANE_SIZE)
    COUNT.pack_into(shown, 0, count)
    THREAD.pack_into(shown, THREAD_AT, 7)
    WORK.pack_into(shown, HALVES[count & 1], *fields.values())
    return MAGIC + bytes(HEAD_SIZE - len(MAGIC)) + shown


def parse(board: bytes, now: float) -> Reading | None:
    return scoreboard.read(lambda: board, now)


def test_a_lane_says_what_is_in_the_half_that_its_count_names():
    for count in (1, 2, 3, 2**32 - 1):
        assert parse(lane(count), 10.0) == Reading(5, None, (scoreboard.Request("GET", "/x", 1.0, 7),))
    other = bytearray(lane(1))
    COUNT.pack_into(other, HEAD_SIZE, 2)
    assert parse(bytes(other), 10.0) == Reading(0, None, ())
    assert parse(lane(0), 10.0) == Reading(0, None, ())


def test_a_lane_that_was_written_to_while_it_was_copied_is_read_again():
    copies = [lane(1, requests=1), lane(2, requests=2), lane(2, requests=3)]
    reading = scoreboard.read(lambda: copies.pop(0) if len(copies) > 1 else copies[0], 10.0)
    assert reading is not None
    assert reading.requests == 2
    counts = itertools.count(1)
    assert scoreboard.read(lambda: lane(next(counts)), 10.0) is None


def test_one_busy_lane_does_not_hide_the_others():
    counts = itertools.count(1)

    def copy() -> bytes:
        other = lane(next(counts) // 3 + 1, requests=1)
        return lane(8, requests=10) + other[HEAD_SIZE:]

    reading = scoreboard.read(copy, 10.0)
    assert reading is not None
    assert reading.requests == 11


def test_the_count_goes_round_past_zero(fd: int):
    written = Board(fd).lane()
    assert written is not None
    written._count = 2**32 - 4
    for number in range(6):
        written.work(number, 1.0, 0.0, "GET", f"/{number}")
        reading = read(fd)
        assert reading is not None
        assert [request.uri for request in reading.in_hand] == [f"/{number}"]
        written.rest(number + 1, 1.0, 0.0)
        reading = read(fd)
        assert reading is not None
        assert (reading.requests, reading.in_hand) == (number + 1, ())


@pytest.mark.parametrize(
    "changed",
    [{"state": 7}, {"since": math.nan}, {"since": math.inf}, {"since": -1.0}, {"since": 12.0}],
)
def test_a_lane_that_cannot_be_is_left_out(changed: dict[str, object]):
    assert parse(lane(**changed), 10.0) == Reading(0, None, ())


@pytest.mark.parametrize("last", [math.nan, math.inf, -math.inf, -0.5, 1e300])
def test_a_duration_that_cannot_be_is_unknown(last: float):
    assert parse(lane(state=IDLE, last=last), 10.0) == Reading(5, None, ())


def test_another_version_is_no_board():
    assert parse(b"fcgibrd9" + lane()[8:], 10.0) is None


@given(board=st.binary(max_size=HEAD_SIZE + 3 * LANE_SIZE), now=st.floats(0, 1e9))
def test_any_bytes_are_read_or_refused(board: bytes, now: float):
    for head in (board, MAGIC + board, MAGIC + bytes(HEAD_SIZE - 8) + board):
        reading = parse(head, now)
        if reading is not None:
            assert 0 <= reading.requests <= 2**53
            assert reading.last is None or reading.last >= 0
            assert all(0 <= request.since <= now for request in reading.in_hand)
            assert all(len(request.uri) <= URI_LONGEST for request in reading.in_hand)


@given(st.data())
def test_a_lane_with_any_fields_is_read_or_refused(data: st.DataObject):
    number = st.floats(allow_nan=True, allow_infinity=True)
    fields = {
        "state": data.draw(st.integers(0, 3)), "requests": data.draw(st.integers(0, 2**64 - 1)),
        "since": data.draw(number), "last": data.draw(number), "length": data.draw(st.integers(0, 2**32 - 1)),
        "method": data.draw(st.binary(max_size=16)), "uri": data.draw(st.binary(max_size=URI_LONGEST)),
    }  # fmt: skip
    reading = parse(lane(**fields), 100.0)
    assert reading is not None
    assert 0 <= reading.requests <= 2**53


def test_a_reader_never_sees_half_a_lane():
    """A writer in another process, as fast as it can, with lanes that are whole only if their parts agree: and its
    numbers never fall, whenever one looks."""
    fd = shared_memory("test", size(1))
    script = """
import sys
from fcgimgr.worker.board import Board
lane = Board(int(sys.argv[1])).lane()
lane.rest(0, 1.0, 0.0)
print(flush=True)
number = 0
while True:
    number += 1
    lane.work(number, 1.0, 0.0, str(number), str(number) * 50)
    lane.rest(number, 1.0, 0.0)
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(fd)],
        pass_fds=[fd],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        whole = before = 0
        for _ in range(20_000):
            reading = read(fd)
            if reading is None:
                continue
            assert reading.requests >= before
            before = reading.requests
            whole += len(reading.in_hand)
            for request in reading.in_hand:
                assert request.uri.startswith(request.method * 2)
                assert str(reading.requests) == request.method
        assert whole > 100
    finally:
        writer.kill()
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()
        os.close(fd)


def test_the_board_is_taken_from_the_environment_and_no_program_of_the_application_gets_it(fd: int):
    os.set_inheritable(fd, True)
    environ = {VARIABLE: str(fd), "PATH": "/bin"}
    board = inherited_board(environ)
    assert board is not None
    assert environ == {"PATH": "/bin"}
    assert not os.get_inheritable(fd)


@pytest.mark.parametrize("named", ["", "x", "9999", "-1"])
def test_a_board_that_is_not_there_is_done_without(named: str):
    assert inherited_board({VARIABLE: named} if named else {}) is None


def test_nothing_but_a_board_is_ever_written_to(tmp_path: Path):
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"x" * 1000)
        file.flush()
        assert inherited_board({VARIABLE: str(file.fileno())}) is None
        assert (tmp_path / "file").read_bytes() == b"x" * 1000


def test_nobody_can_change_its_size(fd: int):
    for length in (0, 10**6):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, length)


def test_it_is_found_again_by_who_may_look_and_taken_for_nothing_else(fd: int, tmp_path: Path):
    inode = os.fstat(fd).st_ino
    again = open_shared(os.getpid(), fd, inode)
    assert again is not None
    Watch(Board(fd)).begin({"REQUEST_METHOD": "GET", "REQUEST_URI": "/here"}, time.monotonic())
    assert read(again).in_hand[0].uri == "/here"
    os.close(again)
    assert open_shared(os.getpid(), fd, inode + 1) is None
    assert open_shared(os.getpid(), 9999, inode) is None
    with (tmp_path / "file").open("w+b") as file:
        assert open_shared(os.getpid(), file.fileno(), os.fstat(file.fileno()).st_ino) is None


def test_the_log_files_are_to_be_opened_anew_when_the_number_changes(fd: int):
    board = Board(fd)
    before = board.reopen
    os.pwrite(fd, struct.pack("<I", before + 1), 8)
    assert board.reopen == before + 1
