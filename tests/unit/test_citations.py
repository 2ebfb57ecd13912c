"""What a message, a help text, a document or a manual page tells people to type, to set or to read is there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgimgr.cli.main import cli, main

CHECKOUT = Path(__file__).parents[2]
ROOT = cli.make_context("fcgimgr", [], resilient_parsing=True)
OF_COMMANDS = {
    name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"-h"}
    for name in cli.list_commands(ROOT)
    if (command := cli.get_command(ROOT, name)) is not None
}

COMMAND = r"fcgimgr(?: -[cs] [^\s`]+)* (?!worker: )(?P<command>[a-z][a-z-]*)(?P<rest>[^`\n;|]*)"
IN_WORDS = re.compile(rf"(?:\A|\n\n|`|[:;,] |\$ |&& ){COMMAND}")
IN_CODE = re.compile(rf"(?:^ *|`|[:;,&|$] |fcgimgr/bin/){COMMAND}", re.MULTILINE)
CODE = re.compile(r"^```\w*\n.*?^```$|^(?: {4}|\t)[^\n]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
PATHS = re.compile(r"(?<![\w/.-])(?:docs|examples|nginx|scripts|bench|tests|man)/[\w./-]+")
TOPICS = re.compile(r"fcgimgr help ([A-Za-z][\w.-]*)")


def documents() -> Iterator[Path]:
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "nginx/**/*.md"):
        yield from sorted(CHECKOUT.glob(pattern))


def sayings(path: Path) -> Iterator[str]:
    """The texts in a module that it may say, docstrings too; what is computed is left as {}."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.JoinedStr(values=values):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in values)
            case ast.Constant(value=str(text)):
                yield text


def told_by(path: Path) -> str:
    if path.suffix == ".py":
        return "\n\n".join(sayings(path))
    text = path.read_text(encoding="utf-8")
    return re.sub(r"\\f[BIR]", "`", text.replace("\\-", "-")) if path.parent.name == "man" else text


MODULES = sorted((CHECKOUT / "fcgimgr").rglob("*.py"))
MANUALS = sorted((CHECKOUT / "man").iterdir())
TOLD = {str(path.relative_to(CHECKOUT)): told_by(path) for path in (*MODULES, *documents(), *MANUALS)}


def commands(name: str) -> Iterator[tuple[str, str]]:
    """Each command line that is told, as the command and what stands behind it."""
    if name.endswith(".md"):
        found = (match for code in CODE.findall(TOLD[name]) for match in IN_CODE.finditer(code))
    else:
        found = IN_WORDS.finditer(TOLD[name])
    for match in found:
        yield match["command"], match["rest"].partition(" #")[0]


def test_commands_that_people_are_told_exist_and_have_the_options_that_they_are_told() -> None:
    wrong, right = [], 0
    for name in TOLD:
        for command, rest in commands(name):
            if command not in OF_COMMANDS:
                wrong.append(f"{name}: fcgimgr {command}{rest}")
                continue
            right += 1
            options = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest))
            wrong += (f"{name}: fcgimgr {command} {option}" for option in options - OF_COMMANDS[command])
    assert wrong == []
    assert right > 400


def test_topics_that_people_are_told_to_ask_help_for_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    topics = {topic.rstrip(".") for text in TOLD.values() for topic in TOPICS.findall(text)}
    assert topics >= {"configuration", "monitoring", "systemd", "first-pool"}
    assert [topic for topic in sorted(topics - {"NAME", "WORD"}) if main(["help", topic]) != 0] == []
    capsys.readouterr()


def test_files_that_people_are_sent_to_are_there() -> None:
    told = {(name, path.rstrip(".")) for name, text in TOLD.items() for path in PATHS.findall(text)}
    assert sorted(place for place in told if "NAME" not in place[1] and not (CHECKOUT / place[1]).exists()) == []
    assert len(told) > 50
