"""Nothing that is sent to a running manager disturbs it: not on its control socket, not on $NOTIFY_SOCKET, not into its
logs, and not in answer to its pings."""

import copy
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.commands import Manager, running
from tests.waiting import eventually

live = settings(deadline=None, max_examples=100, database=None)

# Does with bytes what it is told, a line each: "notify HEX", "out HEX", "err HEX". Opens the FIFO both ways, to hear
# on when the test has closed it.
PUPPET = """\
import os, socket, sys
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
for line in os.fdopen(os.open(sys.argv[1], os.O_RDWR), "r", buffering=1):
    where, _, content = line.strip().partition(" ")
    content = bytes.fromhex(content)
    if where == "notify":
        notify.send(content)
    else:
        while content:
            content = content[os.write(1 if where == "out" else 2, content):]
"""

CONFIG = """\
loglevel = "debug"
[defaults]
startsecs = 0
directory = "%(here)s"

[program.idle]
command = "sleep 1000"
"""

PROGRAM = """
[program.{name}]
command = "{python} -S -E puppet.py {name}.fifo"
stdout_logfile = "{name}.out"
stderr_logfile = "{name}.err"
stdout_logfile_maxbytes = 0
log_format = "{format}"
log_timestamps = "{timestamps}"
"""


class Puppet:
    """One process of PUPPET."""

    def __init__(self, directory: Path, name: str) -> None:
        self.out, self.err = directory / f"{name}.out", directory / f"{name}.err"
        self.name = name
        os.mkfifo(directory / f"{name}.fifo")
        self._fifo = open(directory / f"{name}.fifo", "r+b", buffering=0)  # noqa: SIM115 - closed at the end

    def tell(self, where: str, content: bytes) -> None:
        self._fifo.write(b"%b %b\n" % (where.encode(), content.hex().encode()))

    def close(self) -> None:
        self._fifo.close()


class Stage:
    """A manager of two puppets and an idle program, for all the examples of a module."""

    def __init__(self, manager: Manager, raw: Puppet, dressed: Puppet) -> None:
        self.manager, self.raw, self.dressed = manager, raw, dressed
        self._asked = 0

    def is_undisturbed(self) -> None:
        """The manager answers, its processes run, and it has found no fault with itself."""
        status = self.manager.status()
        assert {process.state for pool in status.pools for process in pool.processes} == {"RUNNING"}
        assert "Traceback" not in self.manager.output()
        assert "internal error" not in self.manager.output()

    def requests(self, puppet: Puppet) -> int | None:
        (pool,) = (pool for pool in self.manager.status().pools if pool.name == puppet.name)
        return pool.processes[0].requests

    def next_number(self) -> int:
        self._asked += 1
        return self._asked


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("stage")
    (directory / "puppet.py").write_text(PUPPET)
    raw, dressed = Puppet(directory, "raw"), Puppet(directory, "dressed")
    text = CONFIG
    for puppet, form, timestamps in ((raw, "raw", "none"), (dressed, "json", "iso")):
        text += PROGRAM.format(name=puppet.name, python=sys.executable, format=form, timestamps=timestamps)
    with running(directory, text) as manager:
        yield Stage(manager, raw, dressed)
    raw.close()
    dressed.close()


