"""The control client: it gets its answer, or says in words why not."""

import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fcgimgr.control.client import Client
from fcgimgr.control.messages import (
    NO_SUCH_NAME,
    ControlError,
    Line,
    NamesParams,
    NoManager,
    Pong,
    ProcessVerdict,
    Progress,
    Tail,
    TailParams,
    Verdict,
)
from tests.unit.scripted_manager import Connection, ScriptedManager

PONG = Pong(pid=1, version="0.1.0")


def test_a_call_returns_the_typed_result(tmp_path: Path):
    with ScriptedManager(tmp_path / "m", ping=PONG), Client(str(tmp_path / "m")) as client:
        assert client.call("ping", answer=Pong) == PONG
        assert client.call("ping", answer=Pong) == PONG


def test_raw_is_the_answer_as_it_came(tmp_path: Path):
    with ScriptedManager(tmp_path / "m", ping={"pong": True, "mood": 1}), Client(str(tmp_path / "m")) as client:
        assert bytes(client.call("ping", answer=msgspec.Raw)) == b'{"pong":true,"mood":1}'


def test_progress_is_told_while_a_call_waits(tmp_path: Path):
    verdict = Verdict(ok=True, processes=(ProcessVerdict(name="app:app_00", ok=True, result="started"),))

    def start(connection: Connection, request: object) -> Verdict:
        connection.notify("progress", Progress(name="app:app_00", state="STARTING"))
        connection.notify("something_new", {"x": 1})
        return verdict

    told = []
    with ScriptedManager(tmp_path / "m", start=start), Client(str(tmp_path / "m")) as client:
        assert client.call("start", NamesParams(names=("app",)), answer=Verdict, on_event=told.append) == verdict
    assert told == [Progress(name="app:app_00", state="STARTING")]


def test_following_ends_when_the_manager_hangs_up(tmp_path: Path):
    def tail(connection: Connection, request: object) -> None:
        connection.send(b'{"jsonrpc":"2.0","id":1,"result":{"lines":["one"]}}\n')
        for text in ("two", "three"):
            connection.notify("line", Line(process="app:app_00", stream="stdout", text=text))
        connection.hang_up()

    with ScriptedManager(tmp_path / "m", tail=tail), Client(str(tmp_path / "m")) as client:
        assert client.call("tail", TailParams(name="app", follow=True), answer=Tail).lines == ("one",)
        assert [notice.text for notice in client.notices() if isinstance(notice, Line)] == ["two", "three"]


def test_a_refusal_carries_its_code_and_words(tmp_path: Path):
    refusal = ControlError("no 'ap'; did you mean 'app'?", code=NO_SUCH_NAME)
    with ScriptedManager(tmp_path / "m", start=refusal), Client(str(tmp_path / "m")) as client:
        with pytest.raises(ControlError, match="did you mean") as caught:
            client.call("start", NamesParams(names=("ap",)), answer=Verdict)
        assert caught.value.code == NO_SUCH_NAME


def test_a_refusal_before_the_question_is_heard(tmp_path: Path):
    """Too many clients: the manager says so and hangs up without reading."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "m"))
        listener.listen()
        client = Client(str(tmp_path / "m"))
        accepted, _ = listener.accept()
        accepted.sendall(b'{"jsonrpc":"2.0","id":null,"error":{"code":2,"message":"64 clients are connected"}}\n')
        accepted.close()
        with client, pytest.raises(ControlError, match="64 clients"):
            client.call("ping", answer=Pong)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "went away before it answered"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not understood"),
        (b'{"jsonrpc":"2.0","id":99,"result":{}}\n', "another question"),
        (b'{"jsonrpc":"2.0","id":1}\n', "neither a result nor an error"),
        (b'{"jsonrpc":"2.0","id":1,"result":{"pong":true}}\n', "not understood"),
    ],
)
def test_an_answer_that_is_none_is_a_control_error(tmp_path: Path, answer: bytes, words: str):
    def ping(connection: Connection, request: object) -> None:
        connection.send(answer)
        connection.hang_up()

    with (
        ScriptedManager(tmp_path / "m", ping=ping),
        Client(str(tmp_path / "m")) as client,
        pytest.raises(ControlError, match=words),
    ):
        client.call("ping", answer=Pong)


def test_a_silent_manager_is_given_up(tmp_path: Path):
    with (
        ScriptedManager(tmp_path / "m"),
        Client(str(tmp_path / "m"), timeout=0.05) as client,
        pytest.raises(ControlError, match=r"not answered for 0\.05 s"),
    ):
        client.call("ping", answer=Pong)


def test_nobody_there_says_which_socket_and_why(tmp_path: Path):
    with pytest.raises(NoManager, match=f"no manager at {tmp_path}/m: there is no such socket"):
        Client(str(tmp_path / "m"))
    with pytest.raises(NoManager, match="at most 107 bytes"):
        Client("/" + "x" * 107)


def test_a_leftover_socket_is_nobody(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "m"))
    with pytest.raises(NoManager, match="nobody listens there"):
        Client(str(tmp_path / "m"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_socket_of_another_user_says_permission(tmp_path: Path):
    with ScriptedManager(tmp_path / "m", ping=PONG):
        (tmp_path / "m").chmod(0o600)
        tmp_path.chmod(0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(ControlError, match="no permission to speak to the manager") as refused:
                Client(str(tmp_path / "m"))
        finally:
            os.seteuid(0)
        assert not isinstance(refused.value, NoManager)


def test_the_managers_process_is_known(tmp_path: Path):
    script = (
        "import socket, sys; l = socket.socket(socket.AF_UNIX); l.bind(sys.argv[1]); l.listen();"
        "print(flush=True); c, _ = l.accept(); c.recv(1)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "m")], stdout=subprocess.PIPE) as manager:
        assert manager.stdout is not None
        manager.stdout.readline()
        with Client(str(tmp_path / "m")) as client:
            process = client.process()
            assert process is not None
            assert select.select([process], [], [], 0)[0] == []
        assert select.select([process], [], [], 10)[0] == [process]
        os.close(process)
