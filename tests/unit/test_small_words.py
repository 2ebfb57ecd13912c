"""Mistakes that many make, and what each is told: the name of the thing, and the mend."""

import errno
import os
from pathlib import Path

import pytest

from fcgimgr.cli.terminal import fitting
from fcgimgr.config.address import parse_address
from fcgimgr.config.envfile import read_environment_file
from fcgimgr.config.read import ConfigError, read
from fcgimgr.linux.errors import LinuxError
from fcgimgr.linux.executables import why_not_executed
from fcgimgr.manager.logs.file import LogFile
from fcgimgr.manager.succession.own_files import ensure_directory

PROGRAM = '[program.job]\ncommand = "x"\n'


def problems(directory: Path, text: str, environ: dict[str, str] | None = None) -> str:
    (directory / "pool.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(str(directory / "pool.toml"), environ or {})
    return str(caught.value)


def warnings(directory: Path, text: str) -> str:
    (directory / "pool.toml").write_text(text)
    return "\n".join(read(str(directory / "pool.toml"), {}).warnings)


def test_a_script_of_windows_is_told_that_its_first_line_ends_in_a_carriage_return(tmp_path: Path) -> None:
    script = tmp_path / "app"
    script.write_bytes(b"#!/bin/sh\r\nsleep 9\r\n")
    told = why_not_executed(str(script), errno.ENOENT, "root", None)
    assert "its #! line ends in a carriage return" in told
    assert f"sed -i 's/\\r$//' {script}" in told
    script.write_bytes(b"#!/no/such\nsleep 9\n")
    assert "its interpreter /no/such does not exist" in why_not_executed(str(script), errno.ENOENT, "root", None)


def test_an_environment_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "env").write_bytes(b"\xef\xbb\xbfK=a\r\nL=\xe9\n")
    assert read_environment_file(str(tmp_path / "env")) == {"K": "a", "L": "\udce9"}


def test_a_comment_behind_a_quoted_value_is_told_from_a_quote_that_is_missing(tmp_path: Path) -> None:
    for line, told in (('K="a"  # b', "no comment may follow a value"), ('K="a', 'the closing " is missing')):
        (tmp_path / "env").write_text(line)
        with pytest.raises(ValueError, match=f"line 1: {told}"):
            read_environment_file(str(tmp_path / "env"))


def test_all_variables_that_are_wrong_are_told_at_once(tmp_path: Path) -> None:
    told = problems(tmp_path, f'{PROGRAM}environment = {{ A = 1, B = true, C = "c" }}\n')
    assert 'write A = "1"' in told
    assert 'write B = "true"' in told


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ('include = ["conf.d/*.toml"]', "it stands above the first table"),
        ("stopwaitsecs = -1", "expected a number of seconds from 0, at most 1000000000, got -1"),
        ("ready_timeout = 0", "expected a number of seconds above 0, at most 1000000000, got 0"),
        ('autostart = "%(ENV_A)s"', 'expected true or false, got "perhaps"'),
    ],
)
def test_a_key_is_told_what_it_may_be(tmp_path: Path, keys: str, told: str) -> None:
    assert told in problems(tmp_path, f"{PROGRAM}{keys}\n", {"A": "perhaps"})


def test_a_flag_by_expansion_is_taken_as_python_writes_it(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(f'{PROGRAM}autostart = "%(ENV_A)s"\n')
    for word, flag in (("True", True), ("FALSE", False), ("on", True)):
        assert read(str(tmp_path / "pool.toml"), {"A": word}).programs["job"].autostart is flag


def test_an_ipv4_address_in_the_form_of_an_ipv6_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"write 127\.0\.0\.1"):
        parse_address("[::ffff:127.0.0.1]:9001")
    assert str(parse_address("[::1]:9001")) == "[::1]:9001"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("FOO=bar x", 'write environment = { FOO = "bar" }'),
        ("cd /tmp", "set directory"),
        ("exec x", "leave it out"),
        ("source x", "write environment_file"),
        ("x y # z", '"#" and what follows are passed as words'),
    ],
)
def test_what_only_a_shell_knows_is_warned_of(tmp_path: Path, command: str, told: str) -> None:
    assert told in warnings(tmp_path, PROGRAM.replace("x", command))
    assert not warnings(tmp_path, f"[program.job]\ncommand = {command.split()}\n".replace("'", '"'))


def test_log_files_that_collide_are_warned_of(tmp_path: Path) -> None:
    def table(name: str, *keys: str) -> str:
        return "\n".join([f"[program.{name}]", 'command = "x"', *keys]) + "\n"

    log = 'stdout_logfile = "%(here)s/a.log"'
    alike = table("a", log, "stdout_logfile_backups = 3") + table("b", log, "stdout_logfile_backups = 3")
    assert not warnings(tmp_path, alike)
    assert "[program.a] writes to" in warnings(
        tmp_path, table("a", log) + table("b", log, "stdout_logfile_backups = 3")
    )
    backup = 'stdout_logfile = "%(here)s/a.log.1"'
    for text in (table("a", log) + table("b", backup), table("b", backup) + table("a", log)):
        assert "is where [program.a] keeps a backup of" in warnings(tmp_path, text)


def test_a_rotation_that_is_refused_names_the_file_in_the_way(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "b.log.2").mkdir()
    (tmp_path / "b.log.1").touch()
    log = LogFile(str(tmp_path / "b.log"), maxbytes=10, backups=2, report=said.append)
    log.write(b"12345678\n")
    log.write(b"12345678\n")
    assert "(b.log.2)" in said[0]
    log.close()


def test_a_runtime_directory_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/")
    with pytest.raises(LinuxError, match="XDG_RUNTIME_DIR is /, which is not this user's"):
        ensure_directory("//fcgimgr", 0o700, "control")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("0123456789", "0123456789"),
        ("0123456789a", "012345678…"),
        ("\x1b[31m0123456789\x1b[0m", "\x1b[31m0123456789\x1b[0m"),
        ("01\x1b[31m23456789a\x1b[0m, more", "01\x1b[31m2345678…\x1b[0m"),
        ("012345678\x1b[31m9\x1b[0ma", "012345678\x1b[31m…\x1b[0m"),
    ],
)
def test_a_long_line_is_cut_to_the_terminal_and_its_colours_end(line: str, shown: str) -> None:
    assert fitting(line, 10) == shown
    assert fitting(line, None) == line
