"""What people type who come from elsewhere, and `help`: each leads on, and nobody to what ends processes."""

import re
import shlex
from pathlib import Path

import pytest

from fcgimgr.cli.examples import EXAMPLES
from fcgimgr.cli.main import cli, main
from fcgimgr.cli.symptoms import SYMPTOMS, symptom
from fcgimgr.cli.words import CHANGING, OPTIONS, WORDS, meant
from fcgimgr.config.keys import keys
from fcgimgr.config.pools import PoolSettings
from fcgimgr.core.generation import PoolState
from fcgimgr.core.process import STATES

ROOT = cli.make_context("fcgimgr", [], resilient_parsing=True)
COMMANDS = cli.list_commands(ROOT)
PACKAGE = Path(__file__).parents[2] / "fcgimgr"
#: Where the manager writes a state down that no enum has.
SHOWN_STATE = r'(?:state = |else |generation.name, |return )"([A-Z]{4,})"'


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out + err


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("top", "status"),
        ("logs", "tail"),
        ("version", "--version"),
        ("reread", "check"),
        ("list", "status"),
        ("kill", "signal"),
        ("maintail", "log"),
        ("ps", "status"),
        ("ls", "status"),
        ("avail", "check"),
        ("daemon-reload", "update"),
        ("fg", "tail"),
        ("monit", "status"),
        ("delete", "update"),
    ],
)
def test_words_of_others_lead_to_the_command_that_does_it(
    capsys: pytest.CaptureFixture[str], word: str, command: str
) -> None:
    code, text = said(capsys, word)
    assert code == 2
    assert f"fcgimgr {command}" in text
    assert "did you mean" not in text


def test_no_word_of_others_is_a_command_and_all_are_led_to_commands_that_are() -> None:
    assert WORDS.keys() & set(COMMANDS) == set()
    answers = " ".join([*WORDS.values(), *OPTIONS.values()])
    named = set(re.findall(r"`fcgimgr (?:-c \S+ )?([a-z]+)", answers))
    assert named <= set(COMMANDS)


@pytest.mark.parametrize(
    "word", ["top", "reread", "reboot", "stip-all", "shut", "s", "restore", "st", "signals", "drip"]
)
def test_a_vague_likeness_never_leads_to_a_command_that_changes_something(word: str) -> None:
    guessed = re.findall(r"[a-z]+", meant(word, COMMANDS).partition("did you mean ")[2])
    assert set(guessed) & CHANGING <= {name for name in CHANGING if len(word) > 2 and name.startswith(word)} | {
        "signal"
    }


@pytest.mark.parametrize(
    ("slip", "command"),
    [("stpo", "stop"), ("relaod", "reload"), ("resart", "restart"), ("statsu", "status"), ("shutdwon", "shutdown")],
)
def test_a_slip_of_a_finger_is_understood(slip: str, command: str) -> None:
    assert meant(slip, COMMANDS) == f"did you mean {command}?"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-t"], "fcgimgr check"),
        (["-V"], "fcgimgr --version"),
        (["--daemon"], "fcgimgr run --daemon"),
        (["-s", "reload"], "fcgimgr update"),
        (["pool.toml"], "fcgimgr -c pool.toml"),
        (["svc", "-u", "/service/mailer"], "fcgimgr start NAME"),
        (["-a", "127.0.0.1", "-p", "9001"], "fcgimgr help socket"),
        (["--threads", "4", "shop:app"], "fcgimgr help threads"),
        (["--worker-class", "gthread"], "fcgimgr help worker-class"),
        (["shop.wsgi:application"], "fcgimgr dev shop.wsgi:application"),
    ],
)
def test_options_and_arguments_of_others_are_answered(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, text = said(capsys, *arguments)
    assert code == 2
    assert words in text


# -- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("reload", "Usage: fcgimgr reload"),
        ("reload", "`fcgimgr help reload.md`"),
        ("reload.md", "# How a reload works"),
        ("docs/reload.md", "# How a reload works"),
        ("from-supervisor", "# From Supervisor"),
        ("stopwaitsecs", "[pool.NAME] [program.NAME] stopwaitsecs = seconds   (default: 10)"),
        ("manager.logfile", "[manager] logfile"),
        ("pool.socket", "(required)"),
        ("rlimit_nofile", "[pool.NAME] [program.NAME] rlimit_nofile"),
        ("harakiri", "here it is request_timeout"),
        ("listen", "listen of PHP-FPM: here it is socket"),
        ("reread", "fcgimgr check"),
        ("nginx", "/nginx\n"),
        ("gthread", "worker_class = gthread of uWSGI or gunicorn: here it is threads"),
        ("--threads", "[pool.NAME] threads"),
        ("preload_app", "preload_app = true of uWSGI or gunicorn: here it is preload = true"),
        ("sv", "`fcgimgr restart NAME`"),
        ("runsvdir", "one process for all"),
        ("gunicorn", "`fcgimgr help from-uwsgi-and-gunicorn`"),
        ("spawn-fcgi", "`fcgimgr help servers`"),
    ],
)
def test_help_explains_commands_keys_pages_and_words_of_others(
    capsys: pytest.CaptureFixture[str], topic: str, words: str
) -> None:
    code, text = said(capsys, "help", topic)
    assert code == 0
    assert words in text


