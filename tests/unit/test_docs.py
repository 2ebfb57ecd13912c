"""What the documents say holds: their links lead somewhere, their configurations are accepted, nothing is left out."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fcgimgr.cli import failure
from fcgimgr.cli.main import cli
from fcgimgr.cli.manpage import pages
from fcgimgr.cli.reference import names_in, written_again
from fcgimgr.config.foreign_pages import BLOCKS
from fcgimgr.config.foreign_pages import written_again as foreign_tables_written_again
from fcgimgr.config.keys import keys
from fcgimgr.config.pools import PoolSettings, ProcessSettings
from fcgimgr.config.read import read
from fcgimgr.config.settings import GroupSettings, ManagerSettings

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "nginx/**/*.md") for path in CHECKOUT.glob(pattern)
)
COMMANDS = cli.list_commands(cli.make_context("fcgimgr", [], resilient_parsing=True))
KEYS = {
    name for settings in (ManagerSettings, PoolSettings, ProcessSettings, GroupSettings) for name in keys(settings)
} | {"include"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")


def name_of(document: Path) -> str:
    return str(document.relative_to(CHECKOUT))


def prose(document: Path) -> str:
    """The text without what is quoted from a terminal or a file."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """The headings as GitHub names them: lower case, blanks as hyphens, of all else only letters, digits, - and _."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w-]", "", heading.strip().lower().replace(" ", "-")) for heading in headings}


def configurations() -> dict[str, str]:
    """Every TOML block, by its document and number."""
    found = {}
    for document in DOCUMENTS:
        blocks = FENCE.findall(document.read_text(encoding="utf-8"))
        texts = [text for language, text in blocks if language == "toml"]
        found.update({f"{name_of(document)}-{number}": text for number, text in enumerate(texts, 1)})
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_into_the_repository_lead_somewhere(document: Path) -> None:
    broken = []
    for link in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("text", configurations().values(), ids=configurations().keys())
def test_configurations_in_the_documents_are_accepted(text: str, tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    # A file of variables is read with the configuration.
    (tmp_path / "file.env").write_text("NAME='value'\n", encoding="utf-8")
    text = re.sub(r'^(environment_file *= *)".*"', rf'\1"{tmp_path}/file.env"', text, flags=re.MULTILINE)
    config.write_text(text, encoding="utf-8")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "more.toml").write_text('[program.more]\ncommand = "true"\n', encoding="utf-8")
    read(str(config), {"PATH": "/usr/bin", "HOME": str(tmp_path)})


def test_the_reference_of_the_commands_is_that_of_the_program() -> None:
    document = DOCS / "commands.md"
    text = document.read_text(encoding="utf-8")
    assert text == written_again(text), f"run: python -m fcgimgr.cli.reference {name_of(document)}"


@pytest.mark.parametrize("name", pages())
def test_the_manual_pages_are_those_of_the_program_and_roff_takes_them(name: str) -> None:
    assert (CHECKOUT / "man" / name).read_text(encoding="utf-8") == pages()[name], (
        "run: python -m fcgimgr.cli.manpage man"
    )
    if shutil.which("groff"):
        done = subprocess.run(
            ["groff", "-ww", "-man", "-Tutf8", CHECKOUT / "man" / name], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_every_command_has_its_section() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert sorted(names_in(text)) == sorted(["fcgimgr", *COMMANDS])
    assert set(COMMANDS) <= anchors(DOCS / "commands.md")


def test_every_exit_code_is_explained() -> None:
    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", prose(DOCS / "commands.md"), re.MULTILINE)}
    assert explained == {value for name, value in vars(failure).items() if name.isupper() and isinstance(value, int)}


def test_every_key_is_mentioned() -> None:
    named = {word for words in CODE.findall(prose(DOCS / "configuration.md")) for word in re.findall(r"\w+", words)}
    assert KEYS - named == set()


def test_the_tables_of_the_keys_of_others_are_those_of_the_program() -> None:
    texts = [path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")]
    assert sorted(re.findall("<!-- keys of (.*) -->", "".join(texts))) == sorted(BLOCKS)
    for text in texts:
        assert text == foreign_tables_written_again(text), "run: python -m fcgimgr.config.foreign_pages docs"


@pytest.mark.parametrize("block", BLOCKS)
def test_keys_that_those_of_others_become_exist(block: str) -> None:
    cells = [cell for row in BLOCKS[block][1] for cell in (row.here, row.wsgi)]
    words = {word for cell in cells if cell.startswith("`") for word in CODE.findall(cell)}
    named = {word for word in words if re.fullmatch(r"[a-z]+(_[a-z]+)*", word)}
    assert named - KEYS == set()
    assert named


def test_every_document_is_listed_in_the_readme() -> None:
    linked = set(LINK.findall(prose(CHECKOUT / "README.md")))
    assert {name_of(document) for document in DOCS.glob("*.md")} <= linked


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_units_are_made_of_what_systemd_knows(tmp_path: Path) -> None:
    blocks = [text for language, text in FENCE.findall((DOCS / "systemd.md").read_text("utf-8")) if language == "ini"]
    service, of_user, socket, hardening = blocks
    # systemd-analyze looks whether the command is there.
    service = service.replace("/opt/fcgimgr/bin/fcgimgr", "/bin/true")
    of_user = of_user.replace("%h/fcgimgr/bin/fcgimgr", "/bin/true")
    (tmp_path / "fcgimgr.service").write_text(service + hardening)
    (tmp_path / "fcgimgr-app.socket").write_text(socket)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "fcgimgr.service").write_text(of_user)
    units = [str(tmp_path / "fcgimgr.service"), str(tmp_path / "fcgimgr-app.socket")]
    for words in ([*units], ["--user", str(tmp_path / "user" / "fcgimgr.service")]):
        done = subprocess.run(
            ["systemd-analyze", "verify", *words],
            env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},  # that of a user, who has one when logged in
            capture_output=True,
            text=True,
            timeout=60,
        )
        about_ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "fcgimgr" in line]
        assert (done.returncode, about_ours) == (0, [])
