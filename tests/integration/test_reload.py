"""A reload loses nothing, whatever the program: the new generation serves when it is ready, the old one finishes."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest

from fcgimgr.fastcgi.client import fetch
from tests.integration.backends import front, pool
from tests.integration.commands import Manager, configuration, running, words
from tests.integration.load import Load
from tests.integration.ports import free_address, free_port
from tests.integration.scenes import Child, are_gone, ordinary_user
from tests.waiting import eventually


def reload_again_and_again(manager: Manager, load: Load, *, times: int = 2) -> None:
    """Reload under load; after each verdict the new generation alone answers, and nothing is left of the old."""
    for generation in range(2, 2 + times):
        load.goes_on()
        old = manager.pids("app")
        said = manager("reload", "app").succeeds()
        verdict = monotonic()
        assert said == f"app: reloaded: generation {generation} serves\n"
        are_gone(*old, within=0.5)
        load.goes_on()
        assert load.generations_since(verdict) == {generation}


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("backend", ["go", "c", "php", "flup", "wsgi", "uvicorn"])
def test_a_reload_under_load_loses_no_request(backend: str, transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with (
        running(tmp_path, pool(tmp_path, backend, address)) as manager,
        front(tmp_path, backend, address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        # These two take their time to start or to stop.
        reload_again_and_again(manager, load, times=1 if backend in ("flup", "uvicorn") else 3)
    assert load.failures == []


@pytest.mark.parametrize("kind", ["v6", "wildcard", "wildcard v4"])
def test_so_it_is_on_every_kind_of_tcp_address(kind: str, tmp_path: Path) -> None:
    port = free_port()
    listening = {"v6": f"[::1]:{port}", "wildcard": f"*:{port}", "wildcard v4": f"0.0.0.0:{port}"}[kind]
    asked = {"v6": ["[::1]"], "wildcard": ["127.0.0.1", "[::1]"], "wildcard v4": ["127.0.0.1", "127.0.0.7"]}[kind]
    addresses = [f"{host}:{port}" for host in asked]
    with (
        running(tmp_path, pool(tmp_path, "go", listening)) as manager,
        front(tmp_path, "go", *addresses) as nginx,
        Load(nginx.port, paths=[f"/{number}" for number in range(len(addresses))]) as load,
    ):
        reload_again_and_again(manager, load)
    assert load.failures == []


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("backend", ["go", "c", "php", "wsgi", "uvicorn"])
def test_a_reload_loses_no_request_on_connections_that_nginx_keeps(
    backend: str, transport: str, tmp_path: Path
) -> None:
    """C and php-cgi serve a connection as long as it is kept, so there are no more clients than processes."""
    address = free_address(transport, tmp_path)
    # uvicorn ends well at any time, and on a Unix socket nobody sees when it is idle.
    patience = 1 if backend == "uvicorn" else 30
    with (
        running(tmp_path, pool(tmp_path, backend, address, f"stopwaitsecs = {patience}")) as manager,
        front(tmp_path, backend, address, keep=True) as nginx,
        Load(nginx.port, paths=["/0"], clients=3) as load,
    ):
        begun = monotonic()
        reload_again_and_again(manager, load)
        assert monotonic() - begun < 30, "kept connections have held a reload until its deadline"
    assert load.failures == []


def test_all_sockets_of_a_pool_are_switched(tmp_path: Path) -> None:
    addresses = [free_address("tcp", tmp_path), free_address("unix", tmp_path), free_address("tcp", tmp_path)]
    with (
        running(tmp_path, pool(tmp_path, "go", addresses, 'socket_pass = "env"')) as manager,
        front(tmp_path, "go", *addresses) as nginx,
        Load(nginx.port, paths=["/0", "/1", "/2"]) as load,
    ):
        reload_again_and_again(manager, load)
    assert load.failures == []


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_a_pool_of_one_process_is_reloaded_too(transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    with (
        running(tmp_path, pool(tmp_path, "c", address, numprocs=1)) as manager,
        front(tmp_path, "c", address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        reload_again_and_again(manager, load, times=3)
    assert load.failures == []


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_an_ordinary_user_has_it_all(transport: str) -> None:
    with ordinary_user() as (directory, become):
        address = free_address(transport, directory)
        config = configuration(directory, pool(directory, "go", address))
        with (
            Manager(config, directory / "fcgimgr.sock", prefix=become) as manager,
            front(directory, "go", address) as nginx,
            Load(nginx.port, paths=["/0"]) as load,
        ):
            reload_again_and_again(manager, load)
        assert load.failures == []


def test_a_request_in_hand_at_the_reload_is_answered_by_the_old_generation(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    with (
        running(tmp_path, pool(tmp_path, "go", address)) as manager,
        front(tmp_path, "go", address) as nginx,
        Load(nginx.port, paths=["/0"], pause=400) as load,
    ):
        begun = monotonic()
        manager("reload", "app").succeeds()
        load.goes_on(1)
    assert load.failures == []
    assert 1 in {answer.generation for answer in load.answers if answer.begun < begun < answer.ended}


# -- new code that is no good -----------------------------------------------------------------------------------------

BROKEN = {
    "crashes": ("#!/bin/sh\necho no database >&2\nsleep 0.2\nexit 3\n", "no database"),
    "does not start": ("#!/nowhere/interpreter\n", ""),
    "is never ready": ("#!/bin/sh\necho still warming up\nexec sleep 1000\n", "still warming up"),
    "answers with errors": ("#!/bin/sh\nexec python -S -E broken.py\n", "the cupboard is bare"),
}

# Answers every FastCGI request with status 500.
ERRORS = """\
import socket, struct, sys
print("the cupboard is bare", flush=True)
listener = socket.socket(fileno=0)
body = b"Status: 500 Internal Server Error\\r\\nContent-Type: text/plain\\r\\n\\r\\nno\\n"
record = lambda kind, content: struct.pack("!BBHHBx", 1, kind, 1, len(content), 0) + content
while True:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(record(6, body) + record(6, b"") + record(3, bytes(8)))
        connection.settimeout(1)
        try:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            pass
