"""`demo`: what it refuses, what it says, and that nothing of it stays."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from fcgimgr.cli.main import main
from fcgimgr.demo.front import Front


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Any:
    import signal

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, action in before.items():
        signal.signal(number, action)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Front]:
    """The fronts that served; each ends at once, as by Ctrl-C. What the demo makes is made under `tmp_path`."""
    fronts: list[Front] = []

    def serve_forever(front: Front) -> None:
        fronts.append(front)
        raise KeyboardInterrupt

    monkeypatch.setattr(Front, "serve_forever", serve_forever)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return fronts


def scripted(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let `script` be the manager; its arguments are the configuration's path."""
    monkeypatch.setattr("fcgimgr.cli.running.manager_command", lambda config: [sys.executable, "-c", script, config])


MANAGER = """
import os, sys
sys.path.insert(0, os.getcwd())
import signal
from fcgimgr.control.messages import Ok, Probed
from tests.unit.scripted_manager import ScriptedManager
from tests.unit.test_cli_commands import STATUS

def shutdown(connection, request):
    open(os.environ["SAID"], "a").write("shut down")
    os.kill(os.getpid(), signal.SIGKILL)

directory = os.path.dirname(sys.argv[1])
assert os.stat(directory).st_mode & 0o777 == 0o700
probes = iter([Probed(ok=False, reason="not yet")])
with ScriptedManager(f"{directory}/control.sock", status=STATUS, shutdown=shutdown,
                     probe=lambda *_: next(probes, Probed(ok=True, reason="ready"))):
    signal.pause()
"""


def test_it_serves_until_ctrl_c_and_leaves_nothing(
    ended: list[Front],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    with tempfile.TemporaryDirectory() as outside:
        monkeypatch.setenv("SAID", f"{outside}/said")
        scripted(monkeypatch, MANAGER)
        assert main(["demo", "--port", "0"]) == 0
        assert Path(outside, "said").read_text() == "shut down"
    (front,) = ended
    directory = os.path.dirname(front.pool.removeprefix("unix:"))
    assert os.path.dirname(directory) == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().out
    assert f"curl http://127.0.0.1:{front.server_port}/" in said
    assert f"fcgimgr -s {directory}/control.sock status" in said
    assert "kill -9 7" in said
    assert "development only" in said


def test_a_manager_that_ends_at_once_is_said(
    ended: list[Front], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
):
    scripted(monkeypatch, "import sys; sys.exit(3)")
    assert main(["demo", "--port", "0"]) == 1
    assert "the manager ended with exit code 3" in capsys.readouterr().err
    assert (ended, list(tmp_path.iterdir())) == ([], [])


def test_a_manager_that_is_never_ready_is_stopped(
    ended: list[Front], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
):
    monkeypatch.setattr("fcgimgr.cli.demo._START_WITHIN", 0.1)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remembered(*arguments: Any, **settings: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **settings))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remembered)
    scripted(monkeypatch, "import signal; signal.pause()")
    assert main(["demo", "--port", "0"]) == 1
    assert "not ready within" in capsys.readouterr().err
    assert started[0].returncode is not None
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_refused_before_anything_starts(ended: list[Front], tmp_path: Path, capsys: Any):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 1
    assert f"port {port} on 127.0.0.1: Address already in use; give another one" in capsys.readouterr().err
    assert (ended, list(tmp_path.iterdir())) == ([], [])
