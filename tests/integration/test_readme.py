"""What the README shows of a terminal comes of what it shows of an application and its pool."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.integration.ports import free_address
from tests.integration.running import RunningManager
from tests.integration.servers import CHECKOUT

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")

#: What is another each time: which process was the first to fail, and after how long.
CHANGING = re.compile(r"app_0\d|\d+(\.\d+)? m?s after")


def block(language: str) -> str:
    """The first of this language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found is not None, language
    return found[1]


def script(session: str) -> str:
    """What types the commands of a terminal session, and shows them as a terminal does."""
    lines = ["code=0"]
    for command in re.findall(r"^\$ (.*)$", session, re.MULTILINE):
        lines += [f"cat <<'END'\n$ {command}\nEND", f"(exit $code)\n{command}\ncode=$?"]
    return "\n".join(lines)


def test_the_terminal_is_as_the_readme_shows_it(tmp_path: Path) -> None:
    address = free_address("tcp", tmp_path)
    (tmp_path / "app.py").write_text(block("python"))
    pool = re.sub(r'^(python *= *)".*"', rf'\1"{sys.executable}"', block("toml"), flags=re.MULTILINE)
    config, control = tmp_path / "pool.toml", tmp_path / "control.sock"
    config.write_text(f'[manager]\ncontrol = "{control}"\n{pool}'.replace("127.0.0.1:9001", address))
    tool = tmp_path / "bin" / "fcgimgr"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m fcgimgr "$@"\n')
    tool.chmod(0o755)
    session = block("console")
    with RunningManager(config, control):
        typed = subprocess.run(
            ["sh", "-c", script(session.replace("127.0.0.1:9001", address))],
            cwd=tmp_path,
            env=os.environ | {"PATH": f"{tool.parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
    shown = typed.stdout.replace(address, "127.0.0.1:9001").replace(str(tmp_path), "/srv/hello")
    assert CHANGING.sub("…", shown) == CHANGING.sub("…", session)
