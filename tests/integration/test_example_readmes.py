"""What the READMEs of the examples tell a reader to type does what they say, in the order in which they say it.

Each is typed in a copy of the checkout on free ports: the lines of its indented blocks, and the commands within its
text. What runs on in the foreground (fcgimgr without a command, nginx) runs on until the end of the README.
"""

import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.running import example_manager
from tests.integration.servers import CHECKOUT, Nginx, need, which
from tests.integration.test_nginx_files import demo_with_free_ports

READMES = sorted((CHECKOUT / "examples").glob("**/README.md"), key=str)
INLINE = re.compile(r"`((?:fcgimgr|nginx) [^`]*)`")

#: Commands of the machine that a README needs, beyond those that fcgimgr itself brings.
NEEDED = {"c": ("cc", "make"), "go": ("go",), "perl": ("perl",), "php": ("php-cgi",)}


def commands(readme: str) -> list[str]:
    """What is to be typed, in order; without comments."""
    found: list[str] = []
    for line in readme.splitlines():
        found += [line.strip()] if line.startswith("    ") else INLINE.findall(line)
    return [" ".join(re.sub(r"(^|\s)# .*", "", command).split()) for command in found]


class Reader:
    """Somebody who follows a README in a copy of the checkout, with a shell that remembers where it is."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = self._here = checkout
        self._conf, self._port_for = demo_with_free_ports(checkout)
        for pool in checkout.glob("examples/*/pool.toml"):
            pool.write_text(self.on_free_ports(pool.read_text()))
        (checkout / "README.md").write_text("the file of an upload\n")
        tools = checkout / "tools"
        tools.mkdir()
        # Both as they are, but that they tell the status of an answer.
        itself = f'{sys.executable} -m fcgimgr "$@"'
        _script(tools / "fcgimgr", f'[ "$1" != request ] || {{ shift; set -- request -i "$@"; }}\nexec {itself}')
        _script(tools / "curl", f"""exec {which("curl")} -sS -w '\\nStatus: %{{http_code}}\\n' "$@\"""")
        path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = os.environ | {"PATH": path}
        self._running = ExitStack()

    def on_free_ports(self, text: str) -> str:
        return re.sub(r"127\.0\.0\.1:(\d+)", lambda found: f"127.0.0.1:{self._port_for[int(found[1])]}", text)

    def __enter__(self) -> "Reader":
        self._running.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._running.close()

    def types(self, command: str) -> None:
        """Type it; AssertionError if it does not go well."""
        words = shlex.split(command)
        if words[:2] == ["pip", "install"]:
            packages = [re.split("[=<>~]", line)[0] for line in self._required(words[2:])]
            for package in packages:
                pytest.importorskip(package)
        elif words[0] == ".":
            assert words[1:] == [".venv/bin/activate"]  # that of the tests is
        elif words == ["fcgimgr"] or (words[:2] == ["fcgimgr", "-c"] and len(words) == 3):
            config = self._here / (words[2] if words[1:] else "pool.toml")
            self._running.enter_context(example_manager(config))
        elif words[0] == "nginx":
            assert words == ["nginx", "-p", "$PWD", "-c", "nginx/demo.conf"]
            self._running.enter_context(Nginx(self._checkout, self._conf, self._port_for[8080]))
        elif words[:2] == ["curl", "-N"]:
            self._begins(command)
        else:
            self._does(command)

    def _required(self, words: list[str]) -> list[str]:
        """What a `pip install` is to install."""
        return (self._here / words[1]).read_text().split() if words[0] == "-r" else words

    def _begins(self, command: str) -> None:
        """It has no end: it must say something."""
        with subprocess.Popen(["sh", "-c", f"exec {command}"], env=self._environment, stdout=subprocess.PIPE) as typed:
            assert typed.stdout is not None
            try:
                assert typed.stdout.readline().startswith(b"id: ")
            finally:
                typed.kill()

    def _does(self, command: str) -> None:
        where = self._checkout / "where"
        script = f"{command}\ncode=$?\npwd >{shlex.quote(str(where))}\nexit $code\n"
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=self._here,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        said = done.stdout.decode()
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{said}"
        if "fcgimgr request" in command or "curl" in command:
            assert re.search(r"^Status: 200$", said, re.MULTILINE), f"{command}:\n{said}"
        self._here = Path(where.read_text().strip())


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.parent.name)
def test_what_the_readme_of_an_example_shows_can_be_typed(readme: Path, tmp_path: Path) -> None:
    need("curl", "nginx", *NEEDED.get(readme.parent.name, ()))
    typed = [command.replace("/NAME/", "/flup/") for command in commands(readme.read_text())]
    assert len(typed) > 1
    with Reader(tmp_path) as reader:
        for command in typed:
            reader.types(reader.on_free_ports(command))
