"""A log file: nothing is lost or cut that the disk takes, and what it refuses is said once and survived."""

import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fcgimgr.manager.logs.file import LogFile, Logs
from fcgimgr.manager.logs.stream import Stream
from tests.unit.logs_bench import Clock, Memory, all_lines

Open = Callable[..., LogFile]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def open_log(clock: Clock, said: list[str]) -> Iterator[Open]:
    opened: list[LogFile] = []

    def open_log(path: Path, **options: object) -> LogFile:
        log = LogFile(str(path), report=said.append, clock=clock, **options)
        opened.append(log)
        return log

    yield open_log
    for log in opened:
        log.close()


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """A disk that takes a part of a write and refuses the rest (EFBIG), for whoever runs the tests."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_lines_are_appended_to_what_is_there(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b"before\n")
    log = open_log(path)
    log.write(b"one\n")
    log.write(memoryview(bytearray(b"two\nthree\n")))
    assert path.read_bytes() == b"before\none\ntwo\nthree\n"


def test_a_new_file_is_not_for_the_world_and_does_not_leak_into_children(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    umask = os.umask(0)
    try:
        open_log(path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    leaking = [fd for fd in map(int, os.listdir("/proc/self/fd")) if points_to(fd, path) and os.get_inheritable(fd)]
    assert leaking == []


def points_to(fd: int, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(path)
    except FileNotFoundError:
        return False


def test_a_rotated_file_passes_its_mode_and_owner_on(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    log = open_log(path, maxbytes=10, backups=1)
    path.chmod(0o664)
    if os.geteuid() == 0:
        os.chown(path, 65534, 4)
    log.write(b"123456789\n")
    log.write(b"next\n")
    assert path.read_bytes() == b"next\n"
    new, old = path.stat(), (tmp_path / "app.log.1").stat()
    assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid)


def test_a_file_made_by_root_can_belong_to_another(tmp_path: Path, open_log: Open, said: list[str]) -> None:
    open_log(tmp_path / "app.log", owner=(65534, 65534))
    found = (tmp_path / "app.log").stat()
    if os.geteuid() == 0:
        assert (found.st_uid, found.st_gid, said) == (65534, 65534, [])
    else:
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
        assert "cannot be given its owner and mode" in said[0]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_files_that_are_made_have_the_mode_and_owner_that_are_asked_for(
    mode: int, tmp_path: Path, open_log: Open, said: list[str], clock: Clock
) -> None:
    """The first, that after a rotation, that after logrotate's rename, and that after a removal; whatever the umask."""
    path = tmp_path / "app.log"
    group = 4 if os.geteuid() == 0 else os.getegid()
    umask = os.umask(0o077)
    try:
        log = open_log(path, maxbytes=10, backups=1, owner=(-1, group), mode=mode)
        assert permissions(path) == (mode, os.geteuid(), group)
        log.write(b"123456789\n")
        log.write(b"next\n")
        assert path.read_bytes() == b"next\n"
        assert permissions(path) == (mode, os.geteuid(), group)
        path.rename(tmp_path / "app.log.1")
        assert log.reopen() is None
        assert permissions(path) == (mode, os.geteuid(), group)
        path.unlink()
        clock.passes(2)
        log.write(b"again\n")
        assert permissions(path) == (mode, os.geteuid(), group)
    finally:
        os.umask(umask)


