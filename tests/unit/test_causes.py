"""The line that tells most likely why a process has ended is found among its last, and none where there is none."""

import asyncio
import os
from typing import Any, cast

import msgspec
import pytest

from fcgimgr.config.pools import ProgramSettings
from fcgimgr.core.process import Exit
from fcgimgr.manager.logs.pump import Pump
from fcgimgr.manager.pools.causes import LONGEST, ORDERED_BEFORE, Cause, Causes, OrderRecord, OrdersRecord, last_word
from fcgimgr.manager.pools.slots import OF_ITS_END, Slot
from fcgimgr.manager.succession.state import decode, encode
from tests.unit.logs_bench import Clock, Memory, child_pipe
from tests.unit.test_state import V1

SETTINGS = ProgramSettings(name="app", command=("app",))
TRACEBACK = [
    b"Traceback (most recent call last):",
    b'  File "app.py", line 3, in <module>',
    b"    raise RuntimeError('no database')",
    b"RuntimeError: no database",
    b"",
]


def word(exit: Exit, lines: list[bytes], *, was_ready: bool = False) -> str:
    return last_word(SETTINGS, exit, lines, was_ready=was_ready)


def test_it_is_the_last_line_of_a_traceback() -> None:
    assert word(Exit(code=1), TRACEBACK) == "RuntimeError: no database"


def test_lines_that_belong_to_one_before_them_are_passed_over() -> None:
    assert word(Exit(code=2), [b"no config in any of", b"  /etc/app", b"\t/app"]) == "no config in any of"


@pytest.mark.parametrize("was_ready", [False, True])
def test_a_worker_of_ours_that_could_not_start_says_it_itself(was_ready: bool) -> None:
    own = b"fcgimgr worker: cannot load 'app:app': RuntimeError: no database"
    expected = "RuntimeError: no database" if was_ready else "cannot load 'app:app': RuntimeError: no database"
    assert word(Exit(code=1), [own, *TRACEBACK], was_ready=was_ready) == expected


@pytest.mark.parametrize(
    ("dump", "told"),
    [
        (
            """Fatal Python error: Segmentation fault

Thread 0x00007f3660e5b6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 982 in run

Current thread 0x00007f3661bebb80 (most recent call first):
  File "/srv/app.py", line 4 in <module>

Extension modules: numpy.core._multiarray_umath (total: 1)""",
            "Fatal Python error: Segmentation fault",
        ),
        (
            """Fatal Python error: Segmentation fault

Current thread 0x00007c8d1e1f6b80 [MainThread] (most recent call first):
  File "/srv/app.py", line 4 in <module>

Current thread's C stack trace (most recent call first):
  Binary file "/usr/bin/python3.14", at _Py_DumpStack+0x3d [0x6c4a]""",
            "Fatal Python error: Segmentation fault",
        ),
        (
            """Fatal Python error: init_fs_encoding: failed to get the Python codec of the filesystem encoding
Python runtime state: core initialized
ModuleNotFoundError: No module named 'encodings'

Current thread 0x00007f8a4b1c2740 (most recent call first):
  <no Python frame>""",
            "ModuleNotFoundError: No module named 'encodings'",
        ),
        (
            """Timeout (0:00:05)!
Thread 0x00007fb5f3c91b80 (most recent call first):
  File "/srv/app.py", line 3 in <module>""",
            "Timeout (0:00:05)!",
        ),
        (
            """fatal error: all goroutines are asleep - deadlock!

goroutine 1 [semacquire]:
sync.runtime_Semacquire(0x10?)
\t/usr/lib/go-1.19/src/runtime/sema.go:62 +0x25
sync.(*WaitGroup).Wait(0x0?)
\t/usr/lib/go-1.19/src/sync/waitgroup.go:139 +0x52
main.main()
\t/srv/d.go:3 +0x3e
created by net/http.(*Server).Serve
\t/usr/lib/go-1.19/src/net/http/server.go:3102 +0x4db
exit status 2""",
            "fatal error: all goroutines are asleep - deadlock!",
        ),
        (
            """panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x45c9b4]

goroutine 1 [running]:
main.(*shop).open(...)
\t/srv/x.go:2""",
            "panic: runtime error: invalid memory address or nil pointer dereference",
        ),
        (
            """/srv/n.js:1
throw new Error("no database")
^

Error: connect ECONNREFUSED 127.0.0.1:5432
    at Object.<anonymous> (/srv/n.js:1:7) {
  errno: -111,
  code: 'ECONNREFUSED'
}

Node.js v20.20.2""",
            "Error: connect ECONNREFUSED 127.0.0.1:5432",
        ),
        (
            """PHP Fatal error:  Uncaught Exception: boom in /srv/x.php:1
Stack trace:
#0 /srv/x.php(1): f()
#1 {main}
  thrown in /srv/x.php on line 1""",
            "PHP Fatal error:  Uncaught Exception: boom in /srv/x.php:1",
        ),
        (
            """thread 'main' panicked at src/main.rs:2:5:
no database
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace""",
            "no database",
        ),
    ],
)
def test_of_a_dump_it_is_the_line_that_says_what_was_wrong(dump: str, told: str) -> None:
    assert word(Exit(signal=11), dump.encode().split(b"\n"), was_ready=True) == told


