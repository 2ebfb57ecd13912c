"""Ready is who was seen to take the pool's socket; and who has served and ends as expected has not failed to start."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

import pytest

from fcgimgr.fastcgi.client import fetch
from tests.integration.backends import built_go, front, pool
from tests.integration.commands import Manager, fcgimgr, running, words
from tests.integration.load import Load, get
from tests.integration.ports import free_address, free_port
from tests.integration.scenes import open_directory
from tests.integration.servers import need
from tests.rights import as_root
from tests.waiting import eventually

GET = {"REQUEST_METHOD": "GET", "REQUEST_URI": "/", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost"}

PYTHON = f"{sys.executable} -S -E"

# Serves the number of its generation to whoever connects, as soon as there is a file ready-GENERATION.
SERVES = """\
import os, select, socket, sys, time
generation = os.environ["FCGIMGR_GENERATION"]
while not os.path.exists("ready-" + generation):
    time.sleep(0.005)
if os.path.exists("broken-" + generation):
    sys.exit("missing setting")
listener = socket.socket(fileno=int(os.environ.get("FCGI_LISTEN_FD", "0").split(",")[-1]))
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(generation.encode())
"""

# The same of uvicorn.
ASGI = """\
import os, sys, time
generation = os.environ["FCGIMGR_GENERATION"]
while not os.path.exists("ready-" + generation):
    time.sleep(0.005)
if os.path.exists("broken-" + generation):
    raise SystemExit("missing setting")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    well = scope["path"] != "/healthz" or os.path.exists("healthy-" + generation)
    body = generation.encode()
    # Without a length uvicorn with httptools answers in chunks, to HTTP/1.0 as well.
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200 if well else 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""

# Listens where it likes, and not on the pool's socket.
ELSEWHERE = """\
import os, signal, socket, sys
elsewhere = socket.create_server(("127.0.0.1", int(sys.argv[1])))
signal.pause()
"""

# As many a Go program has it: it binds its port itself, and where that fails, fcgi.Serve(nil, …) takes fd 0.
OWN_PORT = """\
package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/fcgi"
	"os"
)

func main() {
	listener, _ := net.Listen("tcp", os.Getenv("LISTEN"))
	fcgi.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "pid %d", os.Getpid())
	}))
}
"""


def serving(directory: Path, address: str, *keys: str, program: str = SERVES, words: str = "") -> str:
    (directory / "serve.py").write_text(program)
    (directory / "ready-1").touch()
    lines = ["[pool.app]", f'socket = "{address}"', f'command = "{PYTHON} serve.py {words}"', 'directory = "%(here)s"']
    return "\n".join([*lines, *keys, ""])


def uvicorn(directory: Path, port: int, *keys: str) -> str:
    (directory / "asgi.py").write_text(ASGI)
    (directory / "ready-1").touch()
    command = "python -m uvicorn --log-level warning asgi:app --fd 0"
    lines = ["[pool.app]", f'socket = "127.0.0.1:{port}"', f'command = "{command}"', 'directory = "%(here)s"']
    return "\n".join([*lines, *keys, ""])


