"""Imports run downwards only, and the manager stays small: the house's order, held by reading every import there is.

Lazy imports inside functions count like any other, and so do imports for type checking alone (`if TYPE_CHECKING:`):
a type that a lower room needs belongs into that room.
"""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fcgimgr
from tests.waiting import eventually

PACKAGE = Path(fcgimgr.__file__).parent

# What each room may import of the package besides itself. The package's own __init__ (the version) is everybody's.
BELOW = {
    "linux": set(),
    "fastcgi": {"linux"},
    "answers": {"fastcgi"},
    "config": {"fastcgi", "linux"},
    "core": {"config"},
    "control": {"config", "fastcgi", "linux"},
    "worker": {"fastcgi"},
    "manager": {"core", "control", "config", "answers", "fastcgi", "linux"},
    "demo": {"fastcgi"},
    "cli": {"demo", "core", "control", "config", "fastcgi", "linux"},
}

# The rooms inside the manager, from the highest: each imports only what stands below it. Above all of them ("") is what
# makes everything.
MANAGER = ("", "commands", "looking", "succession", "fleet", "pools", "children", "sockets", "ground", "logs")

# What still breaks that, by the module that does: to be made shorter, never longer. Most of it is one object that
# everybody is handed.
UPWARDS = {
    "children/adopted.py": {"daemon.Daemon", "pools.generation.Generation"},
    "children/descriptors.py": {"daemon.Daemon"},
    "children/environments.py": {"daemon.Daemon"},
    "children/leftovers.py": {"pools.generation.Generation"},
    "children/notify.py": {"daemon.Daemon", "pools.generation.Generation"},
    "children/unreaped.py": {"daemon.Daemon"},
    "commands/following.py": {"daemon.Daemon"},
    "commands/names.py": {"daemon.Daemon"},
    "commands/presets.py": {"daemon.Daemon"},
    "commands/probing.py": {"daemon.Daemon"},
    "commands/server.py": {"daemon.Daemon"},
    "commands/showing.py": {"daemon.Daemon"},
    "commands/status.py": {"daemon.Daemon"},
    "commands/table.py": {"daemon.Daemon"},
    "commands/updating.py": {"daemon.Daemon"},
    "commands/waiting.py": {"daemon.Daemon"},
    "fleet/lame_duck.py": {"daemon.Daemon"},
    "fleet/systemd.py": {"daemon.Daemon"},
    "ground/helpers.py": {"daemon.Daemon"},
    "looking/canary.py": {"daemon.Daemon"},
    "looking/draining.py": {"daemon.Daemon"},
    "looking/limits.py": {"daemon.Daemon"},
    "looking/passing.py": {"daemon.Daemon"},
    "looking/readiness.py": {"daemon.Daemon"},
    "looking/removed_files.py": {"commands.server.ControlServer", "daemon.Daemon"},
    "looking/saturation.py": {"daemon.Daemon"},
    "looking/taking.py": {"daemon.Daemon"},
    "looking/traffic.py": {"daemon.Daemon"},
    "pools/pool.py": {"daemon.Daemon"},
    "succession/adoption.py": {"daemon.Daemon"},
    "succession/inheritance.py": {"commands.updating", "daemon.Daemon"},
    "succession/statefile.py": {"daemon.Daemon"},
    "succession/upgrading.py": {"commands.server.ControlServer", "daemon.Daemon"},
}

# What each room may import from outside the standard library.
DEPENDENCIES = {
    "linux": {"msgspec"},
    "fastcgi": set(),
    "answers": set(),
    "config": {"msgspec", "tomli"},
    "core": {"msgspec"},
    "control": {"msgspec"},
    "worker": {"flup"},
    "manager": {"msgspec"},
    "demo": set(),
    "cli": {"click", "msgspec", "rich", "tomli"},
}

# core decides and does nothing: no clock, no fd, no pid, no I/O, and chance only as it is handed in.
IMPURE = {
    "asyncio", "ctypes", "fcntl", "io", "logging", "multiprocessing", "os", "pathlib", "queue", "resource", "select",
    "selectors", "shutil", "socket", "subprocess", "sys", "tempfile", "threading", "time",
}  # fmt: skip

