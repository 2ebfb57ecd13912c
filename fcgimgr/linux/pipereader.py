"""What a helper (linux/helper.py) does that reads, opens and closes pipes of which a stranger has the other end.

write(2) keeps the lock of the pipe while it copies, and so while the kernel waits for a page of what is written: for as
long as its file system likes (FUSE, NFS). read(2) waits for that lock, O_NONBLOCK or not, and so do open(2), the last
close(2), splice(2) and FIONREAD; no signal ends that wait, and poll(2) does not tell of it (fs/pipe.c). Whoever must
not stand still has another one do all that.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

#: What is to be done, with which pipe; and for OPEN: of which process, which descriptor, which inode.
ASK: Final = struct.Struct("=IIIIQ")
READ, OPEN, CLOSE = range(3)
#: Bytes read, a descriptor that comes along (1), or what is wrong: -errno.
ANSWER: Final = struct.Struct("=q")

Open = Callable[[int, int, int], int | None]


def serve(into: Sequence[memoryview], open_pipe: Open, its: socket.socket) -> None:
    """Until the manager hangs up. into: where to read to."""
    pipes: dict[int, int] = {}
    with suppress(OSError):
        while asked := socket.recv_fds(its, ASK.size, 1):
            message, received, _, _ = asked
            if not message:
                return
            what, number, pid, fd, inode = ASK.unpack(message)
            if received:
                pipes[number] = received[0]
            answer, given = 0, list[int]()
            try:
                if what == READ:
                    answer = os.readv(pipes[number], into)
                elif what == CLOSE:
                    os.close(pipes.pop(number))
                elif (found := open_pipe(pid, fd, inode)) is not None:
                    answer, given = 1, [found]
            except OSError as error:
                answer = -(error.errno or errno.EIO)
            if given:
                socket.send_fds(its, [ANSWER.pack(answer)], given)
                os.close(given[0])
            else:
                its.send(ANSWER.pack(answer))
