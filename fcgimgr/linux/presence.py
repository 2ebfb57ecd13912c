"""Files that are to stay where they are: that one was removed, renamed or replaced is heard of at once, by inotify.

Watched is the file itself and not the directory that it lies in, so that nothing that goes on beside it (in /tmp, say)
wakes anybody: the kernel tells of an inode that loses a name (IN_ATTRIB) or is renamed (inotify(7)). A watch goes by
itself when its file does.
"""

import os
import struct
from typing import Final

from fcgimgr.linux.libc import inotify_add_watch, inotify_init

# linux/inotify.h
_ATTRIB, _MOVED_FROM, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x4, 0x40, 0x200, 0x400, 0x800
_ONLYDIR, _MASK_ADD = 0x01000000, 0x20000000
_ITSELF: Final = _ATTRIB | _MOVE_SELF | _MASK_ADD
_DIRECTORY: Final = _DELETE_SELF | _MOVE_SELF | _ONLYDIR | _MASK_ADD
_EVENT: Final = struct.Struct("=iIII")  # inotify_event: watch, mask, cookie, length of the name that follows
#: So often is read at a time what somebody may go on writing; the rest is read next time.
READS: Final = 4


class Presence:
    """What is watched. OSError; EMFILE: /proc/sys/fs/inotify/max_user_instances."""

    def __init__(self) -> None:
        self._fd = inotify_init()

    def fileno(self) -> int:
        """Readable when something may have gone."""
        return self._fd

    def watch_file(self, path: str, *, moves: bool = True) -> None:
        """Tell of the file's going; that it is renamed only with `moves`.

        OSError as of `watch_directory`, and EACCES: only who may read it may watch it.
        """
        inotify_add_watch(self._fd, path, _ITSELF if moves else _ITSELF & ~_MOVE_SELF)

    def watch_directory(self, path: str, *, files: bool = False) -> None:
        """Tell of the directory's going; with `files`, of that of each file in it as well.

        OSError; ENOSPC: /proc/sys/fs/inotify/max_user_watches.
        """
        inotify_add_watch(self._fd, path, _DIRECTORY | (_DELETE | _MOVED_FROM if files else 0))

    def hear(self, passing: str = "") -> bool:
        """Take in what is told. False: nothing is, but of `passing`, the name of a file that comes and goes.

        What has happened is not said: whoever hears looks.
        """
        names: set[str] = set()
        try:
            for _ in range(READS):
                told = os.read(self._fd, 1 << 16)
                at = 0
                while at < len(told):
                    length = _EVENT.unpack_from(told, at)[3]
                    at += _EVENT.size + length
                    names.add(os.fsdecode(told[at - length : at].rstrip(b"\0")))
        except BlockingIOError:
            pass  # that was all
        return bool(names - {passing} if passing else names)

    def close(self) -> None:
        os.close(self._fd)
