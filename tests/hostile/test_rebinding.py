"""A page whose name was led to 127.0.0.1 reads nothing of what is being developed there."""

import http.client
import subprocess
from pathlib import Path

import pytest

from tests.integration.commands import words
from tests.integration.ports import free_port
from tests.waiting import eventually

APPLICATION = """
def app(environ, start_response):
    raise RuntimeError("the password is s3cr3t")
"""


def ask(port: int, host: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/", headers={"Host": host})
    answer = connection.getresponse()
    said = answer.read().decode()
    connection.close()
    return answer.status, said


@pytest.mark.parametrize("command", ["dev", "demo"])
def test_a_foreign_name_is_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    port = free_port()
    order = words("dev", "app:app", "--port", str(port)) if command == "dev" else words("demo", "--port", str(port))
    with subprocess.Popen(order, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            # 502 as long as nothing serves yet.
            served = 500 if command == "dev" else 200
            eventually(lambda: ask(port, f"localhost:{port}")[0] == served, within=20)
            status, said = ask(port, "evil.example")
            assert status == 421
            assert said.endswith("This server is for this machine alone: ask for localhost, not for evil.example.\n")
        finally:
            process.terminate()
            process.wait(30)
