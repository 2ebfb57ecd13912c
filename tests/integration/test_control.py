"""The commands of `fcgimgr`, typed as a user types them, about a manager that really runs."""

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fcgimgr.control.messages import CLIENT_LIMIT
from tests.integration.commands import Done, Echo, Manager, comes, configuration, fcgimgr, lines_of, running, words
from tests.integration.ports import connect, free_address, free_port
from tests.integration.test_logs import echo_program
from tests.waiting import eventually

TWO = """\
[program.web]
command = "sleep 1000"
numprocs = 2
startsecs = 0

[program.queue]
command = "sleep 1000"
startsecs = 0

[group.both]
programs = ["web", "queue"]
"""

BROKEN = """\
[program.idle]
command = "sleep 1000"
startsecs = 0

[program.broken]
command = ['/bin/sh', '-c', 'echo no database >&2; exit 7']
startretries = 0
autostart = false
"""

# It says what it is told and goes on, until it is let go: `read` from a FIFO that only the test writes to.
STUBBORN = """\
[program.stubborn]
command = ['/bin/sh', '-c', '''
trap "echo told; read -r line <bye; exit" TERM
echo up
while :; do read -r line <never; done
''']
directory = "%(here)s"
stdout_logfile = "stubborn.log"
stopwaitsecs = 1000
startsecs = 0
"""


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Manager]:
    with running(tmp_path, TWO) as manager:
        yield manager


@pytest.fixture
def stubborn(tmp_path: Path) -> Iterator[Manager]:
    """A manager of a program that stops only when `let_go` lets it."""
    for fifo in ("bye", "never"):
        os.mkfifo(tmp_path / fifo)
    with running(tmp_path, STUBBORN) as manager:
        comes(tmp_path / "stubborn.log", "up")
        yield manager
        manager("shutdown", "--now")


def let_go(directory: Path) -> None:
    with (directory / "bye").open("w") as bye:
        bye.write("now\n")


def states(manager: Manager, name: str) -> list[str]:
    (pool,) = json.loads(manager("status", "--json", name).out)["pools"]
    return [process["state"] for process in pool["processes"]]


# -- status -----------------------------------------------------------------------------------------------------------


def test_status_as_json_has_the_keys_that_are_promised(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    text = f'[pool.app]\nsocket = "{address}"\nsocket_backlog = 7\ncommand = "sleep 1000"\nready = "startsecs"\n'
    text += f"startsecs = 0\n{TWO}"
    with running(tmp_path, text) as manager:
        status = json.loads(manager("status", "--json").succeeds())
        assert status["manager"].keys() >= {"pid", "version", "uptime", "config", "state"}
        assert status["manager"]["pid"] == manager.pid
        assert status["manager"]["config"] == str(manager.config)
        assert status["manager"]["state"] == "RUNNING"
        assert [pool["name"] for pool in status["pools"]] == ["app", "web", "queue"]
        for pool in status["pools"]:
            promised = {"name", "kind", "state", "generation", "numprocs", "policy", "sockets", "processes"}
            assert pool.keys() >= promised
            for process in pool["processes"]:
                assert process.keys() >= {
                    "name", "pid", "state", "generation", "uptime", "restarts", "exit", "busy", "requests", "rss"
                }  # fmt: skip
        app, web, _ = status["pools"]
        assert app["sockets"] == [{"address": address, "backlog": 7, "queued": 0}]
        assert (app["kind"], web["kind"]) == ("pool", "program")
        assert app["processes"][0]["name"] == "app_00"
        assert app["processes"][0]["busy"] is False
        assert app["processes"][0]["requests"] is None  # unknown is null, never 0
        assert app["processes"][0]["exit"] is None


def test_status_tells_how_a_process_ended_and_that_it_was_restarted(two: Manager) -> None:
    (victim,) = two.pids("queue")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: two.pids("queue") not in ([], [victim]))
    (pool,) = json.loads(two("status", "queue", "--json").succeeds())["pools"]
    assert pool["processes"][0]["restarts"] == 1
    assert pool["processes"][0]["exit"] == {"signal": "SIGKILL"}


