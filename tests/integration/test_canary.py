"""A canary gets the share of the connections that was asked for, until somebody decides, or it decides by dying."""

import json
import math
import os
import signal
import socket
from collections import Counter
from pathlib import Path
from time import monotonic

import pytest

from tests.integration.backends import front, pool
from tests.integration.commands import Manager, running
from tests.integration.load import Load
from tests.integration.moody import busy, clients, let_go, moody, queue_of
from tests.integration.ports import free_address, free_port
from tests.integration.scenes import Child, are_gone, kill
from tests.integration.test_idle import rests, trace
from tests.waiting import eventually

CONNECTIONS = 10_000

# Says its generation to whoever connects.
SAYS = """\
import os, socket
generation = os.environ["FCGIMGR_GENERATION"].encode()
listener = socket.socket(fileno=0)
while True:
    connection, _ = listener.accept()
    with connection:
        try:
            connection.sendall(generation)
        except OSError:
            pass
"""


def saying(directory: Path, address: str, *keys: str) -> Manager:
    """A manager of a pool of two of these."""
    (directory / "says.py").write_text(SAYS)
    lines = ["[pool.app]", f'socket = "{address}"', 'command = "python -S -E says.py"', 'directory = "%(here)s"']
    return running(directory, "\n".join([*lines, "numprocs = 2", "startsecs = 0.1", *keys, ""]))


def asked(port: int, times: int = 300, host: str = "127.0.0.1") -> Counter[int]:
    """How many of so many connections each generation got."""
    said: Counter[int] = Counter()
    for _ in range(times):
        with socket.create_connection((host, port), 10) as connection:
            said[int(connection.recv(16))] += 1
    return said


@pytest.mark.parametrize(("percent", "host"), [(10.0, "127.0.0.1"), (0.5, "::1")])
def test_the_share_is_what_was_asked_for(percent: float, host: str, tmp_path: Path) -> None:
    port = free_port()
    address = f"[::1]:{port}" if host == "::1" else f"{host}:{port}"
    with saying(tmp_path, address) as manager:
        assert "app: canary" in manager("reload", "app", "--canary", f"{percent:g}%").succeeds()
        said = asked(port, CONNECTIONS, host)
        share = percent / 100
        expected, sigma = CONNECTIONS * share, math.sqrt(CONNECTIONS * share * (1 - share))
        assert abs(said[2] - expected) < 5 * sigma
        assert said[1] + said[2] == CONNECTIONS


def test_both_generations_show_until_the_canary_is_promoted(tmp_path: Path) -> None:
    port = free_port()
    with saying(tmp_path, f"127.0.0.1:{port}") as manager:
        old = manager.pids("app")
        manager("reload", "app", "--canary", "50%").succeeds()
        (shown,) = json.loads(manager("status", "--json", "app").succeeds())["pools"]
        assert (shown["generation"], shown["canary"], shown["numprocs"]) == (1, 50.0, 2)
        assert [process["generation"] for process in shown["processes"]] == [1, 1, 2, 2]
        assert {process["state"] for process in shown["processes"]} == {"RUNNING"}
        new = [process["pid"] for process in shown["processes"] if process["generation"] == 2]

        assert manager("reload", "app", "--promote").succeeds() == "app: reloaded: generation 2 serves\n"
        assert asked(port) == {2: 300}
        assert manager.pids("app") == new
        are_gone(*old)
        (shown,) = json.loads(manager("status", "--json", "app").succeeds())["pools"]
        assert (shown["generation"], shown["canary"], len(shown["processes"])) == (2, None, 2)
        assert "no canary to promote" in manager("reload", "app", "--promote").out


def test_an_aborted_canary_gives_its_share_back(tmp_path: Path) -> None:
    port = free_port()
    with saying(tmp_path, f"127.0.0.1:{port}") as manager:
        old = manager.pids("app")
        manager("reload", "app", "--canary", "50%").succeeds()
        new = set(manager.pids("app")) - set(old)
        assert manager("reload", "app", "--abort").succeeds() == "app: aborted: generation 1 serves\n"
        assert asked(port) == {1: 300}
        are_gone(*new)
        assert manager.pids("app") == old
        assert manager.pool("app").canary is None
        manager("reload", "app").succeeds()
        assert asked(port) == {3: 300}


