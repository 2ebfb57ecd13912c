"""`ready = "ping"` on a pool that serves: a new process is found ready though no ping gets through to it."""

from contextlib import suppress
from pathlib import Path

from tests.integration.commands import Manager, running
from tests.integration.moody import Clients, clients, let_go, moody, queue_of
from tests.integration.ports import free_port
from tests.waiting import eventually


def saturated(manager: Manager, asking: Clients, port: int) -> int:
    """Have one process more, which is given a request at once while ten others wait, and a ping after them; its pid."""
    asking.ask(12)  # one in the hands of the only process, one for the next
    eventually(lambda: queue_of(port) == 11)
    manager("scale", "app", "2", "--no-wait").succeeds()
    eventually(lambda: queue_of(port) == 11)  # it took one, and the ping came
    pid = manager.pool("app").processes[1].pid
    assert pid is not None
    return pid


def test_one_that_finishes_requests_is_ready(tmp_path: Path) -> None:
    port = free_port()
    config = moody(tmp_path, f"127.0.0.1:{port}", "ready_timeout = 600", "startsecs = 0.1")
    with running(tmp_path, config) as manager, clients(f"127.0.0.1:{port}") as asking:
        try:
            pid = saturated(manager, asking, port)
            eventually(lambda: "no process accepts it" in manager.output())  # its hands are looked at from then on
            for requests in range(1, 9):  # one that it finishes before the first look at its hands is not seen
                let_go(tmp_path, pid, requests)
                with suppress(AssertionError):
                    eventually(lambda: pid in manager.pids("app"), within=2)
                    break
            assert pid in manager.pids("app")
        finally:
            let_go(tmp_path)
        assert asking.answers() == ["1"] * 12
        assert "works on requests" in manager.output()


def test_one_that_is_given_long_requests_is_ready_and_not_ended_with_them(tmp_path: Path) -> None:
    port = free_port()
    config = moody(tmp_path, f"127.0.0.1:{port}", "ready_timeout = 4", "startsecs = 0", "startretries = 0")
    with running(tmp_path, config) as manager, clients(f"127.0.0.1:{port}") as asking:
        try:
            pid = saturated(manager, asking, port)
            eventually(lambda: pid in manager.pids("app"))
        finally:
            let_go(tmp_path)
        assert asking.answers() == ["1"] * 12


def test_one_that_hangs_on_our_own_pings_is_not(tmp_path: Path) -> None:
    (tmp_path / "mood-1").write_text("hang")
    config = moody(tmp_path, f"127.0.0.1:{free_port()}", "ready_timeout = 12", "startsecs = 0", "startretries = 0")
    with running(tmp_path, config, ready=False) as manager:
        # Its first ping is given up after 5 s, and stays in its hands while the next ones wait.
        eventually(lambda: manager.pool("app").state == "FATAL", within=60)
        assert "no answer in time" in manager.output()
        assert "works on requests" not in manager.output()