def heard(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        return connection.recv(64).decode()


@contextmanager
def reloading(manager: Manager) -> Iterator[Popen[str]]:
    """`fcgimgr reload app`, which is under way: the new processes are started, and have lived startsecs."""
    with Popen(words("-c", manager.config, "reload", "app"), stdout=PIPE, stderr=STDOUT, text=True) as reload:
        eventually(lambda: [p for p in manager.pool("app").processes if p.generation == 2 and (p.uptime or 0) > 0.5])
        yield reload


# -- the new generation -----------------------------------------------------------------------------------------------


def test_code_that_fails_after_startsecs_never_gets_the_traffic(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "broken-2").touch()
    with running(tmp_path, uvicorn(tmp_path, port, "startsecs = 0.2", "numprocs = 2")) as manager:
        with reloading(manager) as reload:
            assert get(port, "/") == "1"
            assert manager.pool("app").generation == 1
            (tmp_path / "ready-2").touch()
            said, _ = reload.communicate(timeout=60)
        assert reload.returncode == 1, said
        assert "missing setting" in said
        assert get(port, "/") == "1"
        assert len(manager.pids("app")) == 2


def test_the_traffic_is_switched_only_to_those_that_accept(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, uvicorn(tmp_path, port, "startsecs = 0.2")) as manager:
        with reloading(manager) as reload:
            assert {process.state for process in manager.pool("app").processes} == {"RUNNING", "STARTING"}
            assert get(port, "/") == "1"
            (tmp_path / "ready-2").touch()
            said, _ = reload.communicate(timeout=60)
        assert said == "app: reloaded: generation 2 serves\n"
        assert get(port, "/") == "2"


def test_a_canary_is_led_to_only_when_it_accepts(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, serving(tmp_path, f"127.0.0.1:{port}", "startsecs = 0")) as manager:
        manager("reload", "app", "--canary", "50%", "--no-wait").succeeds()
        eventually(lambda: len(manager.pool("app").processes) == 2)
        assert {heard(port) for _ in range(50)} == {"1"}
        assert manager.pool("app").canary is None
        (tmp_path / "ready-2").touch()
        eventually(lambda: manager.pool("app").canary == 50)
        eventually(lambda: heard(port) == "2")


# -- an ordinary start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "keys"),
    [
        ("tcp", []),
        ("unix", []),
        ("tcp", ['socket_pass = "env"']),
        ("unix", ['socket_pass = "systemd"', 'environment = { FCGI_LISTEN_FD = "3" }']),
    ],
)
def test_a_process_is_ready_as_soon_as_it_accepts(address: str, keys: list[str], tmp_path: Path) -> None:
    table = serving(tmp_path, free_address(address, tmp_path), "startsecs = 0", *keys)
    (tmp_path / "ready-1").unlink()
    with running(tmp_path, table, ready=False) as manager:
        eventually(lambda: (manager.pool("app").processes[0].uptime or 0) > 0.3)
        assert manager.pool("app").state == "STARTING"
        (tmp_path / "ready-1").touch()
        eventually(lambda: manager.pool("app").state == "RUNNING")


def test_one_of_several_sockets_is_enough(tmp_path: Path) -> None:
    table = serving(tmp_path, "SOCKETS", "startsecs = 0", 'socket_pass = "env"')
    sockets = f'["127.0.0.1:{free_port()}", "%(here)s/other.sock"]'
    with running(tmp_path, table.replace('"SOCKETS"', sockets)) as manager:
        assert manager.pool("app").state == "RUNNING"


@pytest.mark.parametrize("backend", ["go", "c", "php", "flup", "uvicorn"])
def test_so_are_servers_of_all_kinds(backend: str, tmp_path: Path) -> None:
    table = pool(tmp_path, backend, free_address("unix", tmp_path), 'ready = "accepts"')
    lines = dict.fromkeys(line for line in table.splitlines() if line not in ('ready = "ping"', "startsecs = 1"))
    with running(tmp_path, "\n".join([*lines, "startsecs = 0", ""]).replace("startsecs = 0.2\n", "")) as manager:
        assert manager.pool("app").state == "RUNNING"


def test_a_master_is_ready_when_its_children_accept(tmp_path: Path) -> None:
    need("php-cgi")
    text = (
        f'[pool.app]\nsocket = "127.0.0.1:{free_port()}"\ncommand = "php-cgi"\nstartsecs = 0\n'
        'environment = { PHP_FCGI_CHILDREN = "2" }\n'
    )
    with running(tmp_path, text) as manager:
        assert manager.pool("app").state == "RUNNING"


def test_one_that_never_accepts_has_failed_to_start_and_says_so(tmp_path: Path) -> None:
    table = serving(tmp_path, f"127.0.0.1:{free_port()}", "startsecs = 0.1", "ready_timeout = 1", "startretries = 0")
    (tmp_path / "ready-1").unlink()
    with running(tmp_path, table, ready=False) as manager:
        eventually(lambda: manager.pool("app").state == "FATAL")
        why = "did not take the pool's socket within ready_timeout (1 s)"
        assert manager.pool("app").processes[0].reason == why
        assert f"app:app_00: FATAL: {why}" in manager.output()


def test_with_startsecs_time_is_enough(tmp_path: Path) -> None:
    table = serving(tmp_path, f"127.0.0.1:{free_port()}", "startsecs = 0.1", 'ready = "startsecs"')
    (tmp_path / "ready-1").unlink()
    with running(tmp_path, table) as manager:
        assert manager.pool("app").state == "RUNNING"


