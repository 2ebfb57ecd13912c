"""The files that workers write to themselves: whole lines, opened anew when asked, and no reason to fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcgimgr.worker import appending
from fcgimgr.worker.appending import AppendedFile
from tests.waiting import eventually

CHECKOUT = Path(__file__).parents[2]


class Number:
    value = 0

    def __call__(self) -> int:
        return self.value


def test_lines_of_several_processes_never_mix_at_any_length(tmp_path: Path):
    script = (
        "import sys\nfrom fcgimgr.worker.appending import AppendedFile\n"
        "file = AppendedFile(sys.argv[1], standard=1)\n"
        "for _ in range(100):\n    file.write(sys.argv[2].encode() * 300_000 + b'\\n')\n"
    )
    log = tmp_path / "log"
    writers = [subprocess.Popen([sys.executable, "-c", script, str(log), letter], cwd=CHECKOUT) for letter in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = log.read_bytes().split(b"\n")[:-1]
    assert len(lines) == 300
    assert {len(line) for line in lines} == {300_000}
    assert all(len(set(line)) == 1 for line in lines)


def test_it_is_opened_anew_before_the_next_line_when_the_number_changes(tmp_path: Path):
    number = Number()
    log = tmp_path / "log"
    file = AppendedFile(str(log), standard=1, reopen=number)
    file.write(b"one\n")
    log.rename(tmp_path / "log.1")
    file.write(b"two\n")
    number.value += 1
    file.write(b"three\n")
    assert (tmp_path / "log.1").read_text() == "one\ntwo\n"
    assert log.read_text() == "three\n"


def test_within_a_second_it_follows_a_file_that_was_renamed_and_nobody_has_said_so(tmp_path: Path):
    log = tmp_path / "log"
    file = AppendedFile(str(log), standard=1)
    file.write(b"one\n")
    log.rename(tmp_path / "log.1")

    def follows() -> bool:
        file.write(b"more\n")
        return log.exists()

    eventually(follows, within=appending.LOOK_AGAIN + 5)


def test_while_the_new_file_cannot_be_opened_it_writes_into_the_one_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    number = Number()
    log = tmp_path / "log"
    file = AppendedFile(str(log), standard=1, reopen=number)
    file.write(b"one\n")
    log.rename(tmp_path / "log.1")
    log.mkdir()
    number.value += 1
    file.write(b"two\n")
    assert (tmp_path / "log.1").read_text() == "one\ntwo\n"
    assert "cannot be opened" in capfd.readouterr().err


def test_a_trouble_is_told_once_and_once_more_when_it_is_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    number = Number()
    file = AppendedFile(str(tmp_path / "missing" / "log"), standard=1, reopen=number)
    for _ in range(5):
        file.write(b"lost\n")
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be opened: No such file or directory; its lines are lost until this is mended" in said
    (tmp_path / "missing").mkdir()
    number.value += 1
    file.write(b"there\n")
    assert (tmp_path / "missing" / "log").read_text() == "there\n"
    assert "is opened again; 5 lines were lost\n" in capfd.readouterr().err


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line.partition("/log: ")[2] for line in capfd.readouterr().err.splitlines()]


@pytest.fixture
def looks_at_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "LOOK_AGAIN", 0.0)


@pytest.mark.usefixtures("looks_at_each_line")
def test_a_file_that_was_replaced_by_a_link_is_told_once_however_often_it_is_looked_at(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    log = tmp_path / "log"
    file = AppendedFile(str(log), standard=1)
    file.write(b"one\n")
    log.rename(tmp_path / "log.1")
    log.symlink_to(tmp_path / "other")
    for _ in range(5):
        file.write(b"more\n")
    assert said(capfd) == [
        "cannot be opened: Too many levels of symbolic links; the lines go on into the file before until this is mended"
    ]
    log.unlink()
    for _ in range(2):
        file.write(b"new\n")
    assert said(capfd) == ["is opened again"]
    assert (tmp_path / "log.1").read_text() == "one\n" + "more\n" * 5
    assert log.read_text() == "new\nnew\n"


@pytest.mark.usefixtures("looks_at_each_line")
@pytest.mark.parametrize("looks", [1, 2])
def test_what_is_gone_for_one_look_alone_is_not_told(looks: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    directory = tmp_path / "logs"
    directory.mkdir()
    file = AppendedFile(str(directory / "log"), standard=1)
    for _ in range(2):
        file.write(b"before\n")
        directory.rename(tmp_path / "away")
        for _ in range(looks):
            file.write(b"meanwhile\n")
        (tmp_path / "away").rename(directory)
    file.write(b"after\n")
    gone = "cannot be opened: No such file or directory; the lines go on into the file before until this is mended"
    assert said(capfd) == [gone, "is opened again"] * 2 * (looks - 1)
    assert (directory / "log").read_text().count("\n") == 3 + 2 * looks


def test_what_is_gone_when_it_is_to_be_reopened_is_told_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    directory = tmp_path / "logs"
    directory.mkdir()
    number = Number()
    file = AppendedFile(str(directory / "log"), standard=1, reopen=number)
    file.write(b"before\n")
    directory.rename(tmp_path / "away")
    number.value += 1
    file.write(b"after\n")
    assert len(said(capfd)) == 1


def test_a_full_disk_is_no_reason_to_fail(capfd: pytest.CaptureFixture[str]):
    file = AppendedFile("/dev/full", standard=1)
    for _ in range(3):
        file.write(b"lost\n")
    trouble = "/dev/full: cannot be written: No space left on device; its lines are lost until this is mended"
    assert capfd.readouterr().err == f"fcgimgr worker: {trouble}\n"


def test_after_a_line_that_the_disk_has_cut_the_next_one_stands_on_its_own(tmp_path: Path):
    """A limit to the size of files takes a part of a write, as a disk does that becomes full."""
    script = (
        "import resource, sys\nfrom fcgimgr.worker.appending import AppendedFile\n"
        "file = AppendedFile(sys.argv[1], standard=1)\n"
        "none = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "def limited(limit, *lines):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, none[1]))\n"
        "    for line in lines:\n        file.write(line + b'\\n')\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, none)\n"
        "limited(10, b'first', b'second', b'third')\n"  # cut after seco
        "limited(13, b'fourth')\n"  # cut once more
        "limited(14, b'fifth')\n"  # not a letter of it, but its newline in front
        "file.write(b'sixth\\n')\nfile.write(b'seventh\\n')\n"
    )
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", script, str(log)], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert log.read_text() == "first\nseco\nfo\nsixth\nseventh\n"
    assert [line.partition("/log: ")[2] for line in done.stderr.splitlines()] == [
        "cannot be written: File too large; its lines are lost until this is mended",
        "is written again; 4 lines were lost",
    ]


def test_the_first_line_tells_that_all_is_well_for_the_process_before_may_have_said_else(tmp_path: Path) -> None:
    told: list[str] = []
    file = AppendedFile(str(tmp_path / "log"), standard=1, tell=told.append)
    assert told == []
    file.write(b"one\n")
    file.write(b"two\n")
    assert told == [""]


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_no_file_is_not_written_to(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    log = tmp_path / "log"
    (tmp_path / "other").touch()
    if kind == "link":
        log.symlink_to(tmp_path / "other")
    else:
        os.mkfifo(log)
    AppendedFile(str(log), standard=1).write(b"lost\n")
    assert "cannot be opened" in capfd.readouterr().err
    assert (tmp_path / "other").read_text() == ""


def test_no_program_of_the_application_gets_it_and_the_world_does_not_read_it(tmp_path: Path):
    before = set(os.listdir("/proc/self/fd"))
    file = AppendedFile(str(tmp_path / "log"), standard=1)
    file.write(b"x\n")
    new = set(os.listdir("/proc/self/fd")) - before
    assert not any(os.get_inheritable(int(fd)) for fd in new if os.path.exists(f"/proc/self/fd/{fd}"))
    assert (tmp_path / "log").stat().st_mode & 0o007 == 0


def test_a_dash_is_the_standard_output(capfd: pytest.CaptureFixture[str]):
    AppendedFile("-", standard=1).write(b"here\n")
    assert capfd.readouterr().out == "here\n"
