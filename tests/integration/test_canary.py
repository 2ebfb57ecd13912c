"""A canary gets the share of the connections that was asked for, until somebody decides, or it decides by dying."""

import json
import math
import socket
from collections import Counter
from pathlib import Path
from time import monotonic

import pytest

from tests.integration.backends import front, pool
from tests.integration.commands import Manager, running
from tests.integration.load import Load
from tests.integration.ports import free_address, free_port
from tests.integration.scenes import are_gone, kill
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