@as_root
def test_where_nobody_may_look_it_is_ready_after_startsecs() -> None:
    """A container's root (no CAP_SYS_PTRACE), and processes of another user."""
    need("setpriv")
    prefix = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    with open_directory() as directory:
        table = serving(directory, f"127.0.0.1:{free_port()}", "startsecs = 0.5", 'user = "nobody"')
        (directory / "ready-1").unlink()
        text = f'loglevel = "debug"\n{table}'
        manager = Manager(_configuration(directory, text), directory / "fcgimgr.sock", prefix=prefix)
        with manager:
            assert "what it waits for may not be looked at" in manager.output()


@as_root
def test_php_that_ends_itself_where_nobody_may_look_is_missed_by_nobody() -> None:
    need("setpriv")
    with open_directory() as directory:
        address = free_address("tcp", directory)
        table = pool(directory, "php", address, 'user = "nobody"', numprocs=2).replace("startsecs = 0.2\n", "")
        config = _configuration(directory, table.replace('REQUESTS = "0"', 'REQUESTS = "50"'))
        prefix = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
        with (
            Manager(config, directory / "fcgimgr.sock", prefix=prefix) as manager,
            front(directory, "php", address) as nginx,
            Load(nginx.port, paths=["/0"], clients=8, pause=0) as load,
        ):
            load.goes_on(1000)
            assert sum(process.restarts for process in manager.pool("app").processes) >= 10
            assert "FATAL" not in manager.output()
        assert load.failures == []


def _configuration(directory: Path, text: str) -> Path:
    config = directory / "pool.toml"
    config.write_text(f'[manager]\ncontrol = "%(here)s/fcgimgr.sock"\n{text}')
    return config


@pytest.mark.parametrize("how", ["upgrade", "kill"])
def test_one_that_starts_is_found_ready_by_the_manager_after_this_one(how: str, tmp_path: Path) -> None:
    table = serving(tmp_path, f"127.0.0.1:{free_port()}", "startsecs = 0.1")
    manager = running(tmp_path, table)
    manager.begin()
    try:
        eventually(manager.is_up, within=30)
        (tmp_path / "ready-1").unlink()
        manager("scale", "app", "2", "--no-wait").succeeds()
        eventually(lambda: (manager.pool("app").processes[1].uptime or 0) > 0.2)
        pids = [process.pid for process in manager.pool("app").processes]
        if how == "upgrade":
            manager("upgrade").succeeds()
        else:
            manager.kill()
            manager.begin()
            eventually(lambda: manager("ping").code == 0, within=30)
        assert len(manager.pids("app")) == 1
        (tmp_path / "ready-1").touch()
        eventually(lambda: manager.pids("app") == pids, within=30)
        manager.stop()
    except BaseException:
        manager.end_by_force()
        raise


# -- elsewhere --------------------------------------------------------------------------------------------------------


def test_one_that_listens_elsewhere_is_told_so(tmp_path: Path) -> None:
    port, own = free_port(), free_port()
    keys = ["startsecs = 0.1", "ready_timeout = 4", "startretries = 0"]
    table = serving(tmp_path, f"127.0.0.1:{port}", *keys, program=ELSEWHERE, words=str(own))
    what = f"it listens on 127.0.0.1:{own} itself; the pool's socket is fd 0, which it does not take"
    with running(tmp_path, table, ready=False) as manager:
        eventually(lambda: what in (manager.pool("app").processes[0].reason or ""))
        assert manager.pool("app").state == "STARTING"
        assert manager.output().count(what) == 1
        assert what in manager("status").out
        eventually(lambda: manager.pool("app").state == "FATAL")
        assert what in (manager.pool("app").processes[0].reason or "")


def test_uvicorn_is_told_what_to_write(tmp_path: Path) -> None:
    own = free_port()
    table = uvicorn(tmp_path, free_port(), "startsecs = 0.1").replace("--fd 0", f"--port {own}")
    with running(tmp_path, table, ready=False) as manager:
        eventually(lambda: manager.pool("app").processes[0].reason)
        assert f"127.0.0.1:{own} itself; the pool's socket is fd 0" in manager.output()
        assert 'as with "--fd 0"' in manager.output()


