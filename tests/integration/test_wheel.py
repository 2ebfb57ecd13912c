"""What somebody has who installed the package and has no checkout: the pages of `help`, the manual, nginx's files."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
#: An environment in which man asks nothing and says all.
PLAIN = {"PATH": "/usr/local/bin:/usr/bin:/bin", "MANPAGER": "cat", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installer does."""
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, CHECKOUT],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "site")
    return directory / "site"


def helped(installed: Path, topic: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fcgimgr", "help", topic],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_help_shows_the_pages_and_says_where_the_files_for_nginx_are(installed: Path) -> None:
    assert helped(installed, "from-supervisor").startswith("# From Supervisor")
    assert "It returns when the manager has ended" in helped(installed, "shutdown")
    place = Path(helped(installed, "nginx").splitlines()[0])
    assert place.is_relative_to(installed)
    assert (place / "fcgimgr" / "application_params").exists()


def test_the_manual_pages_go_to_where_man_looks(installed: Path) -> None:
    pages = {path.relative_to(path.parents[3]) for path in installed.glob("*.data/data/share/man/*/*")}
    assert {str(page) for page in pages} == {"share/man/man1/fcgimgr.1", "share/man/man5/fcgimgr.toml.5"}


def test_help_says_how_to_read_the_manual_pages_of_this_installation(installed: Path, tmp_path: Path) -> None:
    """As pip has put them into a virtualenv, of which the command alone is in PATH, or its whole directory."""
    (wheel,) = installed.parent.glob("*.whl")
    home = tmp_path / "a b"
    venv.create(home)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, timeout=60)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    told = subprocess.run([home / "bin" / "fcgimgr", "help"], capture_output=True, text=True, check=True, timeout=60)
    commands = [shlex.split(line) for line in told.stdout.splitlines() if line.startswith("  man -l ")]
    pages = [home / "share/man/man1/fcgimgr.1", home / "share/man/man5/fcgimgr.toml.5"]
    assert commands == [["man", "-l", str(page)] for page in pages]
    if shutil.which("man") is None:
        pytest.skip("there is no man")
    for command in commands:
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=PLAIN).stdout
        assert "fcgimgr" in shown.partition("NAME")[2]
    found = ["man", "-w", "fcgimgr", "fcgimgr.toml"]
    for more in ({"PATH": f"{home}/bin:{PLAIN['PATH']}"}, {"MANPATH": f"{home}/share/man:"}):
        where = subprocess.run(found, capture_output=True, text=True, check=True, timeout=60, env=PLAIN | more).stdout
        assert where.splitlines() == list(map(str, pages))


def test_every_page_is_there(installed: Path) -> None:
    packed = {path.name for path in (installed / "fcgimgr" / "share" / "docs").iterdir()}
    assert packed == {path.name for path in (CHECKOUT / "docs").iterdir()}