def permissions(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def test_a_file_that_is_there_keeps_its_mode_and_owner_until_it_is_rotated(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b"before\n")
    path.chmod(0o604)
    before = permissions(path)
    log = open_log(path, maxbytes=10, backups=1, owner=(-1, os.getegid()), mode=0o660)
    assert permissions(path) == before
    log.write(b"next\n")
    assert permissions(tmp_path / "app.log.1") == before
    assert permissions(path) == (0o660, *before[1:])


def test_no_file_that_is_made_is_open_for_a_moment_to_whom_it_is_not_for(
    tmp_path: Path, open_log: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    fchmod = os.fchmod

    def look(fd: int, mode: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(fd).st_mode))
        fchmod(fd, mode)

    monkeypatch.setattr(os, "fchmod", look)
    open_log(tmp_path / "app.log", mode=0o600)
    assert seen == [0o600]


def test_the_last_to_open_a_path_decides_as_what_its_files_are_made(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    logs = Logs(Memory(), report=lambda message: None)
    first = logs.open(str(path), maxbytes=10, backups=1, mode=0o600)
    second = logs.open(str(path), maxbytes=10, backups=1, mode=0o660)
    first.write(b"123456789\n")
    first.write(b"next\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    logs.release(first)
    logs.release(second)


# Rotation


def test_backups_are_shifted_and_the_oldest_falls_out(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    log = open_log(path, maxbytes=10, backups=2)
    for line in (b"1--------\n", b"2--------\n", b"3--------\n", b"4--------\n"):
        log.write(line)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["app.log", "app.log.1", "app.log.2"]
    assert all_lines(path) == [b"2--------", b"3--------", b"4--------"]


def test_without_backups_the_file_is_emptied_in_place(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    log = open_log(path, maxbytes=10)
    inode = path.stat().st_ino
    log.write(b"1--------\n2--------\n3-\n")
    assert path.read_bytes() == b"3-\n"
    assert path.stat().st_ino == inode
    assert len(list(tmp_path.iterdir())) == 1


def test_maxbytes_0_never_rotates(tmp_path: Path, open_log: Open) -> None:
    log = open_log(tmp_path / "app.log", maxbytes=0, backups=3)
    for _ in range(100):
        log.write(b"x" * 999 + b"\n")
    assert (tmp_path / "app.log").stat().st_size == 100_000
    assert len(list(tmp_path.iterdir())) == 1


def test_no_file_is_larger_than_maxbytes_where_lines_are_shorter(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    log = open_log(path, maxbytes=100, backups=50)
    lines = [b"%d " % number + b"x" * (number % 70) for number in range(60)]
    log.write(b"\n".join(lines) + b"\n")
    assert all_lines(path) == lines
    assert max(file.stat().st_size for file in tmp_path.iterdir()) <= 100


def test_a_line_longer_than_maxbytes_is_whole_and_alone(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    log = open_log(path, maxbytes=10, backups=5)
    log.write(b"a\n" + b"L" * 50 + b"\nb\n")
    assert path.read_bytes() == b"b\n"
    assert (tmp_path / "app.log.1").read_bytes() == b"L" * 50 + b"\n"
    assert (tmp_path / "app.log.2").read_bytes() == b"a\n"


def test_rotation_waits_for_the_end_of_a_line_that_comes_in_pieces(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    log = open_log(path, maxbytes=10, backups=5)
    for piece in (b"L" * 8, b"L" * 8, b"L" * 8, b"L\nnext\n"):
        log.write(piece)
    assert (tmp_path / "app.log.1").read_bytes() == b"L" * 25 + b"\n"
    assert path.read_bytes() == b"next\n"


def test_a_line_without_end_does_not_grow_a_file_without_end(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    log = open_log(path, maxbytes=1000, backups=9)
    for _ in range(40):
        log.write(b"x" * 65536)
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert sum(sizes) == 40 * 65536
    assert max(sizes) < 1000 + 1024 * 1024 + 65536


def test_a_refused_rotation_is_said_once_and_no_line_is_lost(
    tmp_path: Path, open_log: Open, said: list[str], clock: Clock
) -> None:
    path = tmp_path / "app.log"
    (tmp_path / "app.log.1").mkdir()  # a file cannot be renamed over a directory
    log = open_log(path, maxbytes=20, backups=1)
    for number in range(20):
        log.write(b"line %02d ---\n" % number)
        clock.passes(0.4)
    assert len(said) == 1
    assert "cannot rotate: Is a directory" in said[0]
    (tmp_path / "app.log.1").rmdir()
    clock.passes(2)
    log.write(b"line 20 ---\n")
    assert said[1:] == [f"{path}: rotates again"]
    assert all_lines(path) == [b"line %02d ---" % number for number in range(21)]


def test_a_rotation_whose_new_file_cannot_be_opened_goes_on_in_the_old_one(
    tmp_path: Path, open_log: Open, said: list[str], clock: Clock
) -> None:
    path = tmp_path / "app.log"
    log = open_log(path, maxbytes=20, backups=3)
    log.write(b"line 00 ---\n")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))  # EMFILE from now on
    try:
        log.write(b"line 01 ---\n")
        log.write(b"line 02 ---\n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(said) == 1
    assert "cannot rotate: Too many open files" in said[0]
    assert all_lines_of(path) == [b"line 00 ---", b"line 01 ---", b"line 02 ---"]
    clock.passes(2)
    log.write(b"line 03 ---\n")
    assert all_lines(path) == [b"line %02d ---" % number for number in range(4)]
    assert not (tmp_path / "app.log.2").exists()


def all_lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def test_a_file_emptied_by_logrotate_is_not_rotated_before_it_is_full(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    log = open_log(path, maxbytes=20, backups=3)
    log.write(b"line 00 --------\n")
    os.truncate(path, 0)  # copytruncate
    log.write(b"line 01 --------\n")
    assert path.read_bytes() == b"line 01 --------\n"
    assert not (tmp_path / "app.log.1").exists()


def test_a_device_is_never_rotated_away(open_log: Open, said: list[str]) -> None:
    master, terminal = os.openpty()  # a character device that is the test's own
    device = os.ttyname(terminal)
    log = open_log(Path(device), maxbytes=10, backups=1)
    for _ in range(5):
        log.write(b"123456789\n")
    got = b""
    while len(got) < 55:
        got += os.read(master, 1000)
    assert got == b"123456789\r\n" * 5
    assert os.path.samestat(os.stat(device), os.fstat(terminal))
    assert said == []
    os.close(master)
    os.close(terminal)


# Reopening


def test_after_a_rename_lines_go_into_the_renamed_file_until_reopen(tmp_path: Path, open_log: Open) -> None:
    path, renamed = tmp_path / "app.log", tmp_path / "app.log-20261120"
    log = open_log(path)
    log.write(b"one\n")
    path.rename(renamed)
    log.write(b"two\n")
    assert log.reopen() is None
    log.write(b"three\n")
    assert renamed.read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"


def test_a_reopen_that_fails_says_why_and_keeps_the_old_file(tmp_path: Path, open_log: Open) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "app.log"
    log = open_log(path)
    directory.rename(tmp_path / "elsewhere")
    assert log.reopen() == f"{path}: cannot open: its directory does not exist"
    log.write(b"still here\n")
    assert (tmp_path / "elsewhere" / "app.log").read_bytes() == b"still here\n"


# Trouble


def test_a_line_half_written_is_taken_back_and_the_loss_is_counted(
    tmp_path: Path, open_log: Open, said: list[str], clock: Clock, file_size_limit: Callable[[int], None]
) -> None:
    path = tmp_path / "app.log"
    log = open_log(path)
    file_size_limit(25)
    log.write(b"line 00 --\nline 01 --\nline 02 --\nline 03 --\n")  # the disk takes 25 bytes of it
    assert path.read_bytes() == b"line 00 --\nline 01 --\n"
    for _ in range(100):
        log.write(b"lost\n")
    assert said == [f"{path}: cannot write: File too large; its lines are lost until this is mended"]
    clock.passes(2)
    log.write(b"a longer line: lost\n")
    assert len(said) == 1
    file_size_limit(10_000)
    clock.passes(2)
    log.write(b"line 04 --\n")
    assert said[1:] == [f"{path}: is written again; 103 lines were lost"]
    assert path.read_bytes() == b"line 00 --\nline 01 --\nline 04 --\n"


def test_the_rest_of_a_line_in_pieces_that_the_disk_refused_does_not_run_into_the_next(
    tmp_path: Path, open_log: Open, clock: Clock, file_size_limit: Callable[[int], None]
) -> None:
    path = tmp_path / "app.log"
    log = open_log(path)
    file_size_limit(25)
    log.write(b"x" * 20)
    log.write(b"y" * 20)
    log.write(b"z\n")
    file_size_limit(10_000)
    clock.passes(2)
    log.write(b"next\n")
    assert path.read_bytes() == b"x" * 20 + b"\nnext\n"


def test_a_full_disk_is_said_once_survived_and_told_with_a_count(
    small_disk: Path, open_log: Open, said: list[str], clock: Clock
) -> None:
    path = small_disk / "app.log"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"b" * 40_000)
    log = open_log(path)
    lines = [b"%05d " % number + b"x" * 93 + b"\n" for number in range(1000)]
    for line in lines:
        log.write(line)
        clock.passes(0.01)
    assert said == [f"{path}: cannot write: No space left on device; its lines are lost until this is mended"]
    kept = all_lines_of(path)
    assert 0 < len(kept) < 300
    ballast.unlink()
    clock.passes(2)
    log.write(b"again\n")
    assert all_lines_of(path) == [*(line[:-1] for line in lines[: len(kept)]), b"again"]
    assert said[1:] == [f"{path}: is written again; {1000 - len(kept)} lines were lost"]


def test_a_device_that_is_always_full(open_log: Open, said: list[str], clock: Clock) -> None:
    log = open_log(Path("/dev/full"))
    for _ in range(50):
        log.write(b"a\nb\n")
        clock.passes(0.3)
    log.close()
    assert said == [
        "/dev/full: cannot write: No space left on device; its lines are lost until this is mended",
        "/dev/full: closed; 100 lines were lost",
    ]


def test_a_file_that_lost_nothing_is_closed_without_a_word(tmp_path: Path, open_log: Open, said: list[str]) -> None:
    log = open_log(tmp_path / "absent" / "app.log")
    assert len(said) == 1
    log.close()
    assert len(said) == 1


def test_a_trouble_is_looked_at_once_a_second_however_many_lines_come(
    tmp_path: Path, open_log: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path / "missing" / "app.log")
    tried: list[object] = []
    really_open = os.open

    def note(path: str, *words: int, **more: int) -> int:
        if path == "missing":
            tried.append(path)
        return really_open(path, *words, **more)

    monkeypatch.setattr(os, "open", note)
    for _ in range(10_000):
        log.write(b"line\n")
        clock.passes(0.001)
    assert 9 <= len(tried) <= 11


def test_a_removed_directory_is_made_again_as_it_was(
    tmp_path: Path, open_log: Open, said: list[str], clock: Clock
) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    directory.chmod(0o751)
    if os.geteuid() == 0:
        os.chown(directory, 1234, 4321)
    before = directory.stat()
    path = directory / "app.log"
    log = open_log(path)
    shutil.rmtree(directory)
    clock.passes(2)
    log.write(b"two\n")
    assert path.read_bytes() == b"two\n"
    after = directory.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert said == [
        f"{path}: its directory was removed; made again",
        f"{path}: the file was removed; a new one is begun",
    ]


def test_a_directory_that_cannot_be_made_again_is_said_once_and_lines_go_on_when_it_is_back(
    tmp_path: Path, open_log: Open, said: list[str], clock: Clock
) -> None:
    directory = tmp_path / "above" / "logs"
    directory.mkdir(parents=True)
    path = directory / "app.log"
    log = open_log(path, maxbytes=1000, backups=2)
    log.write(b"one\n")
    shutil.rmtree(directory.parent)
    clock.passes(2)
    for _ in range(30):
        log.write(b"lost\n")
        clock.passes(0.5)
    assert said == [f"{path}: cannot open: its directory does not exist; its lines are lost until this is mended"]
    directory.mkdir(parents=True)
    clock.passes(2)
    log.write(b"two\n")
    assert path.read_bytes() == b"two\n"
    assert said[1:] == [f"{path}: is written again; 30 lines were lost"]


def test_a_removed_file_is_begun_anew(tmp_path: Path, open_log: Open, said: list[str], clock: Clock) -> None:
    path = tmp_path / "app.log"
    log = open_log(path)
    log.write(b"one\n")
    path.unlink()
    clock.passes(2)
    log.write(b"two\n")
    assert path.read_bytes() == b"two\n"
    assert said == [f"{path}: the file was removed; a new one is begun"]


def test_a_line_that_was_cut_by_the_death_of_its_writer_is_not_joined_with_the_next(
    tmp_path: Path, open_log: Open
) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b"whole\ncu")
    open_log(path).write(b"next\n")
    assert path.read_bytes() == b"whole\ncu\nnext\n"
    open_log(path).write(b"after\n")
    assert path.read_bytes() == b"whole\ncu\nnext\nafter\n"


def test_a_reopen_of_the_same_file_cuts_no_line_that_comes_in_pieces(tmp_path: Path, open_log: Open) -> None:
    path = tmp_path / "app.log"
    log = open_log(path)
    log.write(b"begun, ")
    assert log.reopen() is None
    log.write(b"ended\n")
    assert path.read_bytes() == b"begun, ended\n"


def test_a_symbolic_link_is_not_followed(tmp_path: Path, open_log: Open, said: list[str]) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"secret\n")
    (tmp_path / "app.log").symlink_to(treasure)
    open_log(tmp_path / "app.log").write(b"line\n")
    assert treasure.read_bytes() == b"secret\n"
    assert "symbolic link" in said[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of another user's")
@pytest.mark.parametrize("trusted", [True, False])
def test_a_linked_directory_is_followed_only_where_no_other_user_can_have_linked_it(
    trusted: bool, tmp_path: Path, open_log: Open, said: list[str]
) -> None:
    treasure, home = tmp_path / "treasure", tmp_path / "home"
    treasure.mkdir()
    home.mkdir()
    (home / "logs").symlink_to("../treasure")
    if not trusted:
        os.chown(home, 65534, 65534)
    log = open_log(home / "logs" / "app.log", maxbytes=5, backups=1)
    log.write(b"one\n")
    log.write(b"two\n")
    assert sorted(path.name for path in treasure.iterdir()) == (["app.log", "app.log.1"] if trusted else [])
    assert trusted or "logs is a symbolic link that another user may have put there" in said[0]


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_link_in_a_directory_that_others_can_write_to_is_not_followed(
    mode: int, tmp_path: Path, open_log: Open, said: list[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    (home / "logs").symlink_to(tmp_path)
    open_log(home / "logs" / "app.log").write(b"one\n")
    assert not (tmp_path / "app.log").exists()
    assert "another user may have put there" in said[0]


def test_a_directory_that_becomes_a_link_is_not_rotated_through(
    tmp_path: Path, open_log: Open, said: list[str]
) -> None:
    home, treasure = tmp_path / "home", tmp_path / "treasure"
    (home / "logs").mkdir(parents=True)
    treasure.mkdir()
    home.chmod(0o777)
    log = open_log(home / "logs" / "app.log", maxbytes=5, backups=1)
    log.write(b"one\n")
    (home / "logs").rename(home / "away")
    (home / "logs").symlink_to(treasure)
    log.write(b"two\n")
    assert list(treasure.iterdir()) == []
    assert (home / "away" / "app.log").read_bytes() == b"one\ntwo\n"
    assert "cannot rotate" in said[0]


def test_a_fifo_or_a_directory_in_the_way_is_refused_without_waiting(
    tmp_path: Path, open_log: Open, said: list[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    open_log(tmp_path / "fifo").write(b"line\n")
    os.close(reader)
    open_log(tmp_path / "fifo").write(b"line\n")
    open_log(tmp_path).write(b"line\n")
    assert ["not a regular file" in said[0], "not a regular file" in said[1], "directory" in said[2]] == [True] * 3


def test_reporting_into_the_file_itself_is_no_endless_talk(
    tmp_path: Path, clock: Clock, file_size_limit: Callable[[int], None]
) -> None:
    said: list[str] = []

    def report(message: str) -> None:
        said.append(message)
        log.write(message.encode() + b"\n")

    log = LogFile(str(tmp_path / "own.log"), report=report, clock=clock)
    file_size_limit(10)
    log.write(b"longer than ten\n")
    assert len(said) == 1
    file_size_limit(10_000)
    clock.passes(2)
    log.write(b"next\n")
    assert len(said) == 2
    assert all_lines_of(tmp_path / "own.log") == [b"next", said[1].encode()]
    log.close()


# The registry


def test_processes_with_one_path_share_one_file_until_the_last_lets_go(tmp_path: Path) -> None:
    logs = Logs(Memory(), report=[].append)
    path = str(tmp_path / "app.log")
    one = logs.open(path, 1000, 3, None)
    two = logs.open(str(tmp_path / "x" / ".." / "app.log"), 1000, 3, None)
    assert one is two
    logs.release(one)
    two.write(b"still open\n")
    assert len(logs) == 1
    logs.release(two)
    assert len(logs) == 0
    assert (tmp_path / "app.log").read_bytes() == b"still open\n"


def test_dash_is_the_managers_own_output_and_none_is_nowhere(tmp_path: Path) -> None:
    own = Memory()
    logs = Logs(own, report=[].append)
    logs.open("-").write(b"to own\n")
    logs.open("none").write(b"to nowhere\n")
    logs.release(logs.open("-"))
    logs.release(logs.open("none"))
    assert own.text == b"to own\n"
    assert len(logs) == 0


def test_the_managers_own_file_is_shared_with_a_process_that_names_it_and_outlives_it(tmp_path: Path) -> None:
    own = LogFile(str(tmp_path / "own.log"), report=[].append)
    logs = Logs(own, report=[].append)
    for path in ("-", str(tmp_path / "own.log")):
        assert logs.open(path, 10, 1) is own
        logs.release(own)
    own.write(b"more than ten bytes\n")
    own.write(b"more than ten bytes\n")
    assert (tmp_path / "own.log").stat().st_size == 40
    own.close()


def test_dev_stderr_is_a_stream_that_is_not_followed_as_a_link(tmp_path: Path) -> None:
    with open(tmp_path / "errors", "wb") as file:
        stderr = Stream(file.fileno(), report=[].append)
        logs = Logs(Memory(), report=[].append, streams={2: stderr})
        assert logs.open("/dev/stderr") is stderr
        logs.open("/dev/stderr").write(b"line\n")
    assert (tmp_path / "errors").read_bytes() == b"line\n"


def test_reopen_all_counts_and_names_what_is_wrong(tmp_path: Path) -> None:
    logs = Logs(Memory(), report=[].append)
    (tmp_path / "gone").mkdir()
    paths = [tmp_path / "a.log", tmp_path / "b.log", tmp_path / "gone" / "c.log"]
    for path in paths:
        logs.open(str(path)).write(b"old\n")
        path.rename(f"{path}.old")
    shutil.rmtree(tmp_path / "gone")
    count, problems = logs.reopen_all()
    assert count == 2
    assert problems == [f"{paths[2]}: cannot open: its directory does not exist"]
    logs.open(str(paths[0])).write(b"new\n")
    assert paths[0].read_bytes() == b"new\n"