# -- the control socket -----------------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
# Whatever may be said without changing what the next example finds.
names = st.sampled_from(["idle", "idle:*", "idle:idle_00", "all", "", "no", "idle:", ":", "\0", "x" * 300])
params = {
    "ping": st.just({}),
    "status": st.fixed_dictionaries({}, optional={"names": st.lists(names, max_size=3), "detail": st.booleans()}),
    "start": st.fixed_dictionaries({"names": st.lists(names, max_size=3)}, optional={"wait": st.booleans()}),
    "scale": st.fixed_dictionaries({"name": names, "numprocs": st.sampled_from(["1", "+0", "0", "-3", "999999", "n"])}),
    "signal": st.fixed_dictionaries(
        {"names": st.lists(names), "signal": st.sampled_from(["CONT", "0", "-1", "X", ""])}
    ),
    "tail": st.fixed_dictionaries(
        {"name": names}, optional={"stream": st.text(max_size=6), "lines": st.integers(), "follow": st.booleans()}
    ),
    "reopen": st.just({}),
    "events": st.fixed_dictionaries({}, optional={"n": st.integers(-1, 2000), "follow": st.booleans()}),
    "probe": st.fixed_dictionaries({"kind": st.sampled_from(["live", "ready", "dead"])}),
    "check": st.just({}),
    "shutdown": st.just({"now": "perhaps"}),
    "no such method": anything,
}
requests = st.sampled_from(sorted(params)).flatmap(
    lambda method: st.fixed_dictionaries(
        {
            "jsonrpc": st.just("2.0"),
            "id": st.integers() | st.text(max_size=5),
            "method": st.just(method),
            "params": params[method],
        }
    )
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A request with something wrong in it, perhaps."""
    request: dict[str, Any] = copy.deepcopy(draw(requests))  # parts of it belong to the strategies
    where = draw(st.sampled_from([None, "request", "params", "bytes"]))
    if where in ("request", "params"):
        target = request if where == "request" else request["params"]
        if isinstance(target, dict):
            key = draw(st.sampled_from(sorted(target)) if target else st.text(max_size=5))
            # `shutdown` with good parameters would be obeyed; "wait" would be one.
            if draw(st.booleans()) and request["method"] != "shutdown":
                target.pop(key, None)
            elif request["method"] != "shutdown" or where == "request":
                target[key] = draw(anything.filter(lambda value: value != {}))
    line = json.dumps(request, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if where == "bytes" and request["method"] != "shutdown":
        start = draw(st.integers(0, len(line)))
        line = line[:start] + draw(st.binary(max_size=5)) + line[start + draw(st.integers(0, 5)) :]
    return line


def said_to(manager: Manager, *pieces: bytes) -> list[dict[str, Any]]:
    """Everything that the manager answers to these bytes, until it hangs up."""
    received = b""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(manager.control))
        try:
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass  # It has hung up already, as it may.
        while more := receive(client):
            received += more
    assert received[-1:] in (b"", b"\n")
    return [json.loads(line) for line in received.splitlines()]


def receive(client: socket.socket) -> bytes:
    try:
        return client.recv(1 << 20)
    except ConnectionResetError:
        return b""


def is_good(message: dict[str, Any]) -> bool:
    if "method" in message:
        return message.keys() == {"jsonrpc", "method", "params"}
    if "result" in message:
        return message.keys() == {"jsonrpc", "id", "result"}
    return message.keys() == {"jsonrpc", "id", "error"} and message["error"].keys() == {"code", "message"}


@live
@given(content=st.lists(st.binary(max_size=200), max_size=5))
def test_bytes_of_any_kind_are_refused_or_hung_up_on(content: list[bytes], stage: Stage) -> None:
    for message in said_to(stage.manager, *content):
        assert "error" in message
        assert is_good(message)
    stage.is_undisturbed()


@live
@given(lines=st.lists(mutated(), min_size=1, max_size=20), cut=st.integers(0, 1000))
def test_requests_with_anything_wrong_get_an_answer_each(lines: list[bytes], cut: int, stage: Stage) -> None:
    content = b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines)
    messages = said_to(stage.manager, content[:cut], content[cut:])
    assert all(map(is_good, messages))
    asked = sum(1 for line in lines if line.strip())
    assert sum("method" not in message for message in messages) == asked
    assert all(message["error"]["code"] != -32603 for message in messages if "error" in message)
    stage.is_undisturbed()


def test_a_line_without_end_is_cut_off(stage: Stage) -> None:
    (message,) = said_to(stage.manager, *[b"x" * 65536] * 40)
    assert "longer than" in message["error"]["message"]
    stage.is_undisturbed()


def test_nesting_without_end_is_refused(stage: Stage) -> None:
    for opening in (b"[", b'{"a":', b'{"jsonrpc":"2.0","id":1,"method":"ping","params":['):
        for message in said_to(stage.manager, opening + b"[" * 500_000 + b"\n"):
            assert "error" in message
    stage.is_undisturbed()


# -- what children say ------------------------------------------------------------------------------------------------

words = st.sampled_from([b"READY=1", b"STATUS=", b"X_REQUESTS=", b"WATCHDOG=1", b"=", b"\n", b"\xff", b"9" * 30, b"\0"])


@live
@given(messages=st.lists(st.binary(max_size=100) | st.lists(words, max_size=9).map(b"".join), max_size=10))
def test_any_datagram_on_the_notify_socket_is_survived(messages: list[bytes], stage: Stage) -> None:
    for message in messages:
        stage.raw.tell("notify", message)
    number = stage.next_number()
    stage.raw.tell("notify", b"X_REQUESTS=%d" % number)
    eventually(lambda: stage.requests(stage.raw) == number)
    stage.is_undisturbed()


def test_a_datagram_of_any_size_is_survived(stage: Stage) -> None:
    stage.raw.tell("notify", b"STATUS=" + b"x" * 30_000)
    number = stage.next_number()
    stage.raw.tell("notify", b"X_REQUESTS=%d" % number)
    eventually(lambda: stage.requests(stage.raw) == number)
    stage.is_undisturbed()


def test_strangers_are_not_heard_on_the_notify_socket(stage: Stage) -> None:
    before = stage.requests(stage.raw)
    (path,) = stage.manager.control.with_suffix(".state").glob("notify-*.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.connect(str(path))
        for message in (b"X_REQUESTS=77777777", b"READY=1", b"\xff" * 100, b""):
            stranger.send(message)
    eventually(lambda: stage.manager.output().count("not ours was dropped") >= 4)
    assert stage.requests(stage.raw) == before
    stage.is_undisturbed()


@live
@given(pieces=st.lists(st.binary(max_size=300), max_size=8))
def test_any_bytes_of_a_child_reach_its_log_as_they_are(pieces: list[bytes], stage: Stage) -> None:
    out, err = stage.raw.out, stage.raw.err
    before = out.stat().st_size if out.exists() else 0
    for piece in pieces:
        stage.raw.tell("out", piece)
        stage.raw.tell("err", piece)
    end = b"\nend %d\n" % stage.next_number()
    stage.raw.tell("out", end)
    stage.raw.tell("err", end)
    eventually(lambda: out.read_bytes().endswith(end) and err.read_bytes().endswith(end))
    assert out.read_bytes()[before:] == b"".join(pieces) + end
    stage.is_undisturbed()


def test_tail_shows_any_bytes(stage: Stage) -> None:
    stage.raw.tell("out", bytes(range(256)) + b"\n" + bytes(range(255, -1, -1)) + b"\n")
    eventually(lambda: "\\xff" in stage.manager("tail", "raw").succeeds())
    stage.is_undisturbed()


@live
@given(pieces=st.lists(st.binary(max_size=300), max_size=8))
def test_any_bytes_of_a_child_make_good_json(pieces: list[bytes], stage: Stage) -> None:
    out = stage.dressed.out
    before = out.stat().st_size if out.exists() else 0
    for piece in pieces:
        stage.dressed.tell("out", piece)
    end = f"end {stage.next_number()}"
    stage.dressed.tell("out", f"\n{end}\n".encode())
    eventually(lambda: f'"{end}"'.encode() in out.read_bytes()[before:])
    entries = [json.loads(line) for line in out.read_bytes()[before:].splitlines()]
    said = b"".join(pieces).decode("utf-8", "backslashreplace").split("\n")
    assert [entry["message"] for entry in entries] == [*said, end]
    stage.is_undisturbed()


# -- what a pool answers to a ping ------------------------------------------------------------------------------------

GOOD = (
    b"\1\6\0\1\0\x17\0\0Status: 200 OK\r\n\r\nready"  # 23 bytes
    b"\1\6\0\1\0\0\0\0"
    b"\1\3\0\1\0\x08\0\0\0\0\0\0\0\0\0\0"
)
GARBAGE = [
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"\0" * 100,
    b"\xff" * 100_000,
    GOOD[:5],
    GOOD[:-1],
    GOOD.replace(b"\0\1\0", b"\x7f\1\0"),  # another request's id
    b"\1\6\0\1\xff\xff\xff\0" + b"x" * 100,  # a record that does not end
    b"\1\6\0\1\0\x10\0\0Status: bogus\r\n\r" + GOOD[-16:],
    GOOD.replace(b"Status: 200", b"Status: 999"),
    GOOD.replace(b"Status: 200", b"Status: \xff\xfe\xfd"),
    GOOD[:-8] + b"\0\0\0\0\3\0\0\0",  # FCGI_UNKNOWN_ROLE
    b"\1\6\0\1\xff\xff\0\0" + b"X: y\r\n" * 10922 + b"yyy",  # headers without end
]

LIAR = """\
import socket, sys
listener = socket.socket(fileno=0)
listener.setblocking(True)
for line in open("answers"):
    connection, _ = listener.accept()
    with connection:
        try:
            connection.sendall(bytes.fromhex(line))
            print("answered", flush=True)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            pass
while True:
    listener.accept()[0].close()
"""


def test_garbage_in_answer_to_a_ping_is_survived(tmp_path: Path) -> None:
    (tmp_path / "liar.py").write_text(LIAR)
    (tmp_path / "answers").write_text("".join(f"{answer.hex()}\n" for answer in [*GARBAGE, GOOD]))
    pool = f"""\
[pool.liar]
socket = "unix:%(here)s/liar.sock"
command = "{sys.executable} -S -E liar.py"
directory = "%(here)s"
stdout_logfile = "liar.out"
ready = "ping"
ready_timeout = 1000
stopwaitsecs = 1
"""
    with running(tmp_path, pool) as manager:
        # Ready: so the last answer, the good one, was heard, and none of the others was taken for one.
        assert (tmp_path / "liar.out").read_text().count("answered") == len(GARBAGE) + 1
        assert "ping: " in manager.output()
        assert "Traceback" not in manager.output()
        assert "internal error" not in manager.output()