def test_a_siblings_answers_do_not_make_it_ready(tmp_path: Path) -> None:
    program = tmp_path / "serve"
    program.symlink_to(built_go(OWN_PORT))
    port, own = free_port(), free_port()
    table = f"""\
[pool.app]
socket = "127.0.0.1:{port}"
command = "{program}"
numprocs = 2
ready = "ping"
ready_timeout = 4
startretries = 0
environment = {{ LISTEN = "127.0.0.1:{own}" }}
"""
    # Only one of the two can have the other port; its sibling takes fd 0.
    with running(tmp_path, table, ready=False) as manager:
        eventually(lambda: manager.pool("app").state == "DEGRADED")
        eventually(lambda: {p.state for p in manager.pool("app").processes} == {"RUNNING", "FATAL"})
        assert f"it listens on 127.0.0.1:{own} itself" in manager.output()


def test_one_that_falls_back_to_fd_0_works(tmp_path: Path) -> None:
    program = tmp_path / "serve"
    program.symlink_to(built_go(OWN_PORT))
    port = free_port()
    table = f"""\
[pool.app]
socket = "127.0.0.1:{port}"
command = "{program}"
numprocs = 3
environment = {{ LISTEN = "127.0.0.1:{port}" }}
"""
    with running(tmp_path, table) as manager:
        for _ in range(2):
            said = {fetch(f"127.0.0.1:{port}", GET).body.decode() for _ in range(30)}
            assert said <= {f"pid {pid}" for pid in manager.pids("app")}
            manager("reload", "app").succeeds()


# -- an HTTP request --------------------------------------------------------------------------------------------------


def test_ready_is_who_answers_the_http_request(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "healthy-1").touch()
    keys = ['ready = "http:/healthz"', "numprocs = 2", "ready_timeout = 60"]
    with running(tmp_path, uvicorn(tmp_path, port, *keys)) as manager:
        (tmp_path / "ready-2").touch()
        with Popen(words("-c", manager.config, "reload", "app"), stdout=PIPE, stderr=STDOUT, text=True) as reload:
            eventually(lambda: "ping: GET /healthz was answered with status 503" in manager.output())
            assert get(port, "/") == "1"
            (tmp_path / "healthy-2").touch()
            said, _ = reload.communicate(timeout=60)
        assert said == "app: reloaded: generation 2 serves\n"
        assert get(port, "/healthz") == "2"


def test_a_reload_whose_http_request_is_answered_badly_is_discarded(tmp_path: Path) -> None:
    port = free_port()
    for name in ("healthy-1", "ready-2"):
        (tmp_path / name).touch()
    keys = ['ready = "http:/healthz"', "ready_timeout = 60", "reload_timeout = 3"]
    with running(tmp_path, uvicorn(tmp_path, port, *keys)) as manager:
        done = manager("reload", "app")
        assert done.code == 1
        assert "ping: GET /healthz was answered with status 503" in done.out + done.err
        assert get(port, "/") == "1"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("b'SSH-2.0-hello'", "answered with no HTTP: b'SSH-2.0-hello'"),
        ("b''", "closed the connection before it had answered GET /"),
        ("b'HTTP/1.1 200 OK\\r\\n' + b'x' * 1000000", "the head of its answer is longer than 65536 bytes"),
    ],
)
def test_what_is_no_answer_is_told(answer: str, why: str, tmp_path: Path) -> None:
    program = SERVES.replace("connection.sendall(generation.encode())", f"connection.recv(999), send({answer})")
    program = program.replace("while True:", SEND + "while True:")
    table = serving(tmp_path, f"127.0.0.1:{free_port()}", 'ready = "http"', program=program)
    with running(tmp_path, table, ready=False) as manager:
        eventually(lambda: f"ping: {why}" in manager.output())
        assert manager.pool("app").state == "STARTING"


SEND = """\
def send(answer):
    try:
        connection.sendall(answer)
    except OSError:
        pass
"""