def test_status_ends_with_3_when_something_is_not_running(two: Manager) -> None:
    two("stop", "web:web_01").succeeds()
    assert two("status").code == 3
    assert two("status", "--json").code == 3
    assert two("status", "queue").code == 0
    assert two("status", "web:web_00").code == 0
    assert two("status", "web:web_01").code == 3


def test_status_answers_while_every_worker_is_busy(tmp_path: Path) -> None:
    (tmp_path / "hold.py").write_text(
        "import socket\n"
        "listener = socket.socket(fileno=0)\n"
        "while True:\n"
        "    connection, _ = listener.accept()\n"
        "    connection.recv(1)\n"
    )
    address = free_address("tcp", tmp_path)
    text = f"""\
[pool.app]
socket = "{address}"
command = "{sys.executable} -S -E %(here)s/hold.py"
numprocs = 2
startsecs = 0
"""
    with running(tmp_path, text) as manager, contextlib.ExitStack() as clients:
        for _ in range(5):
            clients.enter_context(connect(address))

        def all_busy() -> bool:
            (pool,) = json.loads(manager("status", "--json").succeeds())["pools"]
            busy = [process["busy"] for process in pool["processes"]]
            return busy == [True, True] and pool["sockets"][0]["queued"] == 3

        eventually(all_busy)
        assert "queue 3/" in manager("status").succeeds()


def test_a_thousand_processes_are_counted_right(tmp_path: Path) -> None:
    with running(
        tmp_path, '[program.many]\ncommand = "sleep 1000"\nprocess_name = "p%(process_num)d"\n'
        "numprocs = 1000\nstartsecs = 0\n"
    ) as manager:  # fmt: skip
        (pool,) = json.loads(manager("status", "--json").succeeds())["pools"]
        assert [process["name"] for process in pool["processes"]] == [f"p{number}" for number in range(1000)]
        assert len({process["pid"] for process in pool["processes"]}) == 1000
        table = manager("status").succeeds()
        assert "1000 of 1000 running" in table
        assert len(table.splitlines()) < 10
        manager("stop", "many:p500").succeeds()
        assert "999 of 1000 running" in manager("status").out
        assert manager("stop", "many").succeeds().count("\n") < 10
        assert "0 of 1000 running" in manager("status").out


# -- start, stop, restart, scale, signal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stopped"),
    [
        ("web", ["web:web_00", "web:web_01"]),
        ("web:*", ["web:web_00", "web:web_01"]),
        ("web:web_01", ["web:web_01"]),
        ("both", ["web:web_00", "web:web_01", "queue:queue_00"]),
        ("all", ["web:web_00", "web:web_01", "queue:queue_00"]),
    ],
)
def test_a_name_means_what_is_written(name: str, stopped: list[str], two: Manager) -> None:
    assert two("stop", name).succeeds().splitlines() == [f"{process}: stopped" for process in stopped]
    assert two("stop", name).succeeds().splitlines() == [f"{process}: not running" for process in stopped]
    assert two("start", name).succeeds().splitlines() == [f"{process}: started" for process in stopped]
    assert two("start", name).succeeds().splitlines() == [f"{process}: already running" for process in stopped]
    assert two("restart", name).succeeds().splitlines() == [f"{process}: restarted" for process in stopped]


def test_several_names_are_each_process_once(two: Manager) -> None:
    done = two("restart", "web:web_01", "queue", "web").succeeds()
    assert sorted(done.splitlines()) == [
        "queue:queue_00: restarted",
        "web:web_00: restarted",
        "web:web_01: restarted",
    ]