def test_a_canary_that_dies_is_aborted_by_itself(tmp_path: Path) -> None:
    port = free_port()
    with saying(tmp_path, f"127.0.0.1:{port}") as manager:
        old = manager.pids("app")
        manager("reload", "app", "--canary", "50%").succeeds()
        first, second = sorted(set(manager.pids("app")) - set(old))
        kill(first)
        eventually(lambda: manager.pids("app") == old)
        are_gone(second)
        assert asked(port) == {1: 300}
        pool = manager.pool("app")
        assert (pool.state, pool.canary, len(pool.processes)) == ("RUNNING", None, 2)
        assert "the new generation is discarded: app:app_0" in manager.output()
        manager("reload", "app").succeeds()


def test_a_canary_that_is_not_ready_never_gets_a_connection(tmp_path: Path) -> None:
    port = free_port()
    with saying(tmp_path, f"127.0.0.1:{port}", "startretries = 0") as manager:
        old = manager.pids("app")
        (tmp_path / "says.py").write_text('raise SystemExit("no database")')
        failed = manager("reload", "app", "--canary", "50%")
        assert failed.code == 1
        assert "no database" in failed.out
        assert asked(port) == {1: 300}
        assert manager.pids("app") == old


def test_while_a_canary_is_out_no_other_reload_begins(tmp_path: Path) -> None:
    port = free_port()
    with saying(tmp_path, f"127.0.0.1:{port}") as manager:
        manager("reload", "app", "--canary", "50%").succeeds()
        for arguments in (["reload", "app"], ["reload", "app", "--canary", "5%"], ["restart", "app"]):
            refused = manager(*arguments)
            assert refused.code == 1
            assert "a canary is out" in refused.out
        assert set(asked(port)) == {1, 2}


def test_a_unix_socket_has_no_canary(tmp_path: Path) -> None:
    with saying(tmp_path, free_address("unix", tmp_path)) as manager:
        pids = manager.pids("app")
        refused = manager("reload", "app", "--canary", "5%")
        assert refused.code == 2
        assert "a canary needs a TCP socket" in refused.err
        assert manager.pids("app") == pids


@pytest.mark.parametrize("percent", ["0", "100%", "-5%", "5 percent", "nan"])
def test_a_share_is_more_than_nothing_and_less_than_everything(percent: str, tmp_path: Path) -> None:
    with saying(tmp_path, f"127.0.0.1:{free_port()}") as manager:
        refused = manager("reload", "app", f"--canary={percent}")
        assert refused.code == 2
        assert percent in refused.err
        assert len(manager.pool("app").processes) == 2