# Modules that would make the manager's process large (measured: RSS 22 MB with click and ssl, 16 MB without). `_ssl` is
# what loads OpenSSL; `ssl` itself is in the list of imports even when asyncio only tries to have it and is refused.
# ast and dis are what inspect loads, which asyncio imports and never asks (manager/lean.py): another MB.
HEAVY = {"_ssl", "argparse", "ast", "click", "dis", "rich"}


@dataclass(frozen=True)
class Import:
    """One import: of `module`, absolute, by the file and line of `where`."""

    module: str
    where: str

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    @property
    def room(self) -> str | None:
        """The room of this package that is imported, if it is one."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "fcgimgr" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else None


def imports_of(file: Path) -> Iterator[Import]:
    """Every import of a module, at whatever depth it stands."""
    relative = file.relative_to(PACKAGE.parent)
    package = list(relative.with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(file.read_text(), str(relative))):
        where = f"{relative}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, where)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from fcgimgr import linux` and `from . import codec` name a module after the import.
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", where)


def imports_in(room: str) -> Iterator[Import]:
    for file in sorted((PACKAGE / room).rglob("*.py")):
        yield from imports_of(file)


def test_every_room_is_named_in_the_rule() -> None:
    rooms = {directory.name for directory in PACKAGE.iterdir() if (directory / "__init__.py").exists()}
    assert rooms == BELOW.keys() == DEPENDENCIES.keys()


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    allowed = BELOW[room] | {room}
    assert [found for found in imports_in(room) if found.room is not None and found.room not in allowed] == []


def test_every_room_of_the_manager_is_named_in_the_rule() -> None:
    rooms = {directory.name for directory in (PACKAGE / "manager").iterdir() if (directory / "__init__.py").exists()}
    assert rooms == set(MANAGER) - {""}


def test_a_room_of_the_manager_imports_only_rooms_below_it() -> None:
    upwards: dict[str, set[str]] = {}
    for file in sorted((PACKAGE / "manager").rglob("*.py")):
        importing = file.relative_to(PACKAGE / "manager")
        room = importing.parts[0] if len(importing.parts) > 1 else ""
        for found in imports_of(file):
            parts = found.module.split(".")
            if parts[:2] != ["fcgimgr", "manager"] or len(parts) == 2:
                continue
            of = parts[2] if parts[2] in MANAGER else ""
            if of != room and MANAGER.index(of) < MANAGER.index(room):
                upwards.setdefault(str(importing), set()).add(".".join(parts[2:]))
    assert upwards == UPWARDS


@pytest.mark.parametrize("room", DEPENDENCIES)
def test_a_room_imports_only_its_own_dependencies(room: str) -> None:
    allowed = sys.stdlib_module_names | DEPENDENCIES[room] | {"fcgimgr"}
    assert [found for found in imports_in(room) if found.top not in allowed] == []


def test_core_is_pure() -> None:
    assert [found for found in imports_in("core") if found.top in IMPURE] == []


def test_what_a_worker_loads_needs_no_dependency_of_the_manager() -> None:
    """It runs in the virtualenv of the app, where neither msgspec nor click need be."""
    outside = [found for room in ("worker", "fastcgi") for found in imports_in(room)]
    assert {found.top for found in outside} <= sys.stdlib_module_names | {"fcgimgr", "flup"}


def test_the_manager_imports_neither_click_nor_rich_nor_ssl_nor_what_inspect_needs(tmp_path: Path) -> None:
    """Nor does it later on: -X importtime writes down every import of the process for as long as it runs."""
    config = tmp_path / "pool.toml"
    config.write_text(
        '[manager]\ncontrol = "%(here)s/c.sock"\n'
        '[pool.app]\nsocket = "%(here)s/app.sock"\ncommand = "sleep 1000"\nready = "startsecs"\nstartsecs = 0\n'
    )
    log = tmp_path / "imports"
    with log.open("wb") as output:
        manager = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "fcgimgr.manager", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONSAFEPATH": "1"},
        )
    try:
        eventually(lambda: (tmp_path / "c.sock").exists() and (tmp_path / "app.sock").exists())
        manager.send_signal(signal.SIGTERM)
        assert manager.wait(20) == 0, log.read_text()
    finally:
        manager.kill()
        manager.wait()
    imported = {line.rsplit("|", 1)[1].strip() for line in log.read_text().splitlines() if "import time:" in line}
    assert "fcgimgr.core" in imported
    assert {module for module in imported if module.split(".")[0] in HEAVY} == set()
