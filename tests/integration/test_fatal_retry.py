"""`on_fatal = "retry"`: what was given up for a cause that passes comes back by itself, and says so meanwhile."""

import re
import socket
from pathlib import Path

import pytest

from tests.integration.commands import Manager, configuration, running
from tests.integration.ports import connect, free_address
from tests.integration.scenes import ask, scene
from tests.waiting import eventually

# Ends at once until the file is there: a database that is away, say.
WAITS = 'command = ["sh", "-c", "test -e mended && exec python -S -E answer.py; echo no database >&2; exit 1"]\n'
KEYS = f'{WAITS}directory = "%(here)s"\nstartsecs = 0.1\nstartretries = 0\non_fatal = "retry"\n'
# The first pause is twice this.
SOON = "backoff_initial = 0.05\nbackoff_max = 0.1\n"


def test_a_pool_refuses_clients_while_it_is_fatal_and_serves_when_the_cause_has_gone(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    scene(tmp_path, "")
    with running(tmp_path, f'[pool.app]\nsocket = "{address}"\nnumprocs = 2\n{KEYS}{SOON}', ready=False) as manager:
        eventually(lambda: manager.pool("app").state == "FATAL")
        # A try in vain opens it for a moment.
        eventually(lambda: manager.pool("app").processes[1].restarts >= 2)
        eventually(lambda: refuses(address))
        (tmp_path / "mended").touch()
        eventually(lambda: manager.pool("app").state == "RUNNING")
        assert ask(address)["environ"]["FCGIMGR_POOL"] == "app"
        assert len(manager.pids("app")) == 2


def refuses(address: str) -> bool:
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_program_too(tmp_path: Path) -> None:
    scene(tmp_path, "")
    with running(
        tmp_path, f"[program.app]\n{KEYS.replace('python -S -E answer.py', 'sleep 1000')}{SOON}", ready=False
    ) as manager:
        eventually(lambda: manager.pool("app").state == "FATAL")
        (tmp_path / "mended").touch()
        eventually(lambda: manager.pool("app").state == "RUNNING")


def test_a_port_that_was_in_use(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    host, _, port = address.rpartition(":")
    scene(tmp_path, "")
    (tmp_path / "mended").touch()
    with socket.create_server((host, int(port))):
        manager = running(tmp_path, f'[pool.app]\nsocket = "{address}"\n{KEYS}{SOON}', ready=False)
        manager.begin()
        eventually(manager.is_up)
        eventually(lambda: manager.pool("app").state == "FATAL")
    try:
        eventually(lambda: manager.pool("app").state == "RUNNING")
        assert ask(address)["environ"]["FCGIMGR_POOL"] == "app"
    finally:
        manager.stop()


@pytest.mark.parametrize("on_fatal", ["close", "retry"])
def test_it_says_what_to_do(on_fatal: str, tmp_path: Path) -> None:
    keys = KEYS.replace('"retry"', f'"{on_fatal}"')
    app = f'[pool.app]\nsocket = "{free_address("unix", tmp_path)}"\n{keys}'
    with running(tmp_path, f'{app}[program.other]\ncommand = "sleep 1000"\n', ready=False) as manager:
        eventually(lambda: manager.pool("app").state == "FATAL")
        shown = manager("status", "app").out
        assert "once it is mended: fcgimgr start app" in shown
        assert ("next try in " in shown) == (on_fatal == "retry")
        (line,) = [line for line in manager.output().splitlines() if "app:app_00: FATAL: " in line]
        advice = r"next try in \d\d s; at once, " if on_fatal == "retry" else ""
        why = "before it was ready: no database"
        assert re.search(f"{why}; {advice}once it is mended: fcgimgr start app:app_00$", line)
        (tmp_path / "mended").touch()
        scene(tmp_path, "", name="unused")  # for answer.py
        manager("start", "app").succeeds()


def test_it_goes_on_across_an_upgrade_and_a_killed_manager(tmp_path: Path) -> None:
    scene(tmp_path, "")
    app = f'[pool.app]\nsocket = "{free_address("unix", tmp_path)}"\n{KEYS}backoff_max = 1\n'
    config = configuration(tmp_path, f'{app}[program.other]\ncommand = "sleep 1000"\nstartsecs = 0\n')
    first = Manager(config, tmp_path / "fcgimgr.sock", ready=False)
    first.begin()
    eventually(first.is_up)
    eventually(lambda: first.pool("app").state == "FATAL")
    first("upgrade").succeeds()
    assert first.pool("app").processes[0].retry_in is not None
    first.kill()
    with Manager(config, tmp_path / "fcgimgr.sock", ready=False, mark=first.mark) as second:
        (tmp_path / "mended").touch()
        eventually(lambda: second.pool("app").state == "RUNNING")
