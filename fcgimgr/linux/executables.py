"""Which file a command's first word means, and why it could not be executed."""

import errno
import os
import stat
from typing import Final

from fcgimgr.linux.errors import LinuxError

_MISSING: Final = "does not exist"
_UNREADABLE: Final = "cannot be read"
# Where names are looked for that are relative to a directory that is no more: nothing is there.
_REMOVED: Final = "."
_REMEDY: Final = "set `directory`, or give its absolute path"


def find_executable(
    name: str, path: str, directory: str | None = None, *, chroot: str | None = None, key: str = "command"
) -> str:
    """The absolute path of the program `name`; a relative one starts at `directory` (default: ours), as the child will.

    path: the child's PATH. With `chroot` the answer is as seen inside. key: where the name was set, for the message.
    LinuxError: not found, or not executable.
    """
    if chroot is not None and not os.path.isdir(chroot):
        raise LinuxError(f"chroot {chroot}: there is no such directory; create it, or name another")
    start = directory or ("/" if chroot else _our_directory())
    if "/" in name:
        found = os.path.join(start, name.removeprefix("./"))
        if start == _REMOVED and not os.path.isabs(found):
            raise LinuxError(f"{key} {name}: the directory that the manager was started in has been removed; {_REMEDY}")
        refusal = _why_not_executable(chroot, found)
        if refusal:
            raise LinuxError(f"{key} {name}: {found} {refusal}")
        return found
    hidden, unreadable = "", []
    for entry in (path or os.defpath).split(":"):
        found = os.path.join(start, "" if entry == "." else entry, name)
        refusal = _why_not_executable(chroot, found)
        if not refusal:
            return found
        if refusal.startswith(_UNREADABLE):
            unreadable.append(entry)  # a PATH of root's, say, that came along: it hides nothing that is known of
        elif refusal != _MISSING:
            hidden = f"{found} {refusal}"
    if hidden:
        raise LinuxError(f"{key} {name}: {hidden}")
    but = f", of which {', '.join(unreadable)} cannot be read" if unreadable else ""
    where = f"PATH ({path})" if chroot is None else f"PATH ({path}) inside {chroot}"
    remedy = "give its absolute path"
    if name == "python" and any(
        not _why_not_executable(chroot, os.path.join(start, entry, "python3")) for entry in path.split(":")
    ):
        remedy = "python3 is: write that, or give its absolute path"
    raise LinuxError(f"{key} not found: {name}; it is in no directory of {where}{but}; {remedy}")


def why_not_executed(path: str, code: int, who: str, chroot: str | None) -> str:
    """In words: why exec of `path` by `who` failed with the errno `code`."""
    if code == errno.ENOEXEC:
        return "is neither a binary for this machine nor a script with a #! line; add one, or name the interpreter"
    if code == errno.EACCES:
        return f"{who} has no permission to execute it; see its mode, those of the directories above it, and noexec"
    if code == errno.E2BIG:
        return "its arguments and environment are too long"
    if code == errno.ENOENT:
        outside = os.path.join(chroot or "/", path.lstrip("/"))
        if not os.path.lexists(outside):
            return _MISSING
        interpreter = _interpreter(outside)
        if interpreter.endswith("\r"):
            return (
                f"its #! line ends in a carriage return, as lines on Windows do; mend it with: sed -i 's/\\r$//' {path}"
            )
        if interpreter:
            return f"its interpreter {interpreter} does not exist; mend the #! line"
        return "its loader (ldd shows it) does not exist"
    return f"cannot be executed: {os.strerror(code).lower()}"


def _our_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # a release that was cleaned up; what lies elsewhere is found and runs all the same
        return _REMOVED


def _why_not_executable(chroot: str | None, path: str) -> str:
    """Empty if the file at `path` (inside the chroot) can be executed, as far as can be seen from here."""
    outside = path if chroot is None else os.path.join(chroot, path.lstrip("/"))
    try:
        # A symbolic link inside a chroot may lead to where it means something only inside: exec will tell.
        mode = os.stat(outside, follow_symlinks=chroot is None).st_mode
    except OSError as error:
        return _MISSING if error.errno in (errno.ENOENT, errno.ENOTDIR) else f"{_UNREADABLE} ({error.strerror})"
    if stat.S_ISLNK(mode):
        return ""
    if not stat.S_ISREG(mode):
        return "is a directory" if stat.S_ISDIR(mode) else "is not a regular file"
    return "" if os.access(outside, os.X_OK) else "is not executable; chmod +x, or name its interpreter in the command"


def _interpreter(path: str) -> str:
    """What a script's #! line names; empty for a binary, or a file we may not read."""
    try:
        # By now it may be a FIFO, whose writer nobody should wait for.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            line = file.readline(256)
    except OSError:
        return ""
    words = line[2:].rstrip(b"\n").split() if line.startswith(b"#!") else []
    if len(words) == 1 and line.endswith(b"\r\n"):  # which the kernel takes for a part of the name
        words[0] += b"\r"
    return os.fsdecode(words[0]) if words else ""