@pytest.mark.parametrize(
    ("typo", "hint"),
    [("wbe", "web"), ("web:web_1", "web:web_01"), ("bth", "both"), ("nothing", "there are web, queue")],
)
def test_a_mistyped_name_gets_a_suggestion(typo: str, hint: str, two: Manager) -> None:
    for command in ("status", "start", "stop", "restart", "tail"):
        complaint = two(command, typo).fails(1)
        assert repr(typo) in complaint
        assert hint in complaint
    assert two("status").code == 0  # nothing was touched


def test_a_start_that_fails_says_why_and_what_the_process_said(tmp_path: Path) -> None:
    with running(tmp_path, BROKEN, ready=False) as manager:
        done = manager("start", "broken")
        assert done.code == 1
        assert "broken:broken_00: failed: exited with code 7" in done.out
        assert "    no database\n" in done.out
        assert "FATAL" in manager("status", "broken").out
        assert manager("start", "all").code == 1  # one of them failed


def test_a_start_of_what_ends_by_itself_says_how_it_ended(tmp_path: Path) -> None:
    tables = "".join(
        f"""
        [program.{name}]
        command = ["sh", "-c", "exit {code}"]
        autostart = false
        autorestart = false
        startsecs = 10
        """
        for name, code in (("well", 0), ("ill", 3))
    )
    with running(tmp_path, tables, ready=False) as manager:
        assert manager("start", "well").succeeds() == "well:well_00: started: exited with code 0 after its start\n"
        assert manager("start", "ill").code == 1


def test_scale_to_up_and_down(two: Manager) -> None:
    assert two("scale", "web", "4").succeeds().splitlines() == ["web:web_02: started", "web:web_03: started"]
    assert two("scale", "web", "+1").succeeds() == "web:web_04: started\n"
    assert "web:web_04: stopped" in two("scale", "web", "-2").succeeds()
    assert states(two, "web") == ["RUNNING"] * 3
    assert two("scale", "web", "3").succeeds() == "web: 3 processes already\n"
    assert "stop web" in two("scale", "web", "0").fails(2)
    assert two("scale", "web", "-5").fails(2)
    assert two("scale", "web", "many").fails(2)
    assert two("scale", "both", "3").fails(1)  # a group has no number
    assert states(two, "web") == ["RUNNING"] * 3


def test_signal_reaches_the_process(tmp_path: Path) -> None:
    program = """\
[program.ear]
command = ['/bin/sh', '-c', 'trap "echo heard" USR1; echo up; while :; do read -r line <never; done']
directory = "%(here)s"
numprocs = 2
startsecs = 0
stdout_logfile = "%(process_num)d.log"
"""
    os.mkfifo(tmp_path / "never")
    with running(tmp_path, program) as manager:
        for number in (0, 1):
            comes(tmp_path / f"{number}.log", "up")
        assert manager("signal", "USR1", "ear:ear_01").succeeds() == "ear:ear_01: signalled\n"
        comes(tmp_path / "1.log", "heard")
        assert lines_of(tmp_path / "0.log") == ["up"]
        manager("signal", "sigusr1", "ear").succeeds()
        comes(tmp_path / "0.log", "heard")
        assert "BOGUS" in manager("signal", "BOGUS", "ear").fails(2)
        manager("stop", "ear:ear_00").succeeds()
        done = manager("signal", "10", "ear:ear_00")
        assert (done.code, done.out) == (1, "ear:ear_00: not running: STOPPED\n")


def test_no_wait_does_not_wait(stubborn: Manager, tmp_path: Path) -> None:
    assert stubborn("stop", "stubborn", "--no-wait").succeeds() == "stubborn:stubborn_00: stopping\n"
    comes(tmp_path / "stubborn.log", "told")
    assert states(stubborn, "stubborn") == ["STOPPING"]
    let_go(tmp_path)
    eventually(lambda: states(stubborn, "stubborn") == ["STOPPED"])


