"""The access log and the slow log of a wsgi pool: behind the real nginx, reopened, and as another user."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from tests.integration.backends import front, pool
from tests.integration.commands import Manager, fcgimgr, lines_of, running
from tests.integration.load import Load
from tests.integration.ports import connect, free_address
from tests.integration.scenes import NOBODY, managing, open_directory
from tests.integration.test_scoreboard import Pool, servers
from tests.rights import as_root
from tests.waiting import eventually


def command(manager: Manager, *words: str) -> str:
    return manager(*words).succeeds()


@pytest.mark.parametrize("preload", [False, True])
def test_every_request_through_nginx_has_its_line(preload: bool, tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    keys = f'access_log = "%(here)s/access.log"\npreload = {str(preload).lower()}'
    with (
        running(tmp_path, pool(tmp_path, "wsgi", address, keys, 'access_format = "json"')) as manager,
        front(tmp_path, "wsgi", address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        load.goes_on(200)
        load.__exit__()
        logged = [json.loads(line) for line in lines_of(tmp_path / "access.log")]
        assert len(logged) == len(load.answers)
        assert load.failures == []
        assert {line["status"] for line in logged} == {200}
        assert {line["remote"] for line in logged} == {"127.0.0.1"}
        assert {line["pool"] for line in logged} == {"app"}
        assert {line["process"] for line in logged} <= {"app_00", "app_01", "app_02"}
        assert {line["pid"] for line in logged} == {answer.pid for answer in load.answers}
        assert all(line["uri"].startswith("/0?pause=3&n=") and line["seconds"] >= 0.003 for line in logged)
        assert manager.output().count("warning") == 0


def test_after_reopen_the_next_line_is_in_the_new_file_and_none_is_lost(tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    log = tmp_path / "access.log"
    keys = 'access_log = "%(here)s/access.log"\naccess_format = "%q"'
    with (
        running(tmp_path, pool(tmp_path, "wsgi", address, keys)) as manager,
        front(tmp_path, "wsgi", address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        for number in range(1, 4):
            load.goes_on(40)
            log.rename(tmp_path / f"access.log.{number}")
            assert "reopened" in command(manager, "reopen")
            finished = (tmp_path / f"access.log.{number}").read_text()
            load.goes_on(40)
            # What was begun before the answer may still have been on its way into the old file.
            assert len((tmp_path / f"access.log.{number}").read_text()) - len(finished) < 200
            assert log.read_text() != ""
        load.__exit__()
        logged = lines_of(*(tmp_path / f"access.log.{number}" for number in range(1, 4)), log)
        assert len(logged) == len(set(logged)) == len(load.answers)


@servers
def test_no_client_can_forge_a_line_through_nginx(server: str, tmp_path: Path) -> None:
    address = free_address("unix", tmp_path)
    keys = 'access_log = "%(here)s/access.log"\naccess_format = \'%m "%r%Q%q" "%{HTTP_USER_AGENT}e" %s\''
    table = pool(tmp_path, "wsgi", address, keys, f'server = "{server}"')
    with running(tmp_path, table), front(tmp_path, "wsgi", address) as nginx:
        with connect(f"127.0.0.1:{nginx.port}") as client:
            client.sendall(
                b'GET /0?"%0a\xff HTTP/1.0\r\nHost: x\r\nUser-Agent: a" 200\x1b[2J\t\xe2\x80\xa8 \\ b\r\n\r\n'
            )
            while client.recv(65536):
                pass
        (line,) = eventually(lambda: lines_of(tmp_path / "access.log"))
        assert line == (
            'GET "/0?\\x22%0a\\xff" "a\\x22 200\\x1b[2J\\x09\\xe2\\x80\\xa8 \\x5c b" 200'
        )  # fmt: skip


def test_on_the_standard_output_it_goes_where_that_goes(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 'access_log = "-"', 'access_format = "%m %r %s %b"', 'stdout_logfile = "%(here)s/out"')
    with managing(pool.config):
        assert pool.ask("/pid", REQUEST_URI="/the/uri").result().status == 200
        eventually(lambda: any(re.fullmatch(r"GET /the/uri 200 \d+", line) for line in lines_of(tmp_path / "out")))


@as_root
@pytest.mark.parametrize("preload", [False, True])
def test_a_pool_of_another_user_writes_where_only_root_may_create_files(preload: bool) -> None:
    with open_directory() as directory:
        logs = directory / "log"
        logs.mkdir(mode=0o755)
        keys = [
            'user = "nobody"', f'access_log = "{logs}/%(program_name)s_%(process_num)d.log"',
            f'slowlog = "{logs}/slow"', "slow_after = 0.2", "numprocs = 2", f"preload = {str(preload).lower()}",
        ]  # fmt: skip
        served = Pool(directory, *keys)
        (directory / "worker_app.py").chmod(0o644)
        control = directory / "pool.control"
        directory.chmod(0o1777)  # for the FIFOs of /hold; a manager may have its control socket in such a one
        with managing(served.config) as manager:
            log, slow = logs / "app_0.log", logs / "slow"
            assert {path.stat().st_uid for path in logs.iterdir()} == {NOBODY}
            with served.holding("/held"):
                eventually(lambda: "GET /held has taken" in slow.read_text())
            for _ in range(20):
                assert served.ask("/pid").result().status == 200
            eventually(lambda: len(lines_of(log, logs / "app_1.log")) == 21)
            log.rename(logs / "app_0.log.1")
            (logs / "app_1.log").rename(logs / "app_1.log.1")
            subprocess.run(
                [sys.executable, "-m", "fcgimgr", "-s", str(control), "reopen"], check=True, capture_output=True
            )
            for _ in range(20):
                assert served.ask("/pid").result().status == 200
            eventually(lambda: len(lines_of(log, logs / "app_1.log")) == 20)
            assert log.stat().st_uid == NOBODY
            assert "cannot" not in manager.output()


def test_a_log_that_cannot_be_opened_is_said_and_the_pool_serves(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 'access_log = "%(here)s/missing/access.log"')
    with managing(pool.config) as manager:
        assert pool.ask("/pid").result().status == 200
        eventually(lambda: "its lines are lost until this is mended" in manager.output())
        assert "missing/access.log: cannot be opened: its directory does not exist" in manager.output()


def test_lines_of_many_workers_and_threads_are_whole(tmp_path: Path) -> None:
    pool = Pool(tmp_path, 'access_log = "%(here)s/access.log"', 'access_format = "%r"', "numprocs = 3", "threads = 4")
    with managing(pool.config), ThreadPoolExecutor(8) as clients:
        uris = [f"/{letter * 60_000}" for letter in "abcdefgh" * 10]
        assert all(list(clients.map(lambda uri: pool.ask("/pid", REQUEST_URI=uri).result().status == 200, uris)))
        eventually(lambda: len(lines_of(tmp_path / "access.log")) == len(uris))
        assert sorted(lines_of(tmp_path / "access.log")) == sorted(uris)


@servers
def test_the_slow_log_shows_where_a_request_is_and_lets_it_go_on(server: str, tmp_path: Path) -> None:
    pool = Pool(tmp_path, f'server = "{server}"', 'slowlog = "%(here)s/slow.log"', "slow_after = 0.2", "threads = 2")
    with managing(pool.config):
        with pool.holding("/slow?one", "/slow?two"):
            eventually(lambda: lines_of(tmp_path / "slow.log").count("") == 2)
        text = (tmp_path / "slow.log").read_text()
        assert re.search(r"Z app:app_00 pid=\d+ GET /slow\?one has taken 0\.\d+ s and is here:", text)
        assert f'  File "{tmp_path}/worker_app.py", line ' in text
        assert "    held.read_bytes()\n" in text
        assert "flup" not in text
        assert "fcgimgr/worker" not in text


def test_without_a_slowlog_it_is_on_the_standard_error(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "slow_after = 0.1")
    with managing(pool.config) as manager, pool.holding("/slow"):
        eventually(lambda: "GET /slow has taken" in manager.output())


@as_root
def test_what_is_removed_of_them_is_made_again_for_a_user_who_could_not_make_it() -> None:
    with open_directory() as directory:
        logs = directory / "log"
        logs.mkdir(mode=0o751)
        served = Pool(directory, 'user = "nobody"', f'access_log = "{logs}/access"', 'access_format = "%q"')
        (directory / "worker_app.py").chmod(0o644)
        with managing(served.config, ready=False) as manager:
            eventually(manager.is_up)
            log = logs / "access"
            asked = count()

            def is_written_to() -> bool:
                number = next(asked)
                assert served.ask("/pid", QUERY_STRING=f"{number}").result().status == 200
                return log.exists() and f"{number}" in lines_of(log)

            eventually(is_written_to)
            log.unlink()
            eventually(is_written_to, every=0.1)
            assert log.stat().st_uid == NOBODY
            shutil.rmtree(logs)
            eventually(is_written_to, every=0.1)
            assert (logs.stat().st_mode & 0o777, logs.stat().st_uid, log.stat().st_uid) == (0o751, 0, NOBODY)
            assert f"{log}: the file was removed; a new one is begun" in manager.output()
            assert f"{log}: its directory was removed; made again" in manager.output()
            # One that is renamed is nobody's loss.
            log.rename(logs / "access.1")
            (logs / "other").touch()
            eventually(lambda: served.ask("/pid").result().status == 200)
            assert not log.exists()
            # So it is after another manager has taken over.
            fcgimgr("-c", served.config, "reopen").succeeds()
            fcgimgr("-c", served.config, "upgrade").succeeds()
            shutil.rmtree(logs)
            eventually(is_written_to, every=0.1)
