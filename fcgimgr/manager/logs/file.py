"""A log file that rotates by size, written by all processes that name its path.

- Writing never raises and never stops the manager. A full disk, a removed directory, a rotation that is refused are
  reported once, and once more when they are over, with the number of lines that were lost.
- Rotation falls between lines: none is cut or lost by it. Where it fails, the lines go on into the old file.
- A line of which the disk took only a part is taken back (`ftruncate`): what is in the file are whole lines.
- A trouble is looked at again once a second, and only when there is something to write: a child that writes 100,000
  lines a second onto a full disk does not make the manager ask the kernel 100,000 times.

A chunk is whole lines, save for a line longer than a pump waits for: it comes in pieces, and rotation waits for its end
(for OVERRUN bytes at most).
"""

import os
import stat
import time
from collections.abc import Callable

from fcgimgr.linux.directories import directory_of
from fcgimgr.manager.logs import inhand
from fcgimgr.manager.logs.inhand import Left
from fcgimgr.manager.logs.lines import Split
from fcgimgr.manager.logs.opening import make_directory, open_in, open_reason
from fcgimgr.manager.logs.target import NOWHERE, Outage, Report, Target, Trouble, last_bytes, reason, write_some

RETRY = 1.0  # seconds between two looks at a trouble, and at whether the file is still there
OVERRUN = 1024 * 1024  # bytes that an unfinished line may carry a file beyond its maxbytes

# Symbolic links, which a log file does not follow; but configurations of containers name them.
DEVICES = {"/dev/stdout": 1, "/dev/stderr": 2}