def test_neither_promotion_nor_abort_nor_death_by_stop_loses_a_request(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    with (
        running(tmp_path, pool(tmp_path, "go", address)) as manager,
        front(tmp_path, "go", address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        for decision, serving in (("--abort", 1), ("--promote", 3), ("--abort", 3)):
            begun = monotonic()
            manager("reload", "app", "--canary", "50%").succeeds()
            load.goes_on()
            assert len(load.generations_since(begun)) == 2
            manager("reload", "app", decision).succeeds()
            decided = monotonic()
            load.goes_on()
            assert load.generations_since(decided) == {serving}
    assert load.failures == []


def test_a_scale_while_a_canary_is_out_holds_after_its_promotion(tmp_path: Path) -> None:
    port = free_port()
    with saying(tmp_path, f"127.0.0.1:{port}") as manager:
        manager("reload", "app", "--canary", "50%").succeeds()
        manager("scale", "app", "3").succeeds()
        eventually(lambda: len(manager.pids("app")) == 6)
        manager("reload", "app", "--promote").succeeds()
        assert len(manager.pids("app")) == 3
        assert manager.pool("app").numprocs == 3


# -- pings while it is out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mood", "why"),
    [
        ("error", "answered with status 500"),
        ("garbage", "ping: "),
        ("hang", "a ping was not answered within "),
    ],
)
def test_a_canary_that_answers_no_longer_well_is_aborted_by_itself(mood: str, why: str, tmp_path: Path) -> None:
    port = free_port()
    let_go(tmp_path)
    config = moody(tmp_path, f"127.0.0.1:{port}", "numprocs = 2", "ready_timeout = 1", "startretries = 20")
    with running(tmp_path, config) as manager:
        old = manager.pids("app")
        assert "app: canary: generation 2 gets 50 %" in manager("reload", "app", "--canary", "50%").succeeds()
        canary = set(manager.pids("app")) - set(old)
        (tmp_path / "mood-2").write_text(mood)
        eventually(lambda: manager.pool("app").canary is None, within=60)
        discarded = manager.pool("app").discarded
        assert discarded is not None
        assert discarded.startswith("generation 2 was discarded: app")
        assert why in discarded
        assert discarded in manager("status", "app").out
        assert f"generation 2 is discarded: app:app_0{discarded.partition('app:app_0')[2]}" in manager("events").out
        assert manager.pids("app") == old
        with clients(f"127.0.0.1:{port}") as asking:
            asking.ask(100)
            assert set(asking.answers()) == {"1"}
        are_gone(*canary)
        manager("reload", "app").succeeds()
        assert manager.pool("app").discarded is None


def test_a_canary_whose_pings_wait_behind_real_requests_goes_on(tmp_path: Path) -> None:
    port = free_port()
    config = moody(tmp_path, f"127.0.0.1:{port}", "ready_timeout = 1", "startretries = 20", "stopwaitsecs = 600")
    with running(tmp_path, config) as manager:
        (old,) = manager.pids("app")
        manager("reload", "app", "--canary", "99.99%").succeeds()
        (new,) = set(manager.pids("app")) - {old}
        with busy(f"127.0.0.1:{port}", 6) as answered:
            # One request at a time, each longer than the patience of a ping, which is never the next in the queue.
            for number in range(1, 4):
                eventually(lambda: queue_of(port) >= 6, within=60)  # five clients, and the ping
                let_go(tmp_path, new, number)
                eventually(lambda number=number: answered.count("2") >= number, within=60)
            assert manager.pool("app").canary == 99.99
            let_go(tmp_path)
        assert set(answered) <= {"1", "2"}
        manager("reload", "app", "--promote").succeeds()


def test_when_no_canary_is_out_nobody_pings(tmp_path: Path) -> None:
    with running(tmp_path, moody(tmp_path, f"127.0.0.1:{free_port()}")) as manager:
        manager("reload", "app", "--canary", "50%").succeeds()
        manager("reload", "app", "--promote").succeeds()
        # After the last ping it has looked whether any waits.
        eventually(lambda: rests(Child(manager.pid), 1.5))
        assert trace(manager.pid, tmp_path / "trace", 3.0) == ""  # longer than from one round of pings to the next


# -- a canary by default ----------------------------------------------------------------------------------------------


def test_reload_canary_is_what_a_reload_begins_with(tmp_path: Path) -> None:
    port = free_port()
    with saying(tmp_path, f"127.0.0.1:{port}", 'reload_canary = "50%"') as manager:
        assert "app: canary: generation 2 gets 50 %" in manager("reload", "app").succeeds()
        assert manager.pool("app").canary == 50.0
        assert set(asked(port)) == {1, 2}
        assert "a canary is out" in manager("reload", "app").out
        manager("reload", "app", "--promote").succeeds()
        assert asked(port) == {2: 300}

        assert "gets 10 %" in manager("reload", "app", "--canary", "10").succeeds()
        manager("reload", "app", "--abort").succeeds()
        assert "reloaded" in manager("reload", "app", "--no-canary").succeeds()
        assert asked(port) == {4: 300}
        assert "reloaded" in manager("restart", "app").succeeds()


def test_reload_canary_holds_for_a_signal_and_not_for_an_update(tmp_path: Path) -> None:
    port = free_port()
    with saying(tmp_path, f"127.0.0.1:{port}", "reload_canary = 50") as manager:
        os.kill(manager.pid, signal.SIGUSR2)
        eventually(lambda: manager.pool("app").canary == 50.0)
        manager("reload", "app", "--abort").succeeds()
        manager.config.write_text(manager.config.read_text().replace("says.py", "says.py again"))
        manager("update").succeeds()
        assert manager.pool("app").canary is None
        assert asked(port) == {3: 300}


def test_a_default_canary_leaves_out_the_pools_that_can_have_none(tmp_path: Path) -> None:
    text = f"""\
[defaults]
reload_canary = 5
command = "sleep 1000"
ready = "startsecs"
startsecs = 0
[pool.unix]
socket = "%(here)s/unix.sock"
[pool.tcp]
socket = "127.0.0.1:{free_port()}"
[program.own]
"""
    with running(tmp_path, text) as manager:
        said = manager("reload", "all").succeeds()
        assert "unix: reloaded" in said
        assert "tcp: canary" in said
        assert "own:own_00: restarted" in said
