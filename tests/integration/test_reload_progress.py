"""How far a reload is can be seen: in `status`, where the generation that finishes has rows of its own, and by whoever
waits for its end."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fcgimgr.control.client import Client
from fcgimgr.control.messages import Notice, Progress, ReloadParams, Verdict
from tests.integration.commands import running
from tests.integration.ports import free_address
from tests.integration.scenes import managing
from tests.integration.test_hung import all_hang, asked, pool, queued
from tests.integration.test_scoreboard import Pool
from tests.waiting import eventually


def test_a_generation_that_finishes_has_rows_of_its_own(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    with running(tmp_path, pool(tmp_path, address, "numprocs = 2", "stopwaitsecs = 20")) as manager:
        hung = all_hang(manager, address)
        hung.append(asked(address, "/"))
        eventually(lambda: queued(manager) == 1)
        manager("reload", "app", "--no-wait").succeeds()
        eventually(lambda: manager.pool("app").generation == 2)
        shown = eventually(lambda: [one for one in manager.pool("app").generations if one.state == "DRAINING"])
        (old,) = shown
        assert (old.number, old.processes) == (1, 2)
        assert (old.doing or "").startswith("2 old processes finish")
        assert 20 < (old.killed_in or 0) <= 40
        lines = manager("status").out.splitlines()
        assert re.match(r"app +RUNNING   2 of 2 running ", lines[3])
        assert [line.split()[0] for line in lines[4:9]] == [
            "app:app_00", "app:app_01", "generation", "app:app_00", "app:app_01"
        ]  # fmt: skip
        assert re.match(r"  generation 1  DRAINING  2 old processes finish.*  queue \d  killed in \d+ s$", lines[6])
        (tmp_path / "free").touch()
        for connection in hung:
            connection.close()
        eventually(lambda: not manager.pool("app").generations)


def test_whoever_waits_hears_what_is_waited_for(tmp_path: Path) -> None:
    app = Pool(tmp_path, "threads = 1")
    heard: list[str] = []

    def hear(notice: Notice) -> None:
        if isinstance(notice, Progress):
            heard.append(notice.detail or "")

    def reload() -> Verdict:
        with Client(str(app.config.with_suffix(".control"))) as client:
            return client.call("reload", ReloadParams(names=("app",)), answer=Verdict, on_event=hear, patient=True)

    with managing(app.config), ThreadPoolExecutor(1) as commands:
        with app.holding("/slow?x"):
            verdict = commands.submit(reload)
            eventually(lambda: any("killed in" in told for told in heard))
        assert verdict.result().ok
    told = r"generation 2 serves; 1 old process finishes, killed in \d+ s \(app_00: GET /slow\?x \d+ s\)"
    assert any(re.fullmatch(told, one) for one in heard), heard
    assert "generation 1 serves; 0 of 1 new processes ready" in heard