"""


def deploy(directory: Path, program: str | None) -> None:
    """Make this script, or the good program, the current one, as a deployment does: by a symbolic link."""
    current = directory / "next"
    with suppress(FileNotFoundError):
        current.unlink()
    if program is not None:
        (directory / "broken").write_text(program)
        (directory / "broken").chmod(0o755)
    current.symlink_to("serve" if program is None else "broken")
    current.rename(directory / "current")


def deployed(directory: Path, address: str | list[str], *keys: str, ready: str = "ping") -> str:
    """The table of a pool of Go programs that are started through the link `current`."""
    (directory / "broken.py").write_text(ERRORS)
    table = pool(directory, "go", address, "reload_timeout = 4", *keys)
    deploy(directory, None)
    return table.replace("/serve", "/current").replace('"ping"', f'"{ready}"')


@pytest.mark.parametrize("transport", ["tcp", "unix"])
@pytest.mark.parametrize("fault", list(BROKEN))
def test_broken_new_code_never_serves(fault: str, transport: str, tmp_path: Path) -> None:
    address = free_address(transport, tmp_path)
    script, last_words = BROKEN[fault]
    with (
        running(tmp_path, deployed(tmp_path, address, "startsecs = 0.5", "startretries = 0")) as manager,
        front(tmp_path, "go", address) as nginx,
        Load(nginx.port, paths=["/0"]) as load,
    ):
        pids = manager.pids("app")
        deploy(tmp_path, script)
        failed = manager("reload", "app")
        assert failed.code == 1
        assert failed.out.startswith("app: failed: ")
        assert "app:app_0" in failed.out
        assert last_words in failed.out
        assert ("answered with status 500" in failed.out) == (fault == "answers with errors")
        assert manager.pids("app") == pids
        load.goes_on()
        deploy(tmp_path, None)
        manager.config.write_text(manager.config.read_text().replace("reload_timeout = 4", "reload_timeout = 60"))
        manager("update").succeeds()  # what is good has all the time that a busy machine takes
        assert "reloaded" in manager("reload", "app").succeeds()
        load.goes_on()
        assert not set(pids) & set(manager.pids("app"))
        assert len(manager.pool("app").processes) == 3
    assert load.failures == []
    assert {answer.generation for answer in load.answers} == {1, 3}


def test_new_code_that_is_never_ready_by_its_own_word_never_serves(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    script, _ = BROKEN["is never ready"]
    table = pool(tmp_path, "wsgi", address, "reload_timeout = 1", f'python = "{tmp_path}/current"')
    (tmp_path / "python").write_text('#!/bin/sh\nexec python "$@"\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "current").symlink_to("python")
    with running(tmp_path, table) as manager:
        pids = manager.pids("app")
        deploy(tmp_path, script)
        said = manager("reload", "app")
        assert said.code == 1
        assert "reload_timeout" in said.out
        assert "still warming up" in said.out
        assert manager.pids("app") == pids


# -- one at a time ----------------------------------------------------------------------------------------------------


def test_a_reload_during_a_reload_is_refused(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    with running(tmp_path, deployed(tmp_path, address).replace("reload_timeout = 4", "reload_timeout = 30")) as manager:
        deploy(tmp_path, BROKEN["is never ready"][0])
        with subprocess.Popen(
            words("-c", manager.config, "reload", "app"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as first:
            eventually(lambda: len(manager.pool("app").processes) == 6)
            refused = manager("reload", "app")
            assert refused.code == 1
            assert "under way already" in refused.out
            manager("reload", "app", "--abort").succeeds()
            said, _ = first.communicate(timeout=30)
            assert first.returncode == 1, said
            assert "aborted" in said
        assert len(manager.pids("app")) == 3


def test_a_reload_while_the_last_one_drains_waits_for_it(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    params = {"REQUEST_METHOD": "GET", "REQUEST_URI": "/?pause=2500", "SERVER_PROTOCOL": "HTTP/1.1"}
    table = pool(tmp_path, "go", address, "stopwaitsecs = 30")
    with running(tmp_path, table) as manager, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(fetch, address, params, b"", timeout=30.0)  # it holds the old generation
        eventually(lambda: any(process.busy for process in manager.status(detail=True).pools[0].processes))
        assert manager("reload", "--no-wait", "app").code == 0
        eventually(lambda: manager.pool("app").generation == 2)
        assert "generation 3 serves" in manager("reload", "app").succeeds()
        assert "generation 1\n" in answer.result(30).body.decode()
        assert "the reload waits until the generation before has left" in manager.output()
        assert len(manager.pids("app")) == 3


def test_a_reload_leaves_no_descriptor_and_no_process_behind(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    with running(tmp_path, pool(tmp_path, "c", address)) as manager:
        manager("reload", "app").succeeds()
        before = len(Child(manager.pid).fds)
        for _ in range(5):
            manager("reload", "app").succeeds()
        eventually(lambda: len(Child(manager.pid).fds) == before)
        eventually(lambda: sorted(Child(manager.pid).children) == sorted(manager.pids("app")))