def test_ctrl_c_ends_the_command_and_nothing_else(stubborn: Manager, tmp_path: Path) -> None:
    command = subprocess.Popen(words("-c", stubborn.config, "stop", "all"), stderr=subprocess.PIPE, text=True)
    comes(tmp_path / "stubborn.log", "told")
    command.send_signal(signal.SIGINT)
    _, complaint = command.communicate(timeout=30)
    assert command.returncode == 130
    assert "Traceback" not in complaint
    assert states(stubborn, "stubborn") == ["STOPPING"]
    let_go(tmp_path)
    eventually(lambda: states(stubborn, "stubborn") == ["STOPPED"])


def test_a_terminal_sees_progress_while_a_command_waits(stubborn: Manager, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = subprocess.Popen(
        words("-c", stubborn.config, "restart", "all"),
        stdout=follower,
        stderr=follower,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(follower)
    shown = b""
    try:
        while b"STOPPING" not in shown:
            assert select.select([leader], [], [], 30)[0], shown
            shown += os.read(leader, 4096)
        let_go(tmp_path)
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while select.select([leader], [], [], 30)[0]:
                shown += os.read(leader, 4096)
        assert command.wait(30) == 0
    finally:
        command.kill()
        command.wait()
        os.close(leader)
    assert b"stubborn:stubborn_00: STOPPING" in shown
    assert b"\x1b[32mrestarted\x1b[0m" in shown


# -- tail and events --------------------------------------------------------------------------------------------------


def test_tail_shows_the_last_lines(tmp_path: Path) -> None:
    echo = Echo(tmp_path)
    log = tmp_path / "echo.log"
    with running(tmp_path, echo_program(echo, 'stdout_logfile = "echo.log"')) as manager:
        echo.say(*map(str, range(5000)), "err wrong")
        comes(log, "4999")
        assert manager("tail", "echo").succeeds().split() == [str(number) for number in range(4990, 5000)]
        assert manager("tail", "-n", "2", "echo:echo_00").succeeds() == "4998\n4999\n"
        assert manager("tail", "-n", "4000", "echo").succeeds().split() == [str(n) for n in range(1000, 5000)]
        eventually(lambda: manager("tail", "--stderr", "echo").succeeds() == "wrong\n")


def test_tail_follows_across_a_restart(tmp_path: Path) -> None:
    echo = Echo(tmp_path)
    shown = tmp_path / "shown"
    with running(tmp_path, echo_program(echo, 'stdout_logfile = "none"')) as manager:
        echo.say("one", "two", "three")
        eventually(lambda: manager("tail", "echo").succeeds() == "one\ntwo\nthree\n")
        with shown.open("wb") as out:
            follower = subprocess.Popen(words("-c", manager.config, "tail", "-f", "-n", "2", "echo"), stdout=out)
        try:
            comes(shown, "three")
            echo.say("four")
            comes(shown, "four")
            (before,) = manager.pids("echo")
            manager("restart", "echo").succeeds()
            assert manager.pids("echo") != [before]
            echo.say("five")
            comes(shown, "five")
            assert lines_of(shown) == ["two", "three", "four", "five"]
            follower.send_signal(signal.SIGINT)
            assert follower.wait(30) == 130
        finally:
            follower.kill()
            follower.wait()


def test_events_are_told_and_followed(two: Manager, tmp_path: Path) -> None:
    assert "STARTING -> RUNNING" in two("events").succeeds()
    shown = tmp_path / "shown"
    with shown.open("wb") as out:
        follower = subprocess.Popen(words("-c", two.config, "events", "-f", "-n", "1", "--json"), stdout=out)
    try:
        eventually(lambda: lines_of(shown))
        two("stop", "queue").succeeds()
        eventually(lambda: '"to":"STOPPED"' in shown.read_text())
        events = [json.loads(line) for line in lines_of(shown)]
        keys = {"time", "kind", "name", "from", "to", "detail", "cause", "by", "exit"}
        assert all(event.keys() == keys for event in events)
        changes = [(event["from"], event["to"]) for event in events if event["name"] == "queue:queue_00"]
        assert changes == [("RUNNING", "STOPPING"), ("STOPPING", "STOPPED")]
        two("shutdown").succeeds()
        assert follower.wait(30) == 1  # the manager has ended
    finally:
        follower.kill()
        follower.wait()


# -- the manager itself -----------------------------------------------------------------------------------------------


def test_ping_names_the_manager(two: Manager) -> None:
    assert two("ping").succeeds().endswith(f"pid {two.pid}\n")
    assert fcgimgr("-s", two.control, "ping").succeeds().endswith(f"pid {two.pid}\n")
    assert fcgimgr("ping", cwd=two.config.parent).succeeds().endswith(f"pid {two.pid}\n")  # ./pool.toml


def test_without_a_manager_every_command_ends_with_4(tmp_path: Path) -> None:
    config = configuration(tmp_path, TWO)
    commands = [
        ["status"], ["start", "web"], ["stop", "web"], ["restart", "web"], ["scale", "web", "1"],
        ["signal", "HUP", "web"], ["tail", "web"], ["tail", "-f", "web"], ["reopen"], ["events"], ["shutdown"],
        ["drain"], ["ping"], ["probe", "live"],
    ]  # fmt: skip
    for command in commands:
        complaint = fcgimgr("-c", config, *command).fails(4)
        assert str(tmp_path / "fcgimgr.sock") in complaint
        assert "Traceback" not in complaint


@pytest.mark.parametrize(
    "command",
    [
        ["stats"],
        ["stop"],
        ["scale", "web"],
        ["probe", "dead"],
        ["drain", "--timeout", "-1"],
        ["tail", "-n", "x", "web"],
        ["--bogus"],
    ],
)
def test_a_wrong_command_line_ends_with_2(command: list[str], two: Manager) -> None:
    two(*command).fails(2)


def test_probes_are_for_health_checks(tmp_path: Path) -> None:
    with running(tmp_path, BROKEN, ready=False) as manager:
        eventually(lambda: manager("probe", "ready").code == 0)
        manager("probe", "live").succeeds()
        assert manager("start", "broken").code == 1
        done = manager("probe", "ready")
        assert (done.code, done.out) == (1, "broken is FATAL\n")
        manager("probe", "live").succeeds()
        manager("stop", "broken").succeeds()  # not wanted any more
        manager("probe", "ready").succeeds()


def test_shutdown_waits_for_the_end(two: Manager) -> None:
    assert two("shutdown").succeeds() == "shut down\n"
    assert not Path(f"/proc/{two.pid}").exists() or "Z" in Path(f"/proc/{two.pid}/stat").read_text()
    assert two("ping").code == 4


def test_shutdown_now_does_not_wait_for_the_stubborn(stubborn: Manager) -> None:
    assert stubborn("shutdown", "--now").succeeds() == "shut down\n"


def test_shutdown_no_wait_returns_while_they_stop(stubborn: Manager, tmp_path: Path) -> None:
    assert stubborn("shutdown", "--no-wait").succeeds() == "shutting down\n"
    comes(tmp_path / "stubborn.log", "told")
    assert json.loads(stubborn("status", "--json").out)["manager"]["state"] == "STOPPING"
    assert "is stopping" in stubborn("start", "stubborn").fails(1)
    let_go(tmp_path)


def test_request_asks_a_pool(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    text = f"""\
[pool.app]
socket = "{address}"
wsgi = "fcgimgr.demo.app:app"
server = "flup"
ready = "ping"
"""
    with running(tmp_path, text):
        assert fcgimgr("request", address, "/").succeeds()
    assert address in fcgimgr("request", address, "/").fails(1)


# -- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_good(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(fcgimgr("completion", shell).succeeds())
    assert "fcgimgr" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("stat", ["status"]),
        ("stop w", ["web"]),
        ("stop web:", ["*", "web_00", "web_01"]),  # bash keeps what is before the colon
        ("stop web:web_01", ["web_01"]),
        ("scale q", ["queue"]),
        ("probe r", ["ready"]),
    ],
)
def test_bash_completes(line: str, completed: list[str], two: Manager, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    script = tmp_path / "complete.bash"
    script.write_text(
        fcgimgr("completion", "bash").succeeds()
        + 'function_name=$(complete -p fcgimgr | sed "s/.*-F \\([^ ]*\\) .*/\\1/")\n'
        + 'COMP_LINE="fcgimgr $1" COMP_POINT=${#COMP_LINE}\n'
        + 'COMP_POINT=${#COMP_LINE}\n"$function_name" fcgimgr "" ""\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def complete() -> bool:  # gives up after a third of a second: on a busy machine it may have to be asked again
        done = subprocess.run(
            [bash, script, line],
            cwd=two.config.parent,
            env=os.environ | {"PATH": path},
            capture_output=True,
            check=True,
        )
        assert done.stdout.decode().split() == completed
        return True

    eventually(complete)


# -- the socket: who may speak, and how much --------------------------------------------------------------------------


def test_the_control_socket_is_the_owners_alone(two: Manager) -> None:
    assert two.control.stat().st_mode & 0o777 == 0o600
    assert two.control.stat().st_uid == os.geteuid()


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory into which other users may look; pytest's are private."""
    with tempfile.TemporaryDirectory(prefix="fcgimgr-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def as_nobody(manager: Manager, *arguments: str) -> Done:
    return manager(*arguments, user=65534, group=65534, extra_groups=[], cwd=manager.config.parent)


root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@root
def test_another_user_is_refused(open_place: Path) -> None:
    with running(open_place, TWO) as manager:
        refused = as_nobody(manager, "ping").fails(1)
        assert "no permission to speak to the manager" in refused
        assert "start one" not in refused
        manager.control.chmod(0o666)  # not what the configuration says: so the kernel is not the only guard
        assert "uid 65534 may not control this manager" in as_nobody(manager, "ping").fails(1)
        manager("ping").succeeds()


@root
@pytest.mark.parametrize("keys", ['control_mode = "0666"', 'control_owner = "nobody"'])
def test_another_user_is_let_in_where_the_configuration_says_so(keys: str, open_place: Path) -> None:
    with running(open_place, f"{keys}\n{TWO}") as manager:
        as_nobody(manager, "restart", "queue").succeeds()


class Talk:
    """A client of the control socket that need not behave."""

    def __init__(self, manager: Manager) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(manager.control))
        self._lines = self.socket.makefile("rb")

    def __enter__(self) -> "Talk":
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        self._lines.close()
        self.socket.close()

    def ask(self, method: str, params: dict[str, Any], id: int = 1) -> None:
        request = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
        self.socket.sendall(json.dumps(request).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        """The next line that the manager sends."""
        line = self._lines.readline()
        assert line, "the manager has hung up"
        answer: dict[str, Any] = json.loads(line)
        return answer


def test_so_many_clients_and_no_more(two: Manager) -> None:
    with contextlib.ExitStack() as clients:
        talks = [clients.enter_context(Talk(two)) for _ in range(CLIENT_LIMIT)]
        for talk in talks:
            talk.ask("events", {"n": 1, "follow": True})
            talk.answer()
        assert f"{CLIENT_LIMIT} clients are being served already" in two("ping").fails(1)
        talks[0].hang_up()
        eventually(lambda: two("ping").code == 0)
        talks[1].ask("ping", {}, id=2)
        assert talks[1].answer()["result"]["pong"] is True


def test_clients_that_ask_for_nothing_make_room(two: Manager) -> None:
    with contextlib.ExitStack() as clients:
        talks = [clients.enter_context(Talk(two)) for _ in range(CLIENT_LIMIT)]
        for talk in talks:
            talk.ask("ping", {})
            talk.answer()
        eventually(lambda: two("ping").code == 0)
        assert "others wait for a connection" in talks[0].answer()["error"]["message"]
        talks[-1].ask("ping", {})
        assert talks[-1].answer()["result"]["pong"] is True


@pytest.mark.parametrize("command", [["events", "-f", "-n", "1"], ["tail", "-f", "-n", "1", "queue"]])
def test_who_follows_for_nobody_ends(command: list[str], two: Manager) -> None:
    with subprocess.Popen(words("-c", two.config, *command), stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        follower.stdout.close()  # as `head -1` does, and nothing more happens that would be written
        try:
            follower.wait(30)
        finally:
            follower.kill()
        assert follower.returncode not in (0, -9)


def test_idle_clients_are_in_nobodys_way(two: Manager) -> None:
    with Talk(two), Talk(two) as unfinished, Talk(two) as waiting:
        unfinished.socket.sendall(b'{"jsonrpc":')
        waiting.ask("events", {"follow": True})
        assert waiting.answer()["method"] == "event"
        two("restart", "all").succeeds()
        two("shutdown").succeeds()
        assert unfinished.socket.recv(1) == b""


def test_a_client_that_does_not_read_is_hung_up_on(tmp_path: Path) -> None:
    many = '[program.many]\ncommand = "sleep 1000"\nnumprocs = 100\nstartsecs = 0\n'
    with running(tmp_path, many + TWO) as manager, Talk(manager) as deaf:

        def hung_up() -> bool:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
                deaf.socket.setblocking(False)
                while True:
                    deaf.ask("status", {"detail": False})
            return "does not read: hung up" in manager.output()

        eventually(hung_up, within=30)
        assert manager.output().count("hung up") == 1
        manager("restart", "web").succeeds()


def test_who_follows_a_flood_too_slowly_misses_lines_and_is_told(tmp_path: Path) -> None:
    log = tmp_path / "flood.log"
    flood = f"""\
[program.flood]
command = ['/bin/sh', '-c', 'read -r line <go; seq 200000; echo over; read -r line <go; echo and on; exec sleep 1000']
directory = "%(here)s"
startsecs = 0
stdout_logfile = "{log}"
"""
    os.mkfifo(tmp_path / "go")
    with running(tmp_path, flood) as manager, Talk(manager) as slow:
        slow.ask("tail", {"name": "flood", "follow": True})
        slow.ask("events", {"follow": True, "n": 1}, id=2)
        assert slow.answer()["method"] == "event"  # so it follows
        (tmp_path / "go").write_text("now\n")
        comes(log, "over", within=30)  # the program was not held up by who does not read
        (tmp_path / "go").write_text("now\n")
        told: list[dict[str, Any]] = []
        while not told or told[-1]["params"].get("skipped") is None:
            told.append(slow.answer())
        lines = [notice["params"]["text"] for notice in told[:-1] if notice["method"] == "line"]
        assert lines == [str(number) for number in range(1, len(lines) + 1)]
        skipped = told[-1]["params"]["skipped"]
        rest = slow.answer() if len(lines) + skipped <= 200_001 else None
        assert rest is None or rest["params"]["text"] == "and on"
        assert len(lines) + skipped + (rest is not None) == 200_002


def test_a_client_that_hangs_up_while_it_waits_is_forgotten(stubborn: Manager, tmp_path: Path) -> None:
    with Talk(stubborn) as talk:
        talk.ask("stop", {"names": ["all"]})
        comes(tmp_path / "stubborn.log", "told")
    let_go(tmp_path)
    eventually(lambda: states(stubborn, "stubborn") == ["STOPPED"])
    assert "internal error" not in stubborn.output()


def test_a_client_that_has_said_all_still_gets_its_answer(two: Manager) -> None:
    with Talk(two) as talk:
        talk.ask("restart", {"names": ["all"]})
        talk.socket.shutdown(socket.SHUT_WR)
        received = b""
        while more := talk.socket.recv(65536):
            received += more
        last = json.loads(received.splitlines()[-1])
        assert last["result"]["ok"] is True
