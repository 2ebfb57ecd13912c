"""The lines of docs/servers.md: servers that take the pool's socket in a way of their own."""

import urllib.request
from pathlib import Path

from tests.integration.commands import running
from tests.integration.ports import free_address
from tests.integration.scenes import are_gone
from tests.integration.servers import need
from tests.waiting import eventually

APP = "sub { [200, ['Content-Type', 'text/plain'], [\"$ENV{FCGIMGR_GENERATION}\"]] }\n"


def get(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/", timeout=10) as answer:
        return str(answer.read().decode())


def test_starman_takes_the_socket_by_the_variable_of_server_starter(tmp_path: Path) -> None:
    need("starman")
    (tmp_path / "app.psgi").write_text(APP)
    address = free_address("tcp", tmp_path)
    keys = 'command = "starman --workers 2 app.psgi"\ndirectory = "%(here)s"\nsocket_pass = "env"\nstopwaitsecs = 30\n'
    environment = f'[pool.app.environment]\nSERVER_STARTER_PORT = "{address}=3"\n'
    with running(tmp_path, f'[pool.app]\nsocket = "{address}"\n{keys}{environment}') as manager:
        assert get(address) == "1"
        old = manager.pids("app")
        manager("reload", "app").succeeds()
        assert are_gone(*old)
        assert get(address) == "2"


def test_a_server_that_listens_again_shows_its_own_backlog(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'ok'})\n"
    )
    address = free_address("tcp", tmp_path)
    command = "uvicorn --fd 0 --lifespan off --backlog 77 app:app"
    keys = f'command = "{command}"\ndirectory = "%(here)s"\nsocket_backlog = 99\n'
    with running(tmp_path, f'[pool.app]\nsocket = "{address}"\n{keys}') as manager:
        eventually(lambda: manager.status(detail=True).pools[0].sockets[0].backlog == 77)
        assert get(address) == "ok"
