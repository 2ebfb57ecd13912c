"""In JSON a traceback of a worker is one record, however it comes; nothing else is put together, and nothing lost."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgimgr.manager.logs.inhand import LINE_LIMIT
from fcgimgr.manager.logs.pump import Pump
from fcgimgr.manager.logs.tracebacks import records
from tests.unit.logs_bench import Memory, child_pipe, run_once, run_until

CHECKOUT = Path(__file__).parents[2]

STACK = """\
Traceback (most recent call last):
  File "/srv/app.py", line 3, in view
    return order[number]
           ~~~~~^^^^^^^^
  [Previous line repeated 3 more times]
KeyError: 17
"""
CHAIN = f"""\
{STACK}
During handling of the above exception, another exception occurred:

{STACK}"""
GROUP = """\
  + Exception Group Traceback (most recent call last):
  |   File "/srv/app.py", line 3, in view
  | ExceptionGroup: two (1 sub-exception)
  +-+---------------- 1 ----------------
    | ValueError: one
    +------------------------------------
"""
THREADS = """\
Thread 0x00007f1be35fd6c0 (most recent call first):
  File "/srv/report.py", line 41 in rows

Current thread 0x00007f1be35fd6c1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/srv/report.py", line 12 in report
"""
CRASH = f"""\
Fatal Python error: Segmentation fault

{THREADS}
Extension modules: greenlet._greenlet (total: 1)
"""
SAID = """\
fcgimgr worker: the application failed at GET /
  Traceback (most recent call last):
    File "/srv/app.py", line 3, in view
  psycopg.UndefinedTable: relation "orders" does not exist
  LINE 1: select * from orders
  \x20
"""
SLOW = """\
2026-11-20T17:12:40Z app:app_02 pid=1 GET / has taken 2.000 s and is here:
  File "/srv/views.py", line 12, in report
    return render(rows(year))

"""
LOGGED = f"ERROR in app: Exception on / [GET]\n{STACK}"

WHOLE = [STACK, CHAIN, GROUP, THREADS, CRASH, SAID, SLOW, LOGGED]  # the last two are written at one go


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def start(loop: asyncio.AbstractEventLoop, memory: Memory) -> Iterator[Callable[[], tuple[Pump, int]]]:
    pumps: list[Pump] = []

    def start() -> tuple[Pump, int]:
        reader, writer = child_pipe()
        pump = Pump(loop, reader, memory, process="a", stream="stderr", format="json", gathers=True, clock=lambda: 0)
        pumps.append(pump)
        return pump, writer

    yield start
    for pump in pumps:
        pump.close()


def messages(memory: Memory) -> list[str]:
    return [json.loads(line)["message"] for line in memory.text.splitlines()]


@pytest.mark.parametrize("whole", WHOLE, ids=lambda text: text.split("\n")[0][:24])
def test_it_is_one_record_and_what_stands_beside_it_is_another(whole: str) -> None:
    text = whole.encode()
    before = b"" if whole in (STACK, CHAIN, GROUP) else b"before\n"  # else that is the line that introduces it
    behind = b"" if whole == THREADS else b"behind\n"
    assert records(before + text + behind) == [
        *before.splitlines(),
        text.removesuffix(b"\n"),
        *behind.splitlines(),
    ]


def test_plain_lines_are_records_of_their_own() -> None:
    text = b"one\n\n  indented\n\ttoo\nfcgimgr worker: connection closed\nThe above exception\n\xff\r\n"
    assert records(text) == text.removesuffix(b"\n").split(b"\n")


LINES = sorted(
    {line for whole in WHOLE for line in whole.encode().splitlines(keepends=True)} | {b"x\n", b"\n", b"  \n"}
)


@given(lines=st.lists(st.sampled_from(LINES), min_size=1, max_size=30), end=st.sampled_from([b"", b"cut"]))
def test_nothing_is_lost_or_changed_in_whatever_order_lines_come(lines: list[bytes], end: bytes) -> None:
    chunk = b"".join(lines) + end
    assert b"".join(record + b"\n" for record in records(chunk)) == chunk + (b"\n" if end else b"")


@pytest.mark.parametrize("whole", WHOLE[:6], ids=lambda text: text.split("\n")[0][:24])
def test_it_may_come_bit_by_bit(whole: str, start: Callable[[], tuple[Pump, int]], memory: Memory) -> None:
    """As the interpreter and faulthandler write it."""
    pump, writer = start()
    for byte in whole.encode():
        os.write(writer, bytes([byte]))
        pump.drain()
    os.write(writer, b"behind\n")
    pump.drain()
    os.close(writer)
    pump.close()
    told = messages(memory)
    assert len(told) == 2, told
    assert told[-1] == "behind"


def test_what_may_go_on_is_not_waited_for_for_long(
    start: Callable[[], tuple[Pump, int]], memory: Memory, loop: asyncio.AbstractEventLoop
) -> None:
    _, writer = start()
    os.write(writer, f"{STACK}begun".encode())
    run_until(loop, lambda: messages(memory) == [STACK.removesuffix("\n")])
    os.write(writer, b" and ended\n")
    run_until(loop, lambda: messages(memory)[1:] == ["begun and ended"])
    os.close(writer)


def test_a_plain_line_does_not_wait(
    start: Callable[[], tuple[Pump, int]], memory: Memory, loop: asyncio.AbstractEventLoop
) -> None:
    pump, writer = start()
    os.write(writer, b"one\ntwo\n")
    pump.drain()
    run_once(loop)
    assert messages(memory) == ["one", "two"]
    os.close(writer)


def test_what_the_dead_have_said_last_is_handed_on_at_once(
    start: Callable[[], tuple[Pump, int]], memory: Memory
) -> None:
    pump, writer = start()
    os.write(writer, CRASH.encode())
    os.close(writer)
    pump.drain()
    assert messages(memory) == [CRASH.rstrip("\n")]
    assert pump.tail(1) == [b"Extension modules: greenlet._greenlet (total: 1)"]


def test_one_without_end_is_handed_on_in_parts(start: Callable[[], tuple[Pump, int]], memory: Memory) -> None:
    pump, writer = start()
    line = b'  File "/srv/deep.py", line 3, in view\n'
    count = 3 * LINE_LIMIT // len(line)
    os.write(writer, b"Traceback (most recent call last):\n")
    for _ in range(count):
        os.write(writer, line)
        pump.drain()
    assert memory.chunks
    os.close(writer)
    pump.close()
    assert "".join(message + "\n" for message in messages(memory)).count("deep.py") == count


@pytest.mark.parametrize("log_format", ["json", "raw"])
def test_the_worker_says_an_exception_so_that_its_end_is_certain(log_format: str) -> None:
    """Whatever its message looks like."""
    program = """if True:
        from fcgimgr.worker.saying import say_failed
        try:
            raise LookupError("one\\n\\ntwo\\nTraceback (most recent call last):")
        except LookupError as error:
            say_failed({}, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"FCGIMGR_LOG_FORMAT": log_format},
        cwd=CHECKOUT,
        capture_output=True,
        check=True,
    )
    assert (len(records(done.stderr)) == 1) == (log_format == "json")
    assert done.stderr.replace(b"\n  ", b"\n").endswith(
        b"LookupError: one\n\ntwo\nTraceback (most recent call last):\n"
    )