def test_help_alone_lists_commands_and_pages(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "help")
    assert code == 0
    for word in (*COMMANDS, *(page.stem for page in (PACKAGE.parent / "docs").glob("*.md"))):
        assert re.search(rf"^  {word} ", text, re.MULTILINE), word


def test_help_of_something_unknown_says_what_is_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "help", "stopwaitsec") == (
        2,
        "fcgimgr: there is no command, key or page 'stopwaitsec'; did you mean stopwaitsecs or startsecs?\n",
    )
    assert said(capsys, "help", "../README")[0] == 2


def test_every_command_has_two_examples_in_its_help_that_are_command_lines_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert EXAMPLES.keys() == set(COMMANDS)
    for name, examples in EXAMPLES.items():
        _, text = said(capsys, name, "--help")
        for line, _ in examples:
            assert line in text
            words = shlex.split(re.split(r" [|>] |\)", line.partition("$(")[2] or line)[0])
            assert words[0] == "fcgimgr"
            context = cli.make_context("fcgimgr", words[1:], resilient_parsing=True)
            command, subcommand, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
            assert command == name
            assert subcommand is not None
            subcommand.make_context(name, rest, parent=context).close()


def test_no_short_text_is_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, text = said(capsys, "--help")
    rows = text.partition("Commands:\n")[2].splitlines()
    assert len(rows) == len(COMMANDS)
    assert [row for row in rows if row.endswith("...") or len(row) > 80] == []


def test_the_help_of_each_key_is_that_of_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    for name, key in keys(PoolSettings).items():
        if name in COMMANDS:
            continue
        code, text = said(capsys, "help", f"pool.{name}")
        assert code == 0
        assert " ".join(key.description.replace("`", "").split()) in " ".join(text.split())


# -- what one sees at night -------------------------------------------------------------------------------------------

WORDS_OF_SYMPTOMS = [word for one in SYMPTOMS for word in one.words.split()]


def test_every_state_that_is_shown_is_explained() -> None:
    states = {state.name for state in STATES} | set(PoolState)
    # Of generations, of a pool's queue, and of the manager itself (rollouts.py, saturation.py, daemon.py).
    literals = {"CANARY", "HELD", "DRAINING", "STARTING", "SATURATED", "EASED", "RUNNING", "STOPPING"}
    shown = {
        match for path in (PACKAGE / "manager").rglob("*.py") for match in re.findall(SHOWN_STATE, path.read_text())
    }
    assert literals <= shown
    assert {state for state in states | shown if symptom(state) is None} == set()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("FATAL", "fcgimgr tail --stderr NAME"),
        ("fatal", "fcgimgr start NAME"),
        ("BACKOFF", "startretries"),
        ("BUSY", "fcgimgr status -v NAME"),
        ("502", "nobody listens there"),
        ("504", "fastcgi_read_timeout"),
        ("hang", "fcgimgr reload NAME"),
        ("queue", "fcgimgr scale NAME +2"),
        ("saturated", "fcgimgr help limits.md"),
        ("slow", "slow_after"),
        ("leak", "max_rss"),
        ("permission", "socket_mode"),
    ],
)
def test_what_an_operator_sees_leads_to_what_to_type(capsys: pytest.CaptureFixture[str], word: str, told: str) -> None:
    code, text = said(capsys, "help", word)
    assert code == 0
    assert text.startswith(f"{word}: ")
    assert told in text
    assert len(text.splitlines()) < 15
    assert max(map(len, text.splitlines())) <= 110
    assert f"`fcgimgr help {word}`" in said(capsys, word)[1]


def test_what_is_advised_to_who_sees_something_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(WORDS_OF_SYMPTOMS) == len(set(map(str.lower, WORDS_OF_SYMPTOMS)))
    assert {word.lower() for word in WORDS_OF_SYMPTOMS} & ({*WORDS, *COMMANDS} - {"canary"}) == set()
    for one in SYMPTOMS:
        for line, _ in one.steps:
            words = shlex.split(line.removeprefix("sudo -u www-data "))
            if words[0] == "fcgimgr":
                context = cli.make_context("fcgimgr", words[1:], resilient_parsing=True)
                name, command, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
                assert name in COMMANDS
                assert command is not None
                command.make_context(name, rest, parent=context).close()
        assert [page for page in one.pages.split() if said(capsys, "help", page)[0] != 0] == []