def test_a_dump_whose_beginning_is_lost_tells_nothing() -> None:
    lines = [b"Current thread 0x00007f3661bebb80 (most recent call first):", b'  File "/srv/app.py", line 4 in f']
    assert word(Exit(signal=11), lines) == ""


def test_a_worker_of_ours_that_a_signal_ends_has_not_said_why_itself() -> None:
    lines = [b"fcgimgr worker: the import of 'app:app' has taken 27.0 s so far", b"Fatal Python error: Aborted"]
    assert word(Exit(signal=6), lines) == "Fatal Python error: Aborted"


def test_what_only_leads_to_the_lines_behind_it_is_left_out() -> None:
    own = b"fcgimgr worker: cannot load 'app:app': there is no module 'flask'; set pythonpath. Looked in:"
    assert word(Exit(code=1), [own, b"  /a", b"  /b"]).endswith("there is no module 'flask'; set pythonpath")


@pytest.mark.parametrize("exit", [Exit(code=0), Exit(signal=9), Exit(signal=15), Exit()])
def test_who_ended_as_expected_or_was_killed_has_said_nothing_of_it(exit: Exit) -> None:
    assert word(exit, [b"served 5 requests"]) == ""


def test_it_can_neither_forge_a_line_nor_fill_the_log() -> None:
    assert "\x1b" not in word(Exit(code=1), [b"\x1b[2J\xff\r"])
    assert len(word(Exit(code=1), [b"x" * 100_000])) == LONGEST + 1
    assert word(Exit(code=1), []) == ""


def test_orders_are_handed_on_and_what_is_read_of_them_can_forge_nothing() -> None:
    before, after = Causes(cast(Any, None)), Causes(cast(Any, None))
    before.order = Cause("by_hand", "restart --hard", "pid 7, uid 0")
    before.end = Cause("recycled", "generation 2 serves")
    generation = decode(V1).generations["app", 1]
    line = encode(msgspec.structs.replace(generation, orders=before.record))
    read = decode(V1 + line).generations["app", 1].orders
    after.take_over(read)
    assert (after.order, after.end) == (before.order, before.end)
    assert after.record == before.record

    hostile = OrderRecord("by_hand", "\x1b[2J" + "x" * 100_000, "\n" + "y" * 100_000)
    after.take_over(OrdersRecord(hostile, hostile, hostile))
    assert str(after.order).isprintable()
    assert len(str(after.order)) < 3 * LONGEST
    after.take_over(generation.orders)  # of a release that wrote none
    assert after.order == after.end == ORDERED_BEFORE


@pytest.mark.parametrize("redirected", [False, True])
def test_what_it_said_long_before_tells_nothing_of_its_end(redirected: bool) -> None:
    loop, clock, slot = asyncio.new_event_loop(), Clock(), Slot("app_00")
    loop.time = clock  # type: ignore[method-assign]
    pipes = [child_pipe() for _ in range(1 if redirected else 2)]
    stdout, stderr, *_ = *(Pump(loop, fd, Memory(), process="a", stream="a") for fd, _ in pipes), None
    assert stdout is not None
    slot.begin(clock(), stdout, stderr)
    said_to = pipes[-1][1]
    os.write(said_to, b"INFO: cache warmed up\n")
    slot.hear_last_words()
    clock.passes(OF_ITS_END)
    assert slot.lines_before_its_end() == [b"INFO: cache warmed up"]
    clock.passes(0.1)
    assert slot.lines_before_its_end() == []
    os.write(said_to, b"RuntimeError: no database\n")  # found when it is dead
    slot.hear_last_words()
    assert slot.lines_before_its_end()[-1] == b"RuntimeError: no database"
    slot.close()
    for _, writer in pipes:
        os.close(writer)
    loop.close()