class LogFile(Target):
    """The log at `path`.

    `maxbytes`: 0 never rotates. `backups`: how many of `path.1` … `path.N` are kept; 0 empties the file instead.
    `owner`, `mode`: of files created here (opening.py). `clock`: monotonic seconds.
    """

    shows_how_far = True

    __slots__ = (
        "_backups",
        "_check_at",
        "_clock",
        "_fd",
        "_found",
        "_home",
        "_identity",
        "_inside_line",
        "_maxbytes",
        "_mode",
        "_outage",
        "_owner",
        "_regular",
        "_resting",
        "_rotate_at",
        "_rotation",
        "_size",
        "_torn",
        "path",
    )  # fmt: skip

    def __init__(
        self,
        path: str,
        *,
        maxbytes: int = 0,
        backups: int = 0,
        owner: tuple[int, int] | None = None,
        mode: int | None = None,
        report: Report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._maxbytes = maxbytes
        self._backups = backups
        self._owner = owner
        self._mode = mode
        self._clock = clock
        self._outage = Outage(path, report)
        self._rotation = Outage(path, report)
        self._fd = -1
        self._home: os.stat_result | None = None  # its directory, as it was
        self._size = self._found = 0
        self._identity = 0, 0
        self._regular = True
        self._inside_line = False  # what was written last did not end its line
        self._torn = False  # an end of line must be put before what comes next
        self._resting = False  # nothing is tried before _check_at
        self._check_at = 0.0
        self._rotate_at = 0.0
        self._check()
        self._outage.tell()

    def write(self, chunk: bytes | memoryview) -> None:
        if self._clock() >= self._check_at:
            self._check()
        if self._resting:
            self._outage.lose(chunk)
        elif self._maxbytes and self._size + len(chunk) > self._maxbytes and self._regular:
            self._append_rotating(bytes(chunk))
        else:
            self._append(chunk)
        inhand.hand.hand_on(0)
        # Only now: telling may lead to a write to this file, which must not fall between two parts of `chunk`.
        self._rotation.tell()
        self._outage.tell()

    def grown(self, left: Left, split: Split) -> int:
        """As any target's; a line of which a part was written is gone on with."""
        if left.log is None or left.log[:2] != self._identity:
            return 0
        new = last_bytes(self._fd, self._found - left.log[2], self._found)
        if not left.raw:
            lines = split(left.data)[: new.count(b"\n")]
            return sum(len(line) + 1 for line in lines)
        if not left.data.startswith(new):  # somebody else has written to it
            return 0
        self._torn = self._torn and self._size != self._found
        return len(new)

    def limit(self, maxbytes: int, backups: int) -> None:
        """Rotate by these sizes from now on."""
        self._maxbytes = maxbytes
        self._backups = backups

    def make_as(self, owner: tuple[int, int] | None, mode: int | None) -> None:
        """Give files created from now on this owner and mode."""
        self._owner = owner
        self._mode = mode

    def reopen(self) -> str | None:
        """Open `path` anew, as after logrotate has renamed it. Returns what is wrong; the old file is then kept."""
        was_open = self._fd >= 0
        try:
            self._open()
        except OSError as error:
            return f"{self.path}: cannot open: {open_reason(error)}"
        self._resting = False
        if not was_open:
            self._outage.end("is open again")
        self._outage.tell()
        return None

    def open_to_read(self) -> int | None:
        """A descriptor to read the very file that is written to, whatever its path leads to; None: there is none.

        OSError: it may not be read.
        """
        if self._fd < 0 or not self._regular:
            return None
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def troubles(self) -> list[Trouble]:
        """What is wrong with it just now."""
        return [found for one in (self._outage, self._rotation) if (found := one.trouble) is not None]

    def close(self) -> None:
        """Close the file for good; lines written later are lost."""
        self._close_fd()
        self._resting = True
        self._check_at = float("inf")
        self._outage.close()
        self._outage.tell()

    # -- writing ----------------------------------------------------------------------------------------------------

    def _append(self, chunk: bytes | memoryview) -> bool:
        """Write all of `chunk`; False when it failed, with the lost lines counted."""
        if not chunk:
            return True
        if self._torn:
            chunk = b"\n" + bytes(chunk)
        written = 0
        try:
            if not self._torn:
                inhand.hand.writes(*self._identity, self._size)
            while written < len(chunk):
                written += write_some(self._fd, memoryview(chunk)[written:] if written else chunk)
            inhand.hand.wrote(written - self._torn)
        except OSError as error:
            inhand.hand.hand_on(0)
            self._take_back(bytes(chunk), written)
            self._fail(f"cannot write: {reason(error)}")
            return False
        self._size += written
        self._torn = False
        self._inside_line = chunk[-1] != 0x0A
        if self._outage.lasts:
            self._outage.end("is written again")
        return True

    def _take_back(self, chunk: bytes, written: int) -> None:
        """Remove the part of a line that the disk took before it failed, and count the lines it did not take."""
        whole = chunk.rfind(b"\n", 0, written) + 1
        self._outage.lose(chunk, whole)
        if written == whole and not (whole == 0 and self._inside_line):
            self._size += written
            return
        try:
            # Only where nothing but our own bytes can be at the end: another process may append to the file too.
            if self._regular and os.fstat(self._fd).st_size == self._size + written:
                os.ftruncate(self._fd, self._size + whole)
                written = whole
        except OSError as error:
            self._outage.note(f"a line is left half written: {reason(error)}")
        self._size += written
        self._torn = written != whole or (whole == 0 and self._inside_line)

    def _append_rotating(self, chunk: bytes) -> None:
        """Write `chunk`, with rotations between its lines."""
        start = 0
        while start < len(chunk):
            end = self._end_of_what_fits(chunk, start)
            if end == start:
                if self._rotate():
                    continue
                end = len(chunk)
            if not self._append(chunk[start:end]):
                self._outage.lose(chunk, end)
                return
            start = end

    def _end_of_what_fits(self, chunk: bytes, start: int) -> int:
        """Up to where `chunk` can be written from `start` on before a rotation; `start` if that must come first."""
        room = self._maxbytes - self._size
        end = chunk.rfind(b"\n", start, start + room) + 1 if room > 0 else 0
        if end:
            return end
        line_end = chunk.find(b"\n", start) + 1 or len(chunk)
        if self._inside_line:
            return line_end if self._size + line_end - start <= self._maxbytes + OVERRUN else start
        return start if self._size else line_end  # a line longer than maxbytes has a file of its own

    # -- rotation ---------------------------------------------------------------------------------------------------

    def _rotate(self) -> bool:
        """Make room; False when that failed, now or within the last RETRY seconds."""
        if self._clock() < self._rotate_at:
            return False
        try:
            self._make_room()
        except OSError as error:
            self._rotate_at = self._clock() + RETRY
            what = f" ({error.filename2})" if error.filename2 else ""
            self._rotation.begin(
                f"cannot rotate: {reason(error)}{what}", "it grows beyond its maxbytes until this is mended"
            )
            return False
        self._rotation.end("rotates again")
        return True

    def _make_room(self) -> None:
        with directory_of(self.path) as (directory, name):
            self._make_room_in(directory, name)

    def _make_room_in(self, directory: int, name: str) -> None:
        ours = os.fstat(self._fd)
        if ours.st_size < self._size:  # emptied by another, as logrotate's copytruncate does
            self._size = ours.st_size
        elif not is_at(directory, name, ours):
            # Renamed by another, or by us before an open that failed: never rename twice.
            self._open_in(directory, name, like=ours)
        elif self._backups == 0:
            os.ftruncate(self._fd, 0)
            self._size = 0
            self._inside_line = False
        else:
            shift(directory, name, self._backups)
            self._open_in(directory, name, like=ours)

    # -- opening, and trouble ---------------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            with directory_of(self.path) as (directory, name):
                self._open_in(directory, name)
        except FileNotFoundError:
            if self._home is None or self._fd >= 0:  # it never was there, or was moved away with the file that is open
                raise
            make_directory(self.path, self._home)
            self._outage.note("its directory was removed; made again")
            with directory_of(self.path) as (directory, name):
                self._open_in(directory, name)

    def _open_in(self, directory: int, name: str, like: os.stat_result | None = None) -> None:
        """Turn to the file now at `path`; where there is none, create it, and as `like` where nothing else is asked.

        OSError: nothing has changed, and what was open stays open.
        """
        owner, mode = self._owner, self._mode
        if like is not None and os.geteuid() == 0:
            uid, gid = owner or (-1, -1)
            owner = uid if uid != -1 else like.st_uid, gid if gid != -1 else like.st_gid
        if like is not None and mode is None:
            mode = like.st_mode & 0o777  # whatever the old one was: no setuid for what a child writes
        fd = open_in(directory, name, owner=owner, mode=mode, note=self._outage.note)
        found = os.fstat(fd)
        same = self._fd >= 0 and os.path.samestat(os.fstat(self._fd), found)
        self._close_fd()
        self._fd = fd
        self._home = os.fstat(directory)
        self._size = found.st_size
        self._regular = stat.S_ISREG(found.st_mode)
        if not same:
            self._inside_line = False
            self._identity = found.st_dev, found.st_ino
            self._found = found.st_size
            # Whoever wrote it was killed amid a write.
            self._torn = last_bytes(fd, 1, found.st_size) not in (b"", b"\n")

    def _check(self) -> None:
        """Is the file still there, can a trouble be over? At a write, once in RETRY seconds."""
        self._check_at = self._clock() + RETRY
        removed = False
        try:
            if self._fd >= 0 and self._regular and os.fstat(self._fd).st_nlink == 0:
                # Removed, not renamed as by logrotate: the lines would fill the disk where nobody can read them.
                self._close_fd()
                removed = True
            if self._fd < 0:
                self._open()
        except OSError as error:
            self._fail(f"cannot open: {open_reason(error)}")
            return
        self._resting = False
        if removed:
            self._outage.note("the file was removed; a new one is begun")

    def _fail(self, trouble: str) -> None:
        self._resting = True
        self._check_at = self._clock() + RETRY
        self._outage.begin(trouble, "its lines are lost until this is mended")

    def _close_fd(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
        except OSError as error:  # NFS tells here that what was written before did not reach the disk
            self._outage.note(f"lines may be lost: closing said: {reason(error)}")


class Logs:
    """The log files of all processes, one `LogFile` a path: two would rotate it under each other's feet.

    `own`: where `-` leads, the manager's own log; a `LogFile` is shared with processes that name its path.
    `streams`: targets of `/dev/stdout` (1) and `/dev/stderr` (2); what is not among them leads to `own`.
    `followers`: hear what is reported, too. `clock`: monotonic seconds.
    """

    def __init__(
        self,
        own: Target,
        *,
        report: Report,
        streams: dict[int, Target] | None = None,
        followers: list[Report] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = own
        self._report = report
        self._followers = [] if followers is None else followers
        self._streams = streams or {}
        self._clock = clock
        self._files: dict[str, LogFile] = {}
        self._users: dict[str, int] = {}  # how many have opened a path; the manager's own is not counted
        if isinstance(own, LogFile):
            self._files[os.path.abspath(own.path)] = own

    def report(self, message: str) -> None:
        """Tell of something that is wrong with a log, or is over."""
        self._report(message)
        for follower in self._followers:
            follower(message)

    def when_told(self, follower: Report) -> None:
        """Let this, too, hear of each trouble with a file, and of its end."""
        self._followers.append(follower)

    @property
    def streams(self) -> tuple[Target, ...]:
        """The manager's own output and error output."""
        return tuple(self._streams.values())

    def open(
        self,
        path: str,
        maxbytes: int = 0,
        backups: int = 0,
        owner: tuple[int, int] | None = None,
        mode: int | None = None,
    ) -> Target:
        """The target of `path` (`-`: the manager's own output, `none`: nowhere); give it back with `release`.

        Of several processes with one path and different sizes or owners, the last to open it decides. Never raises:
        what is wrong with a file is reported, and it is tried again as lines come.
        """
        if path == "none":
            return NOWHERE
        if path == "-":
            return self._own
        if path in DEVICES:
            return self._streams.get(DEVICES[path], self._own)
        path = os.path.abspath(path)
        file = self._files.get(path)
        if file is self._own:
            return self._own
        if file is None:
            file = LogFile(
                path,
                maxbytes=maxbytes,
                backups=backups,
                owner=owner,
                mode=mode,
                report=self.report,
                clock=self._clock,
            )
            self._files[path] = file
        else:
            file.limit(maxbytes, backups)
            file.make_as(owner, mode)
        self._users[path] = self._users.get(path, 0) + 1
        return file

    def is_own(self, target: Target) -> bool:
        """Whether this is the manager's own log."""
        return target is self._own

    def release(self, target: Target) -> None:
        """One user less; the file is closed with its last."""
        if target is self._own or not isinstance(target, LogFile):
            return
        path = os.path.abspath(target.path)
        self._users[path] -= 1
        if self._users[path] == 0:
            del self._users[path], self._files[path]
            target.close()

    def written_at(self, path: str) -> LogFile | None:
        """The file at this path that is written to just now."""
        return self._files.get(os.path.abspath(path))

    def reopen_all(self) -> tuple[int, list[str]]:
        """Open all files anew, as after logrotate: (how many were, what is wrong with the others)."""
        problems = [problem for file in self._files.values() if (problem := file.reopen()) is not None]
        return len(self._files) - len(problems), problems

    @property
    def troubles(self) -> list[Trouble]:
        """What is wrong with any of them just now."""
        return [trouble for file in self._files.values() for trouble in file.troubles]

    def __len__(self) -> int:
        return len(self._files)


def shift(directory: int, name: str, backups: int) -> None:
    """Rename `name` to `name.1` and what is in the way one up, as far as the first gap; the oldest falls out."""

    def rename(old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)

    last = 1
    while last < backups and stat_in(directory, f"{name}.{last}") is not None:
        last += 1
    for number in range(last, 1, -1):
        rename(f"{name}.{number - 1}", f"{name}.{number}")
    rename(name, f"{name}.1")


def is_at(directory: int, name: str, file: os.stat_result) -> bool:
    found = stat_in(directory, name)
    return found is not None and os.path.samestat(found, file)


def stat_in(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