# -- recycling itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requests", [100, 7])
@pytest.mark.parametrize("numprocs", [1, 4])
@pytest.mark.parametrize("keys", [[], ["startsecs = 0"], ['ready = "ping"'], ['ready = "startsecs"']])
def test_php_that_ends_itself_after_so_many_requests_is_missed_by_nobody(
    numprocs: int, requests: int, keys: list[str], tmp_path: Path
) -> None:
    if requests == 7 and keys not in ([], ['ready = "ping"']):
        pytest.skip("often enough")
    address = free_address("tcp", tmp_path)
    table = pool(tmp_path, "php", address, *keys, numprocs=numprocs).replace("startsecs = 0.2\n", "")
    table = table.replace('REQUESTS = "0"', f'REQUESTS = "{requests}"')
    with (
        running(tmp_path, table) as manager,
        front(tmp_path, "php", address) as nginx,
        Load(nginx.port, paths=["/0"], clients=8, pause=0) as load,
        watched(manager) as states,
    ):
        load.goes_on(1500 if requests == 100 else 300)
        assert sum(process.restarts for process in manager.pool("app").processes) >= 10
        assert states == {"RUNNING"}
        assert "BACKOFF" not in manager.output()
    assert load.failures == []


@contextmanager
def watched(manager: Manager) -> Iterator[set[str]]:
    """The states of the pool that `status` shows meanwhile."""
    states: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            states.add(manager.pool("app").state)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield states
    finally:
        over.set()
        thread.join()


def test_a_canary_that_recycles_itself_is_no_canary_that_dies(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    table = pool(tmp_path, "php", address, numprocs=2).replace('REQUESTS = "0"', 'REQUESTS = "20"')
    with (
        running(tmp_path, table) as manager,
        front(tmp_path, "php", address) as nginx,
        Load(nginx.port, paths=["/0"], pause=0) as load,
    ):
        manager("reload", "app", "--canary", "50%").succeeds()
        load.goes_on(400)
        assert manager("reload", "app", "--promote").succeeds() == "app: reloaded: generation 2 serves\n"
    assert load.failures == []


@pytest.mark.parametrize("command", ["true", "false", "sh -c 'kill -9 $$'"])
@pytest.mark.parametrize("keys", [[], ["startsecs = 0"]])
def test_what_ends_at_once_is_a_crash_loop_whatever_its_exit_code(
    command: str, keys: list[str], tmp_path: Path
) -> None:
    address = free_address("unix", tmp_path)
    times = ["backoff_initial = 0.01", "numprocs = 2", *keys]
    lines = ['loglevel = "debug"', "[pool.app]", f'socket = "{address}"', f'command = "{command}"', *times]
    lines += ["[program.other]", 'command = "sleep 1000"', "startsecs = 0", ""]  # or the manager gives up
    with running(tmp_path, "\n".join(lines), ready=False) as manager:
        eventually(lambda: manager.pool("app").state == "FATAL")
        assert manager.output().count("spawned pid=") == 2 * 4 + 1
        assert not os.path.exists(address)


def test_code_that_ends_at_once_after_it_had_served_is_a_crash_loop(tmp_path: Path) -> None:
    """A program whose file is replaced by one that exits with 0, while its old processes recycle themselves."""
    port = free_port()
    program = SERVES.replace("        connection.sendall(generation.encode())\n", SERVES_ONE)
    table = serving(tmp_path, f"127.0.0.1:{port}", "startsecs = 0", "backoff_initial = 0.01", program=program)
    with running(tmp_path, table) as manager:
        for _ in range(50):
            assert heard(port) == "1"
        assert manager.pool("app").state == "RUNNING"
        assert "BACKOFF" not in manager.output()
        eventually(lambda: manager.pids("app"))
        (tmp_path / "serve.py").write_text("raise SystemExit(0)\n")
        os.kill(manager.pids("app")[0], signal.SIGKILL)
        eventually(lambda: manager.pool("app").state == "FATAL", within=30)
        assert manager.output().count("spawned pid=") < 50 + 40


SERVES_ONE = """\
        connection.sendall(generation.encode())
        connection.close()
        sys.exit(0)
"""


def test_check_knows_the_words(tmp_path: Path) -> None:
    config = _configuration(tmp_path, '[program.app]\ncommand = "true"\nready = "http:/x"\n')
    assert '"http:/x" is for pools' in fcgimgr("-c", config, "check").fails(2)
